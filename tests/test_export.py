"""`edge-cl export`: which snapshot it hands out, in which precision, and when it hands out none."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from recordings import LABELS, record, signals
from test_daemon import playing, run, run_and_stop_at, saved

from edge_cl.cli import main
from edge_cl.errors import Exit
from edge_cl.keeping.saved import load_saved
from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.published import ShelfReader
from edge_cl.storage.shelf import Shelf

ROOT = Path(__file__).parent.parent
Export = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"recording:{record(tmp_path_factory.mktemp('recording') / 'signals.npz', 400)}"


@pytest.fixture(scope="module")
def learnt(recording: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with two snapshots, whose daemon ended between two consolidations; only to be read."""
    state = tmp_path_factory.mktemp("learnt") / "state"
    run_and_stop_at(290, state, recording, "model.width=32", "exam.share=0.1")
    return state


@pytest.fixture
def state(learnt: Path, tmp_path: Path) -> Path:
    """The same as one's own."""
    copy = tmp_path / "state"
    shutil.copytree(learnt, copy, symlinks=True)
    return copy


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """The command in an empty folder; its exit code, and its answer."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(state: Path, *options: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as caught:
            main(("export", "--state", str(state), "--json", *options))
        said = capsys.readouterr().out
        return int(caught.value.code or 0), json.loads(said) if said else {}

    return call


def predicted(model: Path) -> Any:
    """What onnxruntime makes of other windows of the same kind."""
    x, _ = signals(60, seed=9)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.astype(np.float32)})[0]


# Precision


@pytest.mark.parametrize(("precision", "times", "off"), [("float16", 1.4, 0.01), ("int8", 1.4, 0.2)])
def test_fewer_bits_are_compared_with_float32_on_the_devices_own_samples(
    precision: str, times: float, off: float, learnt: Path, export: Export
) -> None:
    code, facts = export(learnt, "--out", "m.onnx", "--precision", precision, "--max-loss", "5")
    assert code == 0
    assert (facts["precision"], facts["labels"]) == (precision, list(LABELS))
    saved_ = load_saved(learnt)
    assert facts["exam_samples"] == saved_.learner.exam.size
    assert facts["compared"] == saved_.learner.exam.size + saved_.learner.replay.size
    for key in ("exam_accuracy", "exam_accuracy_float32"):
        assert facts[key] * facts["exam_samples"] == pytest.approx(round(facts[key] * facts["exam_samples"]))
    assert facts["loss_points"] <= 5
    for key in ("latency_us", "latency_us_float32"):
        assert 0 < facts[key]["p50"] <= facts[key]["p99"]
    model = Path("m.onnx")
    assert facts["bytes"] == model.stat().st_size
    assert facts["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert facts["bytes_float32"] / facts["bytes"] > times
    current = ShelfReader(learnt).current()
    assert current is not None
    assert np.abs(predicted(model) - predicted(current.path)).max() < off
    metadata = onnxruntime.InferenceSession(str(model)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == list(LABELS)
    assert metadata["precision"] == precision
    assert json.loads(metadata["variant_of"]) == {"snapshot": current.id, "sha256": current.manifest["sha256"]}
    assert [entry.name for entry in Path().iterdir()] == ["m.onnx"]


def test_float32_is_the_published_file_itself(learnt: Path, export: Export) -> None:
    code, facts = export(learnt, "--out", "m.onnx")
    assert code == 0
    current = ShelfReader(learnt).current()
    assert current is not None
    assert Path("m.onnx").read_bytes() == current.path.read_bytes()
    assert facts["precision"] == "float32"
    assert facts["sha256"] == current.manifest["sha256"]
    assert "exam_accuracy" not in facts


def test_a_variant_that_loses_too_much_is_refused_and_nothing_is_written(
    recording: str, tmp_path: Path, export: Export
) -> None:
    """A reconstruction's score always moves a little, so without any allowance it is refused."""
    state = tmp_path / "predictor"
    run(state, recording, "model.kind=predictor", "exam.share=0.1")
    code, facts = export(state, "--out", "m.onnx", "--deploy", "d", "--precision", "int8", "--max-loss", "0")
    assert code == facts["exit_code"] == Exit.VERIFY_FAILED
    assert "int8 loses " in facts["error"]
    assert "allow more with --max-loss" in facts["hint"]
    assert list(Path().iterdir()) == []
    code, facts = export(state, "--out", "m.onnx", "--precision", "int8", "--max-loss", "100")
    assert code == 0
    assert 0 < facts["loss_points"] < 100
    assert facts["exam_accuracy"] is None
    assert facts["score"] == pytest.approx(facts["score_float32"], rel=facts["loss_points"] / 100)


