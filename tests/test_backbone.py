"""A frozen backbone: features as onnxruntime gives them, a learner on top of them, and the two as one graph."""

from __future__ import annotations

import functools
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from recordings import LABELS, images, record, save
from torch import Tensor, nn
from torch.onnx import utils
from typer.testing import CliRunner
from user_modules import PATIENCE_S

from edge_cl import assembly
from edge_cl.budget import Plan
from edge_cl.cli import app
from edge_cl.config import Config, resolve
from edge_cl.daemon import Daemon
from edge_cl.errors import BudgetExceeded, OperatorError
from edge_cl.learning.backbone import REMEMBERED, Backbone
from edge_cl.learning.graph import weights
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.storage.errors import TemplateError
from edge_cl.storage.snapshot import Deployed, fill, verify
from edge_cl.storage.template import Template, start_build
from firmware_bridge.sample import Schema

D = 36  # features of the backbone below


class Eyes(nn.Module):
    """A small CNN on images (1, 20, 20) of 0 to 255, trained to tell the test images apart; its features (4, 3, 3)."""

    def __init__(self, *, one_at_a_time: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(3, 3))
        self.one_at_a_time = one_at_a_time

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.body(x / 255)
        if self.one_at_a_time:  # as exporters write what was traced with one sample
            return torch.softmax(h.view(1, D), 1).view(1, 4, 3, 3)
        return h


@functools.cache
def eyes(*, one_at_a_time: bool = False) -> Eyes:
    """Trained on images of another seed than any the tests learn from."""
    torch.manual_seed(0)
    net = Eyes(one_at_a_time=False)
    head = nn.Linear(D, len(LABELS))
    optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()], 0.02)
    x, y = images(300, seed=99)
    given, labels = torch.from_numpy(x).float()[:, None], torch.from_numpy(y)
    for _ in range(30):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(net(given).flatten(1)), labels).backward()
        optimiser.step()
    net.one_at_a_time = one_at_a_time
    return net.eval()


@functools.cache
def exported(*, opset: int = 17, batch: str | None = "n", one_at_a_time: bool = False) -> bytes:
    written: Any = io.BytesIO()
    axes = None if batch is None else {"x": {0: batch}, "f": {0: batch}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils.export(
            eyes(one_at_a_time=one_at_a_time),
            (torch.zeros(1, 1, 20, 20),),
            written,
            opset_version=opset,
            input_names=["x"],
            output_names=["f"],
            dynamic_axes=axes,
        )
    content: bytes = written.getvalue()
    return content


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "eyes.onnx"
    path.write_bytes(exported())
    return path


def settings(backbone: Path, *overrides: str) -> Config:
    return resolve(None, (f"model.backbone={backbone}", "consolidation.rehearsal_passes=1", *overrides)).config


def made(config: Config, x: NDArray[Any]) -> tuple[OnlineLearner, Plan, str]:
    """The learner of this configuration for samples like x, its plan and its fingerprint."""
    task = assembly.task_of(config, Schema("probe", x.dtype.name, x.shape[1:], label_names=LABELS))
    blueprint = assembly.blueprint_of(config, task)
    planned = assembly.plan_of(config, task, blueprint)
    learner = assembly.make_learner(config, task, blueprint, planned, seed=0)
    return learner, planned, assembly.fingerprint(task, blueprint)


def taught(config: Config, n: int = 80) -> OnlineLearner:
    x, y = images(n)
    learner, _, _ = made(config, x)
    for start in range(0, n, 10):
        learner.learn(x[start : start + 10], y[start : start + 10])
    learner.consolidate()
    return learner


def template(config: Config, learner: OnlineLearner) -> Template:
    return start_build(*assembly.template_request(config, learner, 3)).result(PATIENCE_S)


# Features


def test_features_are_those_of_the_module_and_a_sample_has_the_same_alone_and_in_company() -> None:
    x = images(40, seed=1)[0]
    backbone = Backbone(exported(), (20, 20), x.dtype, layout=(20, 20, 1))
    found = backbone.features(x)
    assert (found.shape, found.dtype, backbone.n_features) == ((40, D), np.float32, D)
    net = eyes()
    with torch.no_grad():
        expected = net(torch.from_numpy(x).float()[:, None]).flatten(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found, np.concatenate([backbone.features(x[n : n + 1]) for n in range(40)]))
    assert backbone.features(x[:0]).shape == (0, D)


def test_the_last_samples_are_remembered_and_no_more() -> None:
    x = images(40, seed=1)[0]
    backbone = Backbone(exported(), (20, 20), x.dtype, layout=(20, 20, 1))
    assert backbone.recent().shape == (0, 20, 20)
    backbone.features(x)
    np.testing.assert_array_equal(backbone.recent(), x[-REMEMBERED:])
    before = backbone.nbytes
    backbone.features(x)
    assert backbone.nbytes == before == len(exported()) + REMEMBERED * (400 + 4 * D)


def of_one_node(
    op: str,
    shape: list[Any],
    *,
    dtype: int = TensorProto.FLOAT,
    inputs: int = 1,
    out: list[Any] | None = None,
    **k: Any,
) -> bytes:
    names = [f"x{n}" for n in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["f"], **k)],
        "g",
        [helper.make_tensor_value_info(name, dtype, shape) for name in names],
        [helper.make_tensor_value_info("f", k.get("to", dtype), shape)],
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return made


