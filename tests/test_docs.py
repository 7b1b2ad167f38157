"""The documents are true: what README says to type works, what they point at exists, what there is stands in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from test_layers import FLOORS

from edge_cl.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PICTURES = [ROOT / "docs" / "img" / name for name in ("run.svg", "summary.svg")]
PICTURE_BYTES = 150_000

# What a machine that only has a snapshot does not have. A module that is None in sys.modules cannot be imported.
CONSUMER_LACKS = ("torch", "onnx", "edge_cl", "firmware_bridge", "safetensors", "pydantic", "yaml", "rich", "typer")
ON_A_BARE_MACHINE = f"import sys; sys.modules.update(dict.fromkeys({CONSUMER_LACKS!r})); exec(open(sys.argv[1]).read())"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[2], textwrap.dedent(m[3]), text.count("\n", 0, m.start()) + 1) for m in found]


# README, from top to bottom


@dataclass
class Reader:
    """Somebody who types README into a terminal, in an empty folder; a daemon that was started stays until the end."""

    folder: Path
    port: str
    active: bool = False  # the virtual environment
    daemon: subprocess.Popen[str] | None = None
    rest: threading.Thread | None = None  # reads on what the daemon says, or it would fill its pipe and stand
    said: dict[str, str] = field(default_factory=dict)  # by command

    def read(self, block: Block) -> None:
        if block.language == "python":
            self._python(block.text)
        else:
            for line in block.text.splitlines():
                self._type(line)

    def _type(self, line: str) -> None:
        words = line.split()
        if words[0] == "make":
            self._make(words[1:])
        elif line == ". .venv/bin/activate":
            self.active = True
        elif "serial:///dev/ttyUSB0" in line:
            self._start_daemon(line.replace("/dev/ttyUSB0", self.port))
        else:
            # A machine that does other work beside this test may well be over a budget of milliseconds.
            allowed = (0, 10) if line.startswith("edge-cl check") else (0,)
            done = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, env=self._env(), capture_output=True, text=True
            )
            assert done.returncode in allowed, f"{line}\n{done.stdout}{done.stderr}"
            self.said[" ".join(words[:2])] = done.stdout + done.stderr

    def _make(self, words: list[str]) -> None:
        """They run this very suite, and a minute's show: what they would do is looked at."""
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert {"run": "-m edge_cl run", "test": "-m pytest"}[words[0]] in done.stdout

    def _start_daemon(self, line: str) -> None:
        self.daemon = subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=self.folder, env=self._env(), stdout=subprocess.PIPE, text=True
        )
        assert self.daemon.stdout
        for status in map(json.loads, self.daemon.stdout):
            if status["steps"] > 0:
                break
        else:
            pytest.fail(f"{line}: ended with {self.daemon.wait()}")
        self.rest = threading.Thread(target=self.daemon.stdout.read)
        self.rest.start()

    def stop_daemon(self, how: signal.Signals) -> int | None:
        """Its exit code, None if none was started; a second call changes nothing."""
        if self.daemon is None:
            return None
        self.daemon.send_signal(how)
        code = self.daemon.wait()
        if self.rest is not None:
            self.rest.join()
        assert self.daemon.stdout
        self.daemon.stdout.close()
        return code

    def _python(self, text: str) -> None:
        script = self.folder / "typed.py"
        script.write_text(text, encoding="utf-8")
        consumer = "onnxruntime" in text
        command = [sys.executable, "-I", *(["-c", ON_A_BARE_MACHINE] if consumer else []), str(script)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if consumer:
            self.said["consumer"] = done.stdout

    def _env(self) -> dict[str, str]:
        shims = str(self.folder / ".venv" / "bin")
        return {**os.environ, "PATH": f"{shims}:{os.environ['PATH']}"} if self.active else dict(os.environ)


@contextmanager
def c_board(folder: Path, *options: str) -> Iterator[str]:
    """The example board in C, compiled here; the port it is at the far end of."""
    program = folder / "example_board"
    compiler = next(name for name in ("cc", "gcc", "clang") if shutil.which(name))
    source = ROOT / "firmware_bridge" / "mcu" / "example_board.c"
    subprocess.run([compiler, "-std=c99", "-O2", "-o", str(program), str(source)], check=True)
    board = subprocess.Popen([str(program), *options], stdout=subprocess.PIPE, text=True)
    try:
        assert board.stdout
        yield board.stdout.readline().strip()
    finally:
        board.kill()
        board.communicate()


@contextmanager
def reader(folder: Path) -> Iterator[Reader]:
    """One in a folder whose virtual environment is the one of this test."""
    shim = folder / ".venv" / "bin" / "edge-cl"
    shim.parent.mkdir(parents=True)
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edge_cl "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    with c_board(folder, "--rate", "400") as port:
        someone = Reader(folder, port)
        try:
            yield someone
        finally:
            someone.stop_daemon(signal.SIGKILL)


def test_what_readme_says_to_type_works_from_top_to_bottom(tmp_path: Path) -> None:
    with reader(tmp_path) as someone:
        for block in blocks(README):
            someone.read(block)
        assert someone.stop_daemon(signal.SIGINT) == 0
    assert "running" in someone.said["edge-cl status"]
    assert "takes " in someone.said["edge-cl export"]
    assert "test split" in someone.said["edge-cl run"]
    assert "predict p99" in someone.said["edge-cl check"]
    label = re.match(r"(rest|walk|shake) \[", someone.said["consumer"])
    assert label, f"the snapshot's consumer names no state: {someone.said['consumer']}"
    assert (tmp_path / "motor.onnx").stat().st_mode & 0o444


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fenced_block_is_marked_so_that_it_is_run_or_plainly_no_command(page: Path) -> None:
    allowed = {"sh", "python"} if page == README else {"sh", "python", ""}
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page))
    assert [f"{page.name}:{block.line}" for block in blocks(page) if block.language not in allowed] == []


