"""When to consolidate, and what: every so many samples, or as soon as the loss shows that the stream has changed.

Knows losses, samples counted and parameters. Must not know what a consolidation is.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from edge_cl.learning.drift import DETECTORS, Lagged

LAG = 100  # steps: a detector has fired by then, and what is consolidated is the mean over as many before that


class Trigger:
    """Due when a detector (`page_hinkley`, `adwin`) has fired, or `every` samples after the last consolidation.

    timer: no detector; every = 0: no timer. What a detector finds has begun before it fires, so `before` gives the
    mean of the parameters over LAG steps, LAG to 3 LAG steps ago, which had seen none of it (docs/DESIGN.md); the timer
    consolidates what is there. Raises ValueError if the kind is unknown.
    """

    def __init__(self, kind: str, every: int, theta: Tensor) -> None:
        if kind != "timer" and kind not in DETECTORS:
            raise ValueError(f"consolidation.trigger: must be one of timer, {', '.join(DETECTORS)} (got {kind})")
        self.every, self.fired, self.last = every, False, 0
        self._detector = DETECTORS[kind]() if kind != "timer" else None
        self._lagged = Lagged(theta, LAG) if self._detector else None

    @property
    def watches(self) -> bool:
        """Whether it wants to know each step's loss."""
        return self._detector is not None

    @property
    def nbytes(self) -> int:
        """Bytes held: four a parameter with a detector, else none."""
        return 0 if self._lagged is None else self._lagged.nbytes

    def observe(self, loss: float, theta: Tensor, steps: int) -> None:
        """Take the loss of new samples before they were learnt, in step number `steps`, after which θ is here."""
        if self._detector is not None and self._lagged is not None:
            self.fired |= self._detector.update(loss)
            if not self.fired:
                self._lagged.remember(theta, steps)

    def is_due(self, samples: int) -> bool:
        """Whether to consolidate after so many samples."""
        return self.fired or (self.every > 0 and samples - self.last >= self.every)

    def before(self) -> Tensor | None:
        """Parameters (P,) from before the change, if one was noticed and they are known."""
        return self._lagged.before() if self.fired and self._lagged is not None else None

    def done(self, samples: int) -> None:
        """It has been consolidated, after so many samples."""
        self.fired, self.last = False, samples
        if self._lagged is not None:
            self._lagged.forget()

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values from which `restore` goes on, bit for bit."""
        values: dict[str, Any] = {"fired": self.fired, "last": self.last}
        if self._detector is None or self._lagged is None:
            return {}, values
        arrays, lagged = self._lagged.state()
        return arrays, {**values, "detector": self._detector.state(), "lagged": lagged}

    def restore(self, arrays: dict[str, NDArray[Any]], values: dict[str, Any]) -> None:
        """Go on where the trigger was whose state this is; another kind of detector begins anew."""
        self.fired, self.last = values["fired"], values["last"]
        if self._detector is None or self._lagged is None or "detector" not in values:
            return
        if values["detector"].keys() == self._detector.state().keys():
            self._detector.restore(values["detector"])
            self._lagged.restore(arrays, values["lagged"])
