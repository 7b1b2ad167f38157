"""Loss, duplicates and restarts by sequence numbers, for one stream.

    d = (seq - expected) mod 2^32:   d = 0 in order;   0 < d < 2^31 lost += d;   else seen before (duplicate) or late

MAVLink's 8-bit rule counts a duplicate as 255 lost; here neither a duplicate nor a late frame is ever loss. A late
sample was already counted as lost and stays so: the learner never gets it. Knows integers only.
"""

from __future__ import annotations

_MODULUS = 1 << 32
_HALF = 1 << 31
# Serial lines do not reorder; 64 is what radios and bridges in front of them do, and one integer holds it.
_REMEMBERED = 64


class SequenceTracker:
    """Judges each sample by its boot and seq; `counters` holds what it saw.

    after: boot and seq of the last sample that was consumed before, e.g. by the run before this one. What the board
    made in between is counted as "away", not as lost on the wire.
    """

    def __init__(self, after: tuple[int, int] | None = None) -> None:
        self.counters = {"wire_lost": 0, "duplicate": 0, "late": 0, "restarts": 0, "away": 0}
        self._boot: int | None = None
        self._expected = 0
        self._received = 0  # bit i: seq expected - 1 - i came
        self._loss = "wire_lost"
        if after is not None:
            self._boot, self._expected = after[0], (after[1] + 1) % _MODULUS
            self._received = (1 << _REMEMBERED) - 1
            self._loss = "away"

    def accept(self, boot: int, seq: int) -> int | None:
        """Number of samples missing just before this one (1 at a restart, where nobody can know), None to drop it."""
        if boot != self._boot:
            return self._restart(boot, seq)
        ahead = (seq - self._expected) % _MODULUS
        if ahead >= _HALF:
            self._count_old(_MODULUS - ahead - 1)
            return None
        self._advance(ahead + 1)
        self._received |= 1
        return self._lose(ahead)

    def finish(self, boot: int, next_seq: int) -> int:
        """Count what is missing at the end: next_seq is the seq that the next sample would have had."""
        if boot != self._boot:
            return 0
        ahead = (next_seq - self._expected) % _MODULUS
        if ahead >= _HALF:
            return 0
        self._advance(ahead)
        return self._lose(ahead)

    def _restart(self, boot: int, seq: int) -> int:
        first = self._boot is None
        self.counters["restarts"] += not first
        self._boot, self._expected, self._received, self._loss = boot, (seq + 1) % _MODULUS, 1, "wire_lost"
        return 0 if first else 1

    def _lose(self, count: int) -> int:
        self.counters[self._loss] += count
        self._loss = "wire_lost"
        return count

    def _advance(self, steps: int) -> None:
        self._expected = (self._expected + steps) % _MODULUS
        self._received = (self._received << steps) & ((1 << _REMEMBERED) - 1) if steps < _REMEMBERED else 0

    def _count_old(self, age: int) -> None:
        missing = age < _REMEMBERED and not self._received >> age & 1
        self.counters["late" if missing else "duplicate"] += 1
        if missing:
            self._received |= 1 << age
