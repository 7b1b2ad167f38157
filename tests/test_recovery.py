"""Killed anywhere, started again: bit for bit the learner it would have been; and what happens when it cannot be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from killed import killed_at
from recordings import record
from test_atomic import tiny_disk

from edge_cl.config import Config, resolve
from edge_cl.daemon import Daemon
from edge_cl.keeping.recovery import recover
from edge_cl.service.status import Status, read_status
from edge_cl.storage import journal
from edge_cl.storage.checkpoint import SLOTS, CheckpointStore
from edge_cl.storage.state_dir import JOURNAL_NAME

SAMPLES = 400
# Nothing that a clock decides: two runs of the same recording are then the same run.
TIMELESS = (
    *("budget.step_ms=60000", "budget.predict_ms=60000", "budget.consolidation_ms=600000"),
    *("consolidation.every_steps=12", "storage.recovery_s=0.05", "snapshots.trial_samples=20"),
)
RARE = ("storage.recovery_s=3600", "storage.checkpoint_every_s=86400")  # checkpoints


def settings(*overrides: str) -> Config:
    return resolve(None, (*TIMELESS, *overrides)).config


def arrays_of(state: Path) -> dict[str, bytes]:
    found = CheckpointStore(state).load()
    assert found is not None
    return {name: array.tobytes() for name, array in found.arrays.items()}


def meta_of(state: Path) -> dict[str, object]:
    found = CheckpointStore(state).load()
    assert found is not None
    return {key: value for key, value in found.meta.items() if key not in ("journal", "config", "rehearsal_steps")}


def run(state: Path, recording: Path, *overrides: str, samples: int | None = None) -> list[Status]:
    seen: list[Status] = []
    url = f"recording:{recording}"
    Daemon(settings(*overrides), state, source_url=url, once=True, samples=samples, on_status=seen.append).run()
    return seen


def live(state: Path, recording: Path, *overrides: str, die_at: int) -> int:
    """Run in a child that is killed as soon as it has taken so many journal entries down; its exit status."""
    return killed_at(die_at, lambda: run(state, recording, *overrides))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recording") / "signals.npz", SAMPLES)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, recording: Path) -> Path:
    state = tmp_path_factory.mktemp("untouched") / "state"
    run(state, recording)
    return state


def test_killed_again_and_again_it_ends_as_the_run_that_never_was(
    tmp_path: Path, recording: Path, untouched: Path
) -> None:
    state, entries = tmp_path / "state", 0
    for number in range(7, 43, 5):  # before, within and behind consolidations
        assert live(state, recording, die_at=number) == -signal.SIGKILL
        found = recover(state)
        assert found is not None
        assert found.faults == []
        assert found.entry >= entries
        entries = found.entry
    run(state, recording)
    assert arrays_of(state) == arrays_of(untouched)
    assert meta_of(state) == meta_of(untouched)


def test_a_replay_alone_makes_the_same_learner(tmp_path: Path, recording: Path, untouched: Path) -> None:
    state = tmp_path / "state"
    run(state, recording, *RARE)  # all of it in one journal, behind the checkpoints of the start
    (state / SLOTS[0]).unlink()  # and then the newest slot is lost
    slots, _ = CheckpointStore(state).slots()
    assert [slot.meta["learner"]["counts"][1] for slot in slots.values()] == [0]
    found = recover(state)
    assert found is not None
    assert found.replayed == sum(1 for _ in journal.read(state / JOURNAL_NAME, after=0))
    arrays, plain = found.learner.state()
    expected = CheckpointStore(untouched).load()
    assert expected is not None
    for name, array in arrays.items():
        assert array.tobytes() == expected.arrays[name].tobytes(), name
    assert plain == expected.meta["learner"]
    assert [list(one) for one in found.cursor.positions.values()] == expected.meta["positions"]
    assert found.exam_history == expected.meta["exam_history"]


def test_a_journal_with_a_hole_goes_on_before_it_and_says_how_much_is_lost(tmp_path: Path, recording: Path) -> None:
    state = tmp_path / "state"
    assert live(state, recording, *RARE, "storage.commit_ms=0", die_at=30) == -signal.SIGKILL
    sound = recover(state)
    assert sound is not None
    assert sound.entry >= 10
    log = max((state / JOURNAL_NAME).glob("*-wal"), key=lambda path: path.stat().st_size)
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    found = recover(state)
    assert found is not None
    assert 0 < found.entry < sound.entry
    assert found.lost_samples >= 10 * (sound.entry - found.entry - 3)  # consolidations are entries, too
    assert "samples are lost" in found.faults[-1]
    first = run(state, recording)[0]
    assert first["restart"]["lost_samples"] == found.lost_samples
    assert "samples are lost" in first["message"]
    again = recover(state)
    assert again is not None
    assert again.faults == []
    assert again.lost_samples == 0


def test_what_was_journaled_is_replayed_as_it_was_configured_then(tmp_path: Path, recording: Path) -> None:
    state = tmp_path / "state"
    assert live(state, recording, *RARE, "storage.commit_ms=0", die_at=20) == -signal.SIGKILL
    expected = recover(state)
    assert expected is not None
    assert expected.replayed > 0
    seen = run(state, recording, "learning.learning_rate=0.01", samples=1)
    assert seen[0]["restart"]["replayed"] == expected.replayed
    assert seen[0]["steps"] == expected.learner.steps
    slots, faults = CheckpointStore(state).slots()
    assert not faults
    assert {slot.meta["config"]["learning"]["learning_rate"] for slot in slots.values()} == {0.01}


def test_without_a_journal_what_the_checkpoint_holds_is_had_back(tmp_path: Path, recording: Path) -> None:
    state = tmp_path / "state"
    assert live(state, recording, "storage.durability=checkpoint", die_at=40) == -signal.SIGKILL
    assert not (state / JOURNAL_NAME).exists() or not list((state / JOURNAL_NAME).iterdir())
    found = recover(state)
    assert found is not None
    assert found.replayed == 0
    assert run(state, recording, "storage.durability=checkpoint")[-1]["samples"] == SAMPLES


def test_switching_the_journal_off_and_on_again_never_replays_what_is_old(
    tmp_path: Path, recording: Path, untouched: Path
) -> None:
    state = tmp_path / "state"
    assert live(state, recording, die_at=15) == -signal.SIGKILL
    assert live(state, recording, "storage.durability=checkpoint", die_at=25) == -signal.SIGKILL
    assert live(state, recording, die_at=35) == -signal.SIGKILL
    run(state, recording)
    assert arrays_of(state) == arrays_of(untouched)


@pytest.fixture
def daemon_on_a_small_disk(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    with tiny_disk(tmp_path / "disk", "6m") as disk:
        state = disk / "state"
        command = [sys.executable, "-m", "edge_cl", "run", "--json", "--state", str(state)]
        often = ("storage.recovery_s=0.2", "storage.queue_bytes=64 KiB", "consolidation.every_steps=5")
        settings = [word for setting in often for word in ("-s", setting)]
        daemon = subprocess.Popen(
            [*command, "--source", "simulated:motor?speed=20", *settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield state, daemon
        finally:
            daemon.kill()
            daemon.wait()


def until(state: Path, what: str, true: object, *, seconds: float = 60.0) -> Status:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = read_status(state)
        if status is not None and true(status):  # type: ignore[operator]
            return status
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds} s: {json.dumps(read_status(state))[:2000]}")


def status_of(state: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_cl", "status", "--json", "--state", str(state)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_daemon_on_a_full_disk_answers_on_acknowledges_nothing_says_so_and_resumes(
    daemon_on_a_small_disk: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    state, daemon = daemon_on_a_small_disk
    until(state, "acknowledging", lambda status: status["durable"]["acknowledged"] >= 20)
    ballast = state.parent / "ballast"
    shutil.copyfile(state / "status.json", ballast)  # kept writable while the rest is taken
    with ballast.open("ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    os.truncate(ballast, ballast.stat().st_size - 24_576)  # room for status.json alone
    full = until(state, "refused", lambda status: status["durable"]["refused"] is not None)
    assert "(ENOSPC)" in str(full["durable"]["refused"])
    told = status_of(state)
    assert told.returncode == 74
    assert "nothing is acknowledged" in told.stderr
    later = until(state, "answering on", lambda status: status["samples"] >= full["samples"] + 30)
    assert daemon.poll() is None
    assert later["durable"]["acknowledged"] <= full["durable"]["acknowledged"] + 40
    ballast.unlink()
    freed = until(state, "resumed", lambda status: status["durable"]["refused"] is None)
    until(state, "acknowledging", lambda s: s["durable"]["acknowledged"] >= freed["durable"]["acknowledged"] + 20)
    assert status_of(state).returncode == 0
    daemon.kill()
    daemon.wait()
    found = recover(state)
    assert found is not None
    assert found.faults == []
    assert np.isfinite(found.learner.network.arena.flat.numpy()).all()
