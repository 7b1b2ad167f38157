"""The child process that makes a smaller variant of a model: request on stdin, the model's bytes on stdout.

Beside template_child.py the only file that imports onnx, and it alone imports onnxruntime's tools for quantisation, so
that what they take goes back with the process. A script of its own: it must not import the rest of edge_cl. A request:

    {"path": the parent's sys.path, "precision", "model_bytes": n, "sample_shape": [...]} LF
    <n bytes: the float32 model> <samples of this device, float32, the rest>

float16  Weights and activations of the layers, which hold nearly all numbers, in half precision. In float32 stay input
         and output, everything before the first layer, because raw counts of 16 bits have more digits than half
         precision, and everything between layers that does more than pass on.
int8     onnxruntime's static quantisation, QDQ: weights and inputs of the layers in 8 bits, symmetric as TensorRT needs
         them, one scale a tensor. Of the last layer the weights alone, one scale a row: its rows may be of very
         different size, as templates are. Everything else, biases too, stays in float32.

docs/DEPLOYMENT.md says how the choices were made. The result is stripped of what is not needed to run it: names,
intermediate shapes and metadata are a good part of a small model.
"""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

LAYERS = ("Conv", "Gemm", "MatMul")
PASS_ON = ("Relu", "MaxPool", "Flatten", "Reshape", "Transpose")  # exact in any precision
CODES = 127  # int8 without -128: symmetric
SHARED = 1  # elements up to which equal constants are kept once


def main() -> int:
    """Read a request, write the answer; 0, or 1 with a message on stderr."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not end up inside the answer
    os.nice(10)  # a daemon on this machine goes first
    try:
        request = json.loads(sys.stdin.buffer.readline())
        sys.path += [folder for folder in request["path"] if folder and folder not in sys.path]
        content = make(request, sys.stdin.buffer.read())
    except Exception as exc:
        sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
        return 1
    with answer:
        answer.write(content)
    return 0


def make(request: dict[str, Any], body: bytes) -> bytes:
    """The variant asked for. Raises ValueError for a model without layers, and the libraries' own errors."""
    import numpy as np
    import onnx

    model = onnx.load_model_from_string(body[: request["model_bytes"]])
    samples = np.frombuffer(body[request["model_bytes"] :], "<f4").reshape(-1, *request["sample_shape"])
    for index, node in enumerate(model.graph.node):
        node.name = f"{index}.{node.op_type}"  # both tools choose nodes by name, and others' need not be unique
    layers = layers_of(model)
    if not layers:
        raise ValueError(f"no {', '.join(LAYERS)} with weights of its own: nothing to make smaller")
    model = in_half(model, layers) if request["precision"] == "float16" else in_eight_bits(model, layers, samples)
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def layers_of(model: "onnx.ModelProto") -> "list[onnx.NodeProto]":
    """The nodes whose weights are initialisers, in the graph's order, which is that of computing."""
    held = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    return [node for node in model.graph.node if node.op_type in LAYERS and node.input[1] in held]


def in_half(model: "onnx.ModelProto", layers: "list[onnx.NodeProto]") -> "onnx.ModelProto":
    """The model with its layers, and what only passes their outputs on, in float16; input and output in float32.

    Not by onnxruntime's converter: that brings the input, and all that passes from one float32 node to the next, into
    float16 and back.
    """
    rewriting, nodes = Halving(model.graph), list(model.graph.node)
    names = {node.name for node in layers}
    del model.graph.node[:]
    for node in nodes:
        rewriting.add(node, is_layer=node.name in names)
    return model


class Halving:
    """Rebuilds a graph node by node, with casts where float16 and float32 meet."""

    def __init__(self, graph: "onnx.GraphProto") -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.given = {value.name for value in graph.output}
        self.in_half: set[str] = set()
        self.known: set[str] = set()  # casts and halved constants that are there already

    def add(self, node: "onnx.NodeProto", *, is_layer: bool) -> None:
        """Append a node; a layer, or what passes a layer's output on, computes in float16."""
        is_half = is_layer or (node.op_type in PASS_ON and node.input[0] in self.in_half)
        for index, name in enumerate(node.input):
            if is_layer and name in self.constants:
                node.input[index] = self.halved(name)
            elif is_layer and name and name not in self.in_half:
                node.input[index] = self.cast(name, to_half=True)
            elif not is_half and name in self.in_half:
                node.input[index] = self.cast(name, to_half=False)
        self.graph.node.append(node)
        if is_half:
            self.in_half.update(node.output)
        for name in self.given.intersection(node.output) if is_half else ():  # a model's output keeps name and type
            self.in_half.remove(name)
            self.graph.node[-1].output[list(node.output).index(name)] = f"{name}.raw"
            self.cast(f"{name}.raw", to_half=False, called=name)

    def cast(self, name: str, *, to_half: bool, called: str = "") -> str:
        """The name of the same tensor in the other precision."""
        from onnx import TensorProto, helper

        other = called or f"{name}.{'half' if to_half else 'single'}"
        if other not in self.known:
            self.known.add(other)
            to = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
            self.graph.node.append(helper.make_node("Cast", [name], [other], to=to))
        return other

    def halved(self, name: str) -> str:
        """The name of a constant with the same values in float16; those beyond ±65504 become that."""
        import numpy as np
        from onnx import numpy_helper

        other = f"{name}.half"
        if other not in self.known:
            self.known.add(other)
            most = np.finfo(np.float16).max
            values = numpy_helper.to_array(self.constants[name]).clip(-most, most).astype(np.float16)
            self.graph.initializer.append(numpy_helper.from_array(values, other))
        return other


