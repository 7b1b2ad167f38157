"""From `package.module:function` to a user's own PyTorch module, or to what is wrong with it, said plainly.

Knows importing, and what a module must be like. Must not know what is learnt with it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from edge_cl.errors import OperatorError
from edge_cl.learning.standardise import channels_first
from edge_cl.learning.torch_network import TorchNetwork

KEY = "model.module"


def load_network(
    path: str, shape: tuple[int, ...], layout: tuple[int, ...], n_outputs: int, *, seed: int = 0
) -> TorchNetwork:
    """The network of what the function at `path`, package.module:function, returns for one shape and so many logits.

    `shape` is a raw sample's, `layout` the same with channels last; the function is given that of a standardised
    sample, channels first. It is looked for wherever Python looks, and then in the folder the program was started in,
    so that no file there can take the place of an installed package. Random numbers drawn by it come from `seed`.
    Raises OperatorError, naming the rule, for a function that is not there and a module that cannot learn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _called(path, channels_first(layout), n_outputs)
        try:
            network = TorchNetwork(module, layout, shape)
        except ValueError as exc:
            raise OperatorError(f"model.{exc}", hint=f"{path} makes it: docs/MODELS.md has an example") from exc
    if network.n_outputs != n_outputs:
        raise OperatorError(
            f"{KEY}: must give {n_outputs} logits a sample, the n_outputs it was called with (got {network.n_outputs})",
            hint=f"use n_outputs for the last layer of {path}",
        )
    return network


def _called(path: str, shape: tuple[int, ...], n_outputs: int) -> nn.Module:
    name, _, function_name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        imported = importlib.import_module(name)
    except Exception as exc:  # whatever a user's own file does while it is imported
        raise OperatorError(
            f"{KEY}: {name} must be importable, which fails with {_told(exc)} (got {path})",
            hint=f"start in the folder that {name.split('.')[0]} lies in, or install it",
        ) from exc
    function = getattr(imported, function_name, None)
    if not callable(function):
        raise OperatorError(
            f"{KEY}: {name} must have a function {function_name} (got {path})",
            hint="it is to take (shape, n_outputs) and return a torch.nn.Module",
        )
    call = f"{path.partition(':')[2]}({shape}, {n_outputs})"
    try:
        module = function(shape, n_outputs)
    except Exception as exc:  # as above
        raise OperatorError(
            f"{KEY}: {call} must return a torch.nn.Module, but fails with {_told(exc)} (got {path})",
            hint="shape is that of one standardised sample, channels first, without the batch",
        ) from exc
    if not isinstance(module, nn.Module):
        raise OperatorError(
            f"{KEY}: {call} must return a torch.nn.Module (got {type(module).__name__})",
            hint="return the module itself, neither its class nor its logits",
        )
    return module


def _told(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"
