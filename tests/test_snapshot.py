"""Filled templates, read back by onnx and run by onnxruntime; and everything that verify must not let through."""

import time

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from storage_models import GRAPH, answers, samples, template, weights

from edge_cl.storage.errors import SnapshotMismatch, TemplateError
from edge_cl.storage.protobuf import has_external_data, metadata_props
from edge_cl.storage.snapshot import Deployed, fill, verify
from edge_cl.storage.template import Template, start_build

METADATA = {"label_names": '["ok", "worn"]', "empty": "", "unit": "m/s² – größer", "long": "x" * 100_000}


def test_a_filled_template_has_the_weights_the_metadata_and_nothing_else_changed() -> None:
    w = weights(3)
    model = onnx.load_from_string(fill(template(), w, METADATA))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.key, entry.value) for entry in model.metadata_props] == list(METADATA.items())
    for tensor in model.graph.initializer:
        if tensor.name in w:
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), w[tensor.name], strict=True)
            tensor.ClearField("raw_data")
    del model.metadata_props[:]
    before = onnx.load_from_string(template().model)
    for tensor in before.graph.initializer:
        if tensor.name in w:
            tensor.ClearField("raw_data")
    assert model == before


def test_onnxruntime_answers_as_numpy_does_for_any_batch() -> None:
    w = weights(4)
    model = fill(template(), w, METADATA)
    for n in (1, 2, 33):
        x = samples(n)
        assert 0 <= verify(Deployed(model), x, answers(w, x)) < 1e-6


def test_a_model_for_one_batch_size_only_is_noticed() -> None:
    """Whichever it is: verify asks for one row, and for all of them."""
    w, x = weights(4), samples(8)
    for n in (1, 8):
        model = onnx.load_from_string(fill(template(), w, {}))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = n
        with pytest.raises(SnapshotMismatch, match="does not run"):
            verify(Deployed(model.SerializeToString()), x, answers(w, x))


@settings(deadline=None, max_examples=50)
@given(metadata=st.dictionaries(st.text(), st.text(), max_size=8))
def test_onnx_reads_back_any_metadata(metadata: dict[str, str]) -> None:
    model = onnx.load_from_string(template().model + metadata_props(metadata))
    assert [(entry.key, entry.value) for entry in model.metadata_props] == list(metadata.items())
    del model.metadata_props[:]
    assert model == onnx.load_from_string(template().model)


def test_weights_in_any_memory_order_are_written_in_the_same() -> None:
    w = weights(5)
    turned = {name: np.asfortranarray(values) for name, values in w.items()}
    assert fill(template(), turned, {}) == fill(template(), w, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": np.zeros(1, np.float32)}, r"unknown \['extra'\]"),
        ({"fc.bias": np.zeros(15, np.float32)}, "weight fc.bias: float32, 60 bytes"),
        ({"fc.bias": np.zeros(8, np.float64)}, "weight fc.bias: float64"),
        ({"fc.bias": np.zeros(16, ">f4")}, "weight fc.bias: >f4"),
    ],
)
def test_weights_of_another_model_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        fill(template(), {**weights(), **change}, {})


def test_a_missing_weight_is_refused_so_that_no_placeholder_is_published() -> None:
    w = weights()
    del w["gain"]
    with pytest.raises(TemplateError, match=r"missing \['gain'\]"):
        fill(template(), w, {})


@pytest.mark.parametrize("name", GRAPH["weights"])
def test_a_change_of_any_weight_is_noticed(name: str) -> None:
    w, x = weights(), samples(20)
    other = {**w, name: w[name].copy()}
    other[name].flat[0] += 0.01  # one element: the same added to all logits would not change the softmax
    with pytest.raises(SnapshotMismatch, match="differ from the learner's by") as caught:
        verify(Deployed(fill(template(), other, {})), x, answers(w, x))
    assert caught.value.difference > 1e-5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_noticed(value: float) -> None:
    w, x = weights(), samples(2)
    w["fc.bias"][0] = value
    with np.errstate(invalid="ignore"):
        expected = answers(w, x)
    with pytest.raises(SnapshotMismatch, match="not finite"):
        verify(Deployed(fill(template(), w, {})), x, expected)


def test_a_learner_that_answers_nan_is_noticed() -> None:
    w, x = weights(), samples(3)
    expected = answers(w, x)
    expected[1, 2] = np.nan
    with pytest.raises(SnapshotMismatch, match="differ"):
        verify(Deployed(fill(template(), w, {})), x, expected)


def test_the_tolerance_is_the_bound() -> None:
    w, x = weights(), samples(3)
    expected = answers(w, x)
    expected[2, 1] += 1e-3
    model = fill(template(), w, {})
    assert verify(Deployed(model), x, expected, tolerance=1.01e-3) == pytest.approx(1e-3, rel=1e-2)
    with pytest.raises(SnapshotMismatch):
        verify(Deployed(model), x, expected, tolerance=0.99e-3)


