"""The daemon's loop: sample → predict → learn → consolidate → snapshot, until it is told to stop. Nothing else.

Data faults are counted and shown and the loop goes on; a fault of the operator stops it at the start; a full disk costs
checkpoints and snapshots, never the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl import assembly
from edge_cl.config import Config
from edge_cl.errors import EdgeError
from edge_cl.governor import Governor, LeastWork
from edge_cl.heap import give_back
from edge_cl.publishing.publisher import Publisher
from edge_cl.report import Report
from edge_cl.saved import described
from edge_cl.service.status import Status, Summary
from edge_cl.service.telemetry import Telemetry
from edge_cl.signals import Signals
from edge_cl.storage.checkpoint import Checkpoint, CheckpointStore
from edge_cl.storage.errors import StorageError
from edge_cl.storage.snapshot import Deployed
from edge_cl.storage.state_dir import StateDir
from firmware_bridge.errors import EndOfSource, SourceLost
from firmware_bridge.inlet import Inlet
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Label, Sample, SampleId
from firmware_bridge.source import Source

POLL_S = 0.1  # the longest the loop waits for a sample before it looks at signals and clocks
# Counters of the bridge that count no loss: reboots, what was made while nobody listened, frames that came twice or
# too late (their loss is in wire_lost already), samples that only lost their label, and rows of a test split.
NOT_DROPPED = {"restarts", "away", "duplicate", "late", "label", "mixed_label", "nonfinite_held_out"}


class Daemon:
    """One run on one state directory; `run` returns when it is over, with its summary."""

    def __init__(
        self,
        config: Config,
        state: Path,
        *,
        source_url: str | None = None,
        seed: int = 0,
        once: bool = False,
        samples: int | None = None,
        on_status: Callable[[Status], None] = lambda status: None,
        signals: Signals | None = None,
    ) -> None:
        self.config, self.path, self.seed = config, state, seed
        self.url = source_url or config.source
        self.once, self.most_samples = once, samples
        self.signals = signals or Signals()
        self.on_status = on_status

    def run(self) -> Summary:
        """Run until the source is over (with `once`), `samples` observations came, or a signal asks to stop.

        Raises BridgeError, OperatorError, StorageError for what an operator can mend; the state on disk is then intact.
        """
        with ExitStack() as stack:
            stack.enter_context(StateDir(self.path))
            self._open(stack)
            try:
                why = self._loop()
                self._checkpoint()
                return self.report.finish(self._test_accuracy(), why)
            except SourceLost as exc:
                self._checkpoint()
                self.report.say(str(exc), "failed")
                raise
            except Exception as exc:
                self.report.say(str(exc), "failed")
                raise

    def _open(self, stack: ExitStack) -> None:
        """Everything that can refuse, before anything is changed."""
        found = CheckpointStore(self.path).load()
        same_source = found is not None and found.meta["source"] == _origin(self.url)
        position = found.meta["position"] if found and same_source else None
        self.position = SampleId(*position) if position else None
        self.source: Source = make_source(self.url, after=self.position, seed=self.seed)
        stack.enter_context(self.source)
        schema = self.source.schema
        self.task = assembly.task_of(self.config, schema)
        blueprint = assembly.blueprint_of(self.config, self.task)
        self.needs_labels = not blueprint.aim
        planned = assembly.plan_of(self.config, self.task, blueprint)
        self.store = CheckpointStore(self.path, model=assembly.fingerprint(self.task, blueprint))
        self.store.load()  # refuses the state of another model

        self.learner = assembly.make_learner(self.config, self.task, blueprint, planned, seed=self.seed)
        self.window = assembly.make_window(self.task, schema)
        self.telemetry = Telemetry(self.config.budget.step_ms, self.config.budget.predict_ms)
        most_replayed = self.config.replay.per_step if self.learner.replay.capacity else 0
        self.governor = Governor(self.config.budget.step_ms / 1e3, most_replayed)
        self.recorded, self.least_work = self.url.startswith("recording:"), LeastWork()
        self.label_names = list(self.task.label_names)
        self.waiting: list[Sample] = []  # labelled observations for the next step
        self.published_steps = 0  # how much of what was learnt the newest snapshot holds
        self.rehearsal_steps: int | None = None  # as many as budget.consolidation_ms allows, once one was timed
        self.rehearsal_step_ms = inf
        self.dropped = {"shape": 0, "label_out_of_range": 0, "label_unmatched": 0, "no_time_to_learn": 0}
        if found is not None:
            self._restore(found, same_source=same_source)
        self.ends_at = None if self.most_samples is None else self.telemetry.samples + self.most_samples
        self.publisher = Publisher(self.learner, self.task, schema, self.config, self.path)
        stack.callback(self.publisher.close)
        if self.publisher.current_path is None:
            self.published_steps = 0
        self.publisher.prepare(len(self.label_names))
        self.inlet = Inlet(self.source, self.config.bridge.queue_bytes)
        stack.callback(self.inlet.close)
        self.waiting_since = self.checkpointed_at = time.monotonic()
        self.report = Report(
            folder=self.path,
            url=self.url,
            config=self.config,
            planned=planned,
            learner=self.learner,
            telemetry=self.telemetry,
            governor=self.governor,
            inlet=self.inlet,
            publisher=self.publisher,
            label_names=self.label_names,
            dropped=self._all_dropped,
            on_status=self.on_status,
            exam=self._examine(),
        )
        if found is not None:
            self.report.exam_history = found.meta["exam_history"]
        resumed = f"going on after {self.learner.learnt:,} samples learnt" if found else "a new learner"
        self.report.say("; ".join([resumed, *self.store.faults, *self.publisher.faults]))

    def _loop(self) -> str:
        """Take what comes until there is a reason to stop, and say which."""
        while not self.signals.stop:
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
                self._take_label(item)
            if self.ends_at is not None and self.telemetry.samples >= self.ends_at:
                self._complete()
                return f"{self.most_samples:,} samples taken"
            self._look_at_clocks()
        return "stopped by a signal; the next run goes on from here"

    def _take(self, sample: Sample) -> None:
        """One sample from the bridge: make observations of it, predict each, and learn when a batch is full."""
        self.position = sample.id
        for observation in self._observations(sample):
            self._predict(observation)
            if observation.label is not None:
                if not self.waiting:
                    self.waiting_since = time.monotonic()
                self.waiting.append(observation)
            if len(self.waiting) >= self.config.learning.batch_size:  # more if batches were larger in the run before
                self._learn()

    def _observations(self, sample: Sample) -> list[Sample]:
        try:
            observations = [sample] if self.window is None else self.window.push(sample)
        except ValueError:
            self.dropped["shape"] += 1
            return []
        fitting = [o for o in observations if (o.values.shape, o.values.dtype) == (self.task.shape, self.task.dtype)]
        self.dropped["shape"] += len(observations) - len(fitting)
        return [self._with_known_label(observation) for observation in fitting]

    def _with_known_label(self, observation: Sample) -> Sample:
        if not self.needs_labels:
            return replace(observation, label=0)  # every one is learnt, whatever it is called
        if observation.label is None or 0 <= observation.label < len(self.label_names):
            return observation
        named = bool(self.task.label_names)
        if named or not 0 <= observation.label < self.task.n_outputs:
            self.dropped["label_out_of_range"] += 1
            return replace(observation, label=None)
        self.label_names[:] = [str(label) for label in range(observation.label + 1)]
        self.publisher.prepare(len(self.label_names))
        return observation

    def _predict(self, observation: Sample) -> None:
        started = time.perf_counter()
        if not self.needs_labels:
            score = float(self.learner.losses(observation.values[None])[0])
            self.telemetry.predict.add(time.perf_counter() - started)
            self.telemetry.arrived(1)
            if self.learner.steps:  # until then not even the range of the sensor is known
                self.telemetry.judged(score)
            return
        probabilities = self.learner.predict(observation.values[None])[0]
        self.telemetry.predict.add(time.perf_counter() - started)
        predicted = int(probabilities.argmax()) if probabilities.any() else None
        self.telemetry.arrived(1)
        if observation.label is not None:
            self.telemetry.scored([predicted == observation.label])
            self.publisher.agreement.add(predicted, observation.label)
        self.report.predicted, self.report.true = predicted, observation.label

    def _take_label(self, label: Label) -> None:
        """A label that came by itself: it finds its sample in the window that is being filled, or it is counted."""
        if self.needs_labels and (self.window is None or not self.window.late(label)):
            self.dropped["label_unmatched"] += 1

    def _learn(self) -> None:
        if not self.waiting:
            return
        x = np.stack([observation.values for observation in self.waiting])
        y = np.array([observation.label for observation in self.waiting], dtype=np.int64)
        self.waiting.clear()
        self._try("trial", lambda: self._judge(x, y))
        if self.governor.skips(len(y)):
            self.dropped["no_time_to_learn"] += len(y)
            return
        started, at_work = time.perf_counter(), time.thread_time()
        step = self.learner.learn(x, y, most_replayed=self.governor.replay)
        _ = step.predicted  # on a GPU the step is over when its answer is there
        if step.learnt:
            self._note_step(time.perf_counter() - started, time.thread_time() - at_work)
        if step.learnt and self.learner.is_due:
            self._consolidate()

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
        # A source that can wait always fills the batch, so that the same recording gives the same steps.
        late = now - self.waiting_since > self.config.learning.max_wait_ms / 1e3
        if late and not self.source.can_wait:
            self._learn()
        if now - self.checkpointed_at > self.config.storage.checkpoint_every_s:
            self._try("checkpoint", self._checkpoint)
        self.report.tick()

    def _consolidate(self) -> None:
        if self.learner.steps == 0:
            return
        self._check_finite()
        started, at_work = time.perf_counter(), time.thread_time()
        rehearsed = self.learner.consolidate(most_steps=self.rehearsal_steps)
        took_ms = 1e3 * (time.thread_time() - at_work if self.recorded else time.perf_counter() - started)
        if rehearsed:  # measuring the Fisher is a part of it, so the guess is on the safe side
            step_ms = took_ms / rehearsed
            self.rehearsal_step_ms = min(self.rehearsal_step_ms, step_ms) if self.recorded else step_ms
            self.rehearsal_steps = max(1, int(self.config.budget.consolidation_ms / self.rehearsal_step_ms))
        exam = self._examine()
        self.report.consolidated(exam)
        self._try("snapshot", lambda: self._publish(exam))
        give_back()
        self.report.tick()

    def _examine(self) -> dict[int, tuple[int, float]]:
        return self.learner.examine() if self.needs_labels else {}

    def _publish(self, exam: dict[int, tuple[int, float]]) -> None:
        published = self.publisher.publish(tuple(self.label_names), exam)
        if published.state == "bad":
            self.report.fault("publishing", f"snapshot {published.id} is kept aside: {published.why}")
        else:
            self.report.recovered("publishing")
            self.published_steps = self.learner.steps

    def _judge(self, x: NDArray[Any], y: NDArray[np.int64]) -> None:
        """Let the snapshot on trial, and the one before it, answer what the learner has not learnt yet."""
        if decided := self.publisher.judge(x, y):
            self.report.say(decided)

    def _complete(self) -> None:
        """The stream is over: learn what waits, and leave a snapshot of all that was learnt."""
        self._learn()
        if self.learner.steps > self.published_steps:
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

    def _checkpoint(self) -> None:
        self._check_finite()
        self.checkpointed_at = time.monotonic()
        arrays, learner = self.learner.state()
        window = self.window.state() if self.window else {}
        arrays = dict(arrays) | {f"window.{k}": v for k, v in window.items() if isinstance(v, np.ndarray)}
        values = [observation.values for observation in self.waiting]
        arrays["waiting"] = np.stack(values) if values else np.empty((0, *self.task.shape), self.task.dtype)
        meta = {
            **described(self.config, self.source.schema),
            "learner": learner,
            "source": _origin(self.url),
            "position": list(self.position) if self.position else None,
            "window": {k: v for k, v in window.items() if not isinstance(v, np.ndarray)},
            "waiting": [[*o.id, o.time_us, o.label] for o in self.waiting],
            "label_names": self.label_names,
            "exam_history": self.report.exam_history,
            "published_steps": self.published_steps,
            "governor": self.governor.state(),
            "telemetry": [self.telemetry.samples, self.telemetry.labelled, self.telemetry.hits],
        }
        self.store.save(arrays, meta)

    def _restore(self, found: Checkpoint, *, same_source: bool) -> None:
        arrays, meta = found.arrays, found.meta
        assembly.check_classes(self.task, len(arrays["seen"]), meta["label_names"])
        self.learner.restore(arrays, meta["learner"])
        self.label_names[:] = self.task.label_names or meta["label_names"]
        self.published_steps = meta["published_steps"]
        self.telemetry.restore(*meta["telemetry"])
        if "governor" in meta:  # states of edge_cl 0.1.0 have none
            self.governor.restore(meta["governor"])
        for values, (stream, boot, seq, time_us, label) in zip(arrays["waiting"], meta["waiting"], strict=True):
            self.waiting.append(Sample(stream, boot, seq, time_us, values, label))
        if self.window is not None and same_source:
            rows = {k.removeprefix("window."): v for k, v in arrays.items() if k.startswith("window.")}
            with suppress(ValueError):  # another stride than before: the rows of an unfinished window are let go
                self.window.load_state({**meta["window"], **rows})

    def _all_dropped(self) -> dict[str, int]:
        window = self.window.counters if self.window else {}
        counters = {**self.inlet.counters, **window, **self.dropped}
        return {reason: count for reason, count in counters.items() if reason not in NOT_DROPPED}

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
        x = held_out.x.astype(np.float32)
        right = Deployed(current.read())(x).argmax(1) == held_out.y
        return float(right.mean())


def _origin(url: str) -> str:
    """What of a source's URL says whose sample ids these are: not how fast or how many.

    A recording's ids are checksums of what it plays and in which order, so it may lie anywhere.
    """
    target, _, query = url.partition("?")
    if target.startswith("recording:"):
        return "recording"
    options = sorted(o for o in query.split("&") if o and o.partition("=")[0] not in ("speed", "samples"))
    return "?".join([target, "&".join(options)]) if options else target
