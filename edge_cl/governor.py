"""How much a step may replay, and whether a batch is learnt at all, so that 99 of 100 steps keep their time limit.

Durations in, decisions out: it has no clock, and knows neither learner nor stream. docs/BUDGETS.md explains the law.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from edge_cl.service.promise import STARTING

SPARE: Final = 0.01  # late steps that the limit allows for each one that is not
FORBEARANCE: Final = 2.0  # late steps beyond those before stalls count as load
CUT: Final = 0.5  # of the replay that is left at most
RAISES: Final = 10  # from no replay to all of it
MOST_SKIPPED: Final = 63  # batches in a row; then one is learnt, to see how things are
ROOM: Final = 0.7  # of the limit, which steps must keep to before more is tried
RECENT: Final = 16  # steps since the last change that must show it, but for one of them
STEPS: Final = 8  # of a recording, of which the quickest counts
RECENT_SKIPPING: Final = 2  # latest ones that must while most are skipped
LEAST_PATIENCE_S, MOST_PATIENCE_S = 5.0, 300.0  # between two raises
IMPATIENT: Final = 4.0  # times the patience before, once more turned out to be too much
TRUSTED_S: Final = 100.0  # with all replay, after which patience is halved


class LeastWork:
    """The least own work of the latest STEPS steps, 0 before there are so many.

    It is what counts of a recording, which loses nothing by a late step: only a limit that is too low for the machine
    then changes what is learnt, and not what else the machine has to do. The least, because a shared processor makes
    a step's own work longer as well.
    """

    def __init__(self) -> None:
        self._worked: deque[float] = deque(maxlen=STEPS)

    def add(self, worked_s: float) -> float:
        """Take one step's and say what the least is now."""
        self._worked.append(worked_s)
        return min(self._worked) if len(self._worked) == STEPS else 0.0

    def forget(self) -> None:
        """Begin anew: from now on steps are others."""
        self._worked.clear()


class Governor:
    """Lowers replay, then skips learning, while steps are late; gives back slowly once there is clear room.

    `most` are the replayed samples of a step when nothing presses, `limit_s` is the 99th percentile that steps must
    keep. A late step whose own work took longer than that is answered at once. One that only waited for the processor
    is answered when such steps come two in a row, or clearly more often than one in a hundred: less replay cannot mend
    a single stall, but of shorter steps fewer are hit, and they wait less.
    """

    def __init__(self, limit_s: float, most: int) -> None:
        self.limit_s, self.most = limit_s, most
        self.replay = most  # samples that a step may replay
        self.skip = 0  # batches left out before each one that is learnt
        self.lowered = self.raised = self.skipped_batches = self.skipped_samples = 0
        self._left_out = 0  # batches since the last one that was learnt
        self._starting = STARTING
        self._patience_s = LEAST_PATIENCE_S
        self._falling = False  # whether the last change was a cut: those that follow answer the same load
        self._since_s: float | None = None  # the last change, or the first step
        self._debt = 0.0  # late steps beyond those the limit allows
        self._before_s = 0.0  # what the step before took
        self._recent: deque[float] = deque(maxlen=RECENT)

    @property
    def at_rest(self) -> bool:
        """Whether everything is learnt and replayed as the settings say."""
        return self.replay == self.most and self.skip == 0

    @property
    def decision(self) -> str:
        """What is in force, for a person."""
        if self.at_rest:
            return "everything is learnt, with all replay"
        replay = f"replay {self.replay} of {self.most} a step" if self.most else "no replay"
        return f"{replay}, 1 of {self.skip + 1} batches learnt" if self.skip else replay

    def skips(self, samples: int) -> bool:
        """Whether the batch of so many samples is to be left out; they are then counted as skipped."""
        if self._left_out >= self.skip:
            self._left_out = 0
            return False
        self._left_out += 1
        self.skipped_batches += 1
        self.skipped_samples += samples
        return True

    def took(self, at_s: float, took_s: float, worked_s: float) -> bool:
        """A step ended at `at_s` on a steady clock, after `took_s`, for `worked_s` of which it had the processor.

        Returns whether the decision is another one now.
        """
        if self._starting:
            self._starting -= 1
            return False
        if self._since_s is None:
            self._since_s = at_s
        late, before_s = took_s > self.limit_s, self._before_s
        self._before_s = took_s
        self._debt = max(0.0, self._debt + (1.0 if late else -SPARE))
        self._recent.append(took_s)
        needs_s = max(worked_s, min(before_s, took_s))  # a stall is in one of them only
        if needs_s > self.limit_s or (late and self._debt > FORBEARANCE):
            return self._lower(at_s, needs_s)
        return self._is_calm(at_s - self._since_s) and self._raise(at_s)

    def _lower(self, at_s: float, needs_s: float) -> bool:
        if self.replay == 0 and self.skip == MOST_SKIPPED:
            return False
        if not self._falling:
            self._patience_s = min(MOST_PATIENCE_S, IMPATIENT * self._patience_s)
        if self.replay:
            self.replay = int(self.replay * min(CUT, ROOM * self.limit_s / max(needs_s, self.limit_s)))
        else:
            self.skip = min(MOST_SKIPPED, 2 * self.skip + 1)
        self.lowered += 1
        self._falling = True
        self._begin_anew(at_s)
        return True

    def _raise(self, at_s: float) -> bool:
        changes = not self.at_rest
        if self.skip:
            self.skip //= 2
        elif changes:
            self.replay = min(self.most, self.replay + max(1, self.most // RAISES))
        else:
            self._patience_s = max(LEAST_PATIENCE_S, self._patience_s / 2)
        self.raised += changes
        self._falling = False
        self._begin_anew(at_s)
        return changes

    def _is_calm(self, waited_s: float) -> bool:
        """Whether nothing has changed for long enough, and the steps since then kept well away from the limit."""
        patience_s = max(TRUSTED_S, self._patience_s) if self.at_rest else self._patience_s
        if waited_s < patience_s or len(self._recent) < (RECENT_SKIPPING if self.skip else RECENT):
            return False
        telling = list(self._recent)[-RECENT_SKIPPING:] if self.skip else sorted(self._recent)[:-1]
        return max(telling) <= ROOM * self.limit_s

    def _begin_anew(self, at_s: float) -> None:
        self._since_s, self._debt, self._before_s = at_s, 0.0, 0.0
        self._recent.clear()

    def state(self) -> dict[str, Any]:
        """Plain values from which `restore` goes on: what is in force, and what was counted."""
        return {
            "cap": None if self.replay == self.most else self.replay,
            "skip": [self.skip, self._left_out],
            "patience_s": self._patience_s,
            "counted": [self.lowered, self.raised, self.skipped_batches, self.skipped_samples],
        }

    def restore(self, values: dict[str, Any]) -> None:
        """Go on from another run's state, with no more replay than there is now."""
        self.replay = self.most if values["cap"] is None else min(self.most, values["cap"])
        self.skip, self._left_out = values["skip"]
        self._patience_s = values["patience_s"]
        self.lowered, self.raised, self.skipped_batches, self.skipped_samples = values["counted"]
