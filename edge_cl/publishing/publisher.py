"""From the learner as it is to a verified ONNX snapshot on the shelf, and to the verdict on it.

Joins the two wings at one point: learning/ describes graph and weights, storage/ makes, checks and shelves the bytes.
The template is built by a child process while learning goes on, and built again when the classes change.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.assembly import TEMPLATES, Task, template_request
from edge_cl.config import Config
from edge_cl.learning.graph import weights
from edge_cl.learning.network import Network
from edge_cl.learning.objective import Reconstruction
from edge_cl.learning.online_learner import OnlineLearner
from edge_cl.learning.template_head import template_head
from edge_cl.publishing.agreement import Agreement
from edge_cl.publishing.provenance import Exam, Provenance, as_metadata
from edge_cl.publishing.trial import Trial, clearly_worse, losses
from edge_cl.storage.errors import DamagedFile, TemplateError
from edge_cl.storage.inspection import exam_accuracy
from edge_cl.storage.shelf import Published, Shelf
from edge_cl.storage.signature import signer
from edge_cl.storage.snapshot import Deployed, fill, verify
from edge_cl.storage.template import PendingTemplate, Template, start_build
from edge_cl.storage.variants import latency
from firmware_bridge.sample import Schema

BUILD_TIMEOUT_S = 120.0  # a loaded Raspberry Pi imports onnx in some ten seconds
PROBES = 32  # samples the snapshot must answer like the learner
MOST_LOOKED_AT = 256  # samples of the reservoir that tell the range of each channel
PROBE_SEED = 0
UNKNOWN_RANGE = 127.0  # as far from 0 as every sensor's dtype reaches, on one side at least
TIMED = 11  # answers to one sample, of which the median is the snapshot's latency


class Publisher:
    """Publishes snapshots of one learner on the shelf in `folder`, and takes back one that does worse live.

    A snapshot is kept aside as bad, and `current` stays, if it is larger or slower than its budget, if it does clearly
    worse in the exam than the current one, or if the latest labels have nothing to do with the answers to them.
    """

    def __init__(self, learner: OnlineLearner, task: Task, schema: Schema, config: Config, folder: Path) -> None:
        self._learner, self._network, self._task, self._config = learner, learner.network, task, config
        self._provenance = Provenance.of(learner, task, schema, config)
        key = config.snapshots.signing_key
        self.shelf = Shelf(folder, config.snapshots.keep, sign=None if key is None else signer(Path(key)))
        self.agreement = Agreement()  # of the learner's answers and the labels that come for them
        self._n_classes = 0
        self._template: PendingTemplate | None = None
        self._trial: tuple[str, Trial] | None = None
        self._open: dict[str, Deployed] = {}
        self._published_at: float | None = None
        self.current_path: Path | None = None
        self.faults: list[str] = []
        try:
            current = self.shelf.current()
            if current is not None:
                current.read()
                self.current_path = current.path
                self._watch(current)
        except DamagedFile as exc:  # the one who can mend it must not be stopped by it
            self.faults.append(f"{exc}; the next snapshot takes its place")

    def prepare(self, n_classes: int) -> None:
        """Have the template for that many classes built in the background; nothing happens if it already is.

        One without classes gives all its outputs.
        """
        n_classes = self._network.n_outputs if self._without_classes else n_classes
        if n_classes and n_classes != self._n_classes:
            self.close()
            self._n_classes = n_classes
            self._template = start_build(*template_request(self._config, self._learner, n_classes))

    @property
    def age_s(self) -> float | None:
        """Seconds since this run last published, None if it has not yet."""
        return None if self._published_at is None else time.monotonic() - self._published_at

    @property
    def is_behind(self) -> bool:
        """Whether the learner has consolidated since the newest snapshot was made, whatever became of that."""
        entries = self.shelf.entries()
        newest = entries[-1].manifest["training"]["consolidations"] if entries else 0
        return bool(self._learner.consolidations > newest)

    def publish(self, label_names: tuple[str, ...], exam: Exam | None = None) -> Published:
        """Fill the template, verify its answers against the learner's, and put it on the shelf: as `current`, or aside.

        `exam` is how the learner just did in it, if that is known.
        It is on trial while there is one before it to be compared with; its state and `why` say what became of it.
        Raises SnapshotMismatch, TemplateError or StorageFault; `current` then stays.
        """
        template = self._built(len(label_names))
        probes, examined = self._probes(), self._exam()
        with self._head():
            if exam is None or self._config.snapshots.head != "learnt":
                exam = {} if self._without_classes else self._learner.examine()
            facts = self._provenance.facts(label_names, exam, self._outputs(label_names), template.opset)
            values = weights(self._network, self._n_classes, self._learner.seen.numpy())
            model = fill(template, values, as_metadata(facts))
            expected = due_answers(self._learner, probes, self._n_classes)
        deployed = Deployed(model)
        difference = verify(deployed, probes.astype(np.float32), expected, probabilities=not self._without_classes)
        answer_ms = latency(deployed, probes[:1].astype(np.float32), warm_up=0, timed=TIMED).p50 / 1e3
        proof = {"samples": len(probes), "max_abs_difference": difference, "answer_ms": answer_ms}
        manifest = {**facts, "verification": proof}
        current = self._current()
        if why := self._objection(deployed, len(model), answer_ms, examined, current):
            return self.shelf.set_aside(model, manifest, why=why)
        if current is not None and current.state == "trial":
            self.shelf.settle(current.id, "good", "another took its place before its trial was over")
        on_trial = current is not None and self._config.snapshots.trial_samples > 0
        published = self.shelf.publish(model, manifest, state="trial" if on_trial else "good")
        self._open = {key: kept for key, kept in self._open.items() if current is not None and key == current.id}
        self._open[published.id] = deployed
        self._published_at = time.monotonic()
        now = self.shelf.current() or published  # it is not this one while another is pinned
        self.current_path = now.path
        self._watch(now)
        return published

    def judge(self, x: NDArray[Any], y: NDArray[np.int64]) -> str:
        """Have the snapshot on trial, and the one before it, answer live samples; what was decided, if anything was.

        x (B, *shape), y (B,) their labels. Raises SnapshotMismatch or StorageFault.
        """
        if self._trial is None:
            return ""
        number, trial = self._trial
        verdict = trial.judge(x, None if self._without_classes else y)
        if verdict is None:
            return ""
        self._trial = None
        current = self.shelf.settle(number, verdict, trial.told)
        self.current_path = None if current is None else current.path
        return f"snapshot {number} is {verdict}: {trial.told}"

    def close(self) -> None:
        """End a build that is still going on."""
        if self._template is not None:
            self._template.close()

    @property
    def _without_classes(self) -> bool:
        return isinstance(self._learner.objective, Reconstruction)

    def _head(self) -> AbstractContextManager[None]:
        """The last layer that snapshots.head asks for."""
        kind = self._config.snapshots.head
        if kind == "learnt" or self._learner.replay.size == 0:
            return nullcontext()
        assert isinstance(self._network, Network)  # assembly refuses a module: only its author knows its last layer
        return template_head(self._network, self._learner.replay, TEMPLATES[kind])

    def _objection(
        self, deployed: Deployed, size: int, answer_ms: float, examined: NDArray[Any], current: Published | None
    ) -> str:
        """Why this model must not become current, if there is a reason."""
        budget = self._config.budget
        if budget.snapshot_bytes is not None and size > budget.snapshot_bytes:
            return f"it has {size:,} bytes, budget.snapshot_bytes is {budget.snapshot_bytes:,}"
        if answer_ms > budget.predict_ms:
            return f"it answers in {answer_ms:.3g} ms, budget.predict_ms is {budget.predict_ms:g}"
        if current is None:
            return ""
        labels = None if self._without_classes else self._learner.exam.labels[: len(examined)]
        lost = losses(deployed(examined), self._deployed(current)(examined), labels) if len(examined) else np.empty(0)
        if clearly_worse(lost):
            return f"in the exam its error is {lost.mean():.3g} a sample above that of {current.id}"
        accuracy = exam_accuracy(current.manifest)
        # Classes that are new make answers as wrong, for a while: but then the exam has got better by them.
        if accuracy is not None and (n := self.agreement.at_odds(accuracy)) and not clearly_worse(-lost):
            return f"the latest {n} labels agree with the answers to them only by chance"
        return ""

    def _watch(self, current: Published) -> None:
        """Begin the trial of a snapshot beside the newest good one before it, if it is on trial."""
        self._trial = None
        before = [entry for entry in self.shelf.entries() if entry.state == "good" and int(entry.id) < int(current.id)]
        if current.state == "trial" and before:
            newer, older = self._deployed(current), self._deployed(before[-1])
            self._trial = current.id, Trial(newer, older, self._config.snapshots.trial_samples)

    def _current(self) -> Published | None:
        """The current snapshot, None also if it is damaged: whatever comes is better."""
        try:
            return self.shelf.current()
        except DamagedFile:
            return None

    def _deployed(self, published: Published) -> Deployed:
        """A snapshot ready to answer; those of the latest trial stay open."""
        if published.id not in self._open:
            self._open[published.id] = Deployed(published.read())
        return self._open[published.id]

    def _built(self, n_classes: int) -> Template:
        self.prepare(n_classes)
        assert self._template is not None
        try:
            return self._template.result(BUILD_TIMEOUT_S)
        except TemplateError:
            self._n_classes = 0  # the machine may have been short of time or memory: the next snapshot tries again
            raise

    def _exam(self) -> NDArray[np.float32]:
        """The exam's samples (N, *shape)."""
        return self._learner.exam.held().astype(np.float32)

    def _probes(self) -> NDArray[Any]:
        """Real samples, of the exam and of what is replayed, and random ones over the range each channel has shown."""
        real = self._learner.examples(MOST_LOOKED_AT)
        if len(real):
            positions = tuple(range(real.ndim - 1))
            low, high = real.min(positions).astype(np.float64), real.max(positions).astype(np.float64)  # (C,)
        else:
            low, high = self._usual_range()
        real = np.concatenate([self._exam()[: PROBES // 4].astype(real.dtype), real])[: PROBES // 2]
        drawn = np.random.default_rng(PROBE_SEED).uniform(low, high, (PROBES - len(real), *self._task.shape))
        return np.concatenate([real, drawn.astype(self._task.dtype)])

    def _usual_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Within three deviations of each channel's mean, as far as the sensor's dtype reaches."""
        standardise, dtype = self._network.standardise, self._task.dtype
        mean, spread = standardise.mean.double().cpu().numpy(), 3 * standardise.variance.double().sqrt().cpu().numpy()
        if self._learner.backbone is not None:  # those are statistics of features: nothing is known of what was sensed
            mean, spread = np.zeros(1), np.full(1, UNKNOWN_RANGE)
        least, most = -np.inf, np.inf
        if dtype.kind in "iu":
            limits = np.iinfo(dtype.name)
            least, most = limits.min, limits.max
        return np.clip(mean - spread, least, most), np.clip(mean + spread, least, most)

    def _outputs(self, label_names: tuple[str, ...]) -> dict[str, Any]:
        if not self._without_classes:
            return {"name": "probabilities", "shape": ["batch", len(label_names)]}
        score = {"name": "score", "shape": ["batch", 1]}  # how unlike what was learnt: docs/ANOMALY.md
        return {"name": "reconstruction", "shape": ["batch", self._network.n_outputs], "beside": score}


def due_answers(learner: OnlineLearner, x: NDArray[Any], n_classes: int) -> NDArray[np.float32]:
    """What a snapshot is to answer to x (N, *shape): as the learner; without classes, with the score behind."""
    answers = learner.predict(x)[:, :n_classes]
    return np.column_stack([answers, learner.losses(x)]) if isinstance(learner.objective, Reconstruction) else answers
