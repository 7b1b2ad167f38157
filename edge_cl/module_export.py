"""A user's own PyTorch module as an ONNX template, by torch's exporter. Only the template's child imports this.

The exporter is the one that traces TorchScript: it needs no package beside torch, and keeps every parameter as it is
when told to. A graph that it got wrong is noticed where snapshots are verified.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.onnx import TrainingMode, utils

from edge_cl.learning.standardise import Standardise
from edge_cl.learning.torch_network import TorchNetwork
from edge_cl.modules import load_network
from edge_cl.storage.template_child import Built, behind_backbone, locate, opset_of

ATTEMPTS = 3  # by chance two weights look alike to none of them
TRACED = 2  # samples: with one, a module's broadcasts could hide that there may be more


class FromRawSamples(nn.Module):
    """From raw samples (B, *shape) to probabilities (B, C) of the first C classes; its buffers are weights as well."""

    mean: Tensor
    inverse_deviation: Tensor
    most: Tensor

    def __init__(self, module: nn.Module, layout: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.module, self.layout = module, layout
        self.register_buffer("mean", torch.zeros(layout[-1]))
        self.register_buffer("inverse_deviation", torch.ones(layout[-1]))
        self.register_buffer("most", torch.zeros(n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """softmax(min(logits, most)), which is 0 where `most` is far below."""
        h = (x.reshape(-1, *self.layout) - self.mean) * self.inverse_deviation
        h = h.clamp(-Standardise.LIMIT, Standardise.LIMIT)
        if len(self.layout) > 1:
            h = h.permute(0, len(self.layout), *range(1, len(self.layout))).contiguous()
        z = self.module(h)[:, : len(self.most)]
        return torch.minimum(z, self.most).softmax(1)


def build(graph: dict[str, Any]) -> Built:
    """The model of a graph that learning/graph.py's `module_graph` describes, and where its weights lie.

    Raises OperatorError as `load_network`, ValueError if the function returns another module than the learner has, if
    torch cannot export it, or if a weight that has a part in the answers has not one place of its own.
    """
    torch.backends.mha.set_fastpath_enabled(False)  # a kernel that no exporter knows
    layout, shape = tuple(graph["layout"]), tuple(graph["input"]["shape"])
    network = load_network(graph["module"], shape, layout, graph["n_outputs"])
    deployed = FromRawSamples(network.module, layout, *graph["outputs"]["probabilities"]).eval()
    weights = _weights(deployed, network, graph)
    unclear = ""
    for attempt in range(ATTEMPTS):
        generator = np.random.default_rng(attempt)
        patterns = {name: _filled_randomly(tensor, generator) for name, tensor in weights.items()}
        model = behind_backbone(onnx.load_from_string(_exported(deployed, shape, graph["opset"])), graph)
        content = model.SerializeToString()
        places = {name: content.count(pattern) for name, pattern in patterns.items()}
        absent = [name for name, n in places.items() if n == 0]
        for name in absent:
            if _matters(deployed, weights[name], shape):
                raise ValueError(f"{name} of {graph['module']} was computed with, and is not in the exported graph")
        offsets = locate(content, {name: pattern for name, pattern in patterns.items() if name not in absent})
        if offsets is not None:
            onnx.checker.check_model(model, full_check=True)
            return Built(content, offsets, opset_of(model), absent)
        unclear = next((name for name, n in places.items() if n > 1), "")
    raise ValueError(f"{unclear} of {graph['module']} has more than one place in the exported graph")


def _weights(deployed: FromRawSamples, network: TorchNetwork, graph: dict[str, Any]) -> dict[str, Tensor]:
    """Every weight of the graph by its name there."""
    own = {f"module.{name}": tensor for name, tensor in (network.arena.views | network.extras).items()}
    shapes = {name: list(tensor.shape) for name, tensor in own.items()}
    differing = [name for name, shape in graph["weights"].items() if shapes.get(name) != shape]
    if differing:
        raise ValueError(f"{graph['module']} must return the same module each time ({differing[0]} is another one now)")
    return {
        "input.mean": deployed.mean,
        "input.inverse_deviation": deployed.inverse_deviation,
        "output.most": deployed.most,
        **{name: own[name] for name in graph["weights"]},
    }


def _filled_randomly(tensor: Tensor, generator: np.random.Generator) -> bytes:
    """Overwrite the tensor's values by random bits, and return them."""
    bits = generator.integers(0, 1 << 32, size=tensor.numel(), dtype=np.uint32)
    bits &= np.uint32(0xBFFF_FFFF)  # the top exponent bit off: every pattern is a finite number below 2
    values = torch.from_numpy(bits.view(np.float32)).view(tensor.shape)
    with torch.no_grad():
        tensor.copy_(values)
    return bits.astype("<u4").tobytes()


def _exported(deployed: FromRawSamples, shape: tuple[int, ...], opset: int) -> bytes:
    """The serialised model; nothing folded, so that each parameter stays what it is. Raises ValueError, saying why."""
    written: Any = io.BytesIO()  # the exporter says str, and takes both
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # nobody hears them, and what they warn of is verified
        try:
            utils.export(
                deployed,
                (torch.zeros(TRACED, *shape),),
                written,
                training=TrainingMode.PRESERVE,  # with EVAL a BatchNorm is folded into the convolution before it
                do_constant_folding=False,
                opset_version=opset,
                input_names=["input"],
                output_names=["probabilities"],
                dynamic_axes={"input": {0: "batch"}, "probabilities": {0: "batch"}},
            )
        except Exception as exc:  # of many kinds, with the whole graph in their text
            why = str(exc).strip().partition("\n")[0] or type(exc).__name__
            raise ValueError(f"torch cannot export the module: {why}") from exc
    content: bytes = written.getvalue()
    return content


def _matters(deployed: FromRawSamples, weight: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether an answer depends on the weight: then it is no number where that is none."""
    kept = weight.clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
        answers = deployed(torch.zeros(1, *shape))
        weight.copy_(kept)
    return bool(answers.isnan().any())
