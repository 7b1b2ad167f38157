"""Rows and their times, oldest first: put in behind, let go in front, looked up by time.

The rows lie in one array, so that a look-up costs no copy of all that is held. Knows no stream and no sample.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import numpy as np

from firmware_bridge.sample import Values

_LEAST_ROWS: Final = 64


class HeldRows:
    """Rows of C channels; `times`, which rise, and `values` (n, C) are those that are held now."""

    def __init__(self, n_channels: int, dtype: str) -> None:
        self.times: list[int] = []
        self._array: Values = np.empty((_LEAST_ROWS, n_channels), dtype)
        self._first = 0

    @property
    def values(self) -> Values:
        """The rows, as a view that holds until the next change."""
        return self._array[self._first : self._first + len(self.times)]

    def put(self, times: Sequence[int], rows: Values) -> None:
        """Append rows that are no earlier than those that are held."""
        end = self._first + len(self.times)
        if end + len(times) > len(self._array):
            self._make_room(len(times))
            end = len(self.times)
        self._array[end : end + len(times)] = rows
        self.times += times

    def let_go(self, n: int) -> None:
        """Forget the n oldest."""
        del self.times[:n]
        self._first += n

    def nearest(self, wanted: Sequence[int], most: int) -> list[int] | None:
        """Places of the rows nearest to the wanted times, which rise; the earlier one of two as near.

        None if one of them has no row that is at most so far away.
        """
        times, places, place = self.times, [], 0
        if not times:
            return None
        for time_us in wanted:
            place = bisect_left(times, time_us, place)
            if place == len(times) or (place > 0 and time_us - times[place - 1] <= times[place] - time_us):
                place = bisect_left(times, times[place - 1], 0, place)  # of several at one time the first
            if abs(times[place] - time_us) > most:
                return None
            places.append(place)
        return places

    def _make_room(self, n: int) -> None:
        """Move all to the front, of a larger array if this one would soon be full again."""
        values = self.values
        needed = 2 * (len(values) + n)
        array = np.empty((max(needed, len(self._array)), values.shape[1]), values.dtype)
        array[: len(values)] = values
        self._array, self._first = array, 0
