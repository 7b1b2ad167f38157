"""StateDir on real directories, with real second processes."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_cl.storage.atomic import temporary_name
from edge_cl.storage.errors import StateBusy, StateDirError, StorageFault
from edge_cl.storage.state_dir import FORMAT, StateDir, check_state_dir, running_pid

HOLDER = """
import sys
from pathlib import Path
from edge_cl.storage.state_dir import StateDir
state = StateDir(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time of change and content of everything in the folder, and of the folder."""
    found = {}
    for entry in [folder, *sorted(folder.rglob("*"))]:
        status = entry.lstat()
        found[entry.name] = (status.st_mode, status.st_mtime_ns, entry.read_bytes() if entry.is_file() else b"")
    return found


def test_creates_a_private_directory_with_its_format(tmp_path: Path) -> None:
    path = tmp_path / "some" / "state"
    with StateDir(path) as state:
        assert state.path == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert json.loads((path / ".format").read_text()) == {"format": FORMAT}
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
        assert check_state_dir(path) == FORMAT


def test_opens_again_after_closing_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        (state.path / "status.json").write_text("{}")
    with StateDir(tmp_path / "state") as state:
        assert (state.path / "status.json").read_text() == "{}"
        state.close()
        state.close()


def test_a_second_opening_is_refused_with_the_holders_pid(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        with pytest.raises(StateBusy, match=f"in use by process {os.getpid()}") as caught:
            StateDir(state.path)
        assert caught.value.pid == os.getpid()
        assert running_pid(state.path) == os.getpid()
    assert running_pid(state.path) is None


def test_the_kernel_frees_the_lock_of_a_killed_daemon(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert running_pid(tmp_path / "state") == holder.pid
        with pytest.raises(StateBusy) as caught:
            StateDir(tmp_path / "state")
        assert caught.value.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / "state" / "lock").read_text() == f"{holder.pid}\n"  # stale, and without effect
        assert running_pid(tmp_path / "state") is None
        StateDir(tmp_path / "state").close()


def test_a_child_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    child = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        state.close()
        assert running_pid(state.path) is None
        process.communicate(b"\n")


def test_a_daemon_that_has_not_noted_its_pid_counts_as_running(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        (state.path / "lock").write_text("")
        assert running_pid(state.path) == 0
        with pytest.raises(StateBusy, match="in use by another process"):
            StateDir(state.path)


def test_asking_for_the_pid_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert running_pid(tmp_path / "missing") is None
    assert running_pid(tmp_path) is None
    assert running_pid(tmp_path / "file") is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_directory_others_may_write_is_refused_untouched(tmp_path: Path, mode: int) -> None:
    StateDir(tmp_path / "state").close()
    (tmp_path / "state").chmod(mode)
    before = tree(tmp_path)
    with pytest.raises(StateDirError, match=f"may be written by others \\(mode {mode:04o}\\)") as caught:
        StateDir(tmp_path / "state")
    assert caught.value.hint.startswith("chmod 700")
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused_untouched(tmp_path: Path) -> None:
    StateDir(tmp_path / "state").close()
    os.chown(tmp_path / "state", 54321, -1)
    before = tree(tmp_path)
    with pytest.raises(StateDirError, match="belongs to user 54321"):
        StateDir(tmp_path / "state")
    assert tree(tmp_path) == before


def test_a_link_and_a_file_are_refused(tmp_path: Path) -> None:
    StateDir(tmp_path / "state").close()
    (tmp_path / "link").symlink_to("state")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("x")
    for name, what in [("link", "symbolic link"), ("dangling", "symbolic link"), ("file", "not a directory")]:
        with pytest.raises(StateDirError, match=what):
            StateDir(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "file").read_text() == "x"


def test_a_linked_lock_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    StateDir(tmp_path / "state").close()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "state" / "lock").unlink()
    (tmp_path / "state" / "lock").symlink_to(victim)
    with pytest.raises(StorageFault, match="ELOOP"):
        StateDir(tmp_path / "state")
    assert victim.read_text() == "precious"


def test_somebody_elses_directory_is_refused_untouched(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("x")
    (home / temporary_name("thesis.tex")).write_text("y")
    before = tree(home)
    with pytest.raises(StateDirError, match=r"not empty \(it holds thesis.tex\)"):
        StateDir(home)
    assert tree(home) == before


def test_an_empty_directory_becomes_ours(tmp_path: Path) -> None:
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    assert check_state_dir(tmp_path / "disk") is None
    StateDir(tmp_path / "disk").close()
    assert check_state_dir(tmp_path / "disk") == FORMAT


def test_a_reader_is_told_that_a_directory_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StateDirError, match="does not exist"):
        check_state_dir(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_newer_format_is_refused_untouched(tmp_path: Path) -> None:
    StateDir(tmp_path / "state").close()
    (tmp_path / "state" / ".format").write_text(json.dumps({"format": FORMAT + 1, "shards": 7}))
    (tmp_path / "state" / temporary_name("x")).touch()
    before = tree(tmp_path)
    with pytest.raises(StateDirError, match=f"has format {FORMAT + 1}, this edge_cl knows up to {FORMAT}"):
        StateDir(tmp_path / "state")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "{}", '{"format": "1"}', '{"format": true}', '{"format": 0}'])
def test_an_unreadable_format_is_refused_untouched(tmp_path: Path, text: str) -> None:
    StateDir(tmp_path / "state").close()
    (tmp_path / "state" / ".format").write_text(text)
    before = tree(tmp_path)
    with pytest.raises(StateDirError, match="not a format number"):
        StateDir(tmp_path / "state")
    assert tree(tmp_path) == before


def test_unfinished_files_of_a_killed_daemon_are_swept_and_nothing_else(tmp_path: Path) -> None:
    StateDir(tmp_path / "state").close()
    (tmp_path / "state" / temporary_name("checkpoint.a")).write_bytes(b"half")
    (tmp_path / "state" / "notes.tmp").touch()
    with StateDir(tmp_path / "state") as state:
        assert {entry.name for entry in state.path.iterdir()} == {".format", "lock", "notes.tmp"}


def test_a_start_that_was_killed_before_it_wrote_the_format_is_taken_up(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "lock").write_text("1234567890123\n")
    (state / temporary_name(".format")).write_text("{")
    StateDir(state).close()
    assert (state / "lock").read_text() == f"{os.getpid()}\n"
    assert {entry.name for entry in state.iterdir()} == {".format", "lock"}
