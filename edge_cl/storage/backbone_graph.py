"""A frozen backbone and what stands on its features as one ONNX graph. Only the template's child imports this.

The raw samples' way:

    input → [Reshape, Transpose] → backbone → Reshape → head → its outputs
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

PREFIX = "backbone/"  # no name of a head begins so
FEATURES = "backbone.features"


def merged(head: "onnx.ModelProto", description: dict[str, Any]) -> "onnx.ModelProto":
    """The backbone that is described and a head on it, from raw samples (batch, *shape) to the head's outputs.

    Weights of the head keep their names. Both take the higher of their two opsets. `layout` is how a raw sample lies
    with its channels last if the backbone takes them first, else None. Raises ValueError if the file is not the one
    that was described or its batch of 1 cannot be widened, and onnx's own errors for graphs that do not convert.
    """
    from onnx import compose

    model = Path(description["path"]).read_bytes()
    if hashlib.sha256(model).hexdigest() != description["sha256"]:
        raise ValueError(f"{description['path']} is another file than at the start: start again to learn on that one")
    backbone = _prefixed(model)
    backbone, head = _of_one_opset(backbone, head)
    was_fixed = _widen_batch(backbone)
    _lead_in(backbone, description)
    head = compose.add_prefix(
        head,
        "head/",
        rename_nodes=False,
        rename_edges=False,
        rename_inputs=True,
        rename_outputs=False,
        rename_initializers=False,
        rename_value_infos=False,
        rename_functions=False,
    )
    whole = compose.merge_models(
        backbone, head, io_map=[(FEATURES, head.graph.input[0].name)], name="edge_cl", producer_name="edge_cl"
    )
    del whole.metadata_props[:]  # who made the backbone has described something else
    if was_fixed:
        _check_batch(whole, description["shape"])
    return whole


def _prefixed(content: bytes) -> "onnx.ModelProto":
    """The backbone with names of its own, without weights among its inputs, and with its first output alone."""
    import onnx
    from onnx import compose

    model = onnx.load_from_string(content)
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in held]
    del model.graph.input[:], model.graph.output[1:]
    model.graph.input.extend(inputs)
    return compose.add_prefix(model, PREFIX)


def _of_one_opset(backbone: "onnx.ModelProto", head: "onnx.ModelProto") -> "tuple[onnx.ModelProto, onnx.ModelProto]":
    from onnx import version_converter

    versions = [next(o.version for o in m.opset_import if o.domain in ("", "ai.onnx")) for m in (backbone, head)]
    highest = max(versions)
    backbone, head = (
        model if version == highest else version_converter.convert_version(model, highest)
        for model, version in zip((backbone, head), versions, strict=True)
    )
    backbone.ir_version = head.ir_version = max(backbone.ir_version, head.ir_version)
    return backbone, head


def _widen_batch(backbone: "onnx.ModelProto") -> bool:
    """Let any number of samples in; whether it had been made for one."""
    first = backbone.graph.input[0].type.tensor_type.shape.dim[0]
    was_fixed: bool = first.HasField("dim_value")
    first.dim_param = "batch"
    del backbone.graph.value_info[:]  # what they say of shapes held for the old batch
    return was_fixed


def _lead_in(backbone: "onnx.ModelProto", description: dict[str, Any]) -> None:
    """Put in front what brings raw samples into the backbone's order, and behind it what flattens its output."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph, shape, layout = backbone.graph, description["shape"], description["layout"]
    given, found = graph.input[0].name, graph.output[0].name
    flat = [-1, description["n_features"]]
    graph.initializer.append(numpy_helper.from_array(np.array(flat, np.int64), "backbone.flat"))
    if layout is None:
        front = [helper.make_node("Identity", ["input"], [given], "backbone.input")]
    else:
        order = [0, len(layout), *range(1, len(layout))]
        graph.initializer.append(numpy_helper.from_array(np.array([0, *layout], np.int64), "backbone.layout"))
        front = [
            helper.make_node("Reshape", ["input", "backbone.layout"], ["backbone.channels_last"], "backbone.reshape"),
            helper.make_node("Transpose", ["backbone.channels_last"], [given], "backbone.transpose", perm=order),
        ]
    nodes = [*front, *graph.node, helper.make_node("Reshape", [found, "backbone.flat"], [FEATURES], "backbone.flatten")]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape]))
    graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", flat[1]]))


def _check_batch(model: "onnx.ModelProto", shape: list[int]) -> None:
    """Two samples together must be answered as each by itself."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it has to say comes as an exception
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    two = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    try:
        together = session.run(None, {"input": two})[0]
        alone = np.concatenate([session.run(None, {"input": one[None]})[0] for one in two])
        same = together.shape == alone.shape and np.allclose(together, alone, atol=1e-4)
    except Exception:  # onnxruntime's classes share no base of their own
        same = False
    if not same:
        raise ValueError("model.backbone takes one sample at a time: export it with a dynamic batch")
