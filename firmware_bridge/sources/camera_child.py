"""The process that holds the camera: `python -m firmware_bridge.sources.camera_child`, started by camera_process.py.

OpenCV may hang in a read for ever, and costs memory: this process can be killed. It reads one line of JSON, the
settings, and then one byte for each frame that is wanted; it writes messages, as camera_process.py has them, on what
was its standard output, and ends with its input. Of a live camera the newest frame is given, and who wants none misses
some; of a file each. Knows no OpenCV: that is camera_frames.py's.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from firmware_bridge.sources.camera_process import END, FRAME, HELLO, TROUBLE, TRYING, Settings, pack

if TYPE_CHECKING:
    from firmware_bridge.sources.camera_frames import Frame

T = TypeVar("T")

_PAUSE_S = 0.5  # before a camera that cannot be opened is tried again


class Child:
    """Three threads: one in the camera, one that hears what is wanted, and the main one, which speaks."""

    def __init__(self, settings: Settings, out: BinaryIO) -> None:
        self._settings, self._out = settings, out
        self._changed = threading.Condition()
        self._wanted = 0
        self._urgent: deque[bytes] = deque()  # messages that nobody has to ask for
        self._shape: tuple[int, ...] | None = None
        self._latest: Frame | None = None
        self._last: bytes | None = None
        self._is_over = False

    def run(self, asking: BinaryIO) -> None:
        """Speak until the camera is at its end, and stay until the parent hangs up."""
        threading.Thread(target=self._listen, args=(asking,), daemon=True).start()
        threading.Thread(target=self._look, daemon=True).start()
        while not self._is_over:
            self._out.write(self._next_message())
            self._out.flush()
        threading.Event().wait()

    def _listen(self, asking: BinaryIO) -> None:
        while asking.read(1):
            with self._changed:
                self._wanted += 1
                self._changed.notify_all()
        os._exit(0)  # also out of a camera that hangs

    def _look(self) -> None:
        try:
            from firmware_bridge.sources.camera_frames import TroubleError, frames, opened
        except ImportError as exc:
            self._finish(_trouble(f"OpenCV cannot be used ({exc})", "pip install 'edge-cl[camera]'"))
            return
        try:
            capture = self._patiently(opened, TroubleError)
            for frame in frames(capture, self._settings):
                self._show(frame)
            self._finish(pack(END))
        except TroubleError as exc:
            self._finish(_trouble(str(exc), exc.hint))
        except Exception as exc:
            self._finish(_trouble(f"{type(exc).__name__}: {exc}", ""))

    def _patiently(self, opened: Callable[[Settings], T], trouble: type[Exception]) -> T:
        while True:
            try:
                return opened(self._settings)
            except trouble:
                if not self._settings.again:
                    raise
            self._say(pack(TRYING))
            time.sleep(_PAUSE_S)

    def _show(self, frame: Frame) -> None:
        with self._changed:
            if self._shape is None:
                self._shape = frame.values.shape
                self._urgent.append(pack(HELLO, json.dumps({"shape": self._shape}).encode()))
            if self._settings.kind == "file":
                self._changed.wait_for(lambda: self._latest is None)
            if frame.number >= self._settings.first:
                self._latest = frame
            self._changed.notify_all()

    def _say(self, message: bytes) -> None:
        with self._changed:
            self._urgent.append(message)
            self._changed.notify_all()

    def _finish(self, message: bytes) -> None:
        with self._changed:
            self._last = message
            self._changed.notify_all()

    def _next_message(self) -> bytes:
        with self._changed:
            self._changed.wait_for(self._has_message)
            if self._urgent:
                return self._urgent.popleft()
            frame = self._latest
            if frame is None or self._is_at_end():
                assert self._last is not None
                self._is_over = True
                return self._last
            self._latest, self._wanted = None, self._wanted - 1
            self._changed.notify_all()
        return pack(FRAME, frame.values.tobytes(), frame.number, frame.time_us)

    def _has_message(self) -> bool:
        return bool(self._urgent) or self._is_at_end() or (self._latest is not None and self._wanted > 0)

    def _is_at_end(self) -> bool:
        """A camera in trouble is so at once; a file is at its end behind its last frame."""
        return self._last is not None and (self._latest is None or self._settings.kind != "file")


def _trouble(words: str, hint: str) -> bytes:
    return pack(TROUBLE, json.dumps({"words": words, "hint": hint}).encode())


def main() -> None:
    """Run as a process, until the parent hangs up."""
    # What OpenCV and its libraries may say on the standard output would be taken for a message.
    out = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  (a device, not a file)
        os.dup2(nowhere.fileno(), 1)
    asking = sys.stdin.buffer
    Child(Settings(**json.loads(asking.readline())), out).run(asking)


if __name__ == "__main__":
    main()
