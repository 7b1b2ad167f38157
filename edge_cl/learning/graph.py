"""A network described as a plain ONNX graph, and the weights that go into it.

The description is JSON-able and names nothing of torch: the storage wing turns it into bytes without knowing networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.learning.layers import Node
from edge_cl.learning.model import Blueprint
from edge_cl.learning.network import Network
from edge_cl.learning.standardise import Standardise

OPSET = 17  # what onnxruntime 1.12 and TensorRT 8.6 already read
NEVER = -1e4  # logit of a class not seen yet: its probability is exactly 0 in float32


def graph(blueprint: Blueprint, n_classes: int) -> dict[str, Any]:
    """The graph from raw sensor values (batch, *shape) to the probabilities of the first `n_classes` classes."""
    chain: list[tuple[str, list[Node]]] = [("input", Standardise(blueprint.layout).nodes(blueprint.shape))]
    shape = blueprint.standardised_shape
    for name, layer in blueprint.named_layers():
        chain.append((name, layer.nodes(shape)))
        shape = layer.output_shape(shape)
    chain.append(("probabilities", [Node("Softmax", attributes={"axis": 1})]))
    return {
        "opset": OPSET,
        "input": {"name": "input", "shape": list(blueprint.shape)},
        "output": {"name": "probabilities", "classes": n_classes},
        **_wire(chain, head=blueprint.named_layers()[-1][0], n_classes=n_classes),
    }


def _wire(chain: list[tuple[str, list[Node]]], head: str, n_classes: int) -> dict[str, Any]:
    """Give every node its inputs and output; names that nodes take and give hold within their layer."""
    nodes: list[dict[str, Any]] = []
    weights: dict[str, list[int]] = {}
    constants: dict[str, dict[str, Any]] = {}
    flowing = "input"
    for layer, layer_nodes in chain:
        outputs = {"x": flowing}
        for node in layer_nodes:
            inputs = [outputs[name] if name else flowing for name in node.takes]
            for key, shape in node.parameters.items():
                inputs.append(f"{layer}.{key}")
                weights[inputs[-1]] = [n_classes, *shape[1:]] if layer == head else list(shape)
            for dtype, values in node.constants:
                inputs.append(f"constant.{len(constants)}")
                constants[inputs[-1]] = {"dtype": dtype, "values": list(values)}
            flowing = f"h{len(nodes)}"
            outputs[node.gives] = flowing
            nodes.append({"op": node.op, "inputs": inputs, "outputs": [flowing], "attributes": dict(node.attributes)})
    nodes[-1]["outputs"] = ["probabilities"]
    return {"nodes": nodes, "weights": weights, "constants": constants}


def weights(network: Network, n_classes: int, seen: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    """The values of the graph's weights now; classes not in `seen` (C,) get probability 0."""
    values = {name: view.cpu().numpy() for name, view in network.arena.views.items()}
    values["input.mean"] = network.standardise.mean.cpu().numpy()
    values["input.inverse_deviation"] = network.standardise.inverse_deviation.cpu().numpy()
    head = network.blueprint.named_layers()[-1][0]
    values[f"{head}.weight"] = np.where(seen[:n_classes, None], values[f"{head}.weight"][:n_classes], np.float32(0))
    values[f"{head}.bias"] = np.where(seen[:n_classes], values[f"{head}.bias"][:n_classes], np.float32(NEVER))
    return values