def external() -> bytes:
    model = onnx.load_from_string(exported())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere")
    content: bytes = model.SerializeToString()
    return content


MISFITS = [
    (lambda: b"no model at all", "must be an ONNX model"),
    (external, "must hold its weights itself"),
    (
        lambda: of_one_node("Relu", ["n", 20, 21]),
        r"\(20, 20\), or channels first \(1, 20, 20\) \(got \(20, 21\)\)",
    ),
    (lambda: of_one_node("Relu", [4, 20, 20]), r"any number of samples at once, or one \(got 4\)"),
    (
        lambda: of_one_node("Neg", ["n", 20, 20], dtype=TensorProto.INT8),
        r"one input, of float32 \(got x0 tensor\(int8",
    ),
    (lambda: of_one_node("Add", ["n", 20, 20], inputs=2), "one input, of float32"),
    (lambda: of_one_node("Cast", ["n", 20, 20], to=TensorProto.DOUBLE), "finite float32 features"),
    (lambda: of_one_node("Log", ["n", 20, 20]), "finite float32 features"),
    (lambda: of_one_node("NonZero", ["n", 20, 20], to=TensorProto.INT64), "onnxruntime loads"),
]


@pytest.mark.parametrize(("content", "said"), MISFITS)
def test_a_file_that_will_not_do_is_the_operators_fault(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "misfit.onnx"
    path.write_bytes(content())
    with pytest.raises(OperatorError, match=rf"(?s)^model\.backbone: .*({said}).*misfit\.onnx") as caught:
        made(settings(path), images(1)[0])
    assert caught.value.exit_code == 78
    assert caught.value.hint


def test_a_file_that_is_not_there_and_kinds_that_take_no_features(file: Path) -> None:
    x = images(1)[0]
    with pytest.raises(OperatorError, match=r"model\.backbone: .*No such file.*nowhere\.onnx"):
        made(settings(Path("nowhere.onnx")), x)
    for kind in ("cnn2d", "slda_random", "autoencoder"):
        with pytest.raises(OperatorError, match=rf"model\.kind: must be one of .* \(got {kind}\)"):
            made(settings(file, f"model.kind={kind}"), x)


# The learner on top


def test_it_learns_from_features_and_answers_raw_samples(file: Path) -> None:
    learner = taught(settings(file, "exam.share=0.2"), 200)
    x, y = images(100, seed=8)
    assert (learner.predict(x).argmax(1) == y).mean() > 0.9
    assert learner.network.standardise.layout == (D,)
    assert learner.exam.shape == learner.examples(4).shape[1:] == (20, 20)
    n, accuracy = zip(*learner.examine().values(), strict=True)
    assert sum(n) == learner.exam.size > 0
    assert min(accuracy) > 0.5
    assert learner.losses(x, y).mean() < 1


def test_replay_holds_features_in_8_bits_over_one_span(file: Path) -> None:
    config = settings(file, "distillation.logits=0")
    learner = taught(config)
    assert (learner.replay.shape, learner.replay.bits, learner.replay.bytes_per_sample) == ((D,), 8, D + 2 * 4 + 2)
    x, _ = images(80)
    held = learner.replay.take(np.arange(learner.replay.size))
    features = learner.features(x)
    step = (features.max(1) - features.min(1)) / 255
    nearest = np.abs(held[:, None] - features[None]).max(2)  # (held, 80)
    assert (nearest <= step / 2 + 1e-6).any(1).all()
    raw = taught(settings(file, "replay.bits=null"), 20).replay
    assert (raw.bits, raw.items.dtype) == (None, np.float32)


@pytest.mark.parametrize("kind", ["mlp", "slda", "nearest_mean"])
def test_the_bytes_are_those_planned(file: Path, kind: str) -> None:
    config = settings(file, f"model.kind={kind}", "replay.samples=50", "exam.samples=20")
    learner, planned, _ = made(config, images(1)[0])
    assert planned["backbone"] == len(exported()) + REMEMBERED * (400 + 4 * D)
    assert planned["exam"] == 20 * (400 + 2)
    assert learner.nbytes + planned.promised == pytest.approx(planned.nbytes, rel=0.01)
    small = ("budget.memory_bytes=40 KiB", "bridge.queue_bytes=1 KiB", "storage.durability=checkpoint", "model.width=1")
    with pytest.raises(BudgetExceeded, match=r"backbone"):
        made(settings(file, *small), images(1)[0])


def test_a_learner_goes_on_bit_for_bit_however_its_samples_came(file: Path) -> None:
    config = settings(file)
    learner, (x, y) = taught(config), images(40, seed=3)
    arrays, values = learner.state()
    copy, _, _ = made(config, x)
    copy.restore({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(values)))
    learner.predict(x[:5])  # whose features are remembered; the copy's are not
    for one in (learner, copy):
        one.learn(x[:10], y[:10])
    np.testing.assert_array_equal(learner.predict(x), copy.predict(x))


def test_another_backbone_is_another_model(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(exported(opset=13))
    x = images(1)[0]
    own, again, others = (made(settings(path), x)[2] for path in (file, file, other))
    assert own == again != others
    assert own.startswith("mlp on uint8 [20, 20] behind backbone ")


# One graph


@pytest.mark.parametrize(("opset", "batch", "kind"), [(17, "n", "auto"), (13, "n", "slda"), (20, None, "nearest_mean")])
def test_a_merged_snapshot_answers_as_the_learner_does(
    opset: int, batch: str | None, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "b.onnx"
    path.write_bytes(exported(opset=opset, batch=batch))
    config = settings(path, f"model.kind={kind}")
    learner = taught(config)
    built = template(config, learner)
    assert built.opset == max(17, opset)
    filled = fill(built, weights(learner.network, 3, learner.seen.numpy()), {"a": "b"})
    x = images(40, seed=7)[0]
    assert verify(Deployed(filled), x.astype(np.float32), learner.predict(x)[:, :3]) < 1e-5
    model = onnx.load_from_string(filled)
    onnx.checker.check_model(model, full_check=True)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert built.offsets.keys() <= held.keys()
    for tensor in onnx.load_from_string(path.read_bytes()).graph.initializer:
        np.testing.assert_array_equal(held[f"backbone/{tensor.name}"], numpy_helper.to_array(tensor))
    assert [one.name for one in (*model.graph.input, *model.graph.output)] == ["input", "probabilities"]
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("a", "b")]


def test_a_module_of_ones_own_on_a_backbone(file: Path) -> None:
    config = settings(file, "model.module=user_modules:Flat")
    learner = taught(config)
    filled = fill(template(config, learner), weights(learner.network, 3, learner.seen.numpy()), {})
    x = images(40, seed=7)[0]
    assert verify(Deployed(filled), x.astype(np.float32), learner.predict(x)[:, :3]) < 1e-5


def test_a_batch_that_cannot_be_widened_and_a_file_that_changed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "b.onnx"
    path.write_bytes(exported(batch=None, one_at_a_time=True))
    config = settings(path)
    learner = taught(config, 20)  # learning takes one sample at a time anyhow
    with pytest.raises(TemplateError, match="takes one sample at a time: export it with a dynamic batch"):
        template(config, learner)
    path.write_bytes(exported())
    with pytest.raises(TemplateError, match="is another file than at the start"):
        template(config, learner)


# Where it is used


def test_the_daemon_publishes_a_merged_snapshot_and_goes_on_with_its_state(file: Path, tmp_path: Path) -> None:
    x, y = images(160)
    names = np.array(LABELS)
    recording = save(
        tmp_path / "images.npz", x_train=x[:120], y_train=y[:120], x_test=x[120:], y_test=y[120:], label_names=names
    )
    config, state = settings(file, "consolidation.every_steps=5", "replay.samples=60"), tmp_path / "state"
    Daemon(config, state, source_url=f"recording:{recording}", samples=80).run()
    summary = Daemon(config, state, source_url=f"recording:{recording}", once=True).run()
    assert summary["test_accuracy"] is not None
    assert summary["test_accuracy"] > 0.9
    current = state / "snapshots" / "current" / "model.onnx"
    assert current.stat().st_size > len(exported())
    answers: NDArray[np.float32] = onnxruntime.InferenceSession(str(current)).run(
        None, {"input": x[120:].astype(np.float32)}
    )[0]
    assert (answers.argmax(1) == y[120:]).mean() > 0.9


def test_evaluate_takes_a_backbone(file: Path, tmp_path: Path) -> None:
    x, y = images(160)
    recording = save(tmp_path / "i.npz", x_train=x[:120], y_train=y[:120], x_test=x[120:], y_test=y[120:])
    done = CliRunner().invoke(
        app, ["evaluate", str(recording), "-s", f"model.backbone={file}", "--experiences", "3", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["average_accuracy"]["mean"] > 0.8


def test_a_signal_takes_a_backbone_as_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "s.onnx"
    path.write_bytes(of_one_node("Tanh", ["n", 40, 3]))
    recording = record(tmp_path / "signals.npz", 40)
    Daemon(settings(path), tmp_path / "state", source_url=f"recording:{recording}", once=True).run()
    assert (tmp_path / "state" / "snapshots" / "current" / "model.onnx").exists()
