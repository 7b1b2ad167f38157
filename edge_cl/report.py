"""What the daemon says of itself: a Status for whoever watches, DIR/status.json for later, a Summary at the end.

Reads the parts, changes none of them. Must not decide anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edge_cl.accounts import line_faults
from edge_cl.budget import Plan
from edge_cl.config import Config
from edge_cl.governor import Governor
from edge_cl.keeping.keeper import Keeper
from edge_cl.keeping.room import Room
from edge_cl.learning.bits import Trial
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.publishing.publisher import Publisher
from edge_cl.service.promise import Promise
from edge_cl.service.status import (
    ExamPoint,
    Limit,
    Restart,
    State,
    Status,
    Summary,
    blank,
    exam_point,
    write_status,
)
from edge_cl.service.telemetry import Telemetry, rss_bytes, rss_peak_bytes
from firmware_bridge.inlet import Inlet
from firmware_bridge.source import Part

EVERY_S = 0.25  # between two looks of a watcher
WRITE_EVERY_S = 1.0  # between two writes of status.json
MOST_EXAM_POINTS = 240
MOST_WAITING = 10  # ids of observations that wait for a label


@dataclass
class Report:
    """The daemon's parts as its report needs them; `on_status` gets a Status at each event and now and then."""

    folder: Path
    url: str
    config: Config
    planned: Plan
    learner: OnlineLearner
    telemetry: Telemetry
    governor: Governor
    inlet: Inlet
    publisher: Publisher
    keeper: Keeper
    room: Room
    label_names: list[str]
    dropped: Callable[[], Mapping[str, int]]
    parts: Callable[[], Sequence[Part]]
    on_status: Callable[[Status], None]
    state: State = "starting"
    message: str = ""
    started_s: float = field(default_factory=time.time)
    exam: dict[int, tuple[int, float]] = field(default_factory=dict)
    exam_history: list[ExamPoint] = field(default_factory=list)
    restart: Restart = field(default_factory=lambda: blank()["restart"])
    predicted: int | None = None
    true: int | None = None
    _faults: set[str] = field(default_factory=set)
    _bits_told: bool = field(default=False, init=False)
    _looked: float = 0.0
    _written: float = 0.0

    def say(self, message: str, state: State = "running") -> None:
        """An event worth a line."""
        self.state, self.message = state, message
        self._show(time.monotonic(), write=True)

    def tick(self) -> None:
        """Show the present state, if it is time to."""
        now = time.monotonic()
        if now - self._looked >= EVERY_S:
            self._tell_of_limits()
            self._show(now, write=now - self._written >= WRITE_EVERY_S)

    def consolidated(self, exam: dict[int, tuple[int, float]]) -> None:
        """A consolidation is over, and this is how each class did in the exam after it."""
        self.exam = exam
        self.exam_history.append(exam_point(self.learner.steps, exam, self.label_names))
        self.message = f"consolidation {self.learner.consolidations} at step {self.learner.steps:,}"
        if self.learner.trials and not self._bits_told:
            self._bits_told = True
            self.say(_told(self.learner.trials, self.learner.replay.bits))
        if len(self.exam_history) > MOST_EXAM_POINTS:
            del self.exam_history[1::2]  # bounded for ever; the newest points stay the densest

    def fault(self, what: str, message: str) -> None:
        """Something keeps failing: said once, not a thousand times."""
        if what not in self._faults:
            self._faults.add(what)
            self.say(message)

    def recovered(self, what: str) -> None:
        """It works again."""
        if what in self._faults:
            self._faults.discard(what)
            self.say(f"{what} works again")

    def status(self) -> Status:
        """One moment of the daemon."""
        learner, telemetry, config = self.learner, self.telemetry, self.config
        current = self.publisher.current_path
        status = blank()
        status.update(
            {
                "state": self.state,
                "pid": os.getpid(),
                "started_s": self.started_s,
                "updated_s": time.time(),
                "source": self.url,
                "sources": [
                    {"name": part.name, "streams": list(part.streams), "said": part.said, "counters": {**part.counters}}
                    for part in self.parts()
                ],
                "model": f"{learner.network.kind}, {learner.network.arena.flat.numel():,} parameters",
                "label_names": list(self.label_names),
                "samples": telemetry.samples,
                "labelled": telemetry.labelled,
                "learned": learner.learnt,
                "steps": learner.steps,
                "consolidations": learner.consolidations,
                "samples_per_s": telemetry.samples_per_s,
                "prequential_accuracy": telemetry.windowed_accuracy,
                "prequential_history": telemetry.history,
                "anomaly_score": telemetry.anomaly_score,
                "anomaly_p50": telemetry.anomaly_p50,
                "exam": [
                    {"label": self._name(c), "samples": n, "accuracy": accuracy}
                    for c, (n, accuracy) in sorted(self.exam.items())
                ],
                "exam_history": list(self.exam_history),
                "replay_samples": learner.replay.size,
                "replay_capacity": learner.replay.capacity,
                "replay_bytes": learner.replay.nbytes,
                "learner_bytes": self.learner_bytes,
                "budget_bytes": self.planned.budget_bytes,
                "replay_bits": learner.replay.bits,
                "bits_tried": [[trial.bits, trial.extra_loss, trial.error] for trial in learner.trials],
                "plan": [{"part": part.name, "bytes": part.nbytes} for part in self.planned.parts],
                "step_p50_ms": telemetry.step.percentile(50),
                "step_p99_ms": telemetry.step.percentile(99),
                "step_budget_ms": config.budget.step_ms,
                "predict_p50_ms": telemetry.predict.percentile(50),
                "predict_p99_ms": telemetry.predict.percentile(99),
                "predict_budget_ms": config.budget.predict_ms,
                "step_limit": _limit(telemetry.step.promise),
                "predict_limit": _limit(telemetry.predict.promise),
                "governor": {
                    "replay_per_step": self.governor.replay,
                    "replay_wanted": self.governor.most,
                    "skipping": self.governor.skip,
                    "lowered": self.governor.lowered,
                    "raised": self.governor.raised,
                    "skipped_batches": self.governor.skipped_batches,
                    "skipped_samples": self.governor.skipped_samples,
                },
                "durable": {
                    "durability": config.storage.durability,
                    "acknowledged": self.keeper.samples,
                    "behind": self.keeper.behind,
                    "refused": None if self.keeper.refused is None else str(self.keeper.refused),
                },
                "restart": self.restart,
                "late_labels": {
                    "waiting": len(self.room),
                    "bytes": self.room.nbytes,
                    "most_bytes": self.room.most_bytes,
                    "newest": [(*one.sample.id, self._called(one.answered)) for one in self.room.newest(MOST_WAITING)],
                },
                "rss_bytes": rss_bytes(),
                "rss_peak_bytes": rss_peak_bytes(),
                "received": self.inlet.received,
                "dropped": dict(self.dropped()),
                "line_faults": line_faults(self.inlet.counters),
                "snapshot": None if current is None else str(current),
                "snapshot_age_s": self.publisher.age_s,
                "true_label": None if self.true is None else self._name(self.true),
                "predicted_label": None if self.predicted is None else self._name(self.predicted),
                "message": self.message,
            }
        )
        return status

    def finish(self, test_accuracy: float | None, message: str) -> Summary:
        """The last word: writes a stopped status and returns the summary of the run."""
        self._tell_of_limits()  # of a run that was over within a second nobody has heard it yet
        self.say(message, "stopped")
        status = self.status()
        summary: Summary = {
            "samples": status["samples"],
            "learned": status["learned"],
            "steps": status["steps"],
            "consolidations": status["consolidations"],
            "prequential_accuracy": self.telemetry.prequential_accuracy,
            "anomaly_score": status["anomaly_score"],
            "anomaly_p50": status["anomaly_p50"],
            "test_accuracy": test_accuracy,
            "exam": status["exam"],
            "exam_history": status["exam_history"],
            "replay_bytes": status["replay_bytes"],
            "learner_bytes": status["learner_bytes"],
            "budget_bytes": status["budget_bytes"],
            "step_p50_ms": status["step_p50_ms"],
            "step_p99_ms": status["step_p99_ms"],
            "step_budget_ms": status["step_budget_ms"],
            "predict_p99_ms": status["predict_p99_ms"],
            "predict_budget_ms": status["predict_budget_ms"],
            "step_limit": status["step_limit"],
            "predict_limit": status["predict_limit"],
            "governor": status["governor"],
            "rss_peak_bytes": status["rss_peak_bytes"],
            "dropped": status["dropped"],
            "snapshot": status["snapshot"],
            "seconds": time.time() - self.started_s,
        }
        return summary

    @property
    def learner_bytes(self) -> int:
        """Bytes held for the learner: what is allocated, and the room promised to queue, window and snapshot."""
        return self.learner.nbytes + self.planned.promised

    def _tell_of_limits(self) -> None:
        """Say when a time limit is not kept any more, and when it is again."""
        budget = self.config.budget
        for key, limit_ms, promise, done in (
            ("budget.step_ms", budget.step_ms, self.telemetry.step.promise, f"; {self.governor.decision}"),
            ("budget.predict_ms", budget.predict_ms, self.telemetry.predict.promise, ""),
        ):
            if promise.kept:
                self.recovered(f"keeping {key}")
            else:
                self.fault(f"keeping {key}", f"cannot keep {key} {limit_ms:g}: {_missed(promise)}{done}")

    def _called(self, answer: int | None) -> str | None:
        return None if answer is None or answer >= len(self.label_names) else self.label_names[answer]

    def _name(self, label: int) -> str:
        return self.label_names[label] if label < len(self.label_names) else str(label)

    def _show(self, now: float, *, write: bool) -> None:
        self._looked = now
        status = self.status()
        if write:
            self._written = now
            with suppress(OSError):  # a full disk: the checkpoint's own failure is what gets said
                write_status(self.folder, status)
        self.on_status(status)


def _limit(promise: Promise) -> Limit:
    late, seconds = promise.recent
    return {
        "kept": promise.kept,
        "recent_seconds": seconds,
        "recent_late": late,
        "seconds": promise.seconds,
        "late": promise.late_seconds,
    }


def _missed(promise: Promise) -> str:
    """How often a limit was missed, and of what."""
    late, seconds = promise.recent
    waited = "" if promise.late_at_work * 2 > promise.late else ", mostly waiting for the processor"
    return f"over it in {late} of the last {seconds} seconds{waited}"


def _told(trials: list[Trial], bits: int | None) -> str:
    """What was found out about fewer bits a stored value, and what follows from it."""
    tried = ", ".join(f"{trial.bits} bits cost {trial.extra_loss:.4f} nats" for trial in trials)
    return f"replay: {tried}; a value is kept {f'in {bits} bits' if bits else 'as the sensor makes it'}"
