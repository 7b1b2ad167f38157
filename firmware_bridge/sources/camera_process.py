"""The camera's process as its parent has it: started, asked for frames, heard, and killed when it hangs.

    message = u8 kind, u32 length, u64 number, u64 time_us, payload of that length; all little-endian
    HELLO    JSON: {"shape": [height, width, 3]}, once, as soon as there is a first frame
    FRAME    its values, the answer to one byte on the process's standard input; number and time_us are its own
    END      the file's last frame was sent
    TROUBLE  JSON: {"words": "…", "hint": "…"}; nothing comes behind it
    TRYING   the camera cannot be opened, and will be tried again

Knows no OpenCV and no samples.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass

HELLO, FRAME, END, TROUBLE, TRYING = range(5)

_HEAD = struct.Struct("<BIQQ")
_READ_BYTES = 1 << 18
_END_S = 5.0
# What these libraries say of a bad frame is theirs; the source says what follows from it.
_QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}


@dataclass(frozen=True)
class Settings:
    """What to look at and what to make of it; each as the option of the same name of camera.Camera."""

    target: str
    kind: str  # device, file or stream
    width: int | None
    height: int | None
    fit: str
    channels: str
    fps: float | None
    deadline: float
    first: int = 0  # number of the first frame that is wanted, of a file
    again: bool = False  # the camera was there before: wait for it


@dataclass(frozen=True, slots=True)
class Message:
    """What the process said; `payload` is nobody else's."""

    kind: int
    number: int
    time_us: int
    payload: bytearray


class ProcessEndedError(Exception):
    """The process is gone, in words why."""


def pack(kind: int, payload: bytes = b"", number: int = 0, time_us: int = 0) -> bytes:
    """Bytes of a message."""
    return _HEAD.pack(kind, len(payload), number, time_us) + payload


class CameraProcess:
    """One process, from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        # Settings go in by the pipe: arguments are seen in the list of processes, and an address may hold a password.
        # Its own session: Ctrl-C at a terminal stops the daemon in its own good order, not the camera under it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "firmware_bridge.sources.camera_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_QUIET},
            start_new_session=True,
        )
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(self._out(), select.POLLIN)
        with suppress(BrokenPipeError):  # receive() will say it
            self._write(json.dumps(asdict(settings)).encode() + b"\n")

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def ask(self) -> None:
        """Ask for one frame."""
        with suppress(BrokenPipeError):  # receive() will say it
            self._write(b"n")

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, None if none was complete in time. Raises ProcessEndedError."""
        if (message := self._complete()) is not None:
            return message
        if not self._poll.poll(max(0.0, timeout_s) * 1000):
            return None
        data = os.read(self._out(), _READ_BYTES)
        if not data:
            raise ProcessEndedError(self._last_words())
        self._buffer += data
        return self._complete()

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):  # a driver may hold it; it is collected some other time
            self._process.wait(_END_S)

    def _complete(self) -> Message | None:
        if len(self._buffer) < _HEAD.size:
            return None
        kind, length, number, time_us = _HEAD.unpack_from(self._buffer)
        end = _HEAD.size + length
        if len(self._buffer) < end:
            return None
        payload, self._buffer = self._buffer[_HEAD.size : end], self._buffer[end:]
        return Message(kind, number, time_us, payload)

    def _last_words(self) -> str:
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        return f"its process was killed by signal {-code}" if code < 0 else f"its process ended with {code}"

    def _out(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()
