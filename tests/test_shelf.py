"""The shelf on real files: what is published, what readers see meanwhile, and what kills and full disks leave."""

import hashlib
import json
import random
import resource
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from storage_models import answers, samples, template, weights
from test_atomic import names, soft_limit, tiny_disk, watched
from test_checkpoint import killed_somewhere

from edge_cl.storage.atomic import temporary_name
from edge_cl.storage.errors import DamagedFile, StorageFault
from edge_cl.storage.shelf import Shelf
from edge_cl.storage.snapshot import fill


def ids(shelf: Shelf) -> list[str]:
    return [entry.id for entry in shelf.entries()]


def test_an_unused_shelf_is_empty_and_reading_creates_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert shelf.current() is None
    assert shelf.entries() == []
    assert names(tmp_path) == set()


def test_what_is_published_is_current_with_its_manifest(tmp_path: Path) -> None:
    path = Shelf(tmp_path).publish(b"model", {"samples": 12, "exam": {"ok": 0.5, "worn": None}}).path
    assert path == tmp_path / "snapshots" / "000001" / "model.onnx"
    assert (tmp_path / "snapshots" / "current" / "model.onnx").read_bytes() == b"model"
    manifest = json.loads((tmp_path / "snapshots" / "current" / "manifest.json").read_text())
    created = datetime.fromisoformat(manifest.pop("created"))
    assert created.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - created) < timedelta(minutes=5)
    assert manifest == {
        "id": "000001",
        "bytes": 5,
        "sha256": hashlib.sha256(b"model").hexdigest(),
        "samples": 12,
        "exam": {"ok": 0.5, "worn": None},
    }
    current = Shelf(tmp_path).current()
    assert current is not None
    assert (current.id, current.path, current.read()) == ("000001", path, b"model")
    assert (current.state, current.why) == ("good", "")


def test_a_published_snapshot_runs_with_numpy_and_onnxruntime_alone(tmp_path: Path) -> None:
    w, x = weights(), samples(5)
    Shelf(tmp_path).publish(fill(template(), w, {"label_names": '["a"]'}), {})
    session = onnxruntime.InferenceSession(tmp_path / "snapshots" / "current" / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"input": x})[0], answers(w, x), atol=1e-6)
    assert session.get_modelmeta().custom_metadata_map == {"label_names": '["a"]'}


def test_ids_rise_over_restarts_and_only_the_newest_stay(tmp_path: Path) -> None:
    for number in range(1, 8):
        assert Shelf(tmp_path, keep=3).publish(b"%d" % number, {}).id == f"{number:06d}"
    assert ids(Shelf(tmp_path)) == ["000005", "000006", "000007"]
    assert names(tmp_path / "snapshots") == {"000005", "000006", "000007", "current", ".lock"}


def test_ids_go_on_past_six_digits_in_numerical_order(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, keep=2)
    shelf.publish(b"a", {})
    folder = (tmp_path / "snapshots" / "000001").rename(tmp_path / "snapshots" / "999999")
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("000001", "999999"))
    assert [shelf.publish(b"b", {}).id for _ in range(3)] == ["1000000", "1000001", "1000002"]
    assert ids(shelf) == ["1000001", "1000002"]


def test_a_folder_in_the_links_place_publishes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, keep=1)
    shelf.publish(b"good", {})
    link = tmp_path / "snapshots" / "current"
    link.unlink()
    link.mkdir()
    for _ in range(3):
        with pytest.raises(StorageFault):
            shelf.publish(b"unseen", {})
    link.rmdir()
    assert ids(shelf) == ["000001"]
    assert shelf.publish(b"next", {}).id == "000002"


def test_keep_must_leave_something() -> None:
    with pytest.raises(ValueError, match="keep: must be at least 1"):
        Shelf(Path(), keep=0)


@pytest.mark.parametrize(
    "manifest", [{"sha256": "0"}, {"state": "good"}, {"x": float("nan")}, {"x": np.float32(1)}, {"x": {1, 2}}]
)
def test_a_manifest_that_cannot_be_written_publishes_nothing(tmp_path: Path, manifest: dict[str, object]) -> None:
    shelf = Shelf(tmp_path)
    shelf.publish(b"a", {})
    with pytest.raises((TypeError, ValueError)):
        shelf.publish(b"b", manifest)
    assert names(tmp_path / "snapshots") == {"000001", "current", ".lock"}


def test_leftovers_of_a_kill_are_swept_by_the_next_change(tmp_path: Path) -> None:
    Shelf(tmp_path).publish(b"a", {})
    snapshots = tmp_path / "snapshots"
    half = snapshots / temporary_name("000002")
    half.mkdir()
    (half / "model.onnx").write_bytes(b"hal")
    (snapshots / temporary_name("current")).symlink_to("000001")
    (snapshots / "000001" / temporary_name("state.json")).touch()
    (snapshots / "README").touch()
    assert Shelf(tmp_path).current() is not None
    assert half.exists()  # a reader sweeps nothing: it might be a living publisher's
    Shelf(tmp_path).publish(b"b", {})
    assert names(snapshots) == {"000001", "000002", "current", ".lock", "README"}
    assert names(snapshots / "000001") == {"model.onnx", "manifest.json", "manifest.sha256", "state.json"}


