"""A window for each stream, so that what comes in turn is not mixed and each keeps to its own rate. See window.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from firmware_bridge.sample import Label, Sample
from firmware_bridge.window import Window

_COUNTERS: Final = ("mixed_label", "gap_rows")


class Windows:
    """Windows of `length` rows every `stride` rows of each stream by itself; rate_of says its rows per second."""

    def __init__(self, length: int, stride: int, rate_of: Callable[[int], float | None]) -> None:
        self.length, self.stride, self._rate_of = length, stride, rate_of
        self._windows: dict[int, Window] = {}

    @property
    def counters(self) -> dict[str, int]:
        """Of all streams together: windows whose rows have two labels, and rows that a gap cost."""
        return {name: sum(window.counters[name] for window in self._windows.values()) for name in _COUNTERS}

    def push(self, sample: Sample) -> list[Sample]:
        """Windows that this sample completes; see Window.push."""
        return self._of(sample.stream).push(sample)

    def late(self, label: Label) -> bool:
        """Attach a label to its sample's rows that are still here; False if there are none."""
        window = self._windows.get(label.stream)
        return window is not None and window.late(label)

    def state(self) -> dict[str, Any]:
        """Everything that push depends on, as arrays and numbers named STREAM.KEY, for load_state."""
        return {
            f"{stream}.{key}": value
            for stream, window in self._windows.items()
            for key, value in window.state().items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where state() was taken; all of it or nothing.

        Raises ValueError if it is of another length or stride, or of a stream that there is not.
        """
        windows: dict[int, Window] = {}
        for stream in sorted({int(name.partition(".")[0]) for name in state}):
            own = {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{stream}.")}
            windows[stream] = self._made_for(stream)
            windows[stream].load_state(own)
        self._windows = windows

    def _of(self, stream: int) -> Window:
        if stream not in self._windows:
            self._windows[stream] = self._made_for(stream)
        return self._windows[stream]

    def _made_for(self, stream: int) -> Window:
        try:
            rate_hz = self._rate_of(stream)
        except LookupError as exc:
            raise ValueError(f"there is no stream {stream}") from exc
        return Window(self.length, self.stride, rate_hz=rate_hz)
