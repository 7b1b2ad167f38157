"""Trial, good and bad: what becomes current, what stays, what a person may ask for, and who waits for whom."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from test_shelf import ids

from edge_cl.storage import shelf as shelf_module
from edge_cl.storage.errors import DamagedFile, ShelfError, StateBusy
from edge_cl.storage.shelf import Shelf


def states(shelf: Shelf) -> dict[str, str]:
    return {entry.id: entry.state for entry in shelf.entries()}


def current_id(shelf: Shelf) -> str | None:
    current = shelf.current()
    return None if current is None else current.id


def filled(folder: Path, n: int, **options: Any) -> Shelf:
    """A shelf with n good snapshots; each one's model tells its number."""
    shelf = Shelf(folder, **options)
    for number in range(1, n + 1):
        shelf.publish(b"%d" % number, {"n": number})
    return shelf


# What becomes current


def test_a_trial_is_current_and_becomes_good(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 1)
    trial = shelf.publish(b"2", {}, state="trial")
    assert (trial.state, current_id(shelf)) == ("trial", "000002")
    settled = shelf.settle("000002", "good")
    assert settled is not None
    assert (settled.id, settled.state) == ("000002", "good")


def test_a_bad_trial_gives_way_to_the_newest_good_one_and_keeps_the_reason(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 2)
    shelf.publish(b"3", {}, state="trial")
    settled = shelf.settle("000003", "bad", "exam 91 -> 40 %")
    assert settled is not None
    assert (settled.id, settled.read()) == ("000002", b"2")
    bad = shelf.get("000003")
    assert (bad.state, bad.why) == ("bad", "exam 91 -> 40 %")
    assert shelf.publish(b"4", {}).id == "000004"  # a number is never used again


def test_a_bad_first_trial_leaves_nothing_current(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.publish(b"1", {}, state="trial")
    assert shelf.settle("000001", "bad") is None
    assert shelf.current() is None
    shelf.publish(b"2", {})
    assert current_id(shelf) == "000002"


def test_what_is_set_aside_never_becomes_current_and_only_the_newest_stay(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 1)
    for number in range(2, 8):
        aside = shelf.set_aside(b"%d" % number, {}, why="labels shuffled")
        assert (aside.state, aside.why, current_id(shelf)) == ("bad", "labels shuffled", "000001")
    assert ids(shelf) == ["000001", "000005", "000006", "000007"]
    assert shelf.publish(b"8", {}).id == "000008"


def test_bad_ones_do_not_push_out_good_ones(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 3, keep=3)
    for _ in range(5):
        shelf.set_aside(b"x", {}, why="")
    assert [number for number, state in states(shelf).items() if state == "good"] == ["000001", "000002", "000003"]


def test_the_one_before_a_trial_stays_though_only_one_is_kept(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 3, keep=1)
    shelf.publish(b"4", {}, state="trial")
    assert ids(shelf) == ["000003", "000004"]
    shelf.settle("000004", "good")
    assert ids(shelf) == ["000004"]


def test_a_trial_that_another_one_displaced_is_no_place_to_go_back_to(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 1)
    shelf.publish(b"2", {}, state="trial")
    shelf.publish(b"3", {}, state="trial")
    assert states(shelf) == {"000001": "good", "000002": "bad", "000003": "trial"}
    assert shelf.get("000002").why == "000003 came before its trial was over"
    shelf.settle("000003", "bad")
    assert current_id(shelf) == "000001"


def test_a_verdict_on_what_is_no_longer_on_trial_changes_nothing(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 1)
    shelf.publish(b"2", {}, state="trial")
    shelf.rollback()
    settled = shelf.settle("000002", "good")
    assert settled is not None
    assert settled.id == "000001"
    assert states(shelf) == {"000001": "good", "000002": "bad"}
    with pytest.raises(ShelfError, match="no snapshot 000009"):
        shelf.settle("000009", "bad")


def test_a_shelf_from_before_there_were_states_reads_as_good(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 2)
    for number in ids(shelf):
        folder = shelf.folder / number
        (folder / "state.json").unlink()
        (folder / "manifest.sha256").unlink()
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "state": "good"}))
    assert states(shelf) == {"000001": "good", "000002": "good"}
    assert shelf.rollback().id == "000001"
    assert states(shelf) == {"000001": "good", "000002": "bad"}


# A person's hand


def test_rolling_back_goes_to_the_good_one_before_and_forgets_nothing(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 3)
    back = shelf.rollback()
    assert (back.id, back.read(), current_id(shelf)) == ("000002", b"2", "000002")
    assert states(shelf) == {"000001": "good", "000002": "good", "000003": "bad"}
    assert shelf.get("000003").why == "rolled back to 000002"
    assert shelf.rollback().id == "000001"
    with pytest.raises(ShelfError, match="no good snapshot before the current one"):
        shelf.rollback()
    assert current_id(shelf) == "000001"


