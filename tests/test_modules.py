"""A user's own PyTorch module: found, tried out, learnt with, and exported so that onnxruntime answers the same."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import user_modules
from numpy.typing import NDArray
from recordings import LABELS, features, images, record, signals
from user_modules import PATIENCE_S

from edge_cl import assembly
from edge_cl.config import Config, resolve
from edge_cl.errors import OperatorError
from edge_cl.learning.graph import weights
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.learning.torch_network import TorchNetwork
from edge_cl.modules import load_network
from edge_cl.storage.errors import TemplateError
from edge_cl.storage.snapshot import Deployed, fill, verify
from edge_cl.storage.template import Template, start_build
from firmware_bridge.sample import Schema

pytestmark = pytest.mark.filterwarnings("ignore:Fisher information by a pass a sample")


def settings(*overrides: str) -> Config:
    return resolve(None, ("consolidation.rehearsal_passes=1", *overrides)).config


def made(config: Config, x: NDArray[Any], names: tuple[str, ...] = LABELS) -> tuple[OnlineLearner, Any, str]:
    """The learner of this configuration for samples like x, its plan and its fingerprint."""
    task = assembly.task_of(config, Schema("probe", x.dtype.name, x.shape[1:], label_names=names))
    blueprint = assembly.blueprint_of(config, task)
    planned = assembly.plan_of(config, task, blueprint)
    learner = assembly.make_learner(config, task, blueprint, planned, seed=0)
    return learner, planned, assembly.fingerprint(task, blueprint)


def taught(config: Config, data: tuple[NDArray[Any], NDArray[np.int64]]) -> OnlineLearner:
    x, y = data
    learner, _, _ = made(config, x)
    for start in range(0, len(x), 10):
        learner.learn(x[start : start + 10], y[start : start + 10])
    learner.consolidate()
    return learner


@functools.cache
def template(name: str) -> Template:
    """The template of a module of signals with three classes, built once."""
    config = settings(f"model.module=user_modules:{name}")
    learner, _, _ = made(config, signals(2)[0])
    return start_build(*assembly.template_request(config, learner, 3)).result(PATIENCE_S)


@pytest.mark.parametrize("name", ["Convolutional", "Tied", "Attentive"])
def test_a_filled_template_answers_as_the_module_does_before_and_after_more_learning(name: str) -> None:
    learner = taught(settings(f"model.module=user_modules:{name}"), signals(60))
    x, y = signals(40, seed=7)
    given, was = x.astype(np.float32), learner.predict(x)[:, :3]
    filled = fill(template(name), weights(learner.network, 3, learner.seen.numpy()), {})
    assert verify(Deployed(filled), given, was) < 1e-5
    learner.learn(x, y)  # running statistics of a BatchNorm move as well
    now = learner.predict(x)[:, :3]
    assert np.abs(now - was).max() > 1e-3
    filled = fill(template(name), weights(learner.network, 3, learner.seen.numpy()), {})
    assert verify(Deployed(filled), given, now) < 1e-5


def test_what_has_no_part_in_an_answer_has_no_place_and_a_tied_weight_one() -> None:
    found = {name: template(name) for name in ("Convolutional", "Tied")}
    assert found["Convolutional"].unused == {"module.idle.weight", "module.idle.bias"}
    assert {"module.batch_norm.running_var", "module.group_norm.weight"} <= found["Convolutional"].offsets.keys()
    assert [name for name in found["Tied"].offsets if name.startswith("module.")] == [
        "module.inwards.weight",
        "module.inwards.bias",
        "module.head.weight",
        "module.head.bias",
    ]
    model = onnx.load_from_string(found["Tied"].model)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", found["Tied"].opset)] == [("", 17)]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 40, 3]
    assert [one.name for one in (*model.graph.input, *model.graph.output)] == ["input", "probabilities"]


@pytest.mark.parametrize(("data", "shape"), [(features(40), (5,)), (images(40), (1, 20, 20))])
def test_vectors_and_images_come_channels_first(data: Any, shape: tuple[int, ...]) -> None:
    config = settings("model.module=user_modules:Flat")
    learner = taught(config, data)
    assert learner.network.standardise.output_shape == shape
    found = start_build(*assembly.template_request(config, learner, 2)).result(PATIENCE_S)
    filled = fill(found, weights(learner.network, 2, np.array([True, False])), {})
    answers = Deployed(filled)(data[0].astype(np.float32))
    np.testing.assert_array_equal(answers, np.tile([1.0, 0.0], (40, 1)))  # a class not seen has probability 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Unsupported", "torch cannot export the module: Unsupported: ONNX export of operator adaptive_avg_pool1d"),
        ("Computed", "module.level of user_modules:Computed has more than one place in the exported graph"),
        (
            "ThroughNumpy",
            "module.level of user_modules:ThroughNumpy was computed with, and is not in",
        ),
        ("another_each_time", "must return the same module each time"),
    ],
)
def test_what_cannot_be_exported_says_why(name: str, said: str) -> None:
    with pytest.raises(TemplateError) as caught:
        template(name)
    assert said in str(caught.value)
    assert "docs/MODELS.md" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.at_all:f", "nowhere.at_all must be importable, which fails with ModuleNotFoundError"),
        ("user_modules:nothing", "user_modules must have a function nothing"),
        ("user_modules:NOT_CALLABLE", "user_modules must have a function NOT_CALLABLE"),
        ("user_modules:failing", r"failing\(\(3, 40\), 16\) must return a torch.nn.Module, but fails with KeyError"),
        ("user_modules:a_class", r"a_class\(\(3, 40\), 16\) must return a torch.nn.Module \(got type\)"),
        ("user_modules:one_logit_more", r"must give 16 logits a sample, the n_outputs .* \(got 17\)"),
        ("user_modules:of_another_shape", r"must take standardised samples of shape \(2, 3, 40\)"),
    ],
)
def test_a_module_that_will_not_do_is_the_operators_fault(path: str, said: str) -> None:
    with pytest.raises(OperatorError, match=rf"^model\.module: .*{said}") as caught:
        made(settings(f"model.module={path}"), signals(2)[0])
    assert caught.value.exit_code == 78
    assert caught.value.hint


@pytest.mark.parametrize(
    ("setting", "said"), [("model.kind=mlp", r"model\.kind: must be auto"), ("snapshots.head=slda", r"snapshots\.head")]
)
def test_settings_that_contradict_a_module_are_refused(setting: str, said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        made(settings("model.module=user_modules:Flat", setting), signals(2)[0])


def test_the_seed_decides_what_a_module_begins_with_and_nobody_elses_numbers_move() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_network("user_modules:Flat", (5,), (5,), 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.arena.flat, again.arena.flat)
    assert not torch.equal(first.arena.flat, other.arena.flat)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_module_takes_the_bytes_that_were_planned() -> None:
    config = settings("model.module=user_modules:Convolutional", "replay.samples=100", "exam.samples=20")
    learner, planned, _ = made(config, signals(2)[0])
    assert isinstance(learner.network, TorchNetwork)
    assert planned["buffers"] == sum(tensor.nbytes for tensor in learner.network.extras.values()) > 0
    assert learner.nbytes + planned.promised == pytest.approx(planned.nbytes, rel=0.01)


def test_a_fingerprint_names_the_function_and_the_classes() -> None:
    x = signals(2)[0]
    own = made(settings("model.module=user_modules:Flat"), x)[2]
    assert own.startswith("user_modules:Flat on int16 [40, 3], weights [[8, 120], [16, 8]]")
    assert own != made(settings("model.module=user_modules:Flat", "model.max_classes=4"), x)[2]


def test_a_module_goes_on_bit_for_bit_from_its_state() -> None:
    config = settings("model.module=user_modules:Tied")
    learner, (x, y) = taught(config, signals(60)), signals(40, seed=3)
    arrays, values = learner.state()
    copy, _, _ = made(config, x)
    copy.restore({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(values)))
    for one in (learner, copy):
        one.learn(x, y)
    np.testing.assert_array_equal(learner.predict(x), copy.predict(x))


def test_the_daemon_learns_with_a_module_of_its_folder_and_never_imports_onnx(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "nets.py").write_text(Path(user_modules.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    recording = record(tmp_path / "signals.npz", 120)
    script = f"""
import sys, warnings
warnings.filterwarnings("ignore", "Fisher information by a pass a sample")
from pathlib import Path
from edge_cl.config import resolve
from edge_cl.daemon import Daemon
config = resolve(None, ("model.module=nets:Convolutional", "consolidation.every_steps=5")).config
summary = Daemon(config, Path({str(tmp_path / "state")!r}), source_url="recording:{recording}", once=True).run()
print(sorted({{"onnx", "onnxscript"}} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    current = tmp_path / "state" / "snapshots" / "current"
    manifest = json.loads((current / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"] == "Convolutional"
    session = onnxruntime.InferenceSession(str(current / "model.onnx"), providers=["CPUExecutionProvider"])
    x, y = signals(60, seed=5)
    answers: NDArray[np.float32] = session.run(None, {"input": x.astype(np.float32)})[0]
    assert (answers.argmax(1) == y).mean() > 0.5
