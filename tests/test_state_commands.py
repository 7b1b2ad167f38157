"""`edge-cl state` as it is typed: what it shows, what it finds, what a backup is worth; beside a writer, too."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import record
from test_cli_snapshots import edge_cl
from test_daemon import N, assert_same_learner, run, settings
from test_state_dir import tree

from edge_cl.daemon import Daemon
from edge_cl.errors import Exit
from edge_cl.storage import journal
from edge_cl.storage.backup import BackedUp, write_backup
from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.errors import StateDirError
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.state_dir import FORMAT, StateDir, check_state_dir, write_format
from edge_cl.storage.survey import survey

BODY = bytes(range(256)) * 4
BATCH = 8

# A process that holds the state directory as a daemon does: entries, checkpoints and snapshots as fast as it can.
BUSY_DAEMON = """
import sys
from pathlib import Path
import numpy as np
from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.journal import Journal
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.state_dir import StateDir
state = Path(sys.argv[1])
with StateDir(state):
    store, shelf = CheckpointStore(state), Shelf(state)
    found = store.load()
    number = older = int(found.meta["journal"])
    entries = Journal(state / "journal", after=number, queue_bytes=1 << 20, commit_ms=1.0)
    for turn in range(100_000):
        for _ in range(5):
            number = entries.append(number.to_bytes(8, "little") * 16)
            entries.wait(number, 60)
        entries.rotate()
        store.save({"sum": np.array([number])}, {**found.meta, "journal": number})
        shelf.publish(str(number).encode(), {})
        entries.forget(older)
        older = number
        if turn == 0:
            print("busy", flush=True)
"""


# Restores again and again, each time killed in front of a later call that changes the disk.
KILLED_RESTORE = """
import os, signal, sys
from pathlib import Path
import edge_cl.storage.restore as restore

