"""Squared per-sample gradients of PyTorch's own modules, from a call's input and the loss's derivative at its output.

Knows single modules of exact types. Must not know the network around them or how the derivatives were found.

Shapes: B samples, O outputs, I inputs, C channels, K kernel entries, L positions; "..." any positions axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WORKSPACE = 32 * 2**20  # bytes that the per-sample gradients of one chunk of samples may take, patches included


@dataclass(frozen=True)
class Use:
    """One call of a module, seen from one of its parameters: x (B, ...) went in, delta (B, ...) is ∂lossₙ/∂output."""

    module: nn.Module
    key: str
    x: Tensor
    delta: Tensor

    @property
    def is_outer_product(self) -> bool:
        """Whether a sample's gradient is δ xᵀ: a linear layer's weight on vectors."""
        return type(self.module) is nn.Linear and self.key == "weight" and self.x.ndim == 2

    def gradients(self, part: slice) -> Tensor:
        """∂lossₙ/∂parameter of the samples `part`, one a row."""
        rule = RULES[type(self.module)]
        gradients: Tensor = rule(self.module, self.key, self.x[part], self.delta[part])
        return gradients

    def numbers(self) -> int:
        """Numbers that `gradients` holds for one sample on top of the gradient itself."""
        module = self.module
        if isinstance(module, (nn.Conv1d, nn.Conv2d)) and self.key == "weight":
            return self.delta[0, 0].numel() * module.groups * module.weight[0].numel()  # the patches
        return self.x[0].numel()


def add_squares(uses: Sequence[Use], into: Tensor) -> None:
    """into += Σₙ (Σ_uses ∂lossₙ/∂parameter)²: a parameter used several times has one gradient a sample, their sum.

    `uses` are all calls that one parameter took part in. For a linear layer on vectors, used once, the sum over samples
    is the matrix product (δ²)ᵀ x²; all else holds per-sample gradients, of at most WORKSPACE bytes at once.
    """
    if len(uses) == 1 and uses[0].is_outer_product:
        into.addmm_(uses[0].delta.square().t(), uses[0].x.square())
        return
    B = len(uses[0].x)
    numbers = 2 * into.numel() + max(use.numbers() for use in uses)
    for part in chunks(B, numbers):
        total = uses[0].gradients(part)
        for use in uses[1:]:
            total = total + use.gradients(part)
        into.add_(total.square().sum(0))


def chunks(B: int, numbers: int) -> list[slice]:
    """B samples cut so that `numbers` float32 a sample stay within the workspace; one sample at least."""
    size = max(1, WORKSPACE // (4 * numbers))
    return [slice(start, min(start + size, B)) for start in range(0, B, size)]


def objection(module: nn.Module) -> str | None:
    """Why a module that owns learnable parameters has no rule here; None if it has one."""
    if type(module) not in RULES:
        return "there is no rule for its type"
    strangers = [key for key, p in module.named_parameters(recurse=False) if key not in ("weight", "bias")]
    if strangers:
        return f"it owns {strangers[0]}, which its type does not know"
    if isinstance(module, nn.Embedding) and (module.scale_grad_by_freq or module.max_norm is not None):
        return "its gradient depends on the batch (scale_grad_by_freq) or its weight on the input (max_norm)"
    return None


def _linear(module: nn.Linear, key: str, x: Tensor, delta: Tensor) -> Tensor:
    """y = x Wᵀ + b; x (B, ..., I), delta (B, ..., O)."""
    delta = delta.reshape(len(delta), -1, delta.shape[-1])  # (B, L, O)
    if key == "bias":
        return delta.sum(1)
    return delta.transpose(1, 2) @ x.reshape(len(x), -1, x.shape[-1])  # (B, O, I)


def _conv(module: nn.Conv1d | nn.Conv2d, key: str, x: Tensor, delta: Tensor) -> Tensor:
    """A convolution over one or two axes is, for each group, a matrix product with the input's patches."""
    B, groups = len(x), module.groups
    if key == "bias":
        return delta.flatten(2).sum(2)
    x, padding = _padded(module, x)
    one_axis = [1] * (2 - len(module.kernel_size))  # a signal is an image of height one
    patches = functional.unfold(
        x.unsqueeze(2) if one_axis else x,
        (*one_axis, *module.kernel_size),
        dilation=(*one_axis, *module.dilation),
        padding=(*(0 for _ in one_axis), *padding),
        stride=(*one_axis, *module.stride),
    )
    L = patches.shape[2]
    patches = patches.view(B, groups, -1, L)  # (B, groups, K, L)
    gradient = delta.reshape(B, groups, -1, L) @ patches.transpose(2, 3)  # (B, groups, O / groups, K)
    return gradient.view(B, *module.weight.shape)