# The command line


def commands() -> dict[str, list[str]]:
    """Every command's name, `config check` for one in a group, with the long names of its options."""
    found: dict[str, list[str]] = {}

    def walk(command: Any, name: str) -> None:
        found[name] = [max(option.opts, key=len) for option in command.params if option.opts[0].startswith("-")]
        for sub, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {sub}")

    walk(typer.main.get_command(app), "edge-cl")
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_is_in_the_documents(name: str) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert re.search(rf"\b{re.escape(name)}\b", text)
    assert [option for option in commands()[name] if option not in text and option != "--help"] == []


# What the pages point at


def links(page: Path) -> list[str]:
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    dead = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.is_relative_to(ROOT) or not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(link)
    assert dead == []


def test_the_architecture_has_the_floors_that_the_layer_test_holds() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert [int(floor) for floor, _ in rows] == list(range(len(FLOORS)))
    assert [re.findall(r"`([\w.]+)`", rooms) for _, rooms in rows] == FLOORS


def test_the_architecture_names_every_file_and_none_that_is_not() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for package in ("firmware_bridge", "edge_cl"):
        section = text.split(f"### {package}\n")[1].split("\n#")[0]
        named = re.findall(r"^\| `([\w./]+)` \| \S", section, re.MULTILINE)
        there = {str(file.relative_to(ROOT / package)) for file in (ROOT / package).rglob("*.py")}
        there = {name for name in there if not Path(name).name.startswith("__")}
        assert sorted(named) == sorted(there | ({"config.yaml"} if package == "edge_cl" else set()))


def test_every_design_decision_has_a_date_a_reason_and_an_end() -> None:
    text = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    days = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in days)
    assert days == sorted(days, reverse=True)
    entries = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert [entry.splitlines()[0] for entry in entries if entry.count("\n*Changes when* ") != 1] == []


def test_the_changelog_says_what_is_new() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]\n\n### (Added|Changed|Fixed|Removed|Deprecated|Security)\n\n- ", text, re.M)


# The pictures


def words(picture: Path) -> list[str]:
    """The texts of a picture, piece by piece, blanks trimmed."""
    # Written by this tree's own tool or by the test, so no stranger's XML.
    elements = ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")
    return [(element.text or "").replace("\N{NO-BREAK SPACE}", " ").strip() for element in elements]


@pytest.fixture(scope="module")
def fresh_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What the tool draws now, of a run at full speed."""
    folder = tmp_path_factory.mktemp("pictures")
    command = [sys.executable, str(ROOT / "tools" / "screenshot.py"), "--out", str(folder)]
    done = subprocess.run([*command, "SPEED=max", "SAMPLES=16000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [folder / picture.name for picture in PICTURES]


def test_the_pictures_are_the_tools_and_show_the_screen_as_it_is_now(fresh_pictures: list[Path]) -> None:
    lasting = [
        {"accuracy, test-then-train:", "exam: samples never trained on", "memory:", "latency", "dropped", "snapshot"},
        {"exam: samples never trained on", "summary", "learnt", "accuracy", "forgotten", "memory", "next"},
    ]
    for picture, fresh, expected in zip(PICTURES, fresh_pictures, lasting, strict=True):
        for one in (picture, fresh):
            text = " ".join(words(one))
            assert [word for word in expected if word not in text] == []
            assert one.stat().st_size < PICTURE_BYTES
    # A fact that came to the summary: time to run the tool again. (The running screen shows messages, too.)
    facts = {word for word in words(fresh_pictures[1]) if re.fullmatch(r"[a-z]+", word)}
    assert facts - {"none", "governor"} <= set(words(PICTURES[1]))  # a busy machine has its governor's word there


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_the_pictures_hold_no_path_of_a_machine_and_fetch_nothing(picture: Path) -> None:
    assert [word for word in words(picture) if re.search(r"(?<![\w.])/\w+/", word)] == []
    assert not re.search(r"@import|url\(['\"]?http|href=", picture.read_text(encoding="utf-8"))
    assert f"docs/img/{picture.name}" in links(README)
