"""The journal when a system call fails, when the disk is full, and when bits or ends of its files are lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from failing_journal import body as failing_body
from test_atomic import names, soft_limit, tiny_disk
from test_journal import PATIENCE_S, add, body, expected, journal, until

from edge_cl.storage.errors import JournalDamaged, StorageFault
from edge_cl.storage.journal import inspect, read
from edge_cl.storage.mark import MARK_NAME, _encode

TESTS = Path(__file__).parent
FORGOTTEN = 4  # by failing_journal.py


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """failing_calls.c as a library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    command: list[str | Path] = [
        compiler,
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        library,
        TESTS / "failing_calls.c",
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


def failing(shim: Path, folder: Path, code: int, times: int, variant: str = "right") -> list[dict[str, Any]]:
    """What failing_journal.py says about each N."""
    folder.mkdir()
    command: list[str | Path] = [sys.executable, TESTS / "failing_journal.py", folder, str(code), str(times), variant]
    done = subprocess.run(
        command, env={**os.environ, "LD_PRELOAD": str(shim)}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_whole(folder: Path, said: dict[str, Any]) -> bool:
    """Whether everything is there that was acknowledged."""
    doubts: list[str] = []
    try:
        got = list(read(folder / str(said["n"]) / "journal", after=FORGOTTEN, doubts=doubts))
    except JournalDamaged:
        return False
    wanted = [(number, failing_body(number)) for number in range(FORGOTTEN + 1, said["acknowledged"] + 1)]
    return got == wanted and not doubts


@pytest.mark.parametrize(
    ("code", "times"),
    [(errno.ENOSPC, 1), (errno.EIO, 3), (errno.EROFS, 1), (errno.EDQUOT, 10), (errno.EMFILE, 2)],
)
def test_whichever_call_fails_nothing_is_lost_nothing_leaks_and_no_doubtful_file_is_used_again(
    shim: Path, tmp_path: Path, code: int, times: int
) -> None:
    runs = failing(shim, tmp_path / "runs", code, times)
    assert len(runs) > 100
    assert runs[-1]["seen"] < runs[-1]["n"]  # all have had their turn
    for said in runs:
        assert is_whole(tmp_path / "runs", said), said
        assert (said["reused"], said["leaked"]) == (0, 0), said
    told = [said["faults"] for said in runs if said["faults"]]
    assert len(told) > 0.6 * len(runs)  # the others hit what may fail: the mark, and what is to be forgotten
    assert {number for faults in told for number in faults} <= {code, errno.EIO}


def test_a_journal_that_takes_a_failed_commit_for_done_is_caught(shim: Path, tmp_path: Path) -> None:
    runs = failing(shim, tmp_path / "runs", errno.EIO, 1, "forgetful")
    assert not all(is_whole(tmp_path / "runs", said) for said in runs)


def test_a_journal_that_syncs_a_doubtful_file_again_is_caught(shim: Path, tmp_path: Path) -> None:
    assert failing(shim, tmp_path / "runs", errno.EIO, 1, "stubborn")[-1]["reused"] > 0


def fill(file: Path) -> None:
    """Leave no room on its disk."""
    with contextlib.suppress(OSError), file.open("ab", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_a_full_disk_stops_acknowledging_and_a_freed_one_resumes_by_itself(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk, journal(disk / "j", queue_bytes=20_000, commit_ms=1) as writing:
        add(writing, 5)
        fill(disk / "filler")
        while writing.append(body(writing._newest + 1)) is not None:
            pass
        until(lambda: writing.fault is not None)
        fault, committed, newest = writing.fault, writing.committed, writing._newest
        assert isinstance(fault, StorageFault)
        assert (fault.errno, fault.hint) == (errno.ENOSPC, "free space on this disk")
        assert committed < newest
        assert 0 < writing.queued_bytes <= 20_000
        assert not writing.wait(newest, 0.3)
        assert len(names(disk / "j")) <= 5  # nothing piles up
        (disk / "filler").unlink()
        assert writing.wait(newest, PATIENCE_S)
        assert writing.fault is None
        add(writing, 3)
        assert list(read(disk / "j", after=0, copied=True)) == expected(1, newest + 3)


def test_forgetting_frees_the_space_that_a_full_disk_lacks(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk, journal(disk, queue_bytes=400_000) as writing:
        for number in range(1, 3):
            assert writing.append(bytes(70_000)) == number
            assert writing.wait(number, PATIENCE_S)
        writing.rotate()
        assert writing.append(bytes(100_000)) == 3
        assert not writing.wait(3, 0.3)
        assert writing.fault is not None
        writing.forget(2)
        assert writing.wait(3, PATIENCE_S)


def test_closing_on_a_full_disk_ends_in_time_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    threads = threading.active_count()
    with tiny_disk(tmp_path / "disk") as disk:
        with journal(disk / "j") as writing:
            add(writing, 3)
            writing.append(bytes(400_000))
            writing.close(0.2)
            assert threading.active_count() == threads
            assert writing.committed == 3
            assert writing.fault is not None
        assert list(read(disk / "j", after=0)) == expected(1, 3)


def test_without_descriptors_nothing_is_acknowledged_until_there_are_some(tmp_path: Path) -> None:
    with journal(tmp_path / "j") as writing:
        add(writing, 2)
        writing.rotate()
        with soft_limit(7, 3):  # RLIMIT_NOFILE
            assert writing.append(body(3)) == 3
            assert not writing.wait(3, 0.3)
            assert writing.fault is not None
            assert writing.fault.errno == errno.EMFILE
        assert writing.wait(3, PATIENCE_S)
    assert list(read(tmp_path / "j", after=0)) == expected(1, 3)


@dataclass
class Damaged:
    """A killed journal's files, to be written out with one of them damaged."""

    files: dict[str, bytes]
    place: Path
    entries: list[tuple[int, bytes]]
    quiet: list[str] = field(default_factory=list)  # damage that lost entries without a word

    def look(self, what: str, name: str, content: bytes | None) -> None:
        """Read it with this in place of one sound file, None for missing."""
        (self.place / name).unlink()
        if content is not None:
            (self.place / name).write_bytes(content)
        got: list[tuple[int, bytes]] = []
        doubts: list[str] = []
        fault: JournalDamaged | None = None
        try:
            for entry in read(self.place, after=0, doubts=doubts):
                got.append(entry)
        except JournalDamaged as exc:
            fault = exc
        assert got == self.entries[: len(got)], what  # never a wrong one
        lost = len(self.entries) - len(got)
        assert fault is None or fault.number == len(got), what
        assert fault is None or fault.lost is None or 0 < fault.lost <= lost, what
        if lost and not fault and not doubts:
            self.quiet.append(what)
        assert (self.place / name).exists() == (content is not None), what
        assert content is None or (self.place / name).read_bytes() == content, what
        assert names(self.place) == self.files.keys() - ({name} if content is None else set()), what
        (self.place / name).write_bytes(self.files[name])


@pytest.fixture
def damaged(tmp_path: Path) -> Damaged:
    """Two segments of three transactions each."""
    with journal(tmp_path / "sound") as writing:
        add(writing, 4, group=2)
        add(writing, 1)
        writing.rotate()
        add(writing, 3)
        files = {file.name: file.read_bytes() for file in (tmp_path / "sound").iterdir()}
    assert len(files) == 5
    shutil.copytree(tmp_path / "sound", tmp_path / "damaged")
    return Damaged(files, tmp_path / "damaged", expected(1, 8))


def test_the_sound_one_is_read_to_its_end(damaged: Damaged) -> None:
    assert list(read(damaged.place, after=0)) == damaged.entries


def test_no_flipped_bit_loses_an_entry_in_silence(damaged: Damaged) -> None:
    """A part of them here; tools/flip_campaign.py takes every one."""
    for name, content in damaged.files.items():
        for at in range(0, len(content), 1 if len(content) < 100 else 61):
            flipped = bytearray(content)
            flipped[at] ^= 1 << at % 8
            damaged.look(f"bit {at % 8} of byte {at} of {name}", name, bytes(flipped))
    assert damaged.quiet == []


def test_no_truncation_loses_an_entry_in_silence(damaged: Damaged) -> None:
    for name, content in damaged.files.items():
        for length in {0, 1, 31, 32, 33, *range(32, len(content), 1048 // 3), len(content) - 1}:
            damaged.look(f"{name} cut to {length}", name, content[:length])
        damaged.look(f"{name} missing", name, None)
    assert damaged.quiet == []


def test_without_the_mark_a_cut_at_the_end_of_a_transaction_would_not_be_noticed(damaged: Damaged) -> None:
    """The proof that the mark is needed, and that the tests above bite."""
    log = "000000000006.db-wal"
    (damaged.place / MARK_NAME).write_bytes(_encode(5))  # as a power cut may leave it
    damaged.look("cut", log, damaged.files[log][:32])
    assert damaged.quiet == ["cut"]


def test_what_is_lost_is_counted(tmp_path: Path, damaged: Damaged) -> None:
    place = tmp_path / "counted"
    place.mkdir()
    for name, content in damaged.files.items():
        (place / name).write_bytes(content)
    log = place / "000000000006.db-wal"
    log.write_bytes(log.read_bytes()[:1500])
    with pytest.raises(JournalDamaged, match="entry 8 had been committed") as caught:
        list(read(place, after=0))
    assert caught.value.number + (caught.value.lost or 0) == 8
    state = inspect(place)
    assert (state.first, state.last) == (1, caught.value.number)
    assert len(state.faults) == 1


def test_a_file_that_cannot_be_read_is_a_fault_and_no_damage(damaged: Damaged, tmp_path: Path) -> None:
    place = tmp_path / "unreadable"
    place.mkdir()
    for name, content in damaged.files.items():
        (place / name).write_bytes(content)
    log = place / "000000000001.db-wal"
    log.rename(tmp_path / "elsewhere")
    log.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageFault) as caught:
        list(read(place, after=0))
    assert caught.value.errno == errno.ELOOP
    with soft_limit(7, 3), pytest.raises(StorageFault):
        list(read(place, after=0))
