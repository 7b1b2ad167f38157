"""The shelf after a kill at any system call, after any power cut, and as a consumer sees it meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from storage_models import template, weights
from test_atomic import names
from test_shelf_states import current_id, filled, states

from edge_cl.storage.errors import DamagedFile
from edge_cl.storage.inspection import damage_of
from edge_cl.storage.shelf import KEEP_BAD, Shelf
from edge_cl.storage.snapshot import fill
from tools.faults.power_cut import fingerprint, write_out
from tools.faults.recorder import recorded


class Killed(BaseException):
    """Stands for SIGKILL: from then on the process changes nothing, clean-up included."""


CHANGING = ("write", "fsync", "rename", "symlink", "unlink", "mkdir", "rmdir")


@contextmanager
def killed_at(call: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The process dies before its system call number `call` that changes a file; the calls that were made."""
    made: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if len(made) >= call:
                raise Killed
            made.append(name)
            return real(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        for name in CHANGING:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield made


def on_trial(folder: Path) -> Shelf:
    """Good ones from 2 to 4, KEEP_BAD bad ones, and 8 on trial and current: as many as `keep` allows."""
    shelf = filled(folder, 4, keep=3)
    for _ in range(KEEP_BAD):
        shelf.set_aside(b"aside", {}, why="worse")
    shelf.publish(b"trial", {"n": 8}, state="trial")
    return shelf


def pinned(folder: Path) -> Shelf:
    shelf = on_trial(folder)
    shelf.pin("000003")
    return shelf


CHANGES: dict[str, tuple[Callable[[Path], Shelf], Callable[[Shelf], object]]] = {
    "publish": (on_trial, lambda shelf: shelf.publish(b"new", {})),
    "publish a trial": (on_trial, lambda shelf: shelf.publish(b"new", {}, state="trial")),
    "publish while one is pinned": (pinned, lambda shelf: shelf.publish(b"new", {})),
    "set aside": (on_trial, lambda shelf: shelf.set_aside(b"new", {}, why="worse")),
    "found good": (on_trial, lambda shelf: shelf.settle("000008", "good")),
    "found bad": (on_trial, lambda shelf: shelf.settle("000008", "bad")),
    "roll back": (on_trial, lambda shelf: shelf.rollback()),
    "roll back far": (on_trial, lambda shelf: shelf.rollback("000002")),
    "pin": (on_trial, lambda shelf: shelf.pin("000003")),
    "unpin": (pinned, lambda shelf: shelf.pin(None)),
}


def state_dir(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def copy(shelf: Shelf, folder: Path) -> Shelf:
    shutil.copytree(shelf.folder, folder / "snapshots", symlinks=True)
    return Shelf(folder)


def seen_by_all(shelf: Shelf) -> tuple[str | None, str | None, dict[str, str]]:
    return current_id(shelf), shelf.pinned(), states(shelf)


@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_any_system_call_leaves_current_whole_and_is_mended_by_the_next_change(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, act = CHANGES[change]
    before = prepare(state_dir(tmp_path, "before"))
    finished = copy(before, state_dir(tmp_path, "finished"))
    act(finished)
    for call in itertools.count():
        shelf = copy(before, state_dir(tmp_path, f"killed at {call}"))
        with killed_at(call, monkeypatch) as made, suppress(Killed):
            act(shelf)
        current = shelf.current()
        assert current is not None
        current.read()
        assert current.id in {current_id(before), current_id(finished)}
        shelf.pin(None)  # any change mends and sweeps
        found = states(shelf)
        assert found[str(current_id(shelf))] != "bad"
        assert names(shelf.folder) == {"current", ".lock", *found}
        for number in found:
            assert names(shelf.folder / number) == {"model.onnx", "manifest.json", "manifest.sha256", "state.json"}
        following = shelf.publish(b"following", {})
        assert (following.id, following.read()) == (current_id(shelf), b"following")
        if len(made) < call:
            break
    assert call > 3


def power_cuts(change: str, folder: Path, *, ignored_sync: int | None = None) -> Iterator[tuple[Shelf, bool]]:
    """A shelf as each possible power cut leaves it, alike ones once, and whether the change had been acknowledged."""
    prepare, act = CHANGES[change]
    shelf = prepare(state_dir(folder, "before"))
    with recorded(shelf.folder, omit=lambda kind, n: (kind, n) == ("folder", ignored_sync)) as recording:
        act(shelf)
    seen = set()
    for cut in recording.power_cuts():
        is_over = cut.done == len(recording.changes)
        looks = fingerprint(cut, recording.root), is_over
        if looks not in seen:
            seen.add(looks)
            state = state_dir(folder, f"cut {len(seen)}")
            write_out(cut, recording.root, state / "snapshots")
            yield Shelf(state), is_over
            shutil.rmtree(state)


@pytest.mark.parametrize("change", CHANGES)
def test_a_power_cut_leaves_current_whole_and_keeps_what_was_acknowledged(change: str, tmp_path: Path) -> None:
    prepare, act = CHANGES[change]
    before = prepare(state_dir(tmp_path, "untouched"))
    goal = copy(before, state_dir(tmp_path, "goal"))
    act(goal)
    wanted, n = seen_by_all(goal), 0
    for shelf, is_over in power_cuts(change, tmp_path):
        n += 1
        assert is_whole(shelf)
        assert current_id(shelf) in {current_id(before), wanted[0]}
        if is_over:
            assert seen_by_all(shelf) == wanted
    assert n > 2


@pytest.mark.parametrize(
    "ignored", [pytest.param(0, id="new folder"), pytest.param(1, id="its number"), pytest.param(4, id="what goes")]
)
def test_without_one_of_its_syncs_a_publish_would_not_survive(ignored: int, tmp_path: Path) -> None:
    """The test above has teeth."""
    assert not all(map(is_whole, (s for s, _ in power_cuts("publish", tmp_path, ignored_sync=ignored))))


def is_whole(shelf: Shelf) -> bool:
    try:
        current = shelf.current()
        return current is not None and all(damage_of(shelf, number) == [] for number in shelf.ids())
    except DamagedFile:
        return False


# A consumer of its own

CONSUMER = """
import hashlib, json, sys, threading
from pathlib import Path
import onnxruntime

link, stop = Path(sys.argv[1]), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
loads, seen, switches, last = 0, set(), 0, None
while not stop.is_set():
    try:
        folder = link.resolve(strict=True)  # once; both files are then of one snapshot
        manifest = json.loads((folder / "manifest.json").read_text())
        model = (folder / "model.onnx").read_bytes()
    except FileNotFoundError:  # removed meanwhile: look again
        continue
    assert hashlib.sha256(model).hexdigest() == manifest["sha256"], folder
    assert manifest["id"] == folder.name
    session = onnxruntime.InferenceSession(model)
    assert session.get_modelmeta().custom_metadata_map == {"n": str(manifest["n"])}, folder
    loads, switches, last = loads + 1, switches + (last != folder.name), folder.name
    seen.add(folder.name)
    if loads == 1:
        print("loaded", flush=True)
print(json.dumps({"loads": loads, "switches": switches, "seen": sorted(seen)}))
"""


def test_a_consumer_in_a_loop_only_ever_sees_whole_snapshots(tmp_path: Path) -> None:
    """A process of its own, while every kind of change goes on without a pause."""
    shelf, n = Shelf(tmp_path, keep=2), itertools.count()

    def model() -> tuple[bytes, dict[str, int]]:
        number = next(n)
        return fill(template(), weights(number), {"n": str(number)}), {"n": number}

    shelf.publish(*model())
    command = [sys.executable, "-c", CONSUMER, str(shelf.folder / "current")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as consumer:
        assert consumer.stdout
        assert consumer.stdout.readline() == "loaded\n"
        for _ in range(25):
            shelf.publish(*model())
            trial = shelf.publish(*model(), state="trial")
            shelf.set_aside(*model(), why="worse")
            shelf.settle(trial.id, "bad")
            shelf.publish(*model())
            shelf.rollback()
            shelf.pin(shelf.ids()[0])
            shelf.publish(*model())
            shelf.pin(None)
        told = json.loads(consumer.communicate()[0].splitlines()[-1])
    assert consumer.returncode == 0
    assert told["loads"] > told["switches"] > 10
    assert len(told["seen"]) > 5


def test_the_documented_way_to_read_current_needs_onnxruntime_alone(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "SNAPSHOTS.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "edge-cl-state").mkdir()
    Shelf(tmp_path / "edge-cl-state").publish(fill(template(), weights(0), {}), {"labels": ["ok", "worn"]})
    bare = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'edge_cl']))\n"
    command = [sys.executable, "-c", bare + example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "000001 ['ok', 'worn']\n"