def test_a_damaged_model_or_manifest_is_noticed(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    path = shelf.publish(b"model", {}).path
    path.write_bytes(b"modeL")
    current = shelf.current()
    assert current is not None
    with pytest.raises(DamagedFile, match="SHA-256 does not match"):
        current.read()
    path.unlink()
    with pytest.raises(DamagedFile, match=r"model\.onnx is gone"):
        current.read()
    manifest = path.with_name("manifest.json")
    shelf.set_aside(b"aside", {}, why="")
    sound = manifest.read_bytes()
    for content in (
        sound[:20] + bytes([sound[20] ^ 1]) + sound[21:],
        sound[:-1],
        b"",
        sound.replace(b"000001", b"000002"),
    ):
        manifest.write_bytes(content)
        with pytest.raises(DamagedFile, match=r"its SHA-256 is not the one in manifest\.sha256"):
            shelf.current()
    manifest.with_name("manifest.sha256").unlink()  # as edge_cl 0.1.0 left it
    for text in ["", "[]", "{}", manifest.read_text().replace("000001", "000002")]:
        manifest.write_text(text)
        with pytest.raises(DamagedFile, match="not the manifest of 000001"):
            shelf.current()
        assert ids(shelf) == ["000002"]  # the others are there as ever


@pytest.mark.parametrize("target", ["/etc", "../..", "nowhere", "000009"])
def test_a_current_that_leads_elsewhere_is_not_followed(tmp_path: Path, target: str) -> None:
    shelf = Shelf(tmp_path)
    shelf.publish(b"a", {})
    link = tmp_path / "snapshots" / "current"
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(DamagedFile, match="points at"):
        shelf.current()


def test_a_full_disk_leaves_current_and_nothing_half_written(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        shelf = Shelf(disk)
        shelf.publish(b"good", {})
        with pytest.raises(StorageFault, match="ENOSPC"):
            shelf.publish(bytes(1 << 20), {})
        check_after_failure(shelf, disk / "snapshots")


def test_a_file_size_limit_leaves_current_and_nothing_half_written(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.publish(b"good", {})
    with soft_limit(resource.RLIMIT_FSIZE, 64 << 10), pytest.raises(StorageFault, match="EFBIG"):
        shelf.publish(bytes(1 << 20), {})
    check_after_failure(shelf, tmp_path / "snapshots")


def check_after_failure(shelf: Shelf, snapshots: Path) -> None:
    assert names(snapshots) == {"000001", "current", ".lock"}
    current = shelf.current()
    assert current is not None
    assert current.read() == b"good"
    assert shelf.publish(b"next", {}).id == "000002"


def test_what_current_points_at_is_durable_before_current_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path, sign=lambda manifest: b"signature")
    shelf.publish(b"old", {})
    with watched(monkeypatch) as calls:
        shelf.publish(b"model", {})
    files = [*5 * ["sync file"], "sync folder"]  # model, manifest, its sum, state, signature, their folder
    assert calls == [*files, "rename", "sync folder", "rename", "sync folder"]


@pytest.mark.parametrize("failing", range(1, 8))
def test_whichever_sync_fails_current_stays_whole_and_publishing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    shelf = Shelf(tmp_path)
    shelf.publish(b"old", {})
    with watched(monkeypatch, failing), pytest.raises(StorageFault, match="EIO"):
        shelf.publish(b"new", {})
    current = shelf.current()
    assert current is not None
    assert current.read() == (b"new" if failing == 7 else b"old")
    shelf.publish(b"next", {})
    current = shelf.current()
    assert current is not None
    assert current.read() == b"next"
    assert names(tmp_path / "snapshots") == {"current", ".lock", *ids(shelf)}


PUBLISHER = """
import sys
from pathlib import Path
from edge_cl.storage.shelf import Shelf
shelf = Shelf(Path(sys.argv[1]), keep=3)
while True:
    number = int(shelf.entries()[-1].id) + 1 if shelf.entries() else 1
    print(int(shelf.publish(number.to_bytes(4, "little") * 25_000, {"n": number}).id), flush=True)
"""


class Reader(threading.Thread):
    """Reads `current` over and over as the shelf's page says, and keeps the first wrong thing it sees."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.shelf, self.stop = shelf, threading.Event()
        self.wrong: BaseException | None = None
        self.seen: set[int] = set()
        self.retries = 0

    def run(self) -> None:
        last = 0
        try:
            while not self.stop.is_set():
                number = self._read_once()
                assert number >= last, f"current went back from {last} to {number}"
                last = number
        except BaseException as exc:
            self.wrong = exc

    def _read_once(self) -> int:
        link = self.shelf.folder / "current"
        try:
            folder = link.resolve(strict=True)  # once; both files are then of one snapshot
            manifest = json.loads((folder / "manifest.json").read_text())
            model = (folder / "model.onnx").read_bytes()
        except FileNotFoundError:  # none published yet, or pruned: slower than three publishes
            self.retries += 1
            return max(self.seen, default=0)
        assert hashlib.sha256(model).hexdigest() == manifest["sha256"]
        assert model == manifest["n"].to_bytes(4, "little") * 25_000
        self.seen.add(int(manifest["id"]))
        return int(manifest["id"])


def test_a_reader_never_sees_a_torn_snapshot_while_publishers_are_killed(tmp_path: Path) -> None:
    """20 publishers, each killed at a random instant, and one reader that never stops."""
    rng, last, shelf = random.Random(0), 0, Shelf(tmp_path)
    reader = Reader(shelf)
    reader.start()
    try:
        for _ in range(20):
            acknowledged = killed_somewhere([sys.executable, "-c", PUBLISHER, str(tmp_path)], rng)
            current = shelf.current()
            assert current is not None
            assert int(current.id) >= acknowledged > last
            assert current.read() == current.manifest["n"].to_bytes(4, "little") * 25_000
            last = acknowledged
    finally:
        reader.stop.set()
        reader.join()
    if reader.wrong is not None:
        raise reader.wrong
    assert len(reader.seen) >= 20
    shelf.pin(None)  # any change sweeps
    left = names(tmp_path / "snapshots")
    assert len(left) <= 2 + 3 + 1  # current, lock, the kept, and one that a kill let in before the prune
