"""`edge-cl purge`: no byte of a sample is left in the whole directory, and nothing that was learnt is."""

from __future__ import annotations

import json
import os
import pty
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import record, signals
from test_cli_snapshots import edge_cl
from test_daemon import N, run, run_and_stop_at, saved
from test_state_dir import tree

from edge_cl.errors import Exit
from edge_cl.keeping.purge import purge
from edge_cl.keeping.recovery import recover
from edge_cl.storage import journal
from edge_cl.storage.checkpoint import SLOTS, CheckpointStore
from edge_cl.storage.errors import StateBusy
from edge_cl.storage.state_dir import StateDir, write_format
from edge_cl.storage.survey import survey

# As the sensor made them, a sample a window and a half: replay, exam, waiting samples, a window's rows all hold some.
SETTINGS = ("replay.bits=null", "exam.share=0.2", "window.length=60", "window.stride=40", "learning.batch_size=16")

# Purges copies of a directory again and again, each time killed in front of a later call that changes the disk.
KILLED_AT = """
import os, shutil, signal, sys
from pathlib import Path
import edge_cl.keeping.purge
from edge_cl.keeping.purge import purge

source, copies, step, order = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if order == "journal first":  # broken: what only the journal knew is gone before a slot has it
    save = edge_cl.keeping.purge._save_twice
    def after_the_journal(state, *what):
        edge_cl.keeping.purge.remove_folder(state / "journal")
        return save(state, *what)
    edge_cl.keeping.purge._save_twice = after_the_journal
if step > 10:
    import edge_cl.keeping.recovery  # once, for all children

def counted(call):
    def counting(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return counting

for name in ("mkdir", "write", "pwrite", "fsync", "rename", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
left = 0
for call in range(1, 1000, step):
    copy = copies / str(call)
    shutil.copytree(source, copy, symlinks=True)
    child = os.fork()
    if child == 0:
        left = call
        purge(copy)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
else:
    sys.exit("it never came to its end")
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recording") / "signals.npz", N, x_test=None, y_test=None)


@pytest.fixture(scope="module")
def learnt(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a daemon leaves that was stopped within its stream, twice: both slots and the journal hold samples."""
    state = tmp_path_factory.mktemp("learnt") / "state"
    for stop in (80, 150):
        run_and_stop_at(stop, state, f"recording:{recording}", *SETTINGS)
    return state


@pytest.fixture
def state(learnt: Path, tmp_path: Path) -> Path:
    return shutil.copytree(learnt, tmp_path / "state", symlinks=True)


@pytest.fixture
def killed(state: Path) -> Path:
    """The same after a kill: the last checkpoint was never written, what it would have held is in the journal."""
    sound, _ = CheckpointStore(state).slots()
    newest = max(sound, key=lambda slot: sound[slot].generation)
    (state / newest).unlink()
    (older,) = (found for slot, found in sound.items() if slot != newest)
    assert list(journal.read(state / "journal", after=older.meta["journal"]))
    return state


def marks() -> list[bytes]:
    """A stretch of each sample that was sent: 40 rows of three int16."""
    x, _ = signals(N + 60)
    return [sample.tobytes()[60:180] for sample in x]


def found_in(folder: Path) -> dict[str, int]:
    """How many of the marks stand in each file, deleted pages and all; files without any are left out."""
    known, found = marks(), dict[str, int]()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if n := sum(mark in content for mark in known):
                found[path.relative_to(folder).parts[0]] = found.get(path.relative_to(folder).parts[0], 0) + n
    return found


def kept(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    raw = ("replay", "exam", "window", "waiting", "ahead")
    return {name: array for name, array in arrays.items() if name.split(".")[0] not in raw}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name, strict=True)


