"""`edge-cl snapshots` as it is typed: what it says, what it changes, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_cl.cli import main
from edge_cl.errors import Exit
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.signature import signer, write_key_pair
from edge_cl.storage.state_dir import StateDir

COLUMNS = ["id", "state", "created", "samples", "exam_accuracy", "bytes", "sha256", "current"]

# A process that holds the state directory as a daemon does and publishes when it is told to.
PUBLISHING_DAEMON = """
import sys
from pathlib import Path
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.state_dir import StateDir
state = Path(sys.argv[1])
with StateDir(state):
    shelf = Shelf(state)
    for line in sys.stdin:
        print(shelf.publish(line.encode(), {}, state="trial").id, flush=True)
"""


def manifest(learned: int, ok: float = 1.0, **more: Any) -> dict[str, Any]:
    """As the publisher writes it: 30 exam samples of one class, 10 of another."""
    exam = {"ok": {"samples": 30, "accuracy": ok}, "worn": {"samples": 10, "accuracy": 0.5}}
    training = {"learned": learned, "steps": learned // 10, "consolidations": 1, "exam": exam}
    return {"labels": ["ok", "worn"], "training": training, "config_sha256": "c0ffee", **more}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with three snapshots: good, bad, good and current."""
    path = tmp_path / "state"
    with StateDir(path):
        shelf = Shelf(path)
        shelf.publish(b"first", manifest(100, 0.6))
        shelf.set_aside(b"poisoned", manifest(200, 0.2), why="exam 58 -> 28 %")
        shelf.publish(b"third!", manifest(300, 0.9, labels=["ok", "worn", "loose"]))
    return path


def edge_cl(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, arguments)))
    assert isinstance(caught.value.code, int)
    return caught.value.code


