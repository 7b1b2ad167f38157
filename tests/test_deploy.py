"""The deployment folder, used as the device uses it that gets it: nothing installed but numpy and onnxruntime."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import LABELS, record, signals
from test_daemon import run

from edge_cl.deploy import PROGRAMS, deploy
from edge_cl.errors import OperatorError
from edge_cl.export import export
from edge_cl.storage.published import ShelfReader
from edge_cl.storage.snapshot import Deployed

INSTALLED = ("numpy", "onnxruntime")
ALL = {"model.onnx", "manifest.json", *PROGRAMS}


@dataclass
class Device:
    """A clean virtual environment, and what was deployed to it."""

    python: Path
    folder: Path

    def answer(self, *arguments: str, stdin: str = "") -> list[str]:
        done = self.start(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.splitlines()

    def start(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-I", str(self.folder / "consumer.py"), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=self.folder.parent)


@pytest.fixture(scope="session")
def clean_python(request: pytest.FixtureRequest) -> Path:
    """Python with the two packages and nothing else, in the versions used here; made once, kept in pytest's cache."""
    assert request.config.cache is not None
    names = [f"{name}=={version(name)}" for name in INSTALLED]
    folder = request.config.cache.mkdir("consumer-" + "-".join([sys.implementation.cache_tag, *names]))
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
        install = ["install", "--quiet", "--disable-pip-version-check", *names]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
        done.touch()
    return python


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with a snapshot."""
    folder = tmp_path_factory.mktemp("learnt")
    run(folder / "state", f"recording:{record(folder / 'signals.npz')}", "exam.share=0.1")
    return folder / "state"


@pytest.fixture(scope="module")
def device(clean_python: Path, learnt: Path, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """The device with an int8 model."""
    folder = tmp_path_factory.mktemp("device") / "deployed"
    export(learnt, out=None, folder=folder, precision="int8", max_loss=100)
    return Device(clean_python, folder)


def expected(folder: Path, x: Any) -> list[str]:
    """What the program is to print for samples x."""
    answers = Deployed((folder / "model.onnx").read_bytes())(x.astype(np.float32))
    return [f"{LABELS[row.argmax()]} {row.max():.4f}" for row in answers]


def as_csv(x: Any) -> str:
    return "".join(",".join(map(str, sample.ravel())) + "\n" for sample in x)


def test_the_device_has_nothing_but_numpy_and_onnxruntime(clean_python: Path) -> None:
    program = (
        "import importlib.util as u; print([n for n in ('torch', 'onnx', 'edge_cl', 'pydantic') if u.find_spec(n)])"
    )
    done = subprocess.run([str(clean_python), "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_answers_csv_json_and_arrays_alike(device: Device, tmp_path: Path) -> None:
    x, _ = signals(12, seed=5)
    wanted = expected(device.folder, x)
    assert len({line.split()[0] for line in wanted}) > 1
    assert device.answer(stdin=as_csv(x) + "\n") == wanted
    assert device.answer(stdin="".join(json.dumps(sample.tolist()) + "\n" for sample in x)) == wanted
    np.save(tmp_path / "x.npy", x)
    assert device.answer(str(tmp_path / "x.npy")) == wanted
    (tmp_path / "x.csv").write_text(as_csv(x), encoding="ascii")
    assert device.answer(str(tmp_path / "x.csv")) == wanted


def test_a_model_that_is_not_the_manifests_is_not_run(clean_python: Path, learnt: Path, tmp_path: Path) -> None:
    export(learnt, out=None, folder=tmp_path / "d")
    model = tmp_path / "d" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\n")
    done = Device(clean_python, tmp_path / "d").start(stdin="1,2\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "model.onnx is not the one that manifest.json names: copy the folder again\n"


def test_without_classes_it_prints_the_score(clean_python: Path, tmp_path: Path) -> None:
    source = f"recording:{record(tmp_path / 'signals.npz', 60)}"
    run(tmp_path / "state", source, "model.kind=predictor", "exam.share=0.1")
    export(tmp_path / "state", out=None, folder=tmp_path / "d")
    x, _ = signals(4, seed=5)
    scores = Deployed((tmp_path / "d" / "model.onnx").read_bytes())(x.astype(np.float32))[:, -1]
    assert Device(clean_python, tmp_path / "d").answer(stdin=as_csv(x)) == [f"score {score:.6g}" for score in scores]


def test_the_folder_has_the_published_manifest_byte_for_byte_with_its_signature(learnt: Path, tmp_path: Path) -> None:
    current = ShelfReader(learnt).current()
    assert current is not None
    signature = current.path.with_name("manifest.sig")
    signature.write_bytes(b"s" * 64)
    try:
        export(learnt, out=None, folder=tmp_path / "d")
    finally:
        signature.unlink()
    assert {entry.name for entry in (tmp_path / "d").iterdir()} == {*ALL, "manifest.sig"}
    for name in ("model.onnx", "manifest.json"):
        assert (tmp_path / "d" / name).read_bytes() == current.path.with_name(name).read_bytes()
    assert (tmp_path / "d" / "manifest.sig").read_bytes() == b"s" * 64


def test_the_next_export_replaces_it_and_takes_a_signature_away_that_is_no_longer_true(tmp_path: Path) -> None:
    deploy(tmp_path / "d", b"one", b"{}", b"s")
    deploy(tmp_path / "d", b"two", b"{ }", None)
    assert {entry.name for entry in (tmp_path / "d").iterdir()} == ALL
    assert (tmp_path / "d" / "model.onnx").read_bytes() == b"two"
    assert (tmp_path / "d" / "manifest.json").read_bytes() == b"{ }"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    for target in (tmp_path, tmp_path / "README.md"):
        with pytest.raises(OperatorError, match="--deploy: must be a new or an empty folder"):
            deploy(target, b"model", b"{}", None)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["README.md"]


def test_such_a_folder_is_refused_before_anything_else_is_written(learnt: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(OperatorError):
        export(learnt, out=tmp_path / "m.onnx", folder=tmp_path / "mine")
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_the_manifest_of_a_variant_says_what_it_costs(device: Device) -> None:
    manifest = json.loads((device.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["precision"] == "int8"
    assert manifest["variant"].keys() >= {"exam_accuracy", "exam_accuracy_float32", "loss_points", "latency_us"}
    assert "verification" not in manifest  # that was of another model
    assert {entry.name for entry in device.folder.iterdir()} == ALL
