"""How many labels a giver may give: a second, and of one class an hour. Against floods, and against a single voice.

Each limit is a bucket of allowances that fills evenly and never above its size: one of an hour's worth lets the labels
of a class come all at once, and then no faster than the limit. Knows no clock (the caller says what time it is) and no
learner.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

FLOOD: Final = "label_flood"  # more labels a second than allowed
QUOTA: Final = "label_quota"  # more labels of one class an hour than allowed
HOUR_S: Final = 3600.0


@dataclass
class _Bucket:
    """Allowances: filled by per_s up to most, and one taken for each label."""

    most: float
    per_s: float
    left: float
    looked_s: float

    def take(self, now_s: float) -> bool:
        self.left = min(self.most, self.left + max(0.0, now_s - self.looked_s) * self.per_s)
        self.looked_s = now_s
        if self.left < 1:
            return False
        self.left -= 1
        return True


class LabelLimits:
    """Limits of each who gives labels, by whatever names them; None: no limit.

    per_s: labels a second, a second's worth of them at once (one at least). per_class_hour: labels of one class in an
    hour, all at once if they come so.
    """

    def __init__(self, per_s: float | None, per_class_hour: int | None) -> None:
        self._per_s, self._per_class_hour = per_s, per_class_hour
        self._buckets: dict[Hashable, _Bucket] = {}

    def refuse(self, giver: Hashable, label: int, now_s: float) -> str | None:
        """Why a label may not be taken now, FLOOD or QUOTA; None if it may, and then it counts."""
        if self._per_s is not None and not self._bucket(giver, max(1.0, self._per_s), self._per_s, now_s).take(now_s):
            return FLOOD
        most = self._per_class_hour
        if most is not None and not self._bucket((giver, label), most, most / HOUR_S, now_s).take(now_s):
            return QUOTA
        return None

    def _bucket(self, key: Hashable, most: float, per_s: float, now_s: float) -> _Bucket:
        if key not in self._buckets:
            self._buckets[key] = _Bucket(most, per_s, most, now_s)
        return self._buckets[key]
