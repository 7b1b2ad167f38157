"""The walk through a -wal file: it finds what SQLite finds, and knows damage from a torn end."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.storage.wal import HEADER_BYTES, Walked, walk

PAGE = 512
FRAME = 24 + PAGE
COUNT = "SELECT count(*) FROM t"


def written(folder: Path, transactions: list[int], page_bytes: int = PAGE) -> tuple[bytes, bytes]:
    """A database and its log of transactions of so many bytes each, the first of which makes the table."""
    connection = sqlite3.connect(folder / "w.db", isolation_level=None)
    for setting in (f"page_size={page_bytes}", "journal_mode=WAL", "wal_autocheckpoint=0"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("CREATE TABLE t(x BLOB)")
    for size in transactions:
        connection.execute("INSERT INTO t VALUES(?)", (bytes(range(1, 252)) * (size // 251 + 1),))
    files = (folder / "w.db").read_bytes(), (folder / "w.db-wal").read_bytes()
    connection.close()
    return files


def found_by_sqlite(folder: Path, database: bytes, log: bytes) -> int:
    """How many transactions SQLite finds in the log."""
    (folder / "r.db").write_bytes(database)
    (folder / "r.db-wal").write_bytes(log)
    connection = sqlite3.connect(folder / "r.db")
    try:
        return 1 + int(connection.execute(COUNT).fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # no such table
    finally:
        connection.close()


def walked(folder: Path, log: bytes, page_bytes: int = PAGE) -> Walked:
    (folder / "log").write_bytes(log)
    return walk(folder / "log", page_bytes)


def commit_ends(log: bytes) -> list[int]:
    """Where each transaction ends."""
    return [
        at + FRAME for at in range(HEADER_BYTES, len(log), FRAME) if int.from_bytes(log[at + 4 : at + 8], "big") != 0
    ]


@pytest.fixture
def log(tmp_path: Path) -> bytes:
    """Of five transactions, the last one of several pages."""
    return written(tmp_path, [100, 900, 100, 2000])[1]


@pytest.mark.parametrize("page_bytes", [512, 1024, 4096, 65536])
def test_a_sound_log_is_walked_to_its_end(tmp_path: Path, page_bytes: int) -> None:
    _, log = written(tmp_path, [100, 5000, 70_000], page_bytes)
    assert walked(tmp_path, log, page_bytes) == Walked(commits=4)


def test_a_log_of_more_frames_than_are_read_at_once(tmp_path: Path) -> None:
    _, log = written(tmp_path, [300_000, 300_000, 10])
    assert len(log) > 2 * 512 * FRAME
    assert walked(tmp_path, log) == Walked(commits=4)
    at = 600 * FRAME
    assert walked(tmp_path, log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :]).damage


def test_nothing_is_in_no_log_and_in_an_empty_one(tmp_path: Path) -> None:
    assert walk(tmp_path / "none", PAGE) == Walked()
    assert walked(tmp_path, b"") == Walked()


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 3000), max_size=5),
    where=st.floats(0, 1),
    junk=st.binary(max_size=40),
    cut=st.booleans(),
)
def test_the_walk_finds_what_sqlite_finds_whatever_is_done_to_the_log(
    sizes: list[int], where: float, junk: bytes, cut: bool
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        database, log = written(folder, sizes)
        at = int(where * len(log))
        log = log[:at] + junk + (b"" if cut else log[at + len(junk) :])
        assert walked(folder, log).commits == found_by_sqlite(folder, database, log)


def test_a_torn_end_is_no_damage(tmp_path: Path, log: bytes) -> None:
    """What a kill leaves: the last transaction's frames are written one after the other."""
    *_, before, end = commit_ends(log)
    for length in range(before, end, 31):
        assert walked(tmp_path, log[:length]) == Walked(commits=4), length


def test_a_last_transaction_whose_bytes_are_wrong_is_in_doubt(tmp_path: Path, log: bytes) -> None:
    """A power cut may leave any part of it; so may damage, after it was acknowledged."""
    *_, before, end = commit_ends(log)
    for at in range(before, end, 61):
        found = walked(tmp_path, log[:at] + bytes([log[at] ^ 4]) + log[at + 1 :])
        assert (found.commits, found.damage) == (4, None), at
        assert found.doubt, at


def test_wrong_bytes_in_front_of_a_later_transaction_are_damage(tmp_path: Path, log: bytes) -> None:
    *_, before, _ = commit_ends(log)
    for at in range(HEADER_BYTES, before, 61):
        found = walked(tmp_path, log[:at] + bytes([log[at] ^ 64]) + log[at + 1 :])
        # A frame that lost what it is known by may be a torn one's: then only the mark can tell, see mark.py.
        in_header = (at - HEADER_BYTES) % FRAME < 24
        assert found.damage or (found.doubt and in_header), at


def test_something_behind_the_end_of_an_unsound_transaction_proves_that_it_once_was_sound(
    tmp_path: Path, log: bytes
) -> None:
    *_, third, before, _ = commit_ends(log)
    damaged = log[: third + 100] + b"?" + log[third + 101 :]
    assert walked(tmp_path, damaged[:before]).doubt
    assert walked(tmp_path, damaged[: before + 1]).damage
    assert walked(tmp_path, damaged[: before + FRAME]).damage


def test_a_damaged_header_hides_everything_and_is_noticed(tmp_path: Path, log: bytes) -> None:
    for at in range(HEADER_BYTES):
        found = walked(tmp_path, log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :])
        assert found.commits == 0, at
        assert found.damage, at
    one = log[: commit_ends(log)[0]]
    assert walked(tmp_path, b"?" + one[1:]).doubt


def test_a_link_in_the_logs_place_is_not_followed(tmp_path: Path, log: bytes) -> None:
    (tmp_path / "target").write_bytes(log)
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        walk(tmp_path / "link", PAGE)
