"""The command line's own part: exit codes, stdout for data and stderr for talk, one JSON object at the end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from edge_cl import errors
from edge_cl.check.line import Checked, CheckLine
from edge_cl.cli import CURVES, _with_speed, main
from edge_cl.cli_check import table_of
from edge_cl.config import SAMPLE, Config, parse
from edge_cl.console import draw
from edge_cl.errors import Exit
from edge_cl.exits import explain
from edge_cl.service.status import blank, write_status
from edge_cl.storage.errors import SnapshotMismatch, StateBusy, StateDirError, StorageFault
from firmware_bridge.errors import BadRecording, BadSourceUrl, SourceLost, SourceUnavailable

# A process that holds a state directory as the daemon does and consolidates on SIGUSR1, without learning anything.
# It ends when its standard input does.
PRETEND_DAEMON = """
import os, signal, sys
from pathlib import Path
from edge_cl.service.status import blank, write_status
from edge_cl.storage.state_dir import StateDir

state, answer = Path(sys.argv[1]), sys.argv[2]
status = blank()
status.update(state="running", pid=os.getpid(), started_s=1.0, updated_s=8.0, source="simulated:motor", message="well")
status["steps"] = int(sys.argv[3])

def consolidate(*_):
    if answer == "die":
        os._exit(0)
    if answer == "obey":
        status["consolidations"] += 1
        write_status(state, status)

with StateDir(state):
    signal.signal(signal.SIGUSR1, consolidate)
    write_status(state, status)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextmanager
def pretend_daemon(state: Path, answer: str = "obey", *, steps: int = 7) -> Iterator[IO[str]]:
    command = [sys.executable, "-c", PRETEND_DAEMON, str(state), answer, str(steps)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process.stdin
        if not process.stdin.closed:
            process.stdin.close()


def edge_cl(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def last_json(text: str) -> dict[str, Any]:
    found = json.loads(text.splitlines()[-1])
    assert isinstance(found, dict)
    return found


# Errors and exit codes


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (errors.EdgeError("x"), 1),
        (errors.NotRunning("x"), 3),
        (errors.VerifyFailed("x"), 11),
        (errors.NoSample("x"), 20),
        (errors.IOFault("x"), 74),
        (errors.TryAgain("x"), 75),
        (errors.OperatorError("x"), 78),
        (errors.BudgetExceeded("x"), 78),
        (errors.ConfigError([errors.Problem("f", 1, "k", "w")]), 78),
        (BadSourceUrl("x"), 78),
        (SourceUnavailable("x"), 78),
        (BadRecording("x"), 78),
        (SourceLost("x"), 74),
        (StateDirError("x", hint="h"), 78),
        (StateBusy(Path("x"), 1), 75),
        (SnapshotMismatch("x"), 11),
        (StorageFault("write", Path("x"), OSError(errno.ENOSPC, "full"), rule="r"), 74),
        (OSError(errno.ENOSPC, "No space left on device"), 74),
    ],
)
def test_every_failure_has_its_exit_code(exc: Exception, code: int) -> None:
    ending = explain(exc)
    assert ending is not None
    assert ending.code == code
    assert ending.message == str(exc)


@pytest.mark.parametrize("bug", [ValueError("x"), AssertionError(), KeyError("k"), OSError(errno.EBADF, "x")])
def test_our_own_bugs_are_not_explained_away(bug: Exception) -> None:
    assert explain(bug) is None


def test_a_bug_crashes_with_its_traceback_and_exit_code_1() -> None:
    code = (
        "from edge_cl import cli\n@cli.app.command()\ndef boom(): raise ZeroDivisionError('ours')\ncli.main(['boom'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: ours\n")


@pytest.mark.parametrize("arguments", [["nonsense"], ["run", "--nonsense"], ["run", "--samples", "0"], ["export"]])
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    assert edge_cl(*arguments) == Exit.USAGE


def test_commands_that_need_no_learner_do_not_import_torch(tmp_path: Path) -> None:
    for arguments in (["--version"], ["--help"], ["status"], ["config", "show"], ["config", "check"]):
        code = (
            f"import sys\nfrom edge_cl.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit: pass\n"
            "sys.exit(','.join(m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules) or 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)


def test_version_is_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge_cl("--version") == 0
    assert capsys.readouterr().out.startswith("edge-cl 0.")


def test_every_command_and_option_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    from typer.main import get_command

    def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, below in getattr(command, "commands", {}).items():
            yield from commands(below, f"{path} {name}")

    from edge_cl.cli import app

    for path, command in commands(get_command(app), "edge-cl"):
        assert command.help, path
        for option in command.params:
            assert getattr(option, "help", None) or option.name == "help", f"{path} {option.name}"


# config


def test_config_check_names_every_mistake_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("learning:\n  batchsize: 3\nexam: {share: 2}\n", encoding="utf-8")
    assert edge_cl("config", "check", "bad.yaml") == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "bad.yaml:2: learning.batchsize: unknown key, did you mean batch_size? (got 3)",
        "bad.yaml:3: exam.share: must be ≤ 0.5 (got 2)",
        "error: 2 mistakes in the configuration",
        "hint: `edge-cl config sample` prints every key with its unit and default",
    ]


