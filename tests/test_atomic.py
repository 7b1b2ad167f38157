"""write_atomic, link_atomic, read_whole on real files, and on a real full disk."""

import errno
import os
import resource
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_cl.storage.atomic import is_temporary, link_atomic, read_whole, unlink_durable, write_atomic
from edge_cl.storage.errors import StorageFault


@contextmanager
def tiny_disk(mount_point: Path, size: str = "256k") -> Iterator[Path]:
    """A real tmpfs of that size; the test is skipped where mounting is not allowed."""
    mount_point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", mount_point], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", mount_point], check=True)


@contextmanager
def soft_limit(which: int, value: int) -> Iterator[None]:
    """This process's soft limit lowered for the block."""
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_writes_the_parts_one_after_the_other(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"ab", bytearray(b""), memoryview(b"cd"))
    assert (tmp_path / "f").read_bytes() == b"abcd"
    assert names(tmp_path) == {"f"}


def test_no_parts_make_an_empty_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b""


def test_files_are_private_unless_asked_otherwise(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "private", b"x")
        write_atomic(tmp_path / "public", b"x", mode=0o666)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644


def test_a_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomic(Path("f"), b"x")
    assert read_whole(Path("f")) == b"x"


def test_a_link_in_the_files_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "f").symlink_to(victim)
    write_atomic(tmp_path / "f", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "f").is_symlink()
    assert (tmp_path / "f").read_bytes() == b"new"


def test_reading_refuses_a_link_and_does_not_hang_on_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read_whole(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    assert read_whole(tmp_path / "pipe") == b""


def test_a_missing_folder_is_a_fault_with_path_errno_and_hint(tmp_path: Path) -> None:
    with pytest.raises(StorageFault, match="No such file or directory \\(ENOENT\\)") as caught:
        write_atomic(tmp_path / "missing" / "f", b"x")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.path == tmp_path / "missing" / "f"
    assert caught.value.hint == "create the folder first"
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_folder_in_the_files_place_is_a_fault_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(StorageFault) as caught:
        write_atomic(tmp_path / "f", b"x")
    assert caught.value.errno == errno.EISDIR
    assert names(tmp_path) == {"f"}


def test_a_full_disk_is_a_fault_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        write_atomic(disk / "f", b"old" * 1000)
        with pytest.raises(StorageFault, match="No space left on device") as caught:
            write_atomic(disk / "f", bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.hint == "free space on this disk"
        assert "whole, as it was before or as it is new" in caught.value.rule
        assert (disk / "f").read_bytes() == b"old" * 1000
        assert names(disk) == {"f"}
        write_atomic(disk / "f", bytes(100_000))
        assert (disk / "f").stat().st_size == 100_000


def test_a_file_size_limit_is_a_fault_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"old")
    with soft_limit(resource.RLIMIT_FSIZE, 64 << 10), pytest.raises(StorageFault) as caught:
        write_atomic(tmp_path / "f", bytes(1 << 20))
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == {"f"}


def test_no_descriptors_left_is_a_fault_and_none_leaks(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"old")
    before = names(Path("/proc/self/fd"))
    with soft_limit(resource.RLIMIT_NOFILE, 3), pytest.raises(StorageFault) as caught:
        write_atomic(tmp_path / "f", b"new")
    assert caught.value.errno == errno.EMFILE
    assert len(names(Path("/proc/self/fd"))) == len(before)
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_reader_only_ever_sees_whole_content(tmp_path: Path) -> None:
    contents = [bytes([value]) * 50_000 for value in range(5)]
    write_atomic(tmp_path / "f", contents[0])
    done = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            seen.append(read_whole(tmp_path / "f")[::1000])

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for content in contents:
            write_atomic(tmp_path / "f", content[:25_000], content[25_000:])
    done.set()
    reader.join()
    assert seen
    assert set(seen) <= {content[::1000] for content in contents}


def test_a_link_is_switched_over_another_one(tmp_path: Path) -> None:
    link_atomic(tmp_path / "current", "a")
    link_atomic(tmp_path / "current", "b")
    assert (tmp_path / "current").readlink() == Path("b")
    assert names(tmp_path) == {"current"}


def test_a_link_is_not_switched_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(StorageFault):
        link_atomic(tmp_path / "current", "a")
    assert names(tmp_path) == {"current"}


def test_a_link_is_removed_durably_and_a_second_time_without_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").touch()
    link_atomic(tmp_path / "current", "target")
    for _ in range(2):
        with watched(monkeypatch) as calls:
            unlink_durable(tmp_path / "current")
        assert calls == ["sync folder"]
        assert names(tmp_path) == {"target"}
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageFault):
        unlink_durable(tmp_path / "folder")


@pytest.mark.parametrize("name", ["f", ".f", "f.tmp", ".f.tmp", ".f.0123.tmp", ".format", ".0123456789abcdef.tmp"])
def test_other_names_are_not_taken_for_our_temporaries(name: str) -> None:
    assert not is_temporary(name)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, failing_sync: int = 0) -> Iterator[list[str]]:
    """The order of the real fsyncs and renames; fsync number `failing_sync` reports EIO, as no disk here will."""
    calls: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(file: int) -> None:
        calls.append("sync folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "sync file")
        if sum(call.startswith("sync") for call in calls) == failing_sync:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real_sync(file)

    def rename(*args: Any, **kwargs: Any) -> None:
        calls.append("rename")
        real_rename(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "rename", rename)
        yield calls


def test_content_is_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as calls:
        write_atomic(tmp_path / "f", b"x")
    assert calls == ["sync file", "rename", "sync folder"]
    with watched(monkeypatch) as calls:
        link_atomic(tmp_path / "l", "x")
    assert calls == ["rename", "sync folder"]


@pytest.mark.parametrize(("failing", "content"), [(1, b"old"), (2, b"new")])
def test_a_failed_sync_is_reported_and_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, content: bytes
) -> None:
    write_atomic(tmp_path / "f", b"old")
    with watched(monkeypatch, failing) as calls, pytest.raises(StorageFault, match="EIO") as caught:
        write_atomic(tmp_path / "f", b"new")
    assert caught.value.errno == errno.EIO
    assert sum(call.startswith("sync") for call in calls) == failing
    assert read_whole(tmp_path / "f") == content
    assert names(tmp_path) == {"f"}
