"""The journal: what was acknowledged is read back, in order, across segments, restarts and kills."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_atomic import names

from edge_cl.storage.errors import JournalDamaged
from edge_cl.storage.journal import Journal, inspect, journal_of, read
from edge_cl.storage.segment import Segment, entries

PATIENCE_S = 30.0
NEVER_MS = 1e9  # only wait() and close() commit


@contextmanager
def journal(
    folder: Path, *, after: int = 0, queue_bytes: int = 1 << 20, commit_ms: float = NEVER_MS, commit_entries: int = 1000
) -> Iterator[Journal]:
    """A journal that commits when it is told to, closed at the end."""
    opened = Journal(folder, after=after, queue_bytes=queue_bytes, commit_ms=commit_ms, commit_entries=commit_entries)
    try:
        yield opened
    finally:
        opened.close()


def body(number: int) -> bytes:
    """Of a length and a content of its own, often more than a page."""
    return b"%d " % number * (number * 97 % 500)


def add(writing: Journal, count: int, *, group: int = 1) -> None:
    """Append and commit as many entries, so many in a transaction."""
    for k in range(1, count + 1):
        number = writing.append(body(writing.committed + (k - 1) % group + 1))
        assert number is not None
        if k % group == 0 or k == count:
            assert writing.wait(number, PATIENCE_S)


def expected(first: int, last: int) -> list[tuple[int, bytes]]:
    return [(number, body(number)) for number in range(first, last + 1)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.002)


def segments(folder: Path) -> list[str]:
    return sorted(name for name in names(folder) if name.endswith(".db"))


def test_what_was_committed_is_read_back_in_order_from_any_entry_on(tmp_path: Path) -> None:
    with journal(tmp_path / "j") as writing:
        add(writing, 10)
        add(writing, 30, group=7)
        assert writing.committed == 40
        assert writing.queued_bytes == 0
        assert writing.fault is None
    for after in (0, 1, 17, 39, 40, 50):
        assert list(read(tmp_path / "j", after=after)) == expected(after + 1, 40)


def test_nothing_is_read_where_nothing_was_written_and_nothing_is_written_before_the_first_entry(
    tmp_path: Path,
) -> None:
    assert list(read(tmp_path / "j", after=0)) == []
    assert inspect(tmp_path / "j").entries == 0
    with journal(tmp_path / "j"):
        pass
    assert names(tmp_path) == set()
    assert journal_of(tmp_path) == tmp_path / "journal"


def test_files_are_private(tmp_path: Path) -> None:
    with journal(tmp_path / "j") as writing:
        add(writing, 1)
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o700
    assert {(file.name, file.stat().st_mode & 0o777) for file in (tmp_path / "j").iterdir()} == {
        ("000000000001.db", 0o600),
        ("000000000001.db-wal", 0o600),
        ("newest", 0o600),
    }


def test_a_group_is_committed_when_enough_entries_wait(tmp_path: Path) -> None:
    with journal(tmp_path, commit_entries=4) as writing:
        for number in range(1, 4):
            writing.append(body(number))
        time.sleep(0.05)
        assert writing.committed == 0
        assert writing.queued_bytes == sum(len(body(number)) for number in range(1, 4))
        writing.append(body(4))
        until(lambda: writing.committed == 4)
        assert writing.queued_bytes == 0


def test_a_group_is_committed_when_the_oldest_has_waited_long_enough(tmp_path: Path) -> None:
    with journal(tmp_path, commit_ms=20) as writing:
        writing.append(body(1))
        until(lambda: writing.committed == 1)


def test_entries_that_wait_together_share_one_transaction(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        add(writing, 12, group=6)
    with sqlite3.connect(tmp_path / "000000000001.db") as connection:
        assert connection.execute("SELECT batch, count(*) FROM entry GROUP BY batch").fetchall() == [(1, 6), (2, 6)]
    connection.close()


def test_many_bytes_are_not_one_transaction(tmp_path: Path) -> None:
    with journal(tmp_path, queue_bytes=4 << 20) as writing:
        for _ in range(12):
            writing.append(bytes(300_000))
        assert writing.wait(12, PATIENCE_S)
    with sqlite3.connect(tmp_path / "000000000001.db") as connection:
        assert connection.execute("SELECT max(batch) FROM entry").fetchone()[0] >= 4
    connection.close()


def test_waiting_does_not_wait_for_the_group_and_gives_up_in_time(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        assert writing.wait(0, 0.0)
        assert not writing.wait(1, 0.01)
        number = writing.append(b"x")
        assert number == 1
        assert writing.wait(number, PATIENCE_S)


def test_a_full_queue_takes_nothing_and_uses_no_number(tmp_path: Path) -> None:
    with journal(tmp_path, queue_bytes=1000) as writing:
        assert writing.append(bytes(600)) == 1
        assert writing.append(bytes(600)) is None
        assert writing.append(bytes(400)) == 2
        assert writing.append(b"x") is None
        assert writing.wait(2, PATIENCE_S)
        assert writing.append(bytes(2000)) == 3  # alone, a body of any size gets in
        assert writing.append(b"") is None
        assert writing.wait(3, PATIENCE_S)
    assert [len(body) for _, body in read(tmp_path, after=0)] == [600, 400, 2000]


def test_several_threads_append_and_wait(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        got: list[int] = []

        def work() -> None:
            for _ in range(20):
                number = writing.append(b"x")
                assert number is not None
                assert writing.wait(number, PATIENCE_S)
                got.append(number)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(got) == list(range(1, 81))
    assert [number for number, _ in read(tmp_path, after=0)] == list(range(1, 81))


def test_closing_commits_what_waits_ends_the_thread_and_takes_nothing_more(tmp_path: Path) -> None:
    before = names(Path("/proc/self/fd")), threading.active_count()
    writing = Journal(tmp_path, after=0, queue_bytes=1 << 20, commit_ms=NEVER_MS)
    for number in range(1, 6):
        writing.append(body(number))
    writing.close()
    writing.close()
    assert writing.committed == 5
    assert len(names(Path("/proc/self/fd"))) == len(before[0])
    assert threading.active_count() == before[1]
    with pytest.raises(ValueError, match="closed"):
        writing.append(b"x")
    assert list(read(tmp_path, after=0)) == expected(1, 5)


@pytest.mark.parametrize("wrong", [{"after": -1}, {"commit_entries": 0}])
def test_settings_that_cannot_be_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Journal(tmp_path, **{"after": 0, "queue_bytes": 1, **wrong})


def test_a_rotation_begins_a_segment_with_the_next_entry_even_while_others_wait(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        for number in (1, 2):
            writing.append(body(number))
        writing.rotate()
        writing.rotate()
        writing.append(body(3))
        writing.rotate()
        writing.append(body(4))
        assert writing.wait(4, PATIENCE_S)
        assert segments(tmp_path) == ["000000000001.db", "000000000003.db", "000000000004.db"]
    assert list(read(tmp_path, after=0)) == expected(1, 4)
    assert list(read(tmp_path, after=2)) == expected(3, 4)


def test_only_segments_of_which_nothing_is_needed_are_forgotten(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        for _ in range(3):
            add(writing, 3)
            writing.rotate()
        writing.forget(5)
        until(lambda: segments(tmp_path) == ["000000000004.db", "000000000007.db"])
        writing.forget(8)
        until(lambda: segments(tmp_path) == ["000000000007.db"])
        add(writing, 2)
        writing.forget(11)
        until(lambda: segments(tmp_path) == ["000000000010.db"])  # the one that is being written stays
        writing.rotate()
        writing.forget(11)
        until(lambda: names(tmp_path) == {"newest"})
        add(writing, 1)
    assert list(read(tmp_path, after=11)) == expected(12, 12)
    with pytest.raises(JournalDamaged, match="no segment holds entry 6"):
        list(read(tmp_path, after=5))


def test_segments_of_an_earlier_process_are_forgotten_too(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        add(writing, 3)
    with journal(tmp_path, after=3) as writing:
        writing.forget(3)
        until(lambda: segments(tmp_path) == [])


def test_closing_a_segment_neither_merges_nor_changes_it(tmp_path: Path) -> None:
    """Merging would write each entry to the flash twice, and trust a log whose sync has just failed."""
    with journal(tmp_path) as writing:
        add(writing, 5)
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        writing.rotate()
        add(writing, 1)
    assert len(list(read(tmp_path, after=0))) == 6
    assert inspect(tmp_path).entries == 6
    for name in ("000000000001.db", "000000000001.db-wal"):
        assert (tmp_path / name).read_bytes() == before[name]


def test_a_segment_that_was_not_renamed_would_be_merged(tmp_path: Path) -> None:
    """The proof that the test above bites: SQLite merges as soon as the name is the one it opened."""
    segment = Segment(tmp_path, 1)
    segment.write(expected(1, 3))
    segment.close()
    log = tmp_path / "000000000001.db-wal"
    assert log.exists()
    connection = sqlite3.connect(tmp_path / "000000000001.db")
    assert connection.execute("SELECT count(*) FROM entry").fetchone() == (3,)
    connection.close()
    assert not log.exists()
    assert list(entries(tmp_path / "000000000001.db", after=0, doubts=[])) == expected(1, 3)  # still, it can be read


def test_looking_at_a_journal_that_is_being_written_changes_nothing(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        add(writing, 3)
        writing.rotate()
        add(writing, 2)
        before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
        state = inspect(tmp_path)
        assert (state.first, state.last, state.entries, state.faults) == (1, 5, 5, [])
        assert state.nbytes == sum(len(content) for content, _ in before.values())
        assert inspect(tmp_path, after=4).entries == 1
        assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()} == before
        add(writing, 1)
    assert list(read(tmp_path, after=0)) == expected(1, 6)


def test_looking_while_it_is_written_and_forgotten_sees_no_damage(tmp_path: Path) -> None:
    with journal(tmp_path, commit_ms=0) as writing:
        done = threading.Event()

        def work() -> None:
            while not done.is_set():
                add(writing, 3)
                writing.rotate()
                writing.forget(writing.committed - 4)
                time.sleep(0.01)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(30):
                assert inspect(tmp_path).faults == []
        finally:
            done.set()
            thread.join()


def test_a_half_made_segment_is_swept_and_an_empty_one_is_no_damage(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        add(writing, 2)
    Segment(tmp_path, 3).close()  # killed before its first transaction
    half_made = tmp_path / ".000000000003.db.0123456789abcdef.tmp"
    for file in (half_made, half_made.with_name(half_made.name + "-wal")):
        file.write_bytes(b"x")
    assert list(read(tmp_path, after=0)) == expected(1, 2)
    with journal(tmp_path, after=2) as writing:
        add(writing, 1)
    assert list(read(tmp_path, after=0)) == expected(1, 3)
    assert not any(name.startswith(".") for name in names(tmp_path))


def test_what_lies_behind_the_end_of_recovery_is_set_aside_and_never_read_again(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        for _ in range(3):
            add(writing, 3)
            writing.rotate()
    (tmp_path / "000000000004.db").unlink()
    with pytest.raises(JournalDamaged) as caught:
        list(read(tmp_path, after=0))
    assert (caught.value.number, caught.value.lost) == (3, 6)
    with journal(tmp_path, after=3) as writing:
        for number in range(4, 12):  # past the numbers that the lost ones had
            writing.append(b"new %d" % number)
            assert writing.wait(number, PATIENCE_S)
        assert list(read(tmp_path, after=0, copied=True)) == [
            *expected(1, 3),
            *((n, b"new %d" % n) for n in range(4, 12)),
        ]
        assert {"000000000007.db.aside", "000000000007.db.aside-wal"} <= names(tmp_path)
        writing.forget(7)
        until(lambda: not any("aside" in name for name in names(tmp_path)))


def test_a_journal_that_lags_behind_the_checkpoint_goes_on_behind_it(tmp_path: Path) -> None:
    with journal(tmp_path) as writing:
        add(writing, 3)
    assert list(read(tmp_path, after=7)) == []
    with journal(tmp_path, after=7) as writing:
        add(writing, 1)
    assert list(read(tmp_path, after=7)) == expected(8, 8)
    with pytest.raises(JournalDamaged) as caught:
        list(read(tmp_path, after=2))
    assert (caught.value.number, caught.value.lost) == (3, 5)


def is_idle(writing: Journal) -> bool:
    return writing._forget == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 1500)),
        st.tuples(st.just("commit"), st.just(0)),
        st.tuples(st.just("rotate"), st.just(0)),
        st.tuples(st.just("forget"), st.integers(0, 3)),
        st.tuples(st.just("close"), st.just(0)),
        st.tuples(st.just("kill"), st.just(0)),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(STEPS)
def test_any_sequence_of_events_reads_back_as_it_should(steps: list[tuple[str, int]]) -> None:
    bodies: dict[int, bytes] = {}  # what the journal must hold: every committed entry, and the ones that wait
    committed = forgotten = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder, lives = Path(temporary) / "0", 0
        writing = Journal(folder, after=0, queue_bytes=1 << 20, commit_ms=NEVER_MS, commit_entries=1000)
        for what, size in [*steps, ("commit", 0), ("kill", 0)]:
            if what == "append":
                number = writing.append(os.urandom(size))
                assert number == max(bodies, default=committed) + 1
                bodies[number] = writing._queue[-1][1]
            elif what == "commit":
                committed = max(bodies, default=committed)
                assert writing.wait(committed, PATIENCE_S)
            elif what == "rotate":
                writing.rotate()
            elif what == "forget":
                forgotten = max(forgotten, committed - size)
                writing.forget(forgotten)
            else:
                if what == "close":
                    writing.close()
                    committed = max(bodies, default=committed)
                bodies = {number: body for number, body in bodies.items() if number <= committed}
                lives += 1
                until(partial(is_idle, writing))
                # The files as a kill leaves them: what only waited is gone.
                shutil.copytree(folder, Path(temporary) / str(lives)) if folder.exists() else None
                writing.close()
                folder = Path(temporary) / str(lives)
                for after in {forgotten, committed}:
                    wanted = [(number, body) for number, body in bodies.items() if number > after]
                    assert list(read(folder, after=after)) == wanted
                writing = Journal(folder, after=committed, queue_bytes=1 << 20, commit_ms=NEVER_MS, commit_entries=1000)
        writing.close()


CHILD = """
import random, sys
from pathlib import Path
from edge_cl.storage.journal import Journal
draw = random.Random(int(sys.argv[3]))
writing = Journal(Path(sys.argv[1]), after=int(sys.argv[2]), queue_bytes=1 << 20, commit_ms=1)
number = int(sys.argv[2])
print(0, flush=True)
while True:
    for _ in range(draw.randrange(1, 9)):
        number += 1
        assert writing.append(b'%d ' % number * (number * 97 % 500)) == number
    if draw.random() < 0.2:
        writing.rotate()
    if draw.random() < 0.1:
        writing.forget(writing.committed - 40)
    assert writing.wait(number, 30)
    print(writing.committed, flush=True)
"""


def test_a_kill_at_any_instant_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    draw, last = random.Random(6), 0
    for seed in range(8):
        command = [sys.executable, "-c", CHILD, tmp_path, str(last), str(seed)]
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(draw.random() * 0.15)
            child.send_signal(signal.SIGKILL)
            said = child.stdout.read().splitlines()
        acknowledged = int(said[-1]) if said else last
        after = max(acknowledged - 40, 0)
        got = list(read(tmp_path, after=after))
        assert got == expected(after + 1, after + len(got))
        assert after + len(got) >= acknowledged
        last = after + len(got)
    assert last > 20
