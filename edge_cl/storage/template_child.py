"""The child process that builds the template: graph JSON on stdin, model and offsets on stdout, errors on stderr.

A script of its own: it must not import the rest of edge_cl before it has the parent's sys.path, so that it starts under
`python -I` from any folder. The request is {"path": that sys.path, "builder": name, "graph": graph}; a builder is a
module with a `build` that takes the place of the one here. The graph has

    opset      17
    input      {"name", "shape"}: float32, the batch dimension 'batch' is put in front
    outputs    {name: shape}: float32, the batch dimension as well
    nodes      [{"op", "inputs", "outputs", "attributes"}], ONNX's own names
    weights    {name: shape}: float32, written anew at each snapshot
    constants  {name: {"dtype", "values"}}
    backbone   {"path", "sha256", "shape", "layout", "n_features"}, if it is to stand behind one: see backbone_graph.py

Each weight is found by value: it is filled with random bits and looked for in the serialised model, where these bits
must occur exactly once. A name would prove nothing (exporters fold and rename), a value cannot be elsewhere.
"""

import importlib
import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

# Opset 17 came with ONNX 1.12 and its IR version 8; every onnxruntime since 1.12 (2022) loads that.
IR_VERSION = 8

OWN_WORDS = "\0"  # on stderr, begins what this program itself says

# One weight of 4 random bytes is elsewhere in a model of n bytes with probability n / 2³¹, for 1 MB 1 in 2,000:
# 16 misses in a row will not be seen.
ATTEMPTS = 16


@dataclass
class Built:
    """A serialised model, (offset, nbytes) of each weight in it, the weights without a place, and the opset."""

    model: bytes
    offsets: dict[str, tuple[int, int]]
    opset: int
    unused: list[str] = field(default_factory=list)


def main() -> int:
    """Read a request, write the answer; 0, or 1 with a message on stderr, behind whatever libraries said."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up inside the answer
    os.nice(10)  # learning goes first
    try:
        request = json.load(sys.stdin)
        sys.path += [folder for folder in request["path"] if folder and folder not in sys.path]
        builder = request.get("builder")
        made = (build if builder is None else importlib.import_module(builder).build)(request["graph"])
    except Exception as exc:
        sys.stderr.write(f"{OWN_WORDS}{type(exc).__name__}: {exc}\n")
        return 1
    with answer:
        header = {"model_bytes": len(made.model), "offsets": made.offsets, "unused": made.unused, "opset": made.opset}
        answer.write(json.dumps(header).encode() + b"\n")
        answer.write(made.model)
    return 0


def build(graph: dict[str, Any]) -> Built:
    """The model of a graph, and where its weights lie.

    Raises KeyError, ValueError and onnx's own errors for a graph that is none.
    """
    import numpy as np
    import onnx

    for name, shape in graph["weights"].items():
        if 0 in shape:
            raise ValueError(f"weight {name} has no elements (shape {shape})")
    model = behind_backbone(describe(graph), graph)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng(attempt)
        patterns = {tensor.name: fill_randomly(tensor, rng) for tensor in weights_of(model, graph)}
        if attempt == 0:
            onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString()
        offsets = locate(content, patterns)
        if offsets is not None:
            return Built(content, offsets, opset_of(model))
    raise ValueError(f"no weight pattern was unique in {ATTEMPTS} attempts")


def behind_backbone(model: "onnx.ModelProto", graph: dict[str, Any]) -> "onnx.ModelProto":
    """The model, or the one graph of a backbone and the model if there is to be one."""
    if graph.get("backbone") is None:
        return model
    # Not before: in a graph of its own this file needs nothing but onnx.
    from edge_cl.storage.backbone_graph import merged

    return merged(model, graph["backbone"])


def opset_of(model: "onnx.ModelProto") -> int:
    """Version of ONNX's own operators in it."""
    return next(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def describe(graph: dict[str, Any]) -> "onnx.ModelProto":
    """The model with weights of zeros, from what the graph says."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node(node["op"], node["inputs"], node["outputs"], f"{index}.{node['op']}", **node["attributes"])
        for index, node in enumerate(graph["nodes"])
    ]
    weights = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in graph["weights"].items()]
    constants = [
        numpy_helper.from_array(np.array(constant["values"], constant["dtype"]), name)
        for name, constant in graph["constants"].items()
    ]
    given = graph["input"]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "edge_cl",
            [helper.make_tensor_value_info(given["name"], TensorProto.FLOAT, ["batch", *given["shape"]])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
                for name, shape in graph["outputs"].items()
            ],
            weights + constants,
        ),
        opset_imports=[helper.make_opsetid("", graph["opset"])],
        ir_version=IR_VERSION,
        producer_name="edge_cl",
    )


def weights_of(model: "onnx.ModelProto", graph: dict[str, Any]) -> "list[onnx.TensorProto]":
    """The initialisers that are weights, the others being constants."""
    return [tensor for tensor in model.graph.initializer if tensor.name in graph["weights"]]


def fill_randomly(tensor: "onnx.TensorProto", rng: "np.random.Generator") -> bytes:
    """Overwrite the tensor's values by random bits, and return them."""
    import numpy as np

    bits = rng.integers(0, 1 << 32, size=len(tensor.raw_data) // 4, dtype=np.uint32)
    bits &= np.uint32(0xBFFF_FFFF)  # the top exponent bit off: every pattern is a finite number below 2
    tensor.raw_data = bits.astype("<u4").tobytes()
    return tensor.raw_data


def locate(content: bytes, patterns: dict[str, bytes]) -> dict[str, tuple[int, int]] | None:
    """(offset, nbytes) of each pattern, None if one of them does not occur exactly once.

    >>> locate(b"..ab.cd", {"x": b"ab", "y": b"cd"})
    {'x': (2, 2), 'y': (5, 2)}
    >>> locate(b"..ab.ab", {"x": b"ab"}) is None
    True
    """
    offsets = {}
    for name, pattern in patterns.items():
        offset = content.find(pattern)
        if offset < 0 or content.find(pattern, offset + 1) >= 0:
            return None
        offsets[name] = (offset, len(pattern))
    return offsets


if __name__ == "__main__":
    sys.exit(main())