def test_rolling_back_to_a_named_one_makes_all_newer_ones_bad(tmp_path: Path) -> None:
    """Or an automatic rollback would later land on what the person passed over."""
    shelf = filled(tmp_path, 3)
    shelf.rollback("000001")
    assert states(shelf) == {"000001": "good", "000002": "bad", "000003": "bad"}
    shelf.publish(b"4", {}, state="trial")
    settled = shelf.settle("000004", "bad")
    assert settled is not None
    assert settled.id == "000001"


def test_rolling_forward_to_a_named_bad_one_makes_it_good_and_leaves_the_older_ones(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 3)
    shelf.rollback("000001")
    assert shelf.rollback("000003").state == "good"
    assert current_id(shelf) == "000003"
    assert states(shelf) == {"000001": "good", "000002": "bad", "000003": "good"}


def test_a_damaged_snapshot_is_not_gone_back_to(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 4, keep=4)
    shelf.get("000003").path.write_bytes(b"broken")
    shelf.get("000002").path.unlink()
    with pytest.raises(DamagedFile, match="000003"):
        shelf.rollback("000003")
    with pytest.raises(DamagedFile, match="000002"):
        shelf.pin("000002")
    assert current_id(shelf) == "000004"
    assert shelf.rollback().id == "000001"


def test_rolling_back_mends_a_current_that_leads_nowhere(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 2)
    (shelf.folder / "current").unlink()
    (shelf.folder / "current").symlink_to("nowhere")
    assert shelf.rollback().id == "000002"
    assert current_id(shelf) == "000002"


def test_a_name_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 2)
    for name in ("000009", "nine", "../000001", ""):
        for ask in (shelf.get, shelf.rollback, shelf.pin):
            with pytest.raises(ShelfError, match="no snapshot") as caught:
                ask(name)
            assert caught.value.hint == "there are 000001, 000002"
    assert states(shelf) == {"000001": "good", "000002": "good"}


def test_while_one_is_pinned_the_others_wait(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 2, keep=1)
    shelf.set_aside(b"3", {}, why="")
    shelf.pin("000003")  # a person may pin what was set aside
    assert (shelf.pinned(), current_id(shelf), states(shelf)["000003"]) == ("000003", "000003", "good")
    for _ in range(3):
        assert shelf.publish(b"new", {}, state="trial").state == "good"
    assert current_id(shelf) == "000003"
    assert ids(shelf) == ["000003", "000006"]
    with pytest.raises(ShelfError, match="000003 is pinned") as caught:
        shelf.rollback()
    assert "pin --off" in caught.value.hint
    shelf.pin(None)
    shelf.pin(None)
    assert (shelf.pinned(), current_id(shelf)) == (None, "000003")
    assert shelf.publish(b"7", {}).id == current_id(shelf) == "000007"


def test_a_pin_on_what_is_gone_holds_nothing(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 2)
    shelf.pin("000001")
    shutil.rmtree(shelf.folder / "000001")
    assert shelf.pinned() is None
    assert shelf.publish(b"3", {}).id == current_id(shelf) == "000003"


@pytest.mark.parametrize("text", ["", "[]", '{"state": "fine", "why": ""}', '{"state": "good"}', None])
def test_a_state_that_cannot_be_read_is_noticed_and_does_not_count_as_good(tmp_path: Path, text: str | None) -> None:
    shelf = filled(tmp_path, 2)
    file = shelf.folder / "000002" / "state.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(DamagedFile, match=r"state\.json is"):
        shelf.current()
    shelf.publish(b"3", {}, state="trial")
    settled = shelf.settle("000003", "bad")
    assert settled is not None
    assert settled.id == "000001"


# The lock


def test_changes_wait_for_the_lock_and_give_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = filled(tmp_path, 2)
    monkeypatch.setattr(shelf_module, "LOCK_PATIENCE_S", 0.05)
    with (shelf.folder / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StateBusy, match="in use by another process"):
            shelf.rollback()
        assert current_id(shelf) == "000002"  # readers do not wait
    assert shelf.rollback().id == "000001"


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes' worth of publishers: each number is given once, and `current` is the last."""
    filled(tmp_path, 1)
    given: list[str] = []

    def publish() -> None:
        own = Shelf(tmp_path, keep=50)  # an own descriptor of the lock, as a process has
        given.extend(own.publish(b"x", {}).id for _ in range(10))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shelf = Shelf(tmp_path)
    assert sorted(given) == [f"{number:06d}" for number in range(2, 42)]
    assert current_id(shelf) == "000041"
    assert set(states(shelf).values()) == {"good"}
