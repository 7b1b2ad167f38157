"""Smaller variants: what each keeps exactly, how far it may be off, what is compared, and that nothing stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_cl.storage import variants
from edge_cl.storage.errors import VariantError
from edge_cl.storage.snapshot import Deployed
from edge_cl.storage.variants import compare, latency, make_variant

MEAN = 30_000.0  # of a sensor of 16 bits: neighbours in half precision are 16 apart there
INPUTS, HIDDEN, CLASSES = 64, 256, 4
NEVER = -1e4  # the bias of a class that was not seen yet
BITS = pytest.mark.parametrize("precision", ["float16", "int8"])
METADATA = {"labels": '["a"]', "precision": "what was asked for"}


def network(*, seed: int = 0, score: bool = False) -> bytes:
    """Raw counts (batch, 64) less their mean → 256 hidden units → 4 classes, the last one never seen, or a score."""
    rng = np.random.default_rng(seed)
    weights = {
        "mean": np.full(INPUTS, MEAN, np.float32),
        "w1": rng.normal(0, 0.2, (HIDDEN, INPUTS)).astype(np.float32),
        "b1": rng.normal(0, 0.1, HIDDEN).astype(np.float32),
        "w2": rng.normal(0, 0.1, (INPUTS if score else CLASSES, HIDDEN)).astype(np.float32),
        "b2": np.zeros(INPUTS if score else CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Sub", ["input", "mean"], ["centred"]),
        helper.make_node("Gemm", ["centred", "w1", "b1"], ["z"], transB=1),
        helper.make_node("Relu", ["z"], ["hidden"]),
    ]
    if score:
        outputs = {"reconstruction": INPUTS, "score": 1}
        nodes += [
            helper.make_node("Gemm", ["hidden", "w2", "b2"], ["reconstruction"], transB=1),
            helper.make_node("Sub", ["reconstruction", "centred"], ["error"]),
            helper.make_node("Mul", ["error", "error"], ["square"]),
            helper.make_node("ReduceMean", ["square"], ["score"], axes=[1], keepdims=1),
        ]
    else:
        outputs = {"probabilities": CLASSES}
        weights["w2"][-1], weights["b2"][-1] = 0, NEVER
        nodes += [
            helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"], transB=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"labels": '["a"]', "config": "x" * 1000})
    content: bytes = model.SerializeToString()
    return content


def counts(n: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Raw counts (n, 64), whole numbers within ±6 of the mean."""
    return (MEAN + np.random.default_rng(seed).integers(-6, 7, (n, INPUTS))).astype(np.float32)


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """One network in every precision."""
    model = network()
    return {
        "float32": model,
        **{name: make_variant(model, name, counts(300), METADATA) for name in ("float16", "int8")},
    }  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "most"), [("float16", 0.005), ("int8", 0.1)])
def test_answers_stay_near_those_of_float32_although_raw_counts_have_16_bits(
    made: dict[str, bytes], precision: str, most: float
) -> None:
    """In half precision all these counts would be one of two numbers; they are centred before they lose a digit."""
    x = counts(500, seed=2)
    assert len(np.unique(x.astype(np.float16))) <= 2
    before, after = Deployed(made["float32"])(x), Deployed(made[precision])(x)
    assert np.abs(after - before).max() < most
    assert (after.argmax(1) == before.argmax(1)).mean() > 0.97
    assert len(np.unique(before.argmax(1))) == CLASSES - 1  # it does tell them apart


@BITS
def test_a_class_that_was_not_seen_keeps_probability_0(made: dict[str, bytes], precision: str) -> None:
    answers = Deployed(made[precision])(counts(100))
    assert (answers[:, -1] == 0).all()
    np.testing.assert_allclose(answers.sum(1), 1, atol=1e-3)


@pytest.mark.parametrize(("precision", "times"), [("float16", 1.9), ("int8", 3.6)])
def test_it_is_so_many_times_smaller(made: dict[str, bytes], precision: str, times: float) -> None:
    assert len(made["float32"]) / len(made[precision]) > times


@BITS
def test_it_is_one_standard_file_with_the_same_ends_and_only_the_metadata_given(
    made: dict[str, bytes], precision: str
) -> None:
    model = onnx.load_from_string(made[precision])
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
    before = onnx.load_from_string(made["float32"]).graph
    assert list(model.graph.input) == list(before.input)
    assert list(model.graph.output) == list(before.output)


@BITS
def test_any_number_of_samples_may_come_at_once(made: dict[str, bytes], precision: str) -> None:
    x, deployed = counts(7), Deployed(made[precision])
    one_by_one = np.concatenate([deployed(row[None]) for row in x])
    np.testing.assert_allclose(deployed(x), one_by_one, atol=1e-6)


@BITS
def test_an_output_that_others_build_on_keeps_its_name_and_type(precision: Any) -> None:
    model, x = network(score=True), counts(200)
    before, after = Deployed(model)(x), Deployed(make_variant(model, precision, x, {}))(x)
    assert after.shape == before.shape == (200, INPUTS + 1)
    np.testing.assert_allclose(after[:, -1], before[:, -1], rtol=0.05)
    error = after[:, :-1] - (x - MEAN)
    np.testing.assert_allclose(after[:, -1], (error**2).mean(1), rtol=1e-3)  # of the reconstruction it gives out