def test_a_person_sees_both_models_side_by_side(
    learnt: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(("export", "--state", str(learnt), "--out", "m.onnx", "--precision", "float16", "--max-loss", "100"))
    said = capsys.readouterr().out
    for word in ("float32", "float16", "exam accuracy", "points lost", "µs for one sample, p99", LABELS[0]):
        assert word in said


def test_without_real_samples_there_is_nothing_to_compare_with(recording: str, tmp_path: Path, export: Export) -> None:
    state = tmp_path / "templates"
    run(state, recording, "model.kind=nearest_mean", "exam.share=0")
    code, facts = export(state, "--out", "m.onnx", "--precision", "int8")
    assert code == Exit.CONFIG
    assert "no real samples of this device are kept" in facts["error"]
    assert export(state, "--out", "m.onnx")[0] == 0


def test_a_checkpoint_that_does_not_say_how_it_is_configured_is_named(state: Path, export: Export) -> None:
    found = saved(state)
    store = CheckpointStore(state)
    store.load()
    store.save(found.arrays, {key: value for key, value in found.meta.items() if key != "config"})
    code, facts = export(state, "--out", "m.onnx", "--precision", "int8")
    assert code == Exit.CONFIG
    assert "does not say how its learner is configured" in facts["error"]


# Which snapshot


def test_an_older_snapshot_is_named_by_its_id_with_or_without_zeros(learnt: Path, export: Export) -> None:
    oldest = ShelfReader(learnt).entries()[0]
    assert oldest != ShelfReader(learnt).current()
    for name in (oldest.id, oldest.id.lstrip("0")):
        code, facts = export(learnt, "--out", "m.onnx", "--snapshot", name)
        assert (code, facts["snapshot"], facts["sha256"]) == (0, oldest.id, oldest.manifest["sha256"])


def test_an_id_that_is_not_there_is_answered_with_those_that_are(learnt: Path, export: Export) -> None:
    code, facts = export(learnt, "--out", "m.onnx", "--snapshot", "77")
    assert code == Exit.CONFIG
    assert "no snapshot 000077" in facts["error"]
    assert ShelfReader(learnt).ids()[0] in facts["hint"]


@pytest.mark.parametrize(
    "options", [(), ("--out", "m.onnx", "--snapshot", "newest"), ("--out", "m", "--max-loss", "-1")]
)
def test_what_cannot_be_meant_is_a_usage_error(options: tuple[str, ...], learnt: Path, export: Export) -> None:
    assert export(learnt, *options)[0] == Exit.USAGE


def test_a_bad_snapshot_is_handed_out_with_a_warning_only_by_name(
    state: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf = Shelf(state)
    newest = shelf.entries()[-1]
    shelf.rollback()
    code, facts = export(state, "--out", "m.onnx", "--snapshot", newest.id)
    assert (code, facts["state"]) == (0, "bad")
    assert export(state, "--out", "m.onnx")[1]["snapshot"] != newest.id


def test_now_without_a_daemon_is_made_of_the_checkpoint_once(state: Path, export: Export) -> None:
    learner = load_saved(state).learner
    before, checkpoint = ShelfReader(state).ids(), saved(state)
    assert ShelfReader(state).entries()[-1].manifest["training"]["learned"] < learner.learnt
    code, facts = export(state, "--out", "m.onnx", "--snapshot", "now")
    assert code == 0
    assert facts["snapshot"] not in before
    assert facts["training"]["learned"] == learner.learnt
    x, _ = signals(60, seed=9)
    np.testing.assert_allclose(predicted(Path("m.onnx")), learner.predict(x)[:, : len(LABELS)], atol=1e-5)
    assert saved(state).generation == checkpoint.generation  # the learner itself was left alone
    assert export(state, "--out", "m.onnx", "--snapshot", "now")[1]["snapshot"] == facts["snapshot"]


def test_now_tells_a_running_daemon_to_consolidate(recording: str, tmp_path: Path, export: Export) -> None:
    state = tmp_path / "live"
    with playing(state, f"{recording}?limit=50") as (process, until):
        until(lambda line: "waiting to be stopped" in line["message"])
        before = ShelfReader(state).ids()
        code, facts = export(state, "--out", "m.onnx", "--snapshot", "now")
        assert code == 0
        assert facts["snapshot"] not in before
        assert facts["training"]["consolidations"] == 2
        process.terminate()
        process.communicate()


def test_now_of_what_was_kept_aside_is_refused(recording: str, tmp_path: Path, export: Export) -> None:
    state = tmp_path / "state"
    run_and_stop_at(130, state, recording, "budget.snapshot_bytes=1 KiB")
    code, facts = export(state, "--out", "m.onnx", "--snapshot", "now")
    assert code == Exit.VERIFY_FAILED
    assert "was kept aside: it has " in facts["error"]
    assert list(Path().iterdir()) == []


def test_now_before_anything_was_learnt_says_so(recording: str, tmp_path: Path, export: Export) -> None:
    state = tmp_path / "state"
    run_and_stop_at(5, state, recording)
    code, facts = export(state, "--out", "m.onnx", "--snapshot", "now")
    assert (code, facts["error"]) == (Exit.CONFIG, f"{state}: nothing was learnt yet")


def test_the_tool_measures_each_precision_on_the_test_split(tmp_path: Path) -> None:
    record(tmp_path / "uci_har.npz", 200)
    command = [sys.executable, "tools/compare_precision.py", "--data", str(tmp_path), "--only", "UCI HAR, cnn1d"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["precision"] for row in rows] == ["float32", "float16", "int8"]
    assert {row["test_samples"] for row in rows} == {60}
    assert rows[0]["bytes"] > rows[1]["bytes"] > rows[2]["bytes"]
    assert rows[2]["ratio"] == pytest.approx(rows[0]["bytes"] / rows[2]["bytes"])
    assert all(0 <= row["test_accuracy"] <= 1 for row in rows)
