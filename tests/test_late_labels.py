"""Labels that come after their samples: learnt if the sample still waits, else counted; as durable as the rest."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed import killed_at
from recordings import LABELS, signals

from edge_cl.cli import main
from edge_cl.config import resolve
from edge_cl.daemon import Daemon
from edge_cl.keeping import entry
from edge_cl.keeping.cursor import Cursor
from edge_cl.keeping.entry import Entry
from edge_cl.keeping.recovery import recover
from edge_cl.keeping.room import CROWDED, UNLABELLED, Room, Waiting
from edge_cl.service.status import Status, Summary, read_status
from edge_cl.storage import spool
from firmware_bridge.errors import EndOfSource
from firmware_bridge.inlet import ITEM_BYTES
from firmware_bridge.registry import SOURCES
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.source import SourceBase
from firmware_bridge.window import Window

N = 120
BEHIND = 30  # samples that a label comes after its own
X, Y = signals(N)


class LateLabels(SourceBase):
    """A source whose labels come BEHIND samples late; it goes on behind `after`, and waits for nobody."""

    OPTIONS: Mapping[str, Any] = {}
    can_wait = True

    def __init__(self, target: str, *, after: Sequence[SampleId] = ()) -> None:
        self.schema = Schema("late", "int16", X.shape[1:], label_names=LABELS)
        self.counters: dict[str, int] = {}
        self._items = self._all(after[-1].seq + 1 if after else 0)

    def _all(self, first: int) -> Iterator[Sample | Label]:
        for seq in range(first, N + BEHIND):
            if seq < N:
                yield Sample(0, 1, seq, 1000 * seq, X[seq])
            if seq >= BEHIND:
                yield Label(0, 1, seq - BEHIND, int(Y[seq - BEHIND]))

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def read(self, timeout_s: float) -> Sample | Label | None:
        try:
            return next(self._items)
        except StopIteration:
            raise EndOfSource("over") from None


@pytest.fixture(autouse=True)
def late_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "late", (__name__, "LateLabels"))  # type: ignore[arg-type]


def run(state: Path, *overrides: str, most: str = "1 MiB") -> Summary:
    settings = ("budget.step_ms=60000", "budget.predict_ms=60000", f"bridge.label_wait_bytes={most}", *overrides)
    return Daemon(resolve(None, settings).config, state, source_url="late:x", once=True).run()


def test_every_sample_is_learnt_when_its_label_comes(tmp_path: Path) -> None:
    told = run(tmp_path / "s")
    found = recover(tmp_path / "s")
    assert found is not None
    assert told["learned"] + len(found.learner.exam.labels[: found.learner.exam.size]) == N
    assert told["prequential_accuracy"] is not None  # of the answers given when they came
    assert told["dropped"]["label_unmatched"] == 0
    assert len(found.room) == 0


def test_without_a_waiting_room_labels_that_come_late_are_counted(tmp_path: Path) -> None:
    told = run(tmp_path / "s", most="0")
    assert told["learned"] == 0
    assert told["dropped"]["label_unmatched"] == N


def test_who_finds_no_room_leaves_oldest_first_and_is_counted(tmp_path: Path) -> None:
    room_for = 20
    told = run(tmp_path / "s", most=str(room_for * (ITEM_BYTES + X[0].nbytes)))
    assert told["dropped"][CROWDED] == N - room_for  # all but the last ones had left when their label came
    assert told["dropped"]["label_unmatched"] == N - room_for


def test_killed_while_samples_wait_nothing_is_forgotten_and_nothing_learnt_twice(tmp_path: Path) -> None:
    state, whole = tmp_path / "killed", tmp_path / "whole"
    run(whole)
    assert killed_at(9, lambda: run(state), durable=True) == -signal.SIGKILL
    found = recover(state)
    assert found is not None
    waited = [waiting.sample.seq for waiting in found.room.all()]
    assert len(waited) >= BEHIND - 10
    assert waited == list(range(waited[0], waited[-1] + 1))
    learnt = found.learner.labelled
    assert learnt + len(found.cursor.waiting) == waited[0]  # everyone before has been learnt, once
    np.testing.assert_array_equal(found.room.all()[0].sample.values, X[waited[0]])


def test_a_person_labels_a_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "s"
    seen: list[Status] = []
    run(state, most="0")
    with pytest.raises(SystemExit) as caught:
        main(["label", "0:1:3", "low", "--state", str(state)])
    assert caught.value.code == 78
    assert "bridge.label_wait_bytes is 0" in capsys.readouterr().err

    fresh = tmp_path / "fresh"
    settings = ("bridge.label_wait_bytes=1 MiB", "storage.commit_ms=0")
    url = "late:x"
    Daemon(resolve(None, settings).config, fresh, source_url=url, samples=20, on_status=seen.append).run()
    newest = (read_status(fresh) or seen[-1])["late_labels"]
    assert newest["waiting"] == 20
    with pytest.raises(SystemExit):
        main(["label", "--list", "--state", str(fresh), "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert listed["newest"][-1][:3] == [0, 1, 19]
    for name, code in (("nonsense", 78), (LABELS[int(Y[3])], 0)):
        with pytest.raises(SystemExit) as caught:
            main(["label", "0:1:3", name, "--state", str(fresh)])
        assert (caught.value.code or 0) == code
    assert len(list(spool.waiting(fresh))) == 1
    (fresh / "labels" / "0.json").write_text("no label at all")

    def until_taken(status: Status) -> None:
        seen.append(status)

    Daemon(resolve(None, settings).config, fresh, source_url=url, once=True, on_status=until_taken).run()
    found = recover(fresh)
    assert found is not None
    assert list((fresh / "labels").iterdir()) == []
    assert seen[-1]["dropped"]["label_unmatched"] == 1  # the source's own label for it came later


def test_nobody_waits_for_ever() -> None:
    room = Room(10_000, 5.0)
    values = np.zeros(3, np.int16)
    for seq in range(4):
        room.enter(Waiting(Sample(0, 1, seq, 0, values), None, float(seq)))
    room.expire(7.5)
    assert [waiting.sample.seq for waiting in room.all()] == [3]
    assert room.gone[UNLABELLED] == 3
    assert room.nbytes == ITEM_BYTES + values.nbytes


def test_a_label_of_any_of_its_rows_is_the_windows(tmp_path: Path) -> None:
    room = Room(10_000, 5.0, reach=8)
    room.enter(Waiting(Sample(0, 1, 15, 0, np.zeros(3, np.int16)), 2, 0.0))
    assert room.call(Label(0, 1, 7, 1)) is None
    assert room.call(Label(0, 2, 9, 1)) is None
    found = room.call(Label(0, 1, 9, 1))
    assert found is not None
    assert (found.sample.label, found.answered, len(room)) == (1, 2, 0)


def test_whose_label_has_come_waits_no_more_after_a_recovery() -> None:
    """Called out of the room, waiting for its step, and another entry noted before that: not to be learnt twice."""
    room, values = Room(100_000, 5.0), np.zeros(3, np.int16)
    first = [Waiting(Sample(0, 1, seq, 0, values), None, 0.0) for seq in range(3)]
    later = [Waiting(Sample(0, 1, 3, 0, values), None, 0.0)]
    called = Sample(0, 1, 1, 0, values, 2)
    Entry(entry.wait(first, first[0].sample.id, Cursor())).seat(room)
    Entry(entry.wait(later, first[0].sample.id, Cursor(waiting=[called]))).seat(room)
    assert [waiting.sample.seq for waiting in room.all()] == [0, 2, 3]
    Entry(entry.skip([first[0].sample], Cursor())).seat(room)
    assert [waiting.sample.seq for waiting in room.all()] == [2, 3]


def test_a_clock_of_64_bits_survives_a_checkpoint() -> None:
    window = Window(4, 4)
    window.push(Sample(0, 1, 0, 2**63 + 5, np.zeros((2, 3), np.int16)))
    arrays, plain = Cursor(window=window.state()).state()
    again = Window(4, 4)
    again.load_state(Cursor.restored(arrays, json.loads(json.dumps(plain))).window)
    assert again.push(Sample(0, 1, 1, 2**63 + 9, np.zeros((2, 3), np.int16)))[0].gap is False


def test_a_label_out_of_range_costs_nobody_his_place(tmp_path: Path) -> None:
    state = tmp_path / "s"
    settings = ("bridge.label_wait_bytes=1 MiB",)
    Daemon(resolve(None, settings).config, state, source_url="late:x", samples=20).run()
    spool.leave(state, 0, 1, 3, "77")
    told = Daemon(resolve(None, settings).config, state, source_url="late:x", once=True).run()
    assert told["dropped"]["label_out_of_range"] == 1
    assert told["dropped"]["label_unmatched"] == 0