def counted(call):
    def counting(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return counting

for name in ("mkdir", "write", "fsync", "rename", "unlink", "symlink"):
    setattr(os, name, counted(getattr(os, name)))
if sys.argv[3] == "format first":  # broken: what makes it a state directory is there before the state is
    place = restore._put_in_place
    def after_the_format(folder, state):
        restore.write_format(state)
        place(folder, state)
    restore._put_in_place = after_the_format
for call in range(1, 1000):
    child = os.fork()
    if child == 0:
        left = call
        restore.restore_backup(Path(sys.argv[1]), Path(sys.argv[2]) / str(call))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
else:
    sys.exit("it never came to its end")
"""


def meta(steps: int, entry: int) -> dict[str, Any]:
    """What of a checkpoint's meta is shown."""
    return {
        "learner": {"counts": [10 * steps, 9 * steps, steps, 1, 0]},
        "source": "simulated:motor",
        "config": {"learning": {"batch_size": BATCH}},
        "journal": entry,
    }


def write_entries(state: Path, after: int, n: int) -> None:
    """As one run of a daemon: into segments of their own."""
    entries = journal.Journal(state / "journal", after=after, queue_bytes=1 << 20)
    for number in range(after + 1, after + n + 1):
        assert entries.append(BODY + bytes([number])) == number
    assert entries.wait(after + n, 60.0)
    entries.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Generation 2 in checkpoint.b with entry 4 in it, generation 1 with entry 2, entries 1 to 7, two snapshots."""
    path = tmp_path / "state"
    with StateDir(path):
        shelf, store = Shelf(path), CheckpointStore(path, model="mlp on int16 [40, 3]")
        write_entries(path, 0, 4)
        store.save({"theta": np.arange(1000.0)}, meta(1, 2))
        store.save({"theta": np.arange(1000.0) + 1}, meta(2, 4))
        write_entries(path, 4, 3)
        shelf.publish(b"first model", {"training": {"learned": 9}})
        shelf.publish(b"second model", {"training": {"learned": 18}})
        shelf.pin("000001")
    return path


class Told:
    """What a command printed, and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        self.code = edge_cl("state", *arguments)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


# show


def test_show_says_what_is_there_and_changes_nothing(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(state)
    told = Told(capsys, "show", "--state", state, "--json")
    assert tree(state) == before
    assert told.code == 0
    found = told.json
    assert (found["format"], found["pid"], found["source"]) == (FORMAT, None, "simulated:motor")
    assert found["model"] == "mlp on int16 [40, 3]"
    older, newer = found["slots"]
    assert (older["slot"], older["generation"], older["journal"]) == ("checkpoint.a", 1, 2)
    assert (newer["slot"], newer["generation"], newer["steps"], newer["learned"]) == ("checkpoint.b", 2, 2, 18)
    assert newer["bytes"] == (state / "checkpoint.b").stat().st_size
    assert {key: found["journal"][key] for key in ("first", "last", "behind")} == {"first": 3, "last": 7, "behind": 3}
    assert found["journal"]["bytes"] > 7 * len(BODY)
    assert [snapshot["id"] for snapshot in found["snapshots"]] == ["000001", "000002"]
    assert found["current"] == "000001"
    assert found["bytes"] > 8 * 2000
    assert found["faults"] == []


def test_show_is_a_table_for_a_person(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "show", "--state", state)
    text = " ".join(told.out.split())
    assert "checkpoint.b generation 2" in text
    assert "18 samples learnt in 2 steps" in text
    assert "3 entries behind the newest checkpoint" in text
    assert told.err == ""


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_directory_of_a_daemon_that_has_learnt_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    StateDir(tmp_path / "state").close()
    told = Told(capsys, command, "--state", tmp_path / "state", "--json")
    assert told.code == 0
    assert (told.json["slots"], told.json["snapshots"], told.json["journal"]["entries"]) == ([], [], 0)
    assert Told(capsys, command, "--state", tmp_path / "state").code == 0


@pytest.mark.parametrize("command", [["show"], ["verify"], ["backup", "x.tar"]])
def test_what_is_no_state_directory_is_refused_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir(0o700)
    (tmp_path / "home" / "letter").touch()
    for folder in (tmp_path / "home", tmp_path / "nowhere"):
        assert Told(capsys, *command, "--state", folder, "--json").code == Exit.CONFIG
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["home", "letter"]


def test_a_directory_from_before_the_journal_is_sound(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (state / "journal").iterdir():
        file.unlink()
    (state / "journal").rmdir()
    old = {name: value for name, value in meta(3, 0).items() if name != "journal"}
    with StateDir(state):
        for _ in range(2):
            CheckpointStore(state).save({"theta": np.zeros(3)}, old)
    write_format(state, 1)
    told = Told(capsys, "verify", "--state", state, "--json")
    assert (told.code, told.json["lost_samples"]) == (0, 0)
    assert "generation 4 in checkpoint.b and 0 journal entries behind it; nothing is lost" in told.json["recovery"]


# verify


def test_a_sound_directory(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(state)
    told = Told(capsys, "verify", "--state", state, "--json")
    assert tree(state) == before
    assert told.code == 0
    assert list(told.json) == ["sound", "faults", "recovery", "lost_samples", "slots", "journal", "snapshots"]
    assert (told.json["sound"], told.json["faults"], told.json["lost_samples"]) == (True, [], 0)
    assert told.json["recovery"] == (
        "goes on from generation 2 in checkpoint.b and 3 journal entries behind it; nothing is lost"
    )


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_damaged_slot_costs_nothing_while_the_journal_is_there(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(state / "checkpoint.b", 4000)
    told = Told(capsys, "verify", "--state", state, "--json")
    assert (told.code, told.json["sound"], told.json["lost_samples"]) == (Exit.VERIFY_FAILED, False, 0)
    assert told.json["faults"] == ["checkpoint.b is damaged: its SHA-256 does not match"]
    assert told.json["recovery"] == (
        "goes on from generation 1 in checkpoint.a and 5 journal entries behind it; nothing is lost"
    )
    assert "recovery: goes on from generation 1" in Told(capsys, "verify", "--state", state).err


def test_both_slots_damaged(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(state / "checkpoint.a", 30)
    flip(state / "checkpoint.b", 30)
    told = Told(capsys, "verify", "--state", state, "--json")
    assert told.code == Exit.VERIFY_FAILED
    assert len(told.json["faults"]) == 2
    assert "goes on with the weights of snapshot 000002 alone" in told.json["recovery"]
    assert told.json["lost_samples"] is None
    assert [slot["generation"] for slot in told.json["slots"]] == [None, None]


def test_a_damaged_entry_names_the_loss(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the middle of the newest segment: entries 5 to 7 are one transaction, of which nothing is left."""
    wal = state / "journal" / "000000000005.db-wal"
    flip(wal, wal.stat().st_size // 2)
    told = Told(capsys, "verify", "--state", state, "--json")
    assert (told.code, told.json["lost_samples"]) == (Exit.VERIFY_FAILED, 3 * BATCH)
    assert "sound up to entry 4" in told.json["faults"][0]
    lost = f"at most {3 * BATCH} samples are lost"
    assert told.json["recovery"] == f"goes on from generation 2 in checkpoint.b and 0 journal entries behind it; {lost}"


def test_a_damaged_entry_that_only_the_older_slot_needs_is_a_fault_without_a_loss(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wal = state / "journal" / "000000000001.db-wal"
    flip(wal, wal.stat().st_size // 2)
    told = Told(capsys, "verify", "--state", state, "--json")
    assert (told.code, told.json["lost_samples"]) == (Exit.VERIFY_FAILED, 0)
    assert "3 journal entries behind it; nothing is lost" in told.json["recovery"]


def test_a_segment_that_is_gone_is_a_loss(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "journal" / "000000000005.db").unlink()
    (state / "journal" / "000000000005.db-wal").unlink()
    told = Told(capsys, "verify", "--state", state, "--json")
    assert (told.code, told.json["lost_samples"]) == (Exit.VERIFY_FAILED, 3 * BATCH)


def test_every_bit_of_a_snapshot_counts(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(state / "snapshots" / "000002" / "model.onnx", 3)
    told = Told(capsys, "verify", "--state", state, "--json")
    assert told.code == Exit.VERIFY_FAILED
    assert [snapshot["problems"] != [] for snapshot in told.json["snapshots"]] == [False, True]
    assert "snapshot 000002" in told.json["faults"][0]
    assert Told(capsys, "show", "--state", state).code == 0  # it does not read models


@pytest.fixture
def busy(state: Path) -> Iterator[Path]:
    """A state directory while a daemon learns, saves and publishes as fast as it can."""
    command = [sys.executable, "-c", BUSY_DAEMON, str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"busy\n"
        yield state
        assert daemon.poll() is None, "the daemon ended by itself"
        daemon.send_signal(signal.SIGKILL)


def test_verify_and_backup_beside_a_busy_daemon(busy: Path, tmp_path: Path) -> None:
    """What is replaced or forgotten while it is read is no damage, and each backup is of one instant."""
    generations = set()
    for turn in range(4):
        found = survey(busy, thorough=True)
        assert found.faults == []
        assert found.pid
        out, new = tmp_path / f"{turn}.tar", tmp_path / f"new{turn}"
        assert edge_cl("state", "backup", out, "--state", busy) == 0
        assert edge_cl("state", "restore", out, "--state", new) == 0
        copy = survey(new, thorough=True)
        assert copy.faults == []
        newest = CheckpointStore(new).load()
        assert newest is not None
        assert newest.arrays["sum"].tolist() == [newest.meta["journal"]]
        entries = list(journal.read(new / "journal", after=newest.meta["journal"]))
        assert [body for _, body in entries] == [(number - 1).to_bytes(8, "little") * 16 for number, _ in entries]
        assert copy.current is not None
        generations.add(newest.generation)
    assert len(generations) > 1


# backup and restore


@pytest.fixture
def archive(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "backup.tar"
    told = Told(capsys, "backup", out, "--state", state, "--json")
    assert told.code == 0
    assert (told.json["generation"], told.json["entries"], told.json["left_out"]) == (2, 3, [])
    assert told.json["nbytes"] == out.stat().st_size
    return out


def rewritten(archive: Path, change: Any) -> Path:
    """The archive with `change` made of its list of (header, content)."""
    with tarfile.open(archive) as tar:
        files = [(entry, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
    with tarfile.open(archive, "w") as tar:
        for entry, content in change(files):
            tar.addfile(entry, io.BytesIO(content))
    return archive


def test_a_backup_is_private_and_a_tar_file_that_sha256sum_checks(archive: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    with tarfile.open(archive) as tar:
        assert all(entry.isreg() and entry.mode == 0o600 for entry in tar)
        tar.extractall(tmp_path / "by hand", filter="data")
    checked = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=tmp_path / "by hand", check=False)
    assert checked.returncode == 0
    assert [path.name for path in tmp_path.glob(".*.tmp")] == []


def test_what_is_restored_is_what_was_backed_up(
    archive: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    told = Told(capsys, "restore", archive, "--state", new, "--json")
    assert (told.code, told.json["generation"], told.json["entries"]) == (0, 2, 3)
    assert (new / "checkpoint.b").read_bytes() == (state / "checkpoint.b").read_bytes()
    assert list(journal.read(new / "journal", after=4)) == list(journal.read(state / "journal", after=4))
    for number in ("000001", "000002"):
        one, other = (tree(folder / "snapshots" / number) for folder in (state, new))
        assert {name: content for name, (_, _, content) in one.items()} == {
            name: content for name, (_, _, content) in other.items()
        }
    current = Shelf(new).current()
    assert current is not None
    assert (current.id, Shelf(new).pinned()) == ("000001", "000001")
    assert {stat.S_IMODE(path.stat().st_mode) for path in [new, *new.rglob("*")] if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(p.lstat().st_mode) for p in new.rglob("*") if p.is_file() and not p.is_symlink()} == {0o600}
    assert Told(capsys, "verify", "--state", new).code == 0
    assert {path.name for path in new.iterdir()} == {".format", "lock", "checkpoint.b", "journal", "snapshots"}


def test_a_journal_goes_on_behind_what_was_restored(archive: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert edge_cl("state", "restore", archive, "--state", new) == 0
    write_entries(new, 7, 2)
    assert [number for number, _ in journal.read(new / "journal", after=4)] == [5, 6, 7, 8, 9]
    assert survey(new, thorough=True).faults == []


def test_a_directory_that_is_not_empty_is_refused_untouched(
    archive: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir(0o700)
    (tmp_path / "home" / "letter").touch()
    for folder in (state, tmp_path / "home"):
        before = tree(folder)
        assert Told(capsys, "restore", archive, "--state", folder).code == Exit.CONFIG
        assert tree(folder) == before


def test_a_backup_does_not_go_into_the_directory_itself(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(state)
    for name in ("state/backup.tar", "state/snapshots/backup.tar", "state/../state/x"):
        out = state.parent / name
        assert Told(capsys, "backup", out, "--state", state).code == Exit.CONFIG
    assert tree(state) == before


def test_no_byte_of_a_backup_can_change_unnoticed(archive: Path, tmp_path: Path) -> None:
    """Contents, headers and padding: refused, or the very same directory."""
    content = archive.read_bytes()
    wanted = restored(archive, tmp_path / "wanted")
    rng = np.random.default_rng(0)
    broken = tmp_path / "broken.tar"
    refused = 0
    for turn, offset in enumerate(rng.choice(len(content), 30, replace=False).tolist()):
        changed = bytearray(content)
        changed[offset] ^= 1 << int(rng.integers(8))
        broken.write_bytes(changed)
        got = restored(broken, tmp_path / f"flipped{turn}")
        assert got in (None, wanted), f"byte {offset}"
        refused += got is None
    for turn, length in enumerate(rng.choice(len(content) - 10_240, 5, replace=False).tolist()):
        broken.write_bytes(content[:length])
        assert restored(broken, tmp_path / f"cut{turn}") is None
    assert refused > 8  # much of a tar file is padding


def restored(archive: Path, new: Path) -> dict[str, bytes] | None:
    """All files of what is restored, None if it was refused and left no trace."""
    code = edge_cl("state", "restore", archive, "--state", new)
    if code != 0:
        assert code in (Exit.IO, Exit.CONFIG)
        assert not new.exists()
        return None
    return contents(new)


def contents(state: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(state)): path.read_bytes() for path in state.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "lock"}


def named(name: str, **fields: Any) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


@pytest.mark.parametrize(
    "planted",
    [
        named("../outside"),
        named("/tmp/outside"),
        named("journal/../../outside"),
        named("snapshots/000003/../../../outside"),
        named("checkpoint.a", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        named("checkpoint.a", type=tarfile.LNKTYPE, linkname="checkpoint.b"),
        named("snapshots/current", type=tarfile.SYMTYPE, linkname="../.."),
        named("journal", type=tarfile.DIRTYPE),
        named("checkpoint.a", type=tarfile.FIFOTYPE),
        named("checkpoint.a", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        named(".format"),
        named("lock"),
        named("checkpoint.c"),
        named("snapshots/000003/model.onnx"),  # plain, but not listed
    ],
    ids=lambda entry: f"{entry.name}-{entry.type.decode()}",
)
def test_what_no_backup_of_ours_has_in_it_is_refused(archive: Path, tmp_path: Path, planted: tarfile.TarInfo) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    rewritten(archive, lambda files: [(planted, b""), *files])
    assert restored(archive, tmp_path / "new") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(("order", "is_safe"), [("as it is", True), ("format first", False)])
def test_a_restore_that_is_killed_leaves_no_half_of_a_state(
    archive: Path, tmp_path: Path, order: str, is_safe: bool
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED_RESTORE, str(archive), str(new), order], check=False)
    assert done.returncode == 0
    tried = sorted(new.iterdir(), key=lambda folder: int(folder.name))
    whole = contents(tried[-1])
    halves = 0
    for folder in tried:
        with suppress(StateDirError):  # it is refused, by a daemon too, and left alone
            halves += check_state_dir(folder) is not None and contents(folder) != whole
    assert (halves == 0) == is_safe


@pytest.mark.parametrize("gone", ["checkpoint.b", "backup.json", "SHA256SUMS", "snapshots/000001/manifest.json"])
def test_a_backup_that_lacks_a_file_is_refused(archive: Path, tmp_path: Path, gone: str) -> None:
    rewritten(archive, lambda files: [(entry, content) for entry, content in files if entry.name != gone])
    assert restored(archive, tmp_path / "new") is None


def test_a_backup_of_a_newer_edge_cl_is_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    def newer(files: list[tuple[tarfile.TarInfo, bytes]]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        sums = dict((entry.name, content) for entry, content in files)
        note = json.dumps({**json.loads(sums["backup.json"]), "format": FORMAT + 1}).encode()
        was, now = (hashlib.sha256(content).hexdigest().encode() for content in (sums["backup.json"], note))
        for entry, content in files:
            content = {"backup.json": note, "SHA256SUMS": content.replace(was, now)}.get(entry.name, content)
            entry.size = len(content)
            yield entry, content

    rewritten(archive, newer)
    told = Told(capsys, "restore", archive, "--state", tmp_path / "new")
    assert (told.code, "the newer edge_cl" in told.err) == (Exit.CONFIG, True)
    assert not (tmp_path / "new").exists()


def test_a_damaged_slot_and_snapshot_are_left_out_and_named(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(state / "checkpoint.b", 100)
    flip(state / "snapshots" / "000002" / "model.onnx", 3)
    told = Told(capsys, "backup", tmp_path / "b.tar", "--state", state, "--json")
    assert (told.code, told.json["generation"], told.json["entries"]) == (0, 1, 5)
    assert told.json["snapshots"] == ["000001"]
    assert len(told.json["left_out"]) == 2
    assert edge_cl("state", "restore", tmp_path / "b.tar", "--state", tmp_path / "new") == 0
    assert survey(tmp_path / "new", thorough=True).faults == []


def test_a_damaged_journal_is_not_backed_up_as_if_it_were_whole(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wal = state / "journal" / "000000000005.db-wal"
    flip(wal, wal.stat().st_size // 2)
    told = Told(capsys, "backup", tmp_path / "b.tar", "--state", state)
    assert told.code != 0
    assert "sound up to entry 4" in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_leaves_the_backup_before_it(
    archive: Path, state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = archive.read_bytes()
    monkeypatch.setattr(os, "rename", _full)
    assert Told(capsys, "backup", archive, "--state", state).code == Exit.IO
    assert archive.read_bytes() == before
    assert sorted(path.name for path in archive.parent.iterdir()) == ["backup.tar", "state"]


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


# With a learner


class BackUpAt:
    """Signals that never stop the daemon, and make a backup after so many samples, to the sample."""

    consolidate = False

    def __init__(self, samples: int, out: Path) -> None:
        self.samples, self.out = samples, out
        self.daemon: Daemon | None = None
        self.made: BackedUp | None = None

    @property
    def stop(self) -> bool:
        if self.made is None and self.daemon is not None and self.daemon.telemetry.samples >= self.samples:
            assert self.daemon.keeper.wait_for(self.daemon.keeper.entry, 60.0)
            self.made = write_backup(self.daemon.path, self.out)
        return False


def test_a_daemon_goes_on_from_a_backup_that_was_made_beside_it_bit_for_bit(tmp_path: Path) -> None:
    """Half of the run is in the journal alone, and no sample is learnt twice."""
    source, rarely = f"recording:{record(tmp_path / 'signals.npz', N)}", "storage.recovery_s=3600"
    signals: Any = BackUpAt(155, tmp_path / "b.tar")
    signals.daemon = Daemon(settings(rarely), tmp_path / "whole", source_url=source, once=True, signals=signals)
    whole = signals.daemon.run()
    assert signals.made.entries > 5
    assert edge_cl("state", "restore", tmp_path / "b.tar", "--state", tmp_path / "new") == 0
    assert survey(tmp_path / "new", thorough=True).faults == []
    rest = run(tmp_path / "new", source, rarely)
    assert_same_learner(tmp_path / "whole", tmp_path / "new")
    assert (rest["samples"], rest["steps"]) == (whole["samples"], whole["steps"])
