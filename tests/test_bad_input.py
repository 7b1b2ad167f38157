"""Everything an operator or a source can get wrong: the message a person reads, and a state on disk that is intact."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import features, images, record, save, signals
from test_atomic import tiny_disk

from edge_cl import assembly
from edge_cl.cli import main
from edge_cl.keeping.recovery import revive
from edge_cl.keeping.saved import load_saved
from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.snapshot import Deployed
from firmware_bridge.sources.recording_file import _HINT

SETTINGS = ("-s", "model.width=4", "-s", "consolidation.rehearsal_passes=1", "-s", "replay.samples=50")
FIRST, REST = 60, 40


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """`edge-cl run` takes over signals of this process; pytest wants them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with signals.npz and state/, in which the first samples of it were learnt."""
    folder = tmp_path_factory.mktemp("learnt")
    record(folder / "signals.npz", FIRST + REST)
    with pytest.raises(SystemExit) as caught:
        main(run_command("--state", str(folder / "state"), "--source", f"recording:{folder}/signals.npz?limit={FIRST}"))
    assert caught.value.code == 0
    return folder


@pytest.fixture
def here(learnt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil, as the current directory."""
    subprocess.run(["cp", "-a", f"{learnt}/.", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(*arguments: str) -> list[str]:
    return ["run", "--once", *SETTINGS, *arguments]


def content(state: Path) -> dict[str, str | bytes]:
    """Every file and link of a state directory; the lock is noise: it holds the pid of the last that tried."""
    return {
        str(path.relative_to(state)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in state.rglob("*")
        if path.is_symlink() or (path.is_file() and path.name != "lock")
    }


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 78) -> str:
    """What a person reads, from `error:` on, when `edge-cl run` refuses on state/, which must stay as it is."""
    before = content(Path("state"))
    with pytest.raises(SystemExit) as caught:
        main(run_command("--state", "state", *arguments))
    assert caught.value.code == code
    assert content(Path("state")) == before
    assert before  # a test that compares nothing with nothing proves nothing
    err = capsys.readouterr().err
    return err[err.index("error: ") :]


@pytest.mark.usefixtures("here")
def test_a_missing_recording(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "--source", "recording:none.npz") == f"error: none.npz: no such file\nhint: {_HINT}\n"


@pytest.mark.usefixtures("here")
def test_a_missing_board(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "--source", "serial:///dev/ttyNONE7")
    assert told.startswith("error: /dev/ttyNONE7: no such serial port\nhint: ")


@pytest.mark.usefixtures("here")
def test_a_misspelt_source(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "--source", "recoding:signals.npz")
    assert told.startswith(
        "error: source 'recoding:signals.npz': unknown scheme 'recoding'; did you mean 'recording'?\n"
        "hint: sources look like serial:///dev/ttyUSB0?baud=115200, "
    )


def test_a_recording_that_is_cut_off(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (here / "signals.npz").read_bytes()
    (here / "signals.npz").write_bytes(whole[: len(whole) // 2])
    told = refused(capsys, "--source", "recording:signals.npz")
    assert re.match(r"error: signals.npz: not an .npz file \(.+\)\nhint: a recording is an .npz with x", told)


def test_a_recording_that_may_not_be_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:  # root may read everything, but not a folder
        (here / "locked.npz").mkdir()
        assert "error: locked.npz: no such file\n" in refused(capsys, "--source", "recording:locked.npz")
    else:
        (here / "signals.npz").chmod(0)
        assert "Permission denied" in refused(capsys, "--source", "recording:signals.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": None}, "x: must be there, or x_train (got only fs_hz, label_names, x_test, y_test, y_train)"),
        ({"y_train": np.zeros(3)}, "y_train: must hold one label for each of 50 samples (got shape (3,))"),
        ({"y_train": np.full(50, 3)}, "y_train: must be below 3, the number of label_names (got 3 at index 0)"),
        ({"y_train": np.full(50, -1)}, "y_train: must be whole numbers from 0 (got -1 at index 0)"),
        ({"y_train": np.full(50, 0.5)}, "y_train: must be whole numbers from 0 (got 0.5 at index 0)"),
        ({"x_train": np.zeros((50, 40, 3), complex)}, "x_train: must be one of uint8, int8"),
        ({"x_test": np.zeros((4, 2), np.int16)}, "x_test: must be like x_train, int16 (40, 3) (got int16 (2,))"),
    ],
)
def test_a_malformed_recording(
    here: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, np.ndarray | None], message: str
) -> None:
    record(here / "bad.npz", 50, **arrays)
    told = refused(capsys, "--source", "recording:bad.npz")
    assert told.startswith(f"error: bad.npz: {message}")
    assert told.endswith(f"\nhint: {_HINT}\n")


@pytest.mark.usefixtures("here")
def test_more_classes_than_there_is_room_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "--source", "recording:signals.npz", "-s", "model.max_classes=2") == (
        "error: model.max_classes: must hold the 3 classes of source signals (got 2)\n"
        "hint: set model.max_classes to 3 or more, or to auto\n"
    )


