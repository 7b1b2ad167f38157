"""What a bad line does to bytes: flipped bits, dropped bytes, dropped datagrams. The same seed does the same."""

from __future__ import annotations

import numpy as np


class BadLine:
    """Damages what passes through it; flipped and dropped count what it did.

    flips: chance that a byte has one bit flipped. drops: chance that a byte, of a datagram line a datagram, is dropped.
    """

    def __init__(self, seed: int, flips: float, drops: float, *, is_stream: bool) -> None:
        self.flipped = self.dropped = 0
        self._rng = np.random.default_rng([seed, 1])
        self._flips, self._drops, self._is_stream = flips, drops, is_stream

    def pass_on(self, data: bytes) -> bytes:
        """What arrives of these bytes; of a datagram that does not, none."""
        if self._drops and not self._is_stream and self._rng.random() < self._drops:
            self.dropped += 1
            return b""
        if not self._flips and not self._drops:
            return data
        array = np.frombuffer(data, np.uint8).copy()
        hit = np.flatnonzero(self._rng.random(len(array)) < self._flips)
        array[hit] ^= np.uint8(1) << self._rng.integers(0, 8, len(hit), dtype=np.uint8)
        self.flipped += len(hit)
        if self._drops and self._is_stream:
            kept = self._rng.random(len(array)) >= self._drops
            self.dropped += int(len(array) - kept.sum())
            array = array[kept]
        return array.tobytes()