def _padded(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> tuple[Tensor, list[int]]:
    """The input as far as padding has to be laid around it, and the zeros that `unfold` can add by itself."""
    if module.padding == "valid":
        return x, [0] * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    if module.padding_mode == "zeros" and all(low == high for low, high in sides):
        return x, [low for low, _ in sides]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, list(chain.from_iterable(reversed(sides))), mode=mode), [0] * len(sides)


def _group_norm(module: nn.GroupNorm, key: str, x: Tensor, delta: Tensor) -> Tensor:
    normal = x if key == "bias" else functional.group_norm(x, module.num_groups, None, None, module.eps)
    return _per_channel(key, normal, delta)


def _batch_norm(module: nn.BatchNorm1d, key: str, x: Tensor, delta: Tensor) -> Tensor:
    """With running statistics, as in eval mode: there a sample's answer does not depend on its neighbours."""
    mean, variance = module.running_mean, module.running_var
    normal = x if key == "bias" else functional.batch_norm(x, mean, variance, None, None, False, 0.0, module.eps)
    return _per_channel(key, normal, delta)


def _instance_norm(module: nn.InstanceNorm1d, key: str, x: Tensor, delta: Tensor) -> Tensor:
    mean, variance, own = module.running_mean, module.running_var, not module.track_running_stats
    normal = x if key == "bias" else functional.instance_norm(x, mean, variance, None, None, own, 0.0, module.eps)
    return _per_channel(key, normal, delta)


def _layer_norm(module: nn.LayerNorm, key: str, x: Tensor, delta: Tensor) -> Tensor:
    shape = list(module.normalized_shape)
    return _over_positions(key, functional.layer_norm(x, shape, None, None, module.eps), delta, shape)


def _rms_norm(module: nn.RMSNorm, key: str, x: Tensor, delta: Tensor) -> Tensor:
    shape = list(module.normalized_shape)
    return _over_positions(key, functional.rms_norm(x, shape, None, module.eps), delta, shape)


def _prelu(module: nn.PReLU, key: str, x: Tensor, delta: Tensor) -> Tensor:
    """y = x where x > 0, a x elsewhere; one a for all channels or one each."""
    products = delta * x.clamp_max(0.0)
    return products.flatten(1).sum(1, keepdim=True) if module.num_parameters == 1 else _to_channels(products)


def _embedding(module: nn.Embedding, key: str, x: Tensor, delta: Tensor) -> Tensor:
    """Row i of the weight collects the deltas of all places where i stands; x (B, ...) whole numbers."""
    B, (N, D) = len(x), module.weight.shape
    rows = x.reshape(B, -1) + N * torch.arange(B, device=x.device).unsqueeze(1)
    gradient = delta.new_zeros(B * N, D).index_add_(0, rows.flatten().long(), delta.reshape(-1, D)).view(B, N, D)
    if module.padding_idx is not None:
        gradient[:, module.padding_idx] = 0.0
    return gradient


def _per_channel(key: str, normal: Tensor, delta: Tensor) -> Tensor:
    """y = γ normal + β with one γ and β a channel: Σ δ normal and Σ δ over positions, (B, C)."""
    return _to_channels(delta if key == "bias" else delta * normal)


def _to_channels(products: Tensor) -> Tensor:
    return products.reshape(*products.shape[:2], -1).sum(2)


def _over_positions(key: str, normal: Tensor, delta: Tensor, shape: Sequence[int]) -> Tensor:
    """The same with one γ and β for each of the last axes, of `shape`."""
    products = delta if key == "bias" else delta * normal
    return products.reshape(len(products), -1, *shape).sum(1)


RULES: dict[type[nn.Module], Callable[[Any, str, Tensor, Tensor], Tensor]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
}
