"""The state of a running daemon as a plain dict, and its file DIR/status.json. Knows neither learner nor terminal.

The file is replaced by rename, so a reader sees one whole state or the one before, but it is never fsynced: it is
written again a second later, nothing depends on it, and a flush a second would wear the flash and hold up the learner.
After a power cut it may be old, empty or gone; the daemon's truth is in its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, cast

from edge_cl.errors import IOFault

FILE: Final = "status.json"
HISTORY: Final = 240  # points of a curve: twice as many as the widest terminal usually shows

State = Literal["starting", "running", "stopped", "failed"]


class ExamResult(TypedDict):
    """How one class does on the samples that are never trained on; accuracy in [0, 1], null before the first answer."""

    label: str
    samples: int
    accuracy: float | None


class ExamPoint(TypedDict):
    """All classes' exam accuracy after one consolidation, at that many steps."""

    steps: int
    accuracy: dict[str, float]


class PlanPart(TypedDict):
    """One line of the memory plan."""

    part: str
    bytes: int


class Limit(TypedDict):
    """Whether a time limit is kept: in 99 of 100 seconds, 99 of 100 times. Counts of seconds in which it was asked."""

    kept: bool
    recent_seconds: int  # the last ones, at most 100
    recent_late: int
    seconds: int  # of this run
    late: int


class Governed(TypedDict):
    """What the governor has decided so that steps keep their limit, and what that has cost so far."""

    replay_per_step: int  # at most, now
    replay_wanted: int  # by the settings
    skipping: int  # batches left out before each one that is learnt
    lowered: int  # times; all counts go on over restarts
    raised: int
    skipped_batches: int
    skipped_samples: int


class Durable(TypedDict):
    """What a power cut now would leave: `acknowledged` labelled samples of this run, all but `behind` entries."""

    durability: str  # sample, or checkpoint: then only checkpoints count
    acknowledged: int
    behind: int  # journal entries on their way to the disk
    refused: str | None  # why the disk takes nothing at present


class Restart(TypedDict):
    """How this run began: from what, and what could not be had back. All 0 for a new learner."""

    generation: int  # of the checkpoint
    replayed: int  # journal entries behind it
    seconds: float
    lost_samples: int
    faults: list[str]


class LateLabels(TypedDict):
    """Observations that wait for a label; `newest` are stream, boot, seq and the answer's name of the last few."""

    waiting: int
    bytes: int
    most_bytes: int
    newest: list[tuple[int, int, int, str | None]]


class SourceState(TypedDict):
    """One source: what it said last (that its device is gone, or back), and its counters, in samples and frames."""

    name: str
    streams: list[int]
    said: str
    counters: dict[str, int]


class Status(TypedDict):
    """One moment of a daemon. Times of day are seconds since 1970; a null is not known yet."""

    state: State
    pid: int | None
    started_s: float | None
    updated_s: float | None
    source: str
    sources: list[SourceState]
    model: str
    label_names: list[str]
    samples: int  # observations that came, labelled or not
    labelled: int
    learned: int
    steps: int
    consolidations: int
    samples_per_s: float
    prequential_accuracy: float | None  # windowed: the share of hits in the last answers that were scored
    prequential_history: list[float]  # the same at even intervals since the start, oldest first, at most HISTORY
    anomaly_score: float | None  # without labels: of the latest observation, before it was learnt; else null
    anomaly_p50: float | None  # its median over the last observations
    exam: list[ExamResult]
    exam_history: list[ExamPoint]
    replay_samples: int
    replay_bits: int | None  # of a stored value; null: as the sensor made it
    bits_tried: list[list[float]]  # bits, extra loss in nats a sample, its standard error
    replay_capacity: int
    replay_bytes: int
    learner_bytes: int
    budget_bytes: int
    plan: list[PlanPart]
    step_p50_ms: float | None
    step_p99_ms: float | None
    step_budget_ms: float
    predict_p50_ms: float | None
    predict_p99_ms: float | None
    predict_budget_ms: float
    step_limit: Limit
    predict_limit: Limit
    governor: Governed
    durable: Durable
    restart: Restart
    late_labels: LateLabels
    rss_bytes: int
    rss_peak_bytes: int
    received: int
    dropped: dict[str, int]
    line_faults: dict[str, int]  # frames that were no good; what was in them is in dropped, as wire_lost
    snapshot: str | None
    snapshot_age_s: float | None
    true_label: str | None
    predicted_label: str | None
    message: str


