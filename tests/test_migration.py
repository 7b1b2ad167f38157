"""Migrations of a state directory on real directories, killed at each of their system calls."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_state_dir import tree

from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.errors import StateBusy, StateDirError, StorageFault
from edge_cl.storage.migration import migrate
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.state_dir import FORMAT, StateDir, check_state_dir, running_pid, write_format

# Migrates, and is killed by its own hand in front of the n-th call that changes the disk.
KILLED_AT = """
import os, pathlib, signal, sys
from edge_cl.storage.migration import migrate
from edge_cl.storage.state_dir import StateDir

state, left = pathlib.Path(sys.argv[1]), int(sys.argv[2])
held = StateDir(state)

def counted(call):
    def counting(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return counting

for name in ("mkdir", "write", "fsync", "rename"):
    setattr(os, name, counted(getattr(os, name)))
migrate(held)
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A state directory of format 1: a checkpoint without a word of a journal, and a snapshot."""
    path = tmp_path / "state"
    with StateDir(path):
        write_format(path, 1)
        CheckpointStore(path, model="m").save({"parameters": np.arange(5.0)}, {"source": "s"})
        Shelf(path).publish(b"model", {})
    return path


def assert_migrated(path: Path) -> None:
    assert json.loads((path / ".format").read_text()) == {"format": FORMAT}
    assert stat.S_IMODE((path / "journal").stat().st_mode) == 0o700
    assert list((path / "journal").iterdir()) == []


def assert_nothing_lost(path: Path) -> None:
    found = CheckpointStore(path, model="m").load()
    assert found is not None
    assert (found.generation, found.arrays["parameters"].tolist()) == (1, [0.0, 1.0, 2.0, 3.0, 4.0])
    current = Shelf(path).current()
    assert current is not None
    assert current.read() == b"model"


def test_an_old_directory_is_read_as_it_is_and_migrated_once(old: Path) -> None:
    before = tree(old)
    assert check_state_dir(old) == 1  # a reader takes it
    assert running_pid(old) is None
    assert tree(old) == before
    with StateDir(old) as held:
        assert (held.format, migrate(held), held.format, migrate(held)) == (1, 1, FORMAT, None)
    assert_migrated(old)
    assert_nothing_lost(old)
    after = tree(old / "journal")
    with StateDir(old) as held:
        assert migrate(held) is None
    assert tree(old / "journal") == after


def test_a_new_directory_needs_no_migration(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as held:
        assert migrate(held) is None
        assert check_state_dir(held.path) == FORMAT


def test_killed_anywhere_it_can_be_run_again(old: Path) -> None:
    seen = set()
    for call in range(1, 100):
        done = subprocess.run([sys.executable, "-c", KILLED_AT, str(old), str(call)], check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        layout = check_state_dir(old)  # what is left is a directory that every reader takes
        seen.add((layout, (old / "journal").exists()))
        assert_nothing_lost(old)
        with StateDir(old) as held:
            migrate(held)
        assert_migrated(old)
        assert_nothing_lost(old)
        (old / "journal").rmdir()
        write_format(old, 1)
    else:
        pytest.fail("it never came to its end")
    assert seen >= {(1, True), (FORMAT, True)}  # killed between its steps and behind them


def test_the_number_is_written_last(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it written first, a kill would leave a directory of this format without what this format promises."""
    monkeypatch.setattr(Path, "mkdir", _refuse)
    with StateDir(old) as held, pytest.raises(StorageFault, match="ENOSPC"):
        migrate(held)
    assert held.format == check_state_dir(old) == 1


def _refuse(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_newer_format_is_refused_and_nothing_is_touched(old: Path) -> None:
    write_format(old, FORMAT + 1)
    before = tree(old)
    with pytest.raises(StateDirError, match=f"has format {FORMAT + 1}, this edge_cl knows up to {FORMAT}"):
        StateDir(old)
    assert tree(old) == before


def test_no_migration_beside_a_daemon(old: Path) -> None:
    with StateDir(old), pytest.raises(StateBusy):
        StateDir(old)
    assert check_state_dir(old) == 1


def test_what_stands_where_the_journal_belongs_is_refused_untouched(old: Path) -> None:
    (old / "journal").mkdir(mode=0o700)
    (old / "journal" / "diary.txt").write_text("dear diary")
    with StateDir(old) as held, pytest.raises(StateDirError, match="is not empty"):
        migrate(held)
    assert check_state_dir(old) == 1
    assert (old / "journal" / "diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("name", ["journal", "snapshots"])
def test_a_folder_in_it_that_others_may_write_or_that_is_a_link_is_refused(old: Path, name: str) -> None:
    folder = old / name
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o770)
    before = tree(old)
    with pytest.raises(StateDirError, match=f"{name} may be written by others"):
        StateDir(old)
    assert tree(old) == before
    folder.chmod(0o700)
    folder.rename(old.parent / "elsewhere")
    folder.symlink_to(old.parent / "elsewhere")
    with pytest.raises(StateDirError, match=f"{name} is a symbolic link"):
        StateDir(old)
