"""The daemon's loop: sample → predict → learn → consolidate → snapshot, until it is told to stop. Nothing else.

Data faults are counted and shown and the loop goes on; a fault of the operator stops it at the start; a full disk costs
checkpoints and snapshots, never the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl import assembly
from edge_cl.accounts import dropped, dropped_of, origin
from edge_cl.budget import Plan
from edge_cl.config import Config
from edge_cl.errors import EdgeError
from edge_cl.governor import Governor, LeastWork
from edge_cl.heap import give_back, keep
from edge_cl.intake import Urls, named, source_of, urls_of
from edge_cl.keeping import entry
from edge_cl.keeping.cursor import Cursor
from edge_cl.keeping.keeper import COMMIT_S, Keeper, slow_disk
from edge_cl.keeping.left_labels import LeftLabels
from edge_cl.keeping.recovery import Recovered, bases_for, recover, revive
from edge_cl.keeping.room import Room, Waiting, waiting_state
from edge_cl.keeping.saved import described
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.learning.outline import Outline
from edge_cl.observer import OUT_OF_RANGE, Observer
from edge_cl.publishing.publisher import Publisher
from edge_cl.report import Report
from edge_cl.service.status import Status, Summary
from edge_cl.service.telemetry import Telemetry
from edge_cl.signals import Signals
from edge_cl.storage.checkpoint import CheckpointStore
from edge_cl.storage.errors import DamagedFile, StorageError
from edge_cl.storage.journal_folder import prepare
from edge_cl.storage.migration import migrate
from edge_cl.storage.snapshot import Deployed
from edge_cl.storage.state_dir import JOURNAL_NAME, StateDir
from firmware_bridge.errors import EndOfSource, SourceLost
from firmware_bridge.inlet import Inlet
from firmware_bridge.sample import Label, Sample, Schema
from firmware_bridge.source import Source

BY_HAND = "a person"  # who gives labels, beside the streams
POLL_S = 0.1  # the longest the loop waits for a sample before it looks at signals and clocks
DISK_POLL_S = 0.01  # between two looks for room in the journal, where the source can wait
PLACE_S = 1.0  # between two entries, where a source waits to hear how far the daemon has come
EXAM_BYTES = 64  # of one class in the entry of a consolidation
# What the daemon itself lets go, by reason.
DROPPED = ("label_unmatched", "no_time_to_learn", "not_journaled")
PLAYED = {"recording", "simulated"}  # faster than anybody makes samples; a broker can wait, too, but not for ever


class Daemon:
    """One run on one state directory; `run` returns when it is over, with its summary."""

    def __init__(
        self,
        config: Config,
        state: Path,
        *,
        source_url: Urls | None = None,
        seed: int = 0,
        once: bool = False,
        samples: int | None = None,
        on_status: Callable[[Status], None] = lambda status: None,
        signals: Signals | None = None,
    ) -> None:
        self.config, self.path, self.seed = config, state, seed
        self.urls = urls_of(source_url or config.source)
        self.once, self.most_samples = once, samples
        self.signals = signals or Signals()
        self.on_status = on_status

    def run(self) -> Summary:
        """Run until the source is over (with `once`), `samples` observations came, or a signal asks to stop.

        Raises BridgeError, OperatorError, StorageError for what an operator can mend; the state on disk is then intact.
        """
        keep()
        with ExitStack() as stack:
            held = stack.enter_context(StateDir(self.path))
            self._open(held, stack)
            try:
                why = self._loop()
                self._checkpoint(wait=True)
                self._look_at_disk()
                self.left_labels.clear()
                return self.report.finish(self._test_accuracy(), why)
            except SourceLost as exc:
                self._checkpoint(wait=True)
                self.report.say(str(exc), "failed")
                raise
            except Exception as exc:
                self.report.say(str(exc), "failed")
                raise

    def _open(self, held: StateDir, stack: ExitStack) -> None:
        """Everything that can refuse, before anything is changed."""
        recovered, damage = None, None
        store = CheckpointStore(self.path)
        try:
            recovered = recover(self.path, store)
        except DamagedFile as exc:
            damage = exc
        same_source = recovered is not None and recovered.source == origin(self.urls)
        self.cursor = Cursor() if recovered is None else recovered.cursor.carried_over(same_source)
        self.source: Source = source_of(
            self.config, self.urls, after=list(self.cursor.positions.values()), floor=self.cursor.floor, seed=self.seed
        )
        stack.enter_context(self.source)
        schema = self.source.schema
        self.task = assembly.task_of(self.config, schema, len(self.source.streams))
        blueprint = assembly.blueprint_of(self.config, self.task)
        self.needs_labels = not blueprint.aim
        planned = assembly.plan_of(self.config, self.task, blueprint)
        store.claim(assembly.fingerprint(self.task, blueprint))  # refuses the state of another model
        migrate(held)

        now = (self.config, schema, self.task.n_streams)
        unchanged = recovered is not None and recovered.saved.made_of == now
        self.learner = self._learner(recovered, blueprint, planned, as_it_is=unchanged)
        faults = [] if recovered is None else recovered.faults
        if damage is not None:
            told, self.cursor.n_labels = revive(self.learner, self.path)
            faults = [str(damage), told]
            prepare(self.path / JOURNAL_NAME, 0)  # nothing of it may be applied to weights that it made
            store.set_aside()
            self.cursor.consolidated_steps = self.learner.steps
        self.telemetry = Telemetry(self.config.budget.step_ms, self.config.budget.predict_ms)
        most_replayed = self.config.replay.per_step if self.learner.replay.capacity else 0
        self.governor = Governor(self.config.budget.step_ms / 1e3, most_replayed)
        self.recorded, self.least_work = all(url.startswith("recording:") for url in self.urls), LeastWork()
        self.label_names = list(self.task.label_names)
        self.rehearsal_steps: int | None = None  # as many as budget.consolidation_ms allows, once one was timed
        self.rehearsal_step_ms = inf
        self.dropped = dict.fromkeys(DROPPED, 0)
        self.observer = Observer(
            self.task,
            self.source,
            self.config.bridge,
            needs_labels=self.needs_labels,
            names=self.label_names,
            new_class=lambda n: self.publisher.prepare(n),
        )
        self.room = self._waiting_room(schema, recovered if same_source else None)
        self.newly_waiting: list[Waiting] = []  # in the room, and not in the journal yet
        self.newly_since = self.noted_at = time.monotonic()
        self.needs_acknowledgement = self.source.needs_acknowledgement
        self.is_played = self.source.can_wait and {url.partition(":")[0] for url in self.urls} <= PLAYED
        self.passed_on = {"source": "", "inlet": ""}  # that a device is gone or back, or the queue full
        self._go_on()
        self.ends_at = None if self.most_samples is None else self.telemetry.samples + self.most_samples
        self.publisher = Publisher(self.learner, self.task, schema, self.config, self.path)
        stack.callback(self.publisher.close)
        self.publisher.prepare(len(self.label_names))
        self.inlet = Inlet(self.source, self.config.bridge.queue_bytes)
        stack.callback(self.inlet.close)
        self.keeper = Keeper(
            store,
            self.config.storage,
            queue_bytes=assembly.journal_queue_of(self.config, self.task),
            entry=0 if recovered is None else recovered.entry,
            bases=bases_for(recovered, changed=not (unchanged and same_source)),
        )
        self.left_labels = LeftLabels(self.path, self.keeper)
        self.keeper.impatient = self.needs_acknowledgement
        stack.callback(self.keeper.close)
        self.waiting_since = time.monotonic()
        self.report = Report(
            folder=self.path,
            url=named(self.urls),
            config=self.config,
            planned=planned,
            learner=self.learner,
            telemetry=self.telemetry,
            governor=self.governor,
            inlet=self.inlet,
            publisher=self.publisher,
            keeper=self.keeper,
            room=self.room,
            label_names=self.label_names,
            dropped=self._all_dropped,
            parts=lambda: self.source.parts,
            on_status=self.on_status,
            exam=self._examine(),
        )
        if recovered is not None:
            self.report.exam_history, self.report.restart = recovered.exam_history, recovered.told
        self.report.restart["faults"] = faults
        resumed = f"going on after {self.learner.learnt:,} samples learnt" if self.learner.learnt else "a new learner"
        self.report.say("; ".join([resumed, *faults, *self.publisher.faults]))

    def _learner(
        self, recovered: Recovered | None, blueprint: Outline, planned: Plan, *, as_it_is: bool
    ) -> OnlineLearner:
        """The learner that was recovered, under the configuration of now; or a new one."""
        if recovered is not None and as_it_is:
            return recovered.learner
        learner = assembly.make_learner(self.config, self.task, blueprint, planned, seed=self.seed)
        if recovered is not None:
            arrays, plain = recovered.learner.state()
            assembly.check_classes(self.task, len(arrays["seen"]), list(recovered.saved.label_names))
            learner.restore(arrays, plain)
        return learner

    def _waiting_room(self, schema: Schema, recovered: Recovered | None) -> Room:
        """The room for what waits for its label, with those in it that waited when the run before ended."""
        rows = 1 if self.task.window is None else self.task.window[0]
        bridge = self.config.bridge
        reach = 1 if rows < 2 else (rows - 2) // schema.rows + 2  # the first and the last sample may be there in part
        room = Room(bridge.label_wait_bytes, bridge.label_wait_s, reach=reach)
        for waiting in recovered.room.all() if recovered else ():
            room.enter(replace(waiting, since_s=time.monotonic()))
        return room

    def _go_on(self) -> None:
        """Be where the cursor says that the run before was."""
        cursor = self.cursor
        self.label_names[:] = self.task.label_names or map(str, range(cursor.n_labels))
        self.telemetry.restore(*cursor.telemetry)
        if cursor.governor:
            self.governor.restore(cursor.governor)
        for counts in (self.observer.dropped, self.dropped):
            counts |= {reason: n for reason, n in cursor.dropped.items() if reason in counts}
        self.room.gone |= cursor.gone
        self.rehearsal_steps = cursor.rehearsal_steps
        self.observer.load_state(cursor.window)

    def _loop(self) -> str:
        """Take what comes until there is a reason to stop, and say which."""
        self._catch_up()
        while not self.signals.stop:
            if self.needs_acknowledgement and len(self.cursor.waiting) >= self.config.learning.batch_size:
                time.sleep(POLL_S)  # no room in the journal: a broker keeps what is not taken
                self._learn()
                self._look_at_clocks()
                continue
            try:
                item = self.inlet.get(POLL_S)
            except EndOfSource:
                if self.once:
                    self._complete()
                    return "the source is over"
                self._wait_for_stop()
                break
            if isinstance(item, Sample):
                self._take(item)
            elif isinstance(item, Label):
                self._take_label(item, item.stream)
            if self.ends_at is not None and self.telemetry.samples >= self.ends_at:
                self._complete()
                return f"{self.most_samples:,} samples taken"
            self._look_at_clocks()
        return "stopped by a signal; the next run goes on from here"

    def _catch_up(self) -> None:
        """Do what the run before would have done next, had it not ended where it did."""
        self._look_at_disk()
        if self.learner.is_due:
            self._consolidate()
        elif self.publisher.is_behind and self.learner.steps == self.cursor.consolidated_steps:
            self._try("snapshot", lambda: self._publish(self._examine()))
        self._answer_ahead()

    def _take(self, sample: Sample) -> None:
        """One sample from the bridge: make observations of it, answer each, and learn when a batch is full."""
        self.cursor.take(sample.id)
        self.cursor.ahead += self.observer.observe(sample)
        self._answer_ahead()

    def _answer_ahead(self) -> None:
        waiting, ahead = self.cursor.waiting, self.cursor.ahead
        while ahead:
            observation = ahead.pop(0)
            answered = self._predict(observation)
            if observation.label is None:
                self._let_wait(Waiting(observation, answered, time.monotonic()))
            else:
                if not waiting:
                    self.waiting_since = time.monotonic()
                waiting.append(observation)
            if len(waiting) >= self.config.learning.batch_size:  # more if batches were larger in the run before
                self._learn()

    def _let_wait(self, waiting: Waiting) -> None:
        """Keep an answered observation for a label that may come, if any are kept."""
        if self.config.bridge.label_wait_bytes:
            self.room.enter(waiting)
            if not self.newly_waiting:
                self.newly_since = waiting.since_s
            self.newly_waiting.append(waiting)
            if len(self.newly_waiting) >= self.config.learning.batch_size:
                self._note_waiting()

    def _note_waiting(self, *, place: bool = False) -> None:
        """Have those that wait since the last entry in the journal; before any entry, for its place is behind them.

        With `place` also if nobody does: then the entry says how far the daemon has come.
        """
        newly, self.newly_waiting = self.newly_waiting, []
        if not newly and not place:
            return
        taken_down = self._entry(lambda: entry.wait(newly, self.room.oldest, self._here()))
        if self._has_room(len(taken_down)):
            self._note(taken_down)
        else:
            self.room.forget(waiting.sample.id for waiting in newly)
            self.dropped["not_journaled"] += len(newly)

    def _predict(self, observation: Sample) -> int | None:
        """Answer an observation: its most likely class, None where there is none."""
        started = time.perf_counter()
        if not self.needs_labels:
            score = float(self.learner.losses(observation.values[None])[0])
            self.telemetry.predict.add(time.perf_counter() - started)
            self.telemetry.arrived(1)
            if self.learner.steps:  # until then not even the range of the sensor is known
                self.telemetry.judged(score)
            return None
        probabilities = self.learner.predict(observation.values[None])[0]
        self.telemetry.predict.add(time.perf_counter() - started)
        predicted = int(probabilities.argmax()) if probabilities.any() else None
        self.telemetry.arrived(1)
        if observation.label is not None:
            self.telemetry.scored([predicted == observation.label])
            self.publisher.agreement.add(predicted, observation.label)
        self.report.predicted, self.report.true = predicted, observation.label
        return predicted

    def _take_label(self, label: Label, giver: Hashable) -> None:
        """A label that came by itself: for the window that is being filled, and for who waits for it."""
        if not self.needs_labels or not self.observer.accept(label, giver):
            return
        filled = self.observer.late(label)
        called = self.room.call(label)
        if called is None:
            self.dropped["label_unmatched"] += not filled
            return
        sample = self.observer.named(called.sample)
        assert sample.label is not None  # it is one that the learner has an output for
        self.newly_waiting = [waiting for waiting in self.newly_waiting if waiting.sample.id != sample.id]
        self.telemetry.scored([called.answered == sample.label])
        self.publisher.agreement.add(called.answered, sample.label)
        if not self.cursor.waiting:
            self.waiting_since = time.monotonic()
        self.cursor.waiting.append(sample)
        if len(self.cursor.waiting) >= self.config.learning.batch_size:
            self._learn()

    def _take_left_labels(self, now: float) -> None:
        unknown = self.left_labels.look(now, self.label_names, lambda label: self._take_label(label, BY_HAND))
        self.observer.dropped[OUT_OF_RANGE] += unknown

    def _learn(self) -> None:
        """A step on what waits: taken down before it is made, noted once it was."""
        batch = self.cursor.waiting[:]
        if not batch:
            return
        self._note_waiting()
        self.cursor.waiting.clear()
        taken_down = self._entry(lambda: entry.learn(batch, self._here(), most_replayed=self.governor.replay))
        if not self._has_room(len(taken_down)):
            if self.signals.stop or self.needs_acknowledgement:
                self.cursor.waiting += batch  # kept by the checkpoint that ends the run, or until there is room
                return
            self.dropped["not_journaled"] += len(batch)
            return
        x = np.stack([observation.values for observation in batch])
        y = np.array([observation.label for observation in batch], dtype=np.int64)
        self._try("trial", lambda: self._judge(x, y))
        if self.governor.skips(len(y)):
            self.dropped["no_time_to_learn"] += len(y)
            self._note(self._entry(lambda: entry.skip(batch, self._here())))
            return
        started, at_work = time.perf_counter(), time.thread_time()
        step = self.learner.learn(x, y, most_replayed=self.governor.replay)
        _ = step.predicted  # on a GPU the step is over when its answer is there
        took_s = time.perf_counter() - started
        self._note(taken_down, len(y), took_s)
        if step.learnt:
            self._note_step(took_s, time.thread_time() - at_work)
        if self.learner.is_due:
            self._consolidate()

    def _entry(self, taken_down: Callable[[], bytes]) -> bytes:
        return taken_down() if self.keeper.has_journal else b""

    def _note(self, taken_down: bytes, samples: int = 0, took_s: float = 0.0) -> None:
        self.noted_at = time.monotonic()
        self.keeper.note(taken_down, self.inlet.taken, samples, took_s)

    def _has_room(self, nbytes: int) -> bool:
        """Whether the journal has room for so many bytes; a source that can wait is made to, if the disk is but slow.

        Where it has none, nothing is learnt that could be lost again: the daemon goes on answering.
        """
        while not self.keeper.has_room(nbytes):
            if self.keeper.refused or not self.source.can_wait or self.signals.stop:
                return False
            time.sleep(DISK_POLL_S)
        return True

    def _note_step(self, took_s: float, worked_s: float) -> None:
        """A step is over: what that means for the next ones. `worked_s` is what this thread had of the processor."""
        self.telemetry.step.add(took_s, worked_s)
        if self.recorded:
            took_s = worked_s = self.least_work.add(worked_s)
        if self.governor.took(time.monotonic(), took_s, worked_s):
            self.least_work.forget()
            self.report.say(f"governor: {self.governor.decision}")

    def _look_at_clocks(self) -> None:
        """What is due by time or by signal rather than by a sample."""
        now = time.monotonic()
        if self.signals.consolidate:
            self.signals.consolidate = False
            self._learn()
            self._consolidate()
        # What is played always fills the batch, so that the same recording gives the same steps.
        self.room.expire(now)
        self._try("labels that were left", lambda: self._take_left_labels(now))
        late = now - self.waiting_since > self.config.learning.max_wait_ms / 1e3
        if late and not self.is_played:
            self._learn()
        if now - self.newly_since > self.config.learning.max_wait_ms / 1e3:
            self._note_waiting()
        if self.needs_acknowledgement and now - self.noted_at > PLACE_S and self.keeper.has_room(0):
            self._note_waiting(place=True)
        self._look_at_disk()
        self._pass_on("source", self.source.said)
        if not self.is_played:  # of what is played the queue is always full
            self._pass_on("inlet", self.inlet.said)
        self.report.tick()

    def _pass_on(self, who: str, said: str) -> None:
        if said != self.passed_on[who]:
            self.passed_on[who] = said
            self.report.say(said)

    def _look_at_disk(self) -> None:
        """Acknowledge what has become durable, save when that is due, and say if the disk refuses."""
        if self.keeper.poll():
            self.source.acknowledge(self.keeper.acknowledged)
        if self.keeper.is_due:
            self._checkpoint()
        if self.keeper.refused is None:
            self.report.recovered("keeping what is learnt")
        else:
            self.report.fault("keeping what is learnt", f"nothing is acknowledged: {self.keeper.refused}")

    def _consolidate(self) -> None:
        if self.learner.steps == 0:
            return
        self._check_finite()
        self._note_waiting()
        most = self.rehearsal_steps
        planned = self._entry(lambda: entry.consolidate(self._here(), most_steps=most, exam={}))
        if not self._has_room(len(planned) + EXAM_BYTES * len(self.label_names)):
            return
        started, at_work = time.perf_counter(), time.thread_time()
        rehearsed = self.learner.consolidate(most_steps=most)
        took_s = time.perf_counter() - started
        took_ms = 1e3 * (time.thread_time() - at_work if self.recorded else took_s)
        if rehearsed:  # measuring the Fisher is a part of it, so the guess is on the safe side
            step_ms = took_ms / rehearsed
            self.rehearsal_step_ms = min(self.rehearsal_step_ms, step_ms) if self.recorded else step_ms
            self.rehearsal_steps = max(1, int(self.config.budget.consolidation_ms / self.rehearsal_step_ms))
        exam = self._examine()
        self.cursor.consolidated_steps = self.learner.steps
        self._note(self._entry(lambda: entry.consolidate(self._here(), most_steps=most, exam=exam)), 0, took_s)
        self.report.consolidated(exam)
        self._try("snapshot", lambda: self._publish(exam))
        give_back()
        self.report.tick()

    def _examine(self) -> dict[int, tuple[int, float]]:
        return self.learner.examine() if self.needs_labels else {}

    def _publish(self, exam: dict[int, tuple[int, float]]) -> None:
        if not self.keeper.wait_for(self.keeper.entry, COMMIT_S):
            raise self.keeper.refused or slow_disk(self.path)
        published = self.publisher.publish(tuple(self.label_names), exam)
        if published.state == "bad":
            self.report.fault("publishing", f"snapshot {published.id} is kept aside: {published.why}")
        else:
            self.report.recovered("publishing")

    def _judge(self, x: NDArray[Any], y: NDArray[np.int64]) -> None:
        """Let the snapshot on trial, and the one before it, answer what the learner has not learnt yet."""
        if decided := self.publisher.judge(x, y):
            self.report.say(decided)

    def _complete(self) -> None:
        """The stream is over: learn what waits, and leave a snapshot of all that was learnt."""
        self._learn()
        if self.learner.steps > self.cursor.consolidated_steps:
            self._consolidate()

    def _try(self, what: str, action: Callable[[], object]) -> None:
        """Do something with the disk that the loop can live without, and say so once if it fails."""
        try:
            action()
        except StorageError as exc:
            self.report.fault(what, f"{what} failed, going on without: {exc}")
        else:
            self.report.recovered(what)

    def _check_finite(self) -> None:
        """Before parameters are kept: a learner that diverged cannot come back, its last checkpoint can."""
        if not bool(self.learner.network.arena.flat.isfinite().all()):
            raise EdgeError(
                f"the learner diverged within {self.learner.steps:,} steps: its parameters are no numbers any more; "
                "the last checkpoint is as it was",
                hint="lower learning.learning_rate, or look for samples with absurd values",
            )

    def _here(self) -> Cursor:
        """Where the daemon is in its stream."""
        self.cursor.floor = self.source.floor_at(self.inlet.taken)
        self.cursor.window = self.observer.state()
        self.cursor.n_labels = len(self.label_names)
        self.cursor.telemetry = [self.telemetry.samples, self.telemetry.labelled, self.telemetry.hits]
        self.cursor.governor = self.governor.state()
        self.cursor.dropped, self.cursor.gone = {**self.observer.dropped, **self.dropped}, self.room.gone
        self.cursor.rehearsal_steps = self.rehearsal_steps
        return self.cursor

    def _checkpoint(self, *, wait: bool = False) -> None:
        self._check_finite()
        self._note_waiting()
        arrays, learner = self.learner.state()
        room, who = waiting_state(self.room.all())
        own, place = self._here().state()
        meta = {
            **described(self.config, self.source.schema, self.task.n_streams),
            "learner": learner,
            "source": origin(self.urls),
            "label_names": self.label_names,
            "exam_history": self.report.exam_history,
            **place,
            **who,
        }
        self.keeper.checkpoint({**arrays, **own, **room}, meta, wait=wait)

    def _all_dropped(self) -> dict[str, int]:
        of_sources = dropped_of((part.counters for part in self.source.parts), self.inlet.counters)
        return {**of_sources, **dropped({**self.observer.counters, **self.dropped, **self.room.gone})}

    def _wait_for_stop(self) -> None:
        self._complete()
        self.report.say("the source is over; waiting to be stopped (--once ends with the source)")
        while not self.signals.stop:
            time.sleep(POLL_S)
            self._look_at_clocks()

    def _test_accuracy(self) -> float | None:
        """Accuracy of the published snapshot, by onnxruntime, on a recording's test split; null without one."""
        held_out = self.source.held_out
        current = self.publisher.shelf.current() if self.publisher.current_path else None
        if current is None or held_out is None or len(held_out.y) == 0 or not self.needs_labels:
            return None
        if held_out.x.shape[1:] != self.task.shape:
            return None  # rows that this configuration makes other windows of
        x = held_out.x.astype(np.float32)
        right = Deployed(current.read())(x).argmax(1) == held_out.y
        return float(right.mean())