def in_eight_bits(model: "onnx.ModelProto", layers: "list[onnx.NodeProto]", samples: "np.ndarray") -> "onnx.ModelProto":
    """The model with its layers in int8; samples (N, …) tell the range of what goes into each."""
    *body, head = layers
    in_head = head.input[1]
    if body:
        model = quantise(model, [node.name for node in body], samples)
    pack_rows(model, in_head, axis=1 if head.op_type == "MatMul" or not is_transposed(head) else 0)
    return model


def quantise(model: "onnx.ModelProto", nodes: list[str], samples: "np.ndarray") -> "onnx.ModelProto":
    """Static quantisation of these nodes; outputs stay float32, for what comes next is a ReLU or an average."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, quantize_static

    model = onnx.shape_inference.infer_shapes(model)
    # The parent has set TMPDIR to a folder that it removes in any case, also when this process is killed.
    with TemporaryDirectory() as folder:
        quantised = Path(folder, "quantised.onnx")
        quantize_static(
            model,
            quantised,
            Samples(model.graph.input[0].name, samples),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            op_types_to_quantize=list(LAYERS),
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={
                "ActivationSymmetric": True,
                "QuantizeBias": False,  # TensorRT dequantises no int32
                "OpTypesToExcludeOutputQuantization": list(LAYERS),
            },
        )
        model = onnx.load_model(quantised)
    spare_others(model.graph, nodes)
    return model


def spare_others(graph: "onnx.GraphProto", nodes: list[str]) -> None:
    """Let everything but these nodes have the float32 values again: an error is not that against rounded samples."""
    exact = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    rounded = {
        node.output[0]: exact[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in exact
    }
    for node in graph.node:
        if node.name not in nodes:
            for index, name in enumerate(node.input):
                node.input[index] = rounded.get(name, name)


class Samples:
    """What onnxruntime calls a calibration data reader: one sample after the other, then None."""

    def __init__(self, name: str, samples: "np.ndarray") -> None:
        self.rest = iter([{name: sample[None]} for sample in samples])

    def get_next(self) -> "dict[str, np.ndarray] | None":
        """The next sample as an input to a session."""
        return next(self.rest, None)


def is_transposed(node: "onnx.NodeProto") -> bool:
    """Whether the weights' first axis is that of the outputs: a Conv's, and a Gemm's with transB."""
    return node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)


def pack_rows(model: "onnx.ModelProto", name: str, axis: int) -> None:
    """Replace a float32 initialiser by int8 codes and one scale a row along `axis`: w ≈ code · scale."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor)
    others = tuple(other for other in range(weight.ndim) if other != axis)
    scale = np.abs(weight).max(others, keepdims=True) / np.float32(CODES)
    scale[scale == 0] = 1  # a class that was not seen yet
    codes = np.rint(weight / scale).astype(np.int8)
    graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(codes, f"{name}.codes"))
    graph.initializer.append(numpy_helper.from_array(scale.ravel(), f"{name}.scale"))
    inputs = [f"{name}.codes", f"{name}.scale"]
    graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], axis=axis))


def strip(model: "onnx.ModelProto") -> None:
    """Remove what is not needed to run it, and give what remains short names; input and outputs keep theirs."""
    graph = model.graph
    del graph.value_info[:], model.metadata_props[:]
    graph.doc_string = model.doc_string = ""
    for node in graph.node:
        node.name = node.doc_string = ""
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # graphs within nodes use names of this one
    same = share_constants(graph)
    own = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {"": ""}  # an input that is left out has no name
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                name = same.get(name, name)
                names[index] = name if name in own else short.setdefault(name, f"{len(short):x}")
    used = [tensor for tensor in graph.initializer if same.get(tensor.name, tensor.name) == tensor.name]
    for tensor in used:
        tensor.name = short.get(tensor.name, "")
    used = [tensor for tensor in used if tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(used)


def share_constants(graph: "onnx.GraphProto") -> dict[str, str]:
    """For each tiny initialiser that equals an earlier one, the earlier one's name."""
    first: dict[bytes, str] = {}
    same = {}
    for tensor in graph.initializer:
        name, tensor.name = tensor.name, ""
        if sum(tensor.dims) <= SHARED:
            same[name] = first.setdefault(tensor.SerializeToString(), name)
        tensor.name = name
    return {name: other for name, other in same.items() if name != other}


if __name__ == "__main__":
    sys.exit(main())