def test_no_byte_of_a_sample_is_left_and_the_weights_are_the_same_to_the_bit(state: Path) -> None:
    before = found_in(state)
    assert before.keys() == {"checkpoint.a", "checkpoint.b", "journal"}  # the search finds what is there
    was = saved(state)
    assert {"parameters", "anchor.theta", "anchor.fisher_codes"} < kept(was.arrays).keys()
    done = purge(state)
    assert found_in(state) == {}
    assert survey(state, thorough=True).faults == []
    now = saved(state)
    assert_same(kept(now.arrays), kept(was.arrays))
    assert all(len(now.arrays[name]) == 0 for name in now.arrays.keys() - kept(now.arrays).keys())
    for name in ("counts", "anchor", "rng", "trigger"):
        assert now.meta["learner"][name] == was.meta["learner"][name]
    assert now.meta["positions"] == was.meta["positions"]
    assert (done.replay_samples, done.exam_samples) == tuple(len(was.arrays[f"{n}.labels"]) for n in ("replay", "exam"))
    assert done.replay_samples > 30
    assert min(done.exam_samples, done.window_rows, done.journal_bytes) > 0
    assert done.folded == 0
    assert {found.meta == now.meta for found in CheckpointStore(state).slots()[0].values()} == {True}


def test_what_only_the_journal_knew_is_learnt_first(killed: Path) -> None:
    wanted = recover(killed)
    assert wanted is not None
    assert wanted.replayed > 0
    arrays, _ = wanted.learner.state()
    done = purge(killed)
    assert (done.folded, done.lost_samples) == (wanted.replayed, 0)
    assert found_in(killed) == {}
    now = recover(killed)
    assert now is not None
    assert (now.replayed, now.cursor.positions) == (0, wanted.cursor.positions)
    assert_same(kept(now.learner.state()[0]), kept(arrays))
    assert now.exam_history == wanted.exam_history


@pytest.mark.parametrize("which", ["state", "killed"])
def test_a_daemon_goes_on_from_it(which: str, recording: Path, request: pytest.FixtureRequest) -> None:
    state: Path = request.getfixturevalue(which)
    before = recover(state)
    assert before is not None
    learnt = before.learner.learnt
    purge(state)
    done = run(state, f"recording:{recording}", *SETTINGS)
    after = saved(state)
    assert done["samples"] > 150
    assert after.meta["learner"]["counts"][1] > learnt
    n_new = after.meta["learner"]["counts"][0] - before.learner.labelled
    assert 0 < len(after.arrays["replay.labels"]) + len(after.arrays["exam.labels"]) == n_new  # nothing of before
    assert survey(state, thorough=True).faults == []


def test_a_state_of_before_the_journal(state: Path) -> None:
    found = saved(state)
    shutil.rmtree(state / "journal")
    old = {name: value for name, value in found.meta.items() if name not in ("journal", "ahead", "dropped", "n_labels")}
    for _ in SLOTS:
        CheckpointStore(state, model=found.model).save(found.arrays, old)
    write_format(state, 1)
    purge(state)
    assert found_in(state) == {}
    assert_same(kept(saved(state).arrays), kept(found.arrays))
    assert recover(state) is not None


def test_what_recovery_has_set_aside_goes_too(state: Path) -> None:
    shutil.copy(state / "checkpoint.a", state / "checkpoint.a.damaged")
    for file in list((state / "journal").glob("*.db*")):
        shutil.copy(file, file.with_name(file.name.replace(".db", ".db.aside")))
    purge(state)
    assert found_in(state) == {}
    assert not (state / "checkpoint.a.damaged").exists()