class Told:
    """What a command printed, and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        self.code = edge_cl("snapshots", *arguments)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


def test_list_has_exactly_the_promised_columns(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "list", "--state", state, "--json")
    assert told.code == 0
    assert [list(row) for row in told.json] == [COLUMNS] * 3
    third, second, first = told.json
    assert (first["id"], first["state"], first["current"], first["samples"]) == ("000001", "good", False, 100)
    assert (second["id"], second["state"], second["current"]) == ("000002", "bad", False)
    assert (third["id"], third["current"], third["bytes"]) == ("000003", True, 6)
    assert first["exam_accuracy"] == pytest.approx((30 * 0.6 + 10 * 0.5) / 40)
    assert third["sha256"] == Shelf(state).get("000003").manifest["sha256"]


def test_list_is_a_table_of_the_newest_first(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Shelf(state).pin("000001")
    told = Told(capsys, "list", "--state", state)
    head, *rows = told.out.splitlines()
    assert head.split() == ["id", "state", "created", "(UTC)", "samples", "exam", "size"]
    assert [row.split()[0] for row in rows] == ["000003", "000002", "000001"]
    assert rows[2].split()[3:] == ["100", "57.5%", "5", "B", "current,", "pinned"]
    assert max(map(len, told.out.splitlines())) <= 80


def test_a_snapshot_without_an_exam_has_no_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StateDir(tmp_path / "state"):
        Shelf(tmp_path / "state").publish(b"x", {"training": {"learned": 7, "exam": {}}})
    told = Told(capsys, "list", "--state", tmp_path / "state", "--json")
    assert [(row["samples"], row["exam_accuracy"]) for row in told.json] == [(7, None)]
    assert Told(capsys, "list", "--state", tmp_path / "state").code == 0


def test_an_empty_shelf_is_an_empty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StateDir(tmp_path / "state").close()
    assert Told(capsys, "list", "--state", tmp_path / "state", "--json").json == []
    assert "no snapshot was published yet" in Told(capsys, "list", "--state", tmp_path / "state").err
    told = Told(capsys, "show", "--state", tmp_path / "state")
    assert (told.code, "nothing is current" in told.err) == (Exit.CONFIG, True)
    assert Told(capsys, "rollback", "--state", tmp_path / "state").code == Exit.CONFIG
    assert Told(capsys, "verify", "--state", tmp_path / "state", "--json").json["sound"] is True


@pytest.mark.parametrize("command", ["list", "show", "diff 1", "rollback", "pin 1", "verify"])
def test_what_is_no_state_directory_is_refused_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "home").mkdir(0o700)
    (tmp_path / "home" / "letter").touch()
    for folder in (tmp_path / "home", tmp_path / "nowhere"):
        told = Told(capsys, *command.split(), "--state", folder, "--json")
        assert told.code == Exit.CONFIG
        assert told.json["exit_code"] == Exit.CONFIG
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == ["letter"]
    assert not (tmp_path / "nowhere").exists()


def test_show_tells_the_manifest_and_that_the_model_is_its_own(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "show", "2", "--state", state, "--json")
    assert told.code == 0
    assert (told.json["id"], told.json["why"], told.json["problems"]) == ("000002", "exam 58 -> 28 %", [])
    assert told.json["manifest"] == Shelf(state).get("000002").manifest
    told = Told(capsys, "show", "--state", state)
    assert "training.exam.ok.accuracy" in told.out
    assert "sound" in told.out
    Shelf(state).get("000003").path.write_bytes(b"thirD!")
    told = Told(capsys, "show", "current", "--state", state)
    assert told.code == Exit.VERIFY_FAILED
    assert "SHA-256 does not match" in told.out.replace("\n", " ")


def test_diff_names_every_fact_that_differs(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "diff", "1", "--state", state, "--json")
    assert (told.code, told.json["before"], told.json["after"]) == (0, "000001", "000003")
    found = {fact["key"]: (fact["before"], fact["after"]) for fact in told.json["differences"]}
    assert found.pop("sha256")
    assert found == {
        "bytes": (5, 6),
        "labels": (["ok", "worn"], ["ok", "worn", "loose"]),
        "training.learned": (100, 300),
        "training.steps": (10, 30),
        "training.exam.ok.accuracy": (0.6, 0.9),
    }
    told = Told(capsys, "diff", "000001", "000002", "--state", state)
    assert {"state", "training.learned"} < {line.split()[0] for line in told.out.splitlines()[1:]}
    assert Told(capsys, "diff", "1", "1", "--state", state, "--json").json["differences"] == []


def test_rollback_makes_the_one_before_current(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(capsys, "rollback", "--state", state, "--json")
    assert (told.code, list(told.json)) == (0, COLUMNS)
    assert (told.json["id"], told.json["current"]) == ("000001", True)
    rows = {row["id"]: (row["state"], row["current"]) for row in Told(capsys, "list", "--state", state, "--json").json}
    assert rows == {"000001": ("good", True), "000002": ("bad", False), "000003": ("bad", False)}
    told = Told(capsys, "rollback", "--state", state)
    assert (told.code, told.out) == (Exit.CONFIG, "")
    assert "error: no good snapshot before the current one" in told.err
    assert "hint: there are 000001, 000002, 000003" in told.err


def test_rollback_to_a_named_one(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "000002 is current" in Told(capsys, "rollback", "--state", state, "--to", "2").err
    current = Shelf(state).current()
    assert current is not None
    assert (current.id, current.state) == ("000002", "good")
    assert Told(capsys, "rollback", "--state", state, "--to", "9").code == Exit.CONFIG
    assert Told(capsys, "rollback", "--state", state, "--to", "newest").code == Exit.USAGE


def test_pin_and_off(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Told(capsys, "pin", "1", "--state", state, "--json").json == {"pinned": "000001", "current": "000001"}
    assert "is pinned\nhint: edge-cl snapshots pin --off" in Told(capsys, "rollback", "--state", state).err
    told = Told(capsys, "pin", "--off", "--state", state, "--json")
    assert told.json == {"pinned": None, "current": "000001"}
    for wrong in ([], ["1", "--off"]):
        assert Told(capsys, "pin", *wrong, "--state", state).code == Exit.USAGE


def test_verify_is_silent_about_what_is_sound_and_names_what_is_not(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told(capsys, "verify", "--state", state, "--json")
    assert (told.code, told.json["sound"]) == (0, True)
    assert [entry["problems"] for entry in told.json["snapshots"]] == [[], [], []]
    shelf = Shelf(state)
    shelf.get("000001").path.write_bytes(b"First")
    shelf.get("000002").path.with_name("manifest.json").write_text("{")
    shelf.get("000003").path.with_name("state.json").write_text("{")
    told = Told(capsys, "verify", "--state", state, "--json")
    assert (told.code, told.json["sound"]) == (Exit.VERIFY_FAILED, False)
    for entry, name in zip(told.json["snapshots"], ("model.onnx", "manifest.json", "state.json"), strict=True):
        assert len(entry["problems"]) == 1
        assert f"{entry['id']}/{name} is damaged" in entry["problems"][0]
    told = Told(capsys, "verify", "--state", state)
    assert told.out == ""
    assert "error: 000002: " in told.err
    listed = Told(capsys, "list", "--state", state, "--json")  # the sound ones, and a word on the others
    assert [row["id"] for row in listed.json] == ["000001"]
    assert listed.err.count("warning:") == 3


@pytest.mark.parametrize(("bound", "code"), [("3", 0), ("000002", 0), ("4", Exit.VERIFY_FAILED)])
def test_an_older_generation_than_demanded_is_refused(
    state: Path, capsys: pytest.CaptureFixture[str], bound: str, code: int
) -> None:
    told = Told(capsys, "verify", "--state", state, "--not-older-than", bound)
    assert told.code == code
    assert ("current is 000003, which is older than 000004" in told.err) == bool(code)


def test_nothing_current_is_older_than_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StateDir(tmp_path / "state").close()
    told = Told(capsys, "verify", "--state", tmp_path / "state", "--not-older-than", "1", "--json")
    assert (told.code, told.json["problems"]) == (Exit.VERIFY_FAILED, ["nothing is current"])


def test_keygen_sign_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, key = tmp_path / "state", tmp_path / "key.pem"
    made = Told(capsys, "keygen", "--out", key, "--json")
    assert made.json == {"private": str(key), "public": str(tmp_path / "key.pub.pem")}
    assert Told(capsys, "keygen", "--out", key).code == Exit.CONFIG
    with StateDir(state):
        Shelf(state, sign=signer(key)).publish(b"model", manifest(1))
    verify = ("verify", "--state", state, "--key")
    assert Told(capsys, *verify, tmp_path / "key.pub.pem").code == 0
    write_key_pair(tmp_path / "other.pem")
    told = Told(capsys, *verify, tmp_path / "other.pub.pem", "--json")
    assert told.code == Exit.VERIFY_FAILED
    assert told.json["snapshots"] == [{"id": "000001", "problems": ["not signed by this key, or changed since"]}]
    assert Told(capsys, *verify, key).code == Exit.CONFIG  # the private one


def test_all_of_it_works_beside_a_running_daemon(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", PUBLISHING_DAEMON, str(state)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdin
        assert daemon.stdout

        def published() -> str:
            print("model", file=daemon.stdin, flush=True)
            assert daemon.stdout
            return daemon.stdout.readline().strip()

        assert published() == "000004"
        assert Told(capsys, "rollback", "--state", state, "--json").json["id"] == "000003"
        assert published() == "000005"  # it goes on
        assert Told(capsys, "pin", "3", "--state", state, "--json").json["current"] == "000003"
        assert published() == "000006"
        rows = Told(capsys, "list", "--state", state, "--json").json
        assert [row["id"] for row in rows if row["current"]] == ["000003"]
        assert Told(capsys, "verify", "--state", state).code == 0
        daemon.communicate()
    assert daemon.returncode == 0
