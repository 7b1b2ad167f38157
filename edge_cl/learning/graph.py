"""A network described as a plain ONNX graph, and the weights that go into it.

The description is JSON-able and names nothing of torch: the storage wing turns it into bytes without knowing networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.layers import Node
from edge_cl.learning.model import Blueprint
from edge_cl.learning.network import Learnable, Network
from edge_cl.learning.standardise import Standardise
from edge_cl.learning.torch_network import TorchNetwork

OPSET = 17  # what onnxruntime 1.12 and TensorRT 8.6 already read
NEVER = -1e4  # logit of a class not seen yet: its probability is exactly 0 in float32
LARGEST = np.finfo(np.float32).max  # no logit is above it


def graph(blueprint: Blueprint, n_classes: int) -> dict[str, Any]:
    """The graph from raw sensor values (batch, *shape) to the probabilities of the first `n_classes` classes.

    Where there are no classes, to the reconstruction (batch, C) and to the anomaly score (batch, 1).
    """
    wires = _Wires(None if blueprint.aim else blueprint.named_layers()[-1][0], n_classes)
    flowing = wires.add("input", Standardise(blueprint.layout).nodes(blueprint.shape), "input")
    came_from: dict[int, str] = {}
    standardised, shape = flowing, blueprint.standardised_shape
    for name, layer in blueprint.named_layers():
        came_from[id(layer)] = flowing = wires.add(name, layer.nodes(shape), flowing)
        shape = layer.output_shape(shape)
    if blueprint.aim:
        outputs = {"reconstruction": [blueprint.n_outputs], "score": [1]}
        wires.rename(flowing, "reconstruction")
        aim, shape = standardised, blueprint.standardised_shape
        for layer in blueprint.aim:  # what the network itself begins with is there already
            aim = came_from.get(id(layer)) or wires.add("aim", layer.nodes(shape), aim)
            shape = layer.output_shape(shape)
        error = [Node("Sub"), Node("Mul", takes=("", "")), Node("ReduceMean", attributes={"axes": [1], "keepdims": 1})]
        wires.rename(wires.add("score", error, "reconstruction", aim), "score")
    else:
        outputs = {"probabilities": [n_classes]}
        wires.rename(wires.add("probabilities", [Node("Softmax", attributes={"axis": 1})], flowing), "probabilities")
    given = {"name": "input", "shape": list(blueprint.shape)}
    return {"opset": OPSET, "input": given, "outputs": outputs, **wires.described}


class _Wires:
    """Gives nodes their inputs and outputs; names that they take and give hold within their layer."""

    def __init__(self, head: str | None, n_classes: int) -> None:
        self.head, self.n_classes = head, n_classes
        self.nodes: list[dict[str, Any]] = []
        self.weights: dict[str, list[int]] = {}
        self.constants: dict[str, dict[str, Any]] = {}

    @property
    def described(self) -> dict[str, Any]:
        """What the graph is made of."""
        return {"nodes": self.nodes, "weights": self.weights, "constants": self.constants}

    def add(self, layer: str, nodes: list[Node], flowing: str, *others: str) -> str:
        """Append a layer's nodes behind `flowing`, the first takes `others` as well; returns what flows from them."""
        outputs = {"x": flowing}
        for node in nodes:
            inputs = [outputs[name] if name else flowing for name in node.takes]
            inputs, others = [*inputs, *others], ()
            for key, shape in node.parameters.items():
                inputs.append(f"{layer}.{key}")
                self.weights[inputs[-1]] = [self.n_classes, *shape[1:]] if layer == self.head else list(shape)
            for dtype, values in node.constants:
                inputs.append(f"constant.{len(self.constants)}")
                self.constants[inputs[-1]] = {"dtype": dtype, "values": list(values)}
            flowing = f"h{len(self.nodes)}"
            outputs[node.gives] = flowing
            self.nodes.append(
                {"op": node.op, "inputs": inputs, "outputs": [flowing], "attributes": dict(node.attributes)}
            )
        return flowing

    def rename(self, output: str, name: str) -> None:
        """Call the last node's output by the name of the graph's own."""
        assert self.nodes[-1]["outputs"] == [output]
        self.nodes[-1]["outputs"] = [name]