def test_answers_that_are_no_probabilities_are_noticed() -> None:
    graph = {**GRAPH, "nodes": [*GRAPH["nodes"][:-1], {**GRAPH["nodes"][-1], "op": "Sigmoid", "attributes": {}}]}
    sigmoid = start_build(graph).result(60)
    with pytest.raises(SnapshotMismatch, match="does not sum to 1"):
        verify(Deployed(fill(sigmoid, weights(), {})), samples(3), answers(weights(), samples(3)))


def test_wrong_shapes_and_broken_bytes_are_noticed() -> None:
    w, x = weights(), samples(3)
    model, expected = fill(template(), w, {}), answers(w, x)
    with pytest.raises(SnapshotMismatch, match="answers \\(1, 4\\), the learner \\(1, 5\\)"):
        verify(Deployed(model), x, np.zeros((3, 5)))
    with pytest.raises(SnapshotMismatch, match="does not run"):
        verify(Deployed(model), x[:, :4], expected)
    with pytest.raises(SnapshotMismatch, match=r"not an ONNX model|does not load"):
        verify(Deployed(model[: len(model) // 2]), x, expected)
    with pytest.raises(SnapshotMismatch, match="does not load"):
        verify(Deployed(b""), x, expected)
    with pytest.raises(ValueError, match="0 rows"):
        verify(Deployed(model), x[:0], expected[:0])


def external(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def model_of(*nodes: onnx.NodeProto, initializer: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph(list(nodes), "g", [], [y], list(initializer)))


def hidden_in_a_subgraph() -> onnx.ModelProto:
    inner = model_of(helper.make_node("Constant", [], ["y"], value=external())).graph
    return model_of(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))


def hidden_in_a_function() -> onnx.ModelProto:
    model = model_of()
    model.functions.add(name="f").node.append(helper.make_node("Constant", [], ["y"], value=external()))
    return model


def hidden_in_a_sparse_tensor() -> onnx.ModelProto:
    model = model_of()
    model.graph.sparse_initializer.add().values.CopyFrom(external())
    return model


def only_located() -> onnx.ModelProto:
    tensor = external()
    del tensor.external_data[:]
    return model_of(initializer=(tensor,))


@pytest.mark.parametrize(
    "model",
    [
        model_of(initializer=(external(),)),
        model_of(helper.make_node("Constant", [], ["y"], value=external())),
        hidden_in_a_subgraph(),
        hidden_in_a_function(),
        hidden_in_a_sparse_tensor(),
        only_located(),
    ],
    ids=["initializer", "attribute", "subgraph", "function", "sparse", "location-only"],
)
def test_external_data_is_refused_wherever_it_hides(model: onnx.ModelProto) -> None:
    with pytest.raises(SnapshotMismatch, match="external data"):
        verify(Deployed(model.SerializeToString()), samples(1), np.ones((1, 4)) / 4)


def test_a_template_has_no_external_data_and_neither_have_constants() -> None:
    assert not has_external_data(template().model)
    inside = numpy_helper.from_array(np.ones(1, np.float32), "w")
    assert not has_external_data(model_of(helper.make_node("Constant", [], ["y"], value=inside)).SerializeToString())


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: template().model[:700] + tail))
def test_broken_protobuf_is_a_value_error_and_nothing_else(content: bytes) -> None:
    try:
        answer = has_external_data(content)
    except ValueError:
        return
    assert answer in (True, False)


def test_deeply_nested_messages_do_not_exhaust_the_stack() -> None:
    def field(number: int, content: bytes) -> bytes:
        size, out = len(content), bytearray()
        while size > 0x7F:
            out.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes([number << 3 | 2]) + bytes(out) + bytes([size]) + content

    graph = field(5, external().SerializeToString())
    for _ in range(3000):
        graph = field(1, field(5, field(6, graph)))  # node, attribute, graph
    assert has_external_data(field(7, graph))


def test_filling_a_megabyte_takes_milliseconds() -> None:
    """0.3 ms on the machine it was written on; 20 ms is far above a loaded one, far below any exporter."""
    size = 250_000
    rng = np.random.default_rng(0)
    big = Template(
        rng.bytes(4 * size + 2000), {"a": (500, 2 * size), "b": (500 + 2 * size, 4), "c": (1000 + 2 * size, 2 * size)}
    )
    w = {name: rng.normal(size=n // 4).astype(np.float32) for name, (_, n) in big.offsets.items()}
    took = []
    for _ in range(20):
        start = time.perf_counter()
        filled = fill(big, w, {"key": "value"})
        took.append(time.perf_counter() - start)
    for name, (offset, n) in big.offsets.items():
        assert filled[offset : offset + n] == w[name].tobytes()
    assert filled[:500] == big.model[:500]
    assert sorted(took)[len(took) // 2] < 0.02