def test_more_classes_than_a_nameless_stream_had_room_for_are_counted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = signals(50)
    save(here / "x.npz", x=x, y=y)
    summary = learn(capsys, "--state", "new", "--source", "recording:x.npz", "-s", "model.max_classes=2")
    assert summary["dropped"]["label_out_of_range"] == (y == 2).sum() > 0
    assert summary["samples"] == 50


@pytest.mark.parametrize("make", [images, features])
def test_samples_of_another_shape_than_the_model(here: Path, capsys: pytest.CaptureFixture[str], make: Any) -> None:
    x, y = make(30)
    save(here / "other.npz", x=x, y=y, label_names=np.array(["slow", "medium", "fast"]))
    told = refused(capsys, "--source", "recording:other.npz")
    assert told.startswith("error: state holds what another model learnt: cnn1d on int16 [40, 3], weights ")
    assert f" on {x.dtype} {list(x.shape[1:])}, weights " in told
    assert told.endswith(
        "hint: go back to the configuration and source it was made with, or name another state directory\n"
    )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("setting", ["model.width=5", "model.kind=mlp"])
def test_the_state_of_another_model(capsys: pytest.CaptureFixture[str], setting: str) -> None:
    told = refused(capsys, "--source", "recording:signals.npz", "-s", setting)
    assert told.startswith("error: state holds what another model learnt: ")


@pytest.mark.usefixtures("here")
def test_the_state_of_more_classes_or_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "--source", "recording:signals.npz", "-s", "model.max_classes=9") == (
        "error: model.max_classes: must be at least 16, which the state has learnt with (got 9)\n"
        "hint: set model.max_classes to 16 or more, or name another state directory\n"
    )
    told = refused(capsys, "--source", "recording:signals.npz", "-s", "labels=[a, b, c]")
    assert re.fullmatch(
        r"error: labels: must begin with those the state was learnt with, \w+, \w+, \w+ \(got a, b, c\)\n"
        r"hint: new names go behind the old ones; for other classes, name another state directory\n",
        told,
    )


@pytest.mark.usefixtures("here")
def test_a_model_that_does_not_take_such_samples(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = images(20)
    save(Path("images.npz"), x=x[..., None].repeat(3, 3), y=y)
    told = refused(capsys, "--source", "recording:images.npz", "-s", "model.kind=cnn1d")
    assert told == (
        "error: model.kind: cnn1d takes samples of shape (length,) or (length, channels) (got (20, 20, 3))\n"
        "hint: set model.kind to auto\n"
    )


@pytest.mark.usefixtures("here")
def test_a_plan_that_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "--source", "recording:signals.npz", "-s", "budget.memory_bytes=64 KiB")
    found = re.match(
        r"error: budget\.memory_bytes: must be at least ([\d,]+) to hold one sample of replay beside queue 1,048,576, "
        r".+ bytes \(got 65,536\)\nhint: set budget\.memory_bytes to ([\d,]+) or more",
        told,
    )
    assert found
    least = found[1].replace(",", "")
    assert learn(capsys, "--state", "state", "--source", "recording:signals.npz", "-s", f"budget.memory_bytes={least}")
    assert refused(capsys, "--source", "recording:signals.npz", "-s", f"budget.memory_bytes={int(least) - 1}")