class Summary(TypedDict, total=False):
    """What a finished run leaves behind: the keys `edge-cl run --json` promises, and what its last screen shows."""

    samples: int
    learned: int
    steps: int
    consolidations: int
    prequential_accuracy: float | None
    anomaly_score: float | None
    anomaly_p50: float | None
    test_accuracy: float | None  # of the exported snapshot on the recording's test split; null without one
    exam: list[ExamResult]
    exam_history: list[ExamPoint]
    replay_bytes: int
    learner_bytes: int
    budget_bytes: int
    step_p50_ms: float | None
    step_p99_ms: float | None
    step_budget_ms: float
    predict_p99_ms: float | None
    predict_budget_ms: float
    step_limit: Limit
    predict_limit: Limit
    governor: Governed
    rss_peak_bytes: int
    dropped: dict[str, int]
    snapshot: str | None
    seconds: float


def blank() -> Status:
    """The status of a daemon that has done nothing yet; a fresh dict each time."""
    return {
        "state": "starting", "pid": None, "started_s": None, "updated_s": None, "source": "", "model": "",
        "sources": [],
        "label_names": [], "samples": 0, "labelled": 0, "learned": 0, "steps": 0, "consolidations": 0,
        "samples_per_s": 0.0, "prequential_accuracy": None, "prequential_history": [],
        "anomaly_score": None, "anomaly_p50": None, "exam": [], "exam_history": [],
        "replay_bits": None, "bits_tried": [],
        "replay_samples": 0, "replay_capacity": 0, "replay_bytes": 0, "learner_bytes": 0, "budget_bytes": 0, "plan": [],
        "step_p50_ms": None, "step_p99_ms": None, "step_budget_ms": 0.0,
        "predict_p50_ms": None, "predict_p99_ms": None, "predict_budget_ms": 0.0,
        "step_limit": _unasked(), "predict_limit": _unasked(), "governor": {
            "replay_per_step": 0, "replay_wanted": 0, "skipping": 0, "lowered": 0, "raised": 0,
            "skipped_batches": 0, "skipped_samples": 0,
        },
        "durable": {"durability": "", "acknowledged": 0, "behind": 0, "refused": None},
        "late_labels": {"waiting": 0, "bytes": 0, "most_bytes": 0, "newest": []},
        "restart": {"generation": 0, "replayed": 0, "seconds": 0.0, "lost_samples": 0, "faults": []},
        "rss_bytes": 0, "rss_peak_bytes": 0, "received": 0, "dropped": {}, "line_faults": {},
        "snapshot": None, "snapshot_age_s": None,
        "true_label": None, "predicted_label": None, "message": "",
    }  # fmt: skip


def _unasked() -> Limit:
    return {"kept": True, "recent_seconds": 0, "recent_late": 0, "seconds": 0, "late": 0}


def exam_point(steps: int, exam: Mapping[int, tuple[int, float]], names: Sequence[str]) -> ExamPoint:
    """The point of an exam's history, each class by its name, or by its number if it has none."""
    called = {label: names[label] if label < len(names) else str(label) for label in exam}
    return {"steps": steps, "accuracy": {called[label]: accuracy for label, (_, accuracy) in exam.items()}}


def write_status(directory: Path, status: Status) -> None:
    """Replace DIR/status.json; one writer only, the daemon that holds the directory. Raises OSError (a full disk)."""
    fresh = directory / f"{FILE}.tmp"
    fresh.write_text(json.dumps(status, allow_nan=False, ensure_ascii=False), encoding="utf-8")
    fresh.replace(directory / FILE)


def read_status(directory: Path) -> Status | None:
    """The last state written to DIR, or None if there is none or a torn one (see above: a power cut).

    Raises IOFault if there is one that cannot be read.
    """
    try:
        found = json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as exc:
        raise IOFault(f"{directory / FILE}: {exc.strerror}", hint="run as the user the daemon runs as") from exc
    if not isinstance(found, Mapping):
        return None
    known: dict[str, Any] = dict(blank())  # a file of an older release may lack keys
    return cast(Status, known | {key: value for key, value in found.items() if key in known})