def test_killed_anywhere_nothing_is_lost_and_it_can_be_run_again(state: Path, tmp_path: Path) -> None:
    was = kept(saved(state).arrays)
    copies = purged_and_killed(state, tmp_path / "copies", step=3)
    left_over = 0
    for copy in copies:
        found = survey(copy, thorough=True)
        assert (found.faults, found.lost_samples) == ([], 0), f"killed at call {copy.name}"
        assert_same(kept(saved(copy).arrays), was)
        left_over += found_in(copy) != {}
    assert 0 < left_over < len(copies)
    for copy in copies[:: len(copies) // 4]:
        purge(copy)
        assert found_in(copy) == {}
        assert [path.name for path in copy.glob(".*.tmp")] == []


@pytest.mark.parametrize(("order", "is_safe"), [("as it is", True), ("journal first", False)])
def test_killed_anywhere_what_only_the_journal_knew_is_not_lost(
    killed: Path, tmp_path: Path, order: str, is_safe: bool
) -> None:
    def entries_known(state: Path) -> int:
        found = survey(state, thorough=False)
        assert found.faults == []
        return int(max(slot["journal"] for slot in found.slots) + found.journal["behind"])

    wanted = entries_known(killed)
    known = [entries_known(copy) for copy in purged_and_killed(killed, tmp_path / "copies", step=15, order=order)]
    assert len(known) > 3
    assert (known == [wanted] * len(known)) == is_safe


def purged_and_killed(state: Path, copies: Path, step: int = 1, order: str = "as it is") -> list[Path]:
    """Copies of the directory, each purged until a later call; the last one came to its end."""
    copies.mkdir()
    command = [sys.executable, "-c", KILLED_AT, str(state), str(copies), str(step), order]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(copies.iterdir(), key=lambda copy: int(copy.name))


def test_a_slot_that_is_forgotten_is_found(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken variant that most would write: only the checkpoint that is newest."""
    monkeypatch.setattr("edge_cl.keeping.purge.SLOTS", SLOTS[:1])
    purge(state)
    assert found_in(state) != {}


def test_what_is_replaced_is_overwritten_but_not_what_has_another_name(state: Path, tmp_path: Path) -> None:
    """A copy made of hard links is a backup, and somebody who still has a file open finds zeros."""
    one, other = (state / slot for slot in SLOTS)
    os.link(one, tmp_path / "linked")
    content = one.read_bytes()
    with other.open("rb") as held:
        purge(state)
        held.seek(0)
        assert not any(held.read())
    assert (tmp_path / "linked").read_bytes() == content


# As it is typed


def test_it_says_what_is_gone(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was = saved(state)
    assert edge_cl("purge", "--state", state, "--yes", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["replay_samples"] == len(was.arrays["replay.labels"])
    assert told["generation"] == was.generation + 2
    assert edge_cl("purge", "--state", state, "--yes") == 0
    assert "removed 0 samples of replay" in capsys.readouterr().err


def test_without_a_terminal_it_needs_yes(state: Path) -> None:
    before = tree(state)
    command = [sys.executable, "-m", "edge_cl", "purge", "--state", str(state)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, "--yes" in done.stderr) == (Exit.USAGE, True)
    assert tree(state) == before


@pytest.mark.parametrize(("answer", "code"), [(b"\n", 1), (b"y\n", 0)])
def test_on_a_terminal_it_asks(state: Path, answer: bytes, code: int) -> None:
    before = tree(state)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edge_cl", "purge", "--state", str(state)]
    with subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, text=True) as asking:
        os.write(ours, answer)
        _, said = asking.communicate()
    os.close(ours)
    os.close(theirs)
    assert (asking.returncode, "for good?" in said) == (code, True)
    assert (tree(state) == before) == (code != 0)
    assert (found_in(state) == {}) == (code == 0)


def test_it_is_refused_while_a_daemon_runs(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StateDir(state):
        before = tree(state)
        with pytest.raises(StateBusy):
            purge(state)
        assert edge_cl("purge", "--state", state, "--yes", "--json") == Exit.TRY_AGAIN
        assert tree(state) == before
    assert json.loads(capsys.readouterr().out)["exit_code"] == Exit.TRY_AGAIN


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_where_nothing_is_there_is_nothing_to_purge(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir(mode=0o700)
    before: Any = tree(tmp_path)
    assert edge_cl("purge", "--state", tmp_path / name, "--yes") == Exit.CONFIG
    assert tree(tmp_path) == before


def test_all_that_a_daemon_and_a_purge_leave_is_private(killed: Path) -> None:
    """The database's own files too: SQLite would make them for everybody to read."""
    for _ in ("as the daemon left it", "purged"):
        there = [path for path in (killed, *killed.rglob("*")) if not path.is_symlink()]
        modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in there if path.name != "status.json"}
        assert modes == {(True, 0o700), (False, 0o600)}
        purge(killed)