def test_int8_weights_are_symmetric_and_nearly_all_numbers_are_of_8_bits(made: dict[str, bytes]) -> None:
    """TensorRT takes symmetric scales only."""
    graph = onnx.load_from_string(made["int8"]).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    zeros = [held[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert all(numpy_helper.to_array(zero) == 0 for zero in zeros)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    in_8_bits = sum(sizes[name] for name, tensor in held.items() if tensor.data_type == TensorProto.INT8)
    assert in_8_bits > 0.95 * sum(sizes.values())


def test_the_range_is_that_of_the_samples_given(made: dict[str, bytes]) -> None:
    """Calibrated on samples a thousand times as strong, what is real falls into a few of the 256 steps."""
    x = counts(300)
    before, fitting = Deployed(made["float32"])(x), Deployed(made["int8"])(x)
    unfitting = Deployed(make_variant(made["float32"], "int8", MEAN + 1000 * (x - MEAN), {}))(x)
    assert np.abs(unfitting - before).max() > 5 * np.abs(fitting - before).max()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which temporary files are made."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_no_file_stays_behind(temporary: Path) -> None:
    make_variant(network(), "int8", counts(20), {})
    assert list(temporary.iterdir()) == []


def test_what_is_no_model_is_refused_with_the_childs_words(temporary: Path) -> None:
    with pytest.raises(VariantError, match="no int8 variant: DecodeError"):
        make_variant(b"\xff" * 100, "int8", counts(2), {})
    assert list(temporary.iterdir()) == []


def test_a_model_without_weights_cannot_be_made_smaller() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["y"])],
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", INPUTS])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(VariantError, match="no Conv, Gemm, MatMul with weights of its own"):
        make_variant(model.SerializeToString(), "float16", counts(2), {})


def test_a_child_that_takes_too_long_is_ended(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "TIMEOUT_S", 0.05)
    with pytest.raises(VariantError, match=r"no float16 variant within 0\.05 s"):
        make_variant(network(), "float16", counts(2), {})
    assert list(temporary.iterdir()) == []


def test_without_a_sample_there_is_nothing_to_calibrate_on() -> None:
    with pytest.raises(ValueError, match="samples: nothing to calibrate on"):
        make_variant(network(), "int8", counts(0), {})


def test_the_process_that_asks_never_imports_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(network())
    program = (
        "import sys, numpy as np\n"
        "from edge_cl.storage.variants import make_variant\n"
        f"x = np.full((4, {INPUTS}), {MEAN}, np.float32)\n"
        "assert make_variant(open('model.onnx', 'rb').read(), 'int8', x, {})\n"
        "print([name for name in ('onnx', 'onnxruntime.quantization', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Comparing


def answering(*classes: int) -> Any:
    """Answers row after row with these classes, whatever is asked."""
    return lambda x: np.eye(3)[list(classes)]


def test_loss_is_counted_on_all_samples_and_accuracy_on_the_exam() -> None:
    labels = np.array([0, 1, 2, 0])
    found = compare(answering(0, 1, 2, 1), answering(0, 2, 2, 0), np.zeros((2, 5)), np.zeros((2, 5)), labels)
    assert (found.exam_samples, found.compared) == (2, 4)
    assert (found.exam_accuracy_float32, found.exam_accuracy) == (1.0, 0.5)
    assert found.loss_points == 0.0  # one lost in the exam, one won beside it
    assert found.changed == 0.5


def test_a_variant_that_answers_better_loses_less_than_nothing() -> None:
    found = compare(answering(1, 1), answering(0, 1), np.zeros((0, 5)), np.zeros((2, 5)), np.array([0, 1]))
    assert found.exam_accuracy is found.exam_accuracy_float32 is None
    assert found.loss_points == -50.0


def test_without_classes_it_is_the_score_that_counts_and_errors_do_not_cancel() -> None:
    def scoring(*scores: float) -> Any:
        return lambda x: np.column_stack([np.zeros((len(scores), 2)), scores])

    found = compare(scoring(1.0, 3.0), scoring(1.2, 2.8), np.zeros((1, 5)), np.zeros((1, 5)), None)
    assert (found.score_float32, found.score) == (2.0, 2.0)
    assert found.loss_points == pytest.approx(10.0)
    assert found.exam_accuracy is None


def test_latency_is_of_one_sample(made: dict[str, bytes]) -> None:
    asked = []
    deployed = Deployed(made["float32"])

    def watched(x: NDArray[np.float32]) -> Any:
        asked.append(x.shape)
        return deployed(x)

    took = latency(watched, counts(1))  # type: ignore[arg-type]
    assert 0 < took.p50 <= took.p99
    assert set(asked) == {(1, INPUTS)}
    assert len(asked) == variants.WARM_UP + variants.TIMED