def test_config_check_as_json_ends_in_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("source: no\n", encoding="utf-8")
    assert edge_cl("config", "check", "bad.yaml", "--json") == 78
    found = last_json(capsys.readouterr().out)
    assert (found["ok"], found["exit_code"]) == (False, 78)
    assert [(p["file"], p["line"], p["key"], p["got"]) for p in found["problems"]] == [("bad.yaml", 1, "source", "no")]
    (tmp_path / "good.yaml").write_text("", encoding="utf-8")
    assert edge_cl("config", "check", "good.yaml", "--json") == 0
    assert last_json(capsys.readouterr().out)["ok"] is True


@pytest.mark.parametrize("command", [["run", "--state", "s"], ["check"], ["config", "show"]])
def test_a_bad_configuration_stops_every_command_before_anything_is_touched(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text("wat: 1\n", encoding="utf-8")
    assert edge_cl(*command, "--config", "bad.yaml", "--json") == 78
    out, err = capsys.readouterr()
    assert "bad.yaml:1: wat: unknown key" in err
    assert last_json(out)["exit_code"] == 78
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_missing_config_file_is_named_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge_cl("config", "show", "--config", "none.yaml") == 78
    assert capsys.readouterr().err == (
        "error: none.yaml: there is no such file\n"
        "hint: `edge-cl config sample > config.yaml` writes one with all defaults\n"
    )


def test_config_show_prints_a_valid_configuration_with_origins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("replay: {samples: 7}\n", encoding="utf-8")
    assert edge_cl("config", "show", "-s", "replay.per_step=40") == 0
    out = capsys.readouterr().out
    assert (parse(out).replay.samples, parse(out).replay.per_step) == (7, 40)
    assert re.search(r"samples: 7 +# config.yaml:1\n", out)
    assert re.search(r"per_step: 40 +# -s\n", out)
    assert edge_cl("config", "show", "--json") == 0
    found = last_json(capsys.readouterr().out)
    assert found["config"]["replay"]["samples"] == 7
    assert found["origins"]["replay.samples"] == "config.yaml:1"
    assert found["origins"]["model.kind"] == "default"


def test_config_sample_prints_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge_cl("config", "sample") == 0
    assert capsys.readouterr().out == SAMPLE.read_text(encoding="utf-8")


def test_config_schema_knows_every_key_and_accepts_units(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge_cl("config", "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(Config.model_fields)
    memory = schema["$defs"]["BudgetSettings"]["properties"]["memory_bytes"]
    assert {kind["type"] for kind in memory["anyOf"]} == {"number", "string"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("simulated:motor", "simulated:motor?speed=max"),
        ("simulated:motor?seed=3&speed=2", "simulated:motor?seed=3&speed=max"),
        ("recording:a.npz?order=class", "recording:a.npz?order=class&speed=max"),
    ],
)
def test_speed_becomes_an_option_of_the_source(url: str, expected: str) -> None:
    assert _with_speed(url, "max") == expected


def test_the_check_table_shows_bytes_and_times_as_a_person_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    limited = [CheckLine("memory", 8 << 20, 9 << 20, "bytes"), CheckLine("step p99", 50.0, 8.25, "ms")]
    draw(table_of(Checked([*limited, CheckLine("process", None, 1 << 28, "bytes")], {})))
    _, memory, step, process = capsys.readouterr().out.splitlines()
    assert memory.split("  ")[0] == "memory"
    assert re.search(r"8.00 MiB +9.00 MiB +-1.00 MiB +FAIL", memory)
    assert re.search(r"50 ms +8.25 ms +41.75 ms +PASS", step)
    assert re.fullmatch(r"process +256 MiB +", process)


# status and consolidate, against a process that holds a real state directory


def test_status_of_a_running_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pretend_daemon(tmp_path / "s"):
        assert edge_cl("status", "--state", "s", "--json") == 0
        found = last_json(capsys.readouterr().out)
        assert (found["running"], found["state"], found["message"]) == (True, "running", "well")
        assert edge_cl("status", "--state", "s") == 0
        assert "simulated:motor" in capsys.readouterr().out


def test_status_without_a_daemon_shows_the_last_known_state_and_exits_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path, {**blank(), "state": "stopped", "updated_s": 9.0, "source": "recording:x.npz", "steps": 17})
    assert edge_cl("status", "--state", ".", "--json") == 3
    found = last_json(capsys.readouterr().out)
    assert (found["running"], found["state"], found["steps"]) == (False, "stopped", 17)
    assert edge_cl("status", "--state", ".") == 3
    out, err = capsys.readouterr()
    assert "recording:x.npz" in out
    assert err == "error: no daemon runs on .\nhint: edge-cl run --state .\n"


def test_status_of_a_daemon_that_was_killed_does_not_say_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path, {**blank(), "state": "running", "updated_s": 9.0})
    assert edge_cl("status", "--state", ".", "--json") == 3
    found = last_json(capsys.readouterr().out)
    assert found["state"] == "failed"
    assert "without a word" in found["message"]


