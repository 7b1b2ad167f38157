"""What one learner did on one stream under one seed: plain numbers and lists, the same after a way through JSON.

Knows neither learner nor stream; what several runs give together is in result.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """The figures of one run; accuracies are fractions from 0 to 1, None where something is not defined.

    accuracy_matrix       R (T, T): R[i][j] = accuracy on experience j after learning experience i
    untrained             (T,): accuracy on each experience before anything was learnt
    curve                 (samples so far, accuracy on each experience), in the order of the stream; experiences that
                          were not asked about at that moment are None
    prequential_accuracy  over all labelled samples, each scored by the answer given when it came
    prequential_faded     the same, the past fading
    prequential_curve     (samples so far, accuracy over the last window)
    lowest_old_accuracy   the worst mean accuracy on the experiences learnt before, at any point of the curve
    no_change, majority   prequential accuracy of the baselines, which get their labels as late as the learner does
    replay_bytes, replay_samples, learner_bytes    what the learner held at the end
    replay_bits           bits of a stored value; None: as the sensor made it
    bits_tried            if they were found out: bits, extra loss in nats a sample, its standard error
    compute_s             seconds within predict, learn and consolidate, for all `samples` of the stream
    """

    seed: int
    accuracy_matrix: list[list[float | None]]
    untrained: list[float | None]
    curve: list[tuple[int, list[float | None]]]
    prequential_accuracy: float | None
    prequential_faded: float | None
    prequential_curve: list[tuple[int, float]]
    lowest_old_accuracy: float | None
    no_change: float | None
    majority: float | None
    replay_bytes: int
    replay_samples: int
    learner_bytes: int
    compute_s: float
    samples: int
    consolidations: int
    replay_bits: int | None = None
    bits_tried: list[tuple[int, float, float]] = field(default_factory=list)
