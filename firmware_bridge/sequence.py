"""Loss, duplicates and restarts by sequence numbers, for one stream.

    d = (seq - expected) mod 2^32:   d = 0 in order;   0 < d < 2^31 lost += d;   else seen before (duplicate) or late

MAVLink's 8-bit rule counts a duplicate as 255 lost; here neither a duplicate nor a late frame is ever loss. A late
sample was already counted as lost and stays so: the learner never gets it.

The boots before the present one are remembered for a while, so that what a sender sends again of them is a duplicate
and no restart. Nobody sends again what lies further back than REACH samples: there, a board begins anew under a boot id
that it had before, and loses nothing; nearer, it loses REACH samples at most. Within the present boot all that was seen
stays seen: a board whose boot never changes is not heard until it has passed itself.

What is missing around a restart cannot be seen in a seq that starts anew. A board that remembers how many samples it
made in all boots before this one says so, and that closes the account: total + expected is then the place of the next
sample among all that it ever made. Of a board that does not say it, a restart counts no loss. Knows integers only.
"""

from __future__ import annotations

from collections.abc import Sequence

COUNTERS = ("wire_lost", "restart_lost", "duplicate", "late", "restarts", "away")
_MODULUS = 1 << 32
_HALF = 1 << 31
# Serial lines do not reorder; 64 is what radios and bridges in front of them do, and one integer holds it.
_REMEMBERED = 64
_ALL = (1 << _REMEMBERED) - 1
# Of older boots: MQTT has no more packet ids than that for what is under way, and few boards have more memory.
REACH = 1 << 16
BOOTS = 8  # that are remembered, with the present one


class SequenceTracker:
    """Judges each sample by its boot and seq; `counters` holds what it saw, in samples.

    wire_lost: never came. restart_lost: never came, made just before or behind a restart. away: made while the line was
    away, or this program. duplicate, late: came, and were not used. restarts: boots seen to change.

    after: boot and seq of the last sample that was consumed before, e.g. by the run before this one. older: the same of
    the boots before that one, newest last.
    """

    def __init__(self, after: tuple[int, int] | None = None, older: Sequence[tuple[int, int]] = ()) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self._boot: int | None = None
        self._expected = 0
        self._received = 0  # bit i: seq expected - 1 - i came
        self._absent = False  # since the last sample, so that what is missing before the next one is nobody's fault
        self._absent_since_total = False
        self._place: int | None = None  # of the next sample among all that the board made, as far as it is accounted
        # Of the boots before this one the same two, oldest first.
        self._before = {boot: ((last + 1) % _MODULUS, _ALL) for boot, last in older[-(BOOTS - 1) :]}
        if after is not None:
            self._before.pop(after[0], None)
            self._boot, self._expected = after[0], (after[1] + 1) % _MODULUS
            self._received = _ALL
            self._absent = True

    def accept(self, boot: int, seq: int) -> int | None:
        """Number of samples missing just before this one (1 at a restart, where nobody can know), None to drop it."""
        if boot != self._boot:
            if self._count_older(boot, seq):
                return None
            missing = self._begin(boot, seq)
            self._advance(1)
            self._received = 1
            self._absent = False
            return missing
        ahead = (seq - self._expected) % _MODULUS
        if ahead >= _HALF:
            self._count_old(_MODULUS - ahead - 1)
            return None
        self._advance(ahead + 1)
        self._received |= 1
        return self._lose(ahead)

    def expect(self, boot: int, next_seq: int) -> int:
        """Number of samples missing now (1 at a restart): the board says that the next one it makes gets next_seq."""
        if self.is_over(boot, next_seq):
            return 0
        if boot != self._boot:
            return self._begin(boot, next_seq)
        ahead = (next_seq - self._expected) % _MODULUS
        if ahead >= _HALF:
            return 0
        self._advance(ahead)
        return self._lose(ahead)

    def made_before(self, boot: int, total: int) -> int:
        """Count what is missing around restarts: the board says how many samples it made in all boots before this one.

        Of another boot than the last sample's it says nothing yet; one that goes back in its count is not believed.
        """
        if boot != self._boot:
            return 0
        place = (total + self._expected) % _MODULUS
        missing = 0 if self._place is None else (place - self._place) % _MODULUS
        if missing >= _HALF:
            missing = 0
        self.counters["away" if self._absent_since_total else "restart_lost"] += missing
        self._place, self._absent_since_total = place, self._absent
        return missing

    def is_over(self, boot: int, next_seq: int) -> bool:
        """Whether that is where a boot was before the present one began, or behind that: then it is no news."""
        return boot != self._boot and boot in self._before and (self._before[boot][0] - next_seq) % _MODULUS < REACH

    def absent(self) -> None:
        """Nobody listens from here on to the next sample."""
        self._absent = self._absent_since_total = True

    def _begin(self, boot: int, seq: int) -> int:
        first = self._boot is None
        self.counters["restarts"] += not first
        if self._boot is not None:
            self._before[self._boot] = self._expected, self._received
        self._before.pop(boot, None)
        if len(self._before) == BOOTS:
            del self._before[next(iter(self._before))]
        self._boot, self._expected, self._received = boot, seq, 0
        return 0 if first else 1

    def _lose(self, count: int) -> int:
        self.counters["away" if self._absent else "wire_lost"] += count
        self._absent = False
        return count

    def _advance(self, steps: int) -> None:
        self._expected = (self._expected + steps) % _MODULUS
        self._received = (self._received << steps) & _ALL if steps < _REMEMBERED else 0
        if self._place is not None:
            self._place = (self._place + steps) % _MODULUS

    def _count_old(self, age: int) -> None:
        self._received = self._counted(age, self._received)

    def _count_older(self, boot: int, seq: int) -> bool:
        """Whether this is one of a boot before the present one, sent again; counts it."""
        if not self.is_over(boot, (seq + 1) % _MODULUS):
            return False
        expected, received = self._before[boot]
        self._before[boot] = expected, self._counted((expected - 1 - seq) % _MODULUS, received)
        return True

    def _counted(self, age: int, received: int) -> int:
        """Count one that came before, or too late; what came by then."""
        missing = age < _REMEMBERED and not received >> age & 1
        self.counters["late" if missing else "duplicate"] += 1
        return received | 1 << age if missing else received