def module_graph(network: TorchNetwork, module: str, n_classes: int) -> dict[str, Any]:
    """The description of a PyTorch module's graph, to be made by whoever can import it from `module`.

    Between input and probabilities, the first `n_classes` logits go no higher than `output.most` says. A weight is a
    float32 parameter or buffer of the module, which may turn out to have no part in an answer.
    """
    return {
        "opset": OPSET,
        "module": module,
        "input": {"name": "input", "shape": list(network.shape)},
        "outputs": {"probabilities": [n_classes]},
        "layout": list(network.layout),
        "n_outputs": network.n_outputs,
        "limit": Standardise.LIMIT,
        "weights": {name: list(value.shape) for name, value in _module_weights(network).items()},
    }


def weights(network: Learnable, n_classes: int, seen: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    """The values of the graph's weights now; classes not in `seen` (C,) get probability 0."""
    values = {
        "input.mean": network.standardise.mean.cpu().numpy(),
        "input.inverse_deviation": network.standardise.inverse_deviation.cpu().numpy(),
    }
    if isinstance(network, TorchNetwork):
        values["output.most"] = np.where(seen[:n_classes], LARGEST, np.float32(NEVER))
        return values | {name: value.detach().cpu().numpy() for name, value in _module_weights(network).items()}
    assert isinstance(network, Network)
    values |= {name: view.cpu().numpy() for name, view in network.arena.views.items()}
    if network.blueprint.aim:
        return values
    head = network.blueprint.named_layers()[-1][0]
    values[f"{head}.weight"] = np.where(seen[:n_classes, None], values[f"{head}.weight"][:n_classes], np.float32(0))
    values[f"{head}.bias"] = np.where(seen[:n_classes], values[f"{head}.bias"][:n_classes], np.float32(NEVER))
    return values


def adopt(network: Network, values: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
    """Give the network the weights of a graph made of one like it; the outputs (classes) that were in use.

    `values` as `weights` gave them, for as many classes as there were, in whatever shape the graph has them. Raises
    ValueError naming the weight that is missing or of another size.
    """
    own = {"input.mean": network.standardise.mean, "input.inverse_deviation": network.standardise.inverse_deviation}
    own |= network.arena.views
    head = None if network.blueprint.aim else network.blueprint.named_layers()[-1][0]
    rows = {f"{head}.weight", f"{head}.bias"} if head else set()
    for name, view in own.items():
        if name not in values:
            raise ValueError(f"{name}: no such weight in the graph")
        n = len(values[name]) if name in rows else len(view)
        if n > len(view) or values[name].size != n * view[0].numel():
            raise ValueError(f"{name}: must be of shape {tuple(view.shape)} (got {values[name].shape})")
    used = np.arange(network.n_outputs) if head is None else np.flatnonzero(values[f"{head}.bias"] > NEVER)
    for name, view in own.items():
        given = torch.from_numpy(values[name].copy()).to(view.device).view(-1, *view.shape[1:])
        view[used if name in rows else slice(None)] = given[used] if name in rows else given
    inverse = network.standardise.inverse_deviation
    network.standardise.variance.copy_(torch.where(inverse > 0, inverse.clamp_min(torch.finfo().tiny) ** -2, 0.0))
    network.standardise.refresh()
    return used


def _module_weights(network: TorchNetwork) -> dict[str, Tensor]:
    """The module's float32 tensors, each once, with names that no other weight of the graph has."""
    extras = {name: value for name, value in network.extras.items() if value.dtype == torch.float32}
    return {f"module.{name}": value for name, value in (network.arena.views | extras).items()}