@pytest.mark.parametrize("torn", [None, "", "{", "[1]", "\x00" * 100])
def test_status_with_nothing_to_read_still_ends_in_one_json_object(
    torn: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torn is not None:
        (tmp_path / "status.json").write_text(torn, encoding="utf-8")
    assert edge_cl("status", "--state", ".", "--json") == 3
    assert last_json(capsys.readouterr().out)["running"] is False


def test_consolidate_waits_until_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pretend_daemon(tmp_path / "s"):
        assert edge_cl("consolidate", "--state", "s", "--json") == 0
        assert last_json(capsys.readouterr().out)["consolidations"] == 1


def test_consolidate_gives_up_after_its_timeout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pretend_daemon(tmp_path / "s", "ignore"):
        assert edge_cl("consolidate", "--state", "s", "--timeout", "0") == 75
        assert "error: not done after 0 s" in capsys.readouterr().err


def test_consolidate_does_not_wait_for_a_daemon_that_has_learnt_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pretend_daemon(tmp_path / "state", steps=0):
        assert edge_cl("consolidate", "--state", str(tmp_path / "state")) == Exit.TRY_AGAIN
    assert "has learnt nothing yet" in capsys.readouterr().err


def test_consolidate_without_a_daemon_or_with_one_that_dies_is_exit_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edge_cl("consolidate", "--state", "s") == 3
    with pretend_daemon(tmp_path / "s", "die"):
        assert edge_cl("consolidate", "--state", "s") == 3
    assert "ended before it had consolidated" in capsys.readouterr().err


def test_consolidate_does_not_signal_a_daemon_that_is_not_listening_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pretend_daemon(tmp_path / "s"):
        write_status(tmp_path / "s", {**blank(), "state": "stopped", "updated_s": 1.0})  # of the run before this one
        assert edge_cl("consolidate", "--state", "s") == 75
        assert edge_cl("status", "--state", "s") == 0, "it still runs"


def test_watch_draws_on_a_terminal_and_ends_with_the_daemon(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "edge_cl", "status", "--watch", "--state", "s"]
    with pretend_daemon(tmp_path / "s") as stdin:
        watch = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        drawn = _read_until(ours, b"simulated:motor")
        stdin.close()
        drawn += _read_until(ours, None)
        assert watch.wait() == 3
    os.close(ours)
    assert b"\x1b[?1049h" in drawn, "the other screen, so that the shell's text comes back"
    assert b"no daemon runs on s" in drawn
    assert b"\x1b[3" not in drawn, "no colour under NO_COLOR"


# run: what it shows (what the daemon does has its own tests)


def _recording(path: Path, n: int = 120) -> str:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    np.savez(path, x=(rng.normal(0, 50, (n, 16, 3)) + 300 * y[:, None, None]).astype(np.int16), y=y)
    return f"recording:{path}"


def test_run_elsewhere_prints_json_lines_and_talks_on_stderr(tmp_path: Path) -> None:
    source = _recording(tmp_path / "r.npz")
    command = [sys.executable, "-m", "edge_cl", "run", "--once", "--state", "s", "--source", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["state"] == "stopped"
    assert not set(lines[-1]) & set(CURVES), "a line a second stays small"
    assert "config: built-in defaults" in done.stderr
    assert "memory plan" in done.stderr
    assert "summary" in done.stderr
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert last_json(done.stdout).keys() >= {"samples", "steps", "snapshot", "dropped", "rss_peak_bytes"}
    assert "summary" not in done.stderr


def test_run_on_a_terminal_draws_and_leaves_plan_and_summary_behind(tmp_path: Path) -> None:
    source = _recording(tmp_path / "r.npz")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [sys.executable, "-m", "edge_cl", "run", "--once", "--state", "s", "--source", source]
    run = subprocess.Popen(command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm-256color"})
    os.close(theirs)
    drawn = _read_until(ours, None).decode()
    os.close(ours)
    assert run.wait() == 0, drawn
    before, there, after = re.split(r"\x1b\[\?1049[hl]", drawn)
    assert "memory plan" in before
    assert "accuracy, test-then-train" in there
    assert "summary" in after
    assert "model.onnx" in after


def _read_until(terminal: int, word: bytes | None) -> bytes:
    seen = b""
    while word is None or word not in seen:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # how Linux says that the far end of a terminal was closed
            break
        if not chunk:
            break
        seen += chunk
    return seen
