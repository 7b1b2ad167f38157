"""One line of a check: what was allowed, what was measured, and what would mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CheckLine:
    """One quantity; without a `limit` it is only told. `advice` is a change of one setting, as `key old → new`."""

    name: str
    limit: float | None
    measured: float
    unit: str
    advice: str = ""

    @property
    def margin(self) -> float | None:
        """What is left of the limit; below 0 it was exceeded."""
        return None if self.limit is None else self.limit - self.measured

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.limit is None or self.measured <= self.limit


@dataclass(frozen=True)
class Checked:
    """All lines, how they were measured, and what could not be measured, with the reason."""

    lines: list[CheckLine]
    conditions: Mapping[str, float]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all limits hold."""
        return all(line.passed for line in self.lines)