@pytest.mark.usefixtures("here")
def test_a_queue_that_cannot_hold_one_sample(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = signals(20)
    save(Path("long.npz"), x=np.repeat(x, 40, 1), y=y)
    before = sorted(Path().iterdir())
    told = refused(capsys, "--source", "recording:long.npz", "--state", "new", "-s", "bridge.queue_bytes=1 KiB")
    assert told == (
        "error: a queue of 1024 bytes cannot hold one sample of long (10112 bytes)\nhint: raise bridge.queue_bytes\n"
    )
    assert sorted(path for path in Path().iterdir() if path.name != "new") == before


def learn(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """The last JSON line of a run that ends with this code."""
    with pytest.raises(SystemExit) as caught:
        main(run_command("--json", *arguments))
    assert caught.value.code == code
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_not_a_number_in_samples_is_counted_and_never_learnt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = features(60)
    x[::10] = np.nan
    x[5, 2] = np.inf
    save(here / "nan.npz", x=x, y=y)
    summary = learn(capsys, "--state", "new", "--source", "recording:nan.npz")
    found = CheckpointStore(here / "new").load()
    assert found is not None
    assert summary["dropped"]["nonfinite"] == 7
    assert summary["learned"] == 53 - len(found.arrays["exam.labels"])
    kept = {name: array for name, array in found.arrays.items() if name != "replay.logits"}  # NaN: class unknown then
    assert all(np.isfinite(array).all() for array in kept.values())


def test_an_absurd_reading_does_not_undo_what_was_learnt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = features(400)
    save(here / "tame.npz", x=x, y=y)
    tame = learn(capsys, "--state", "old", "--source", "recording:tame.npz")
    x[200] = 3e38  # finite, but not its square
    save(here / "wild.npz", x=x, y=y)
    wild = learn(capsys, "--state", "new", "--source", "recording:wild.npz")
    assert abs(wild["prequential_accuracy"] - tame["prequential_accuracy"]) < 0.05
    found = CheckpointStore(here / "new").load()
    assert found is not None
    assert np.isfinite(found.arrays["parameters"]).all()


def test_a_learner_that_diverged_is_said_and_never_saved(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = features(60)
    save(here / "tame.npz", x=x, y=y)
    wide = ("-s", "model.width=512")
    learn(capsys, "--state", "new", "--source", "recording:tame.npz", *wide)
    save(here / "wild.npz", x=np.random.default_rng(0).normal(0, 1, (600, 5)).astype(np.float32), y=np.arange(600) % 3)
    rate = ("-s", "learning.learning_rate=10")  # no noise can be learnt at this rate
    learnt = CheckpointStore(here / "new").load()
    told = learn(capsys, "--state", "new", "--source", "recording:wild.npz", *wide, *rate, code=1)
    assert str(told["error"]).startswith("the learner diverged within ")
    assert told["hint"] == "lower learning.learning_rate, or look for samples with absurd values"
    with pytest.raises(SystemExit):
        main(run_command("--state", "new", "--source", "recording:tame.npz", *wide, "--json"))
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert "the learner had diverged within the last " in first["message"]
    assert first["restart"]["lost_samples"] > 0
    kept = CheckpointStore(here / "new").load()
    assert learnt is not None
    assert kept is not None
    assert np.isfinite(kept.arrays["parameters"]).all()
    assert first["learned"] == learnt.meta["learner"]["counts"][1]


@pytest.mark.usefixtures("here")
def test_a_directory_that_is_not_the_daemons(capsys: pytest.CaptureFixture[str]) -> None:
    before = content(Path())
    told = refused(capsys, "--state", ".", "--source", "recording:signals.npz")
    assert told == (
        "error: . is no state directory, and not empty (it holds signals.npz)\nhint: name a new or an empty directory\n"
    )
    assert content(Path()) == before


def test_a_damaged_state_is_said_and_the_older_one_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(here / "signals.npz", FIRST + REST)
    learn(capsys, "--state", "state", "--source", f"recording:signals.npz?limit={FIRST + 20}")
    newest = max((here / "state").glob("checkpoint.*"), key=lambda slot: slot.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(SystemExit):
        main(run_command("--state", "state", "--source", "recording:signals.npz", "--json"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert f"{newest.name} is damaged" in lines[0]["message"]
    assert lines[0]["samples"] == FIRST + 20  # the journal goes back to the older one
    assert lines[0]["restart"]["lost_samples"] == 0
    assert lines[-1]["samples"] == FIRST + REST


def test_a_state_damaged_beyond_repair_is_not_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for slot in (here / "state").glob("checkpoint.*"):
        slot.write_bytes(slot.read_bytes()[:-1])
    shutil.rmtree(here / "state" / "snapshots")
    told = refused(capsys, "--source", "recording:signals.npz", code=74)
    assert told.startswith("error: state holds neither a sound checkpoint nor a good snapshot")
    assert "hint: restore the state directory from a backup" in told


def test_without_a_sound_checkpoint_the_newest_snapshots_weights_go_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, x, before = load_saved(here / "state"), signals(50)[0], {}
    for slot in (here / "state").glob("checkpoint.*"):
        slot.write_bytes(slot.read_bytes()[:-1])
        before[f"{slot.name}.damaged"] = slot.read_bytes()
    shelf = Shelf(here / "state")
    current = shelf.current()
    assert current is not None
    blueprint = assembly.blueprint_of(saved.config, saved.task)
    planned = assembly.plan_of(saved.config, saved.task, blueprint)
    fresh = assembly.make_learner(saved.config, saved.task, blueprint, planned, seed=5)
    assert revive(fresh, here / "state")[1] == len(saved.label_names)
    expected = Deployed(current.read())(x.astype(np.float32))
    np.testing.assert_allclose(fresh.predict(x)[:, : expected.shape[1]], expected, atol=1e-6)
    assert not fresh.predict(x)[:, expected.shape[1] :].any()

    with pytest.raises(SystemExit):
        main(run_command("--state", "state", "--source", "recording:signals.npz?limit=1", "--json"))
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert "holds no sound checkpoint" in first["message"]
    assert f"went on with the weights of snapshot {current.id} alone" in first["message"]
    assert first["learned"] == current.manifest["training"]["learned"]
    for name, content_ in before.items():
        assert (here / "state" / name).read_bytes() == content_


def test_a_damaged_snapshot_does_not_stop_the_daemon_that_can_replace_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "state" / "snapshots" / "current").resolve().joinpath("manifest.json").write_bytes(b"{")
    summary = learn(capsys, "--state", "state", "--source", "recording:signals.npz")
    assert summary["samples"] == FIRST + REST
    current = Shelf(here / "state").current()
    assert current is not None
    assert summary["snapshot"] == str(current.path.relative_to(here))


# A full disk, a real one


def fill(disk: Path) -> Path:
    """Leave not one byte free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def test_a_disk_that_is_full_at_the_first_start(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tiny_disk(here / "disk") as disk:
        fill(disk)
        with pytest.raises(SystemExit) as caught:
            main(run_command("--state", "disk/state", "--source", "recording:signals.npz"))
        assert caught.value.code == 74
        err = capsys.readouterr().err
        assert re.search(r"error: cannot \w+ disk/state.*: No space left on device \(ENOSPC\);", err)
        assert "hint: free space on this disk\n" in err
        assert not (disk / "state" / "checkpoint.a").exists()


def test_a_full_disk_is_answered_on_but_nothing_is_learnt_that_could_be_lost(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "recording:signals.npz"
    often = ("-s", "consolidation.every_steps=1")
    with tiny_disk(here / "disk", "2m") as disk:
        subprocess.run(["cp", "-a", "state", disk / "state"], check=True)
        filler = fill(disk)
        before = content(disk / "state")
        with pytest.raises(SystemExit) as caught:
            main(run_command("--json", "--state", "disk/state", "--source", source, *often))
        assert caught.value.code == 74
        out, err = capsys.readouterr()
        messages = [json.loads(line).get("message", "") for line in out.splitlines()]
        failures = [message for message in messages if message.startswith("nothing is acknowledged: ")]
        assert "No space left on device" in failures[0]
        assert len(set(failures)) == 1  # said once, not at each step
        assert json.loads(out.splitlines()[-2])["samples"] == FIRST + REST  # the loop went on to the end
        assert re.search(r"error: cannot \w+ disk/state/checkpoint.[ab]: No space left on device \(ENOSPC\);", err)
        after = content(disk / "state")
        assert {name: after[name] for name in before if name != "status.json"} == {
            name: before[name] for name in before if name != "status.json"
        }

        filler.unlink()
        summary = learn(capsys, "--state", "disk/state", "--source", source)
        found = CheckpointStore(disk / "state").load()
        assert found is not None
        assert found.meta["journal"] > 0
        assert summary["samples"] == FIRST + REST == summary["learned"] + len(found.arrays["exam.labels"])


# Once as a person types it


def test_the_command_itself_refuses_with_exit_78_and_one_json_object(here: Path) -> None:
    command = [sys.executable, "-m", "edge_cl", "run", "--json", "--state", "state", "--source", "recording:none.npz"]
    before = content(here / "state")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert json.loads(done.stdout) == {"error": "none.npz: no such file", "hint": _HINT, "exit_code": 78}
    assert "Traceback" not in done.stderr
    assert content(here / "state") == before
