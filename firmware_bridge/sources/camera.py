"""A camera, a video file or a video stream; OpenCV has it in a process of its own, which is killed when it hangs.

    camera:0     camera:/dev/video2     camera:FILE.mp4     camera:rtsp://HOST/PATH     camera:http://HOST/PATH

A ? in a stream's own address is written %3F. Frames are uint8, (height, width, 3) in the order red, green, blue, or
(height, width) for gray. Knows processes and samples, no OpenCV.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from firmware_bridge.devices import devices
from firmware_bridge.errors import BadSourceUrl, EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.options import one_of, patience, seconds, whole
from firmware_bridge.sample import Sample, SampleId, Schema, newest_of
from firmware_bridge.source import SourceBase
from firmware_bridge.sources.camera_process import (
    END,
    FRAME,
    HELLO,
    TROUBLE,
    TRYING,
    CameraProcess,
    Message,
    ProcessEndedError,
    Settings,
)

_SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")
_PAUSE_S = 1.0  # between two starts of the process, at least
_START_S = 10.0  # beyond the deadline, for a process to start and OpenCV to be loaded on a slow card
_MOST_SIDE = 0xFFFF


class Camera(SourceBase):
    """Frames of one camera.

    width, height: of the frames that come out; one of them follows from the other, both from the camera. fit: crop the
    middle, stretch, or pad with black where the proportions differ. channels: rgb or gray. fps: most frames a second.
    deadline: seconds without a frame after which the camera's process is started again. reconnect: seconds that a
    camera that is gone is tried again, inf for ever, 0 not at all. after: of a file, go on behind this frame.

    Of a camera or stream the newest frame is read, and seq counts those that were taken, so that missed ones show; its
    boot changes whenever it is opened. Of a file each frame is read, as fast as wanted; it has one boot.
    """

    OPTIONS: Mapping[str, Callable[[str], Any]] = {
        "width": whole(1, _MOST_SIDE),
        "height": whole(1, _MOST_SIDE),
        "fit": one_of("crop", "stretch", "pad"),
        "channels": one_of("rgb", "gray"),
        "fps": seconds,
        "deadline": seconds,
        "reconnect": patience,
    }

    def __init__(
        self,
        target: str,
        *,
        after: Sequence[SampleId] = (),
        width: int | None = None,
        height: int | None = None,
        fit: str = "crop",
        channels: str = "rgb",
        fps: float | None = None,
        deadline: float = 20.0,
        reconnect: float = math.inf,
    ) -> None:
        self._kind, self._target, self._name = _understood(target)
        self._settings = Settings(self._target, self._kind, width, height, fit, channels, fps, deadline)
        self.can_wait = self._kind == "file"
        self.schema = Schema(name="", dtype="uint8", shape=())
        self.counters = {"overtaken": 0, "hung": 0, "reconnects": 0}
        self._said = ""
        self._after, self._deadline_s, self._patience_s = after, deadline, reconnect
        self._process: CameraProcess | None = None
        self._is_open = self._is_asked = False
        self._is_new = True  # no frame of this process was read yet: nothing can have been missed
        self._ended: str | None = None
        self._boot = self._next = 0
        self._died_at = -1  # number of the frame of a file that its reader did not survive
        self._gap = False
        self._silent_since = self._retry_at = 0.0
        self._gone_at: float | None = None

    @property
    def pid(self) -> int | None:
        """The camera's process, if there is one now."""
        return None if self._process is None else self._process.pid

    @property
    def said(self) -> str:
        """That the camera is gone, or back."""
        return self._said

    def open(self) -> None:
        """Start the process and learn the frames' shape. Raises SourceUnavailable."""
        self._look()
        self._is_open, self._ended = True, None
        self._start()
        assert self._process is not None
        try:
            message = self._wait_for_hello(self._process)
        except BaseException:
            self.close()
            raise
        shape = tuple(json.loads(message.payload)["shape"])
        colours = ("red", "green", "blue") if len(shape) == 3 else ()
        self.schema = Schema(name=self._name, dtype="uint8", shape=shape, channels=colours)
        # Whatever size a stream has when it comes back, its frames keep this one.
        self._settings = replace(self._settings, height=shape[0], width=shape[1])

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._is_open = False
        self._end_process()

    def read(self, timeout_s: float) -> Sample | None:
        """Next frame, None if none came in time, as while the camera is gone.

        Raises EndOfSource behind a file's last frame, SourceLost if a file cannot be read on, or when a camera is gone
        and not, or no longer, tried again.
        """
        if not self._is_open:
            raise SourceLost(f"{self._name}: the camera is not open")
        deadline = time.monotonic() + timeout_s
        while self._ended is None:
            sample = self._step(max(0.0, deadline - time.monotonic()))
            if sample is not None:
                return sample
            if self._ended is None and time.monotonic() >= deadline:
                return None
        raise EndOfSource(self._ended)

    def _look(self) -> None:
        """What can be said without OpenCV. Raises SourceUnavailable."""
        if self._kind == "file":
            file = Path(self._target)
            if not file.is_file():
                raise SourceUnavailable(f"{self._name}: no such video file", hint="cameras are camera:0, camera:1 …")
            self._boot = zlib.crc32(f"{file.name} {file.stat().st_size}".encode()) & 0xFFFF
            if last := newest_of(self._after, self._boot):
                self._next = last.seq + 1
            return
        self._boot = secrets.randbelow(1 << 16)
        if self._kind == "device":
            cameras = {device.path: device for device in devices() if device.kind == "camera"}
            if not Path(self._target).exists():
                there = ", ".join(f"{device.source} ({device.name})" for device in cameras.values())
                hint = f"cameras that are there: {there}" if there else "no camera is there; is it plugged in?"
                raise SourceUnavailable(f"{self._name}: no such camera", hint=hint)
            if self._target in cameras and cameras[self._target].problem:
                device = cameras[self._target]
                raise SourceUnavailable(f"{self._name}: {device.problem}", hint=device.hint)

    def _start(self) -> None:
        first = self._next if self._kind == "file" else 0
        self._process = CameraProcess(replace(self._settings, first=first, again=self._gone_at is not None))
        self._is_asked, self._is_new = False, self._kind != "file"
        self._retry_at = time.monotonic() + _PAUSE_S
        self._silent_since = time.monotonic() + _START_S

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _wait_for_hello(self, process: CameraProcess) -> Message:
        limit_s = self._deadline_s + _START_S
        deadline = time.monotonic() + limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                message = process.receive(left_s)
            except ProcessEndedError as exc:
                raise SourceUnavailable(f"{self._name}: {exc}", hint="see the system's log") from exc
            if message is not None and message.kind == HELLO:
                return message
            if message is not None:
                words, hint = _trouble(message) if message.kind == TROUBLE else ("there is no frame in it", "")
                raise SourceUnavailable(f"{self._name}: {words}", hint=hint)
        raise SourceUnavailable(f"{self._name}: no frame in {limit_s:g} s", hint="wait longer with ?deadline=…")

    def _step(self, timeout_s: float) -> Sample | None:
        """Wait for something to happen, and deal with it."""
        process = self._process
        if process is None:
            self._try_again(timeout_s)
            return None
        if not self._is_asked:
            process.ask()
            self._is_asked = True
            self._silent_since = max(self._silent_since, time.monotonic())
        left_s = self._silent_since + self._deadline_s - time.monotonic()
        if left_s <= 0:
            self.counters["hung"] += 1
            self._lose(f"no frame in {self._deadline_s:g} s")
            return None
        try:
            message = process.receive(min(timeout_s, left_s))
        except ProcessEndedError as exc:
            self._lose(str(exc))
            return None
        return None if message is None else self._take(message)

    def _take(self, message: Message) -> Sample | None:
        if message.kind == FRAME:
            return self._sample(message)
        if message.kind == END:
            self._ended = f"{self._name}: played to its end"
        elif message.kind == TROUBLE:
            self._lose(_trouble(message)[0])
        elif message.kind == TRYING:
            self._silent_since = time.monotonic()
            self._check_patience("it cannot be opened")
        return None

    def _sample(self, message: Message) -> Sample:
        missed = 0 if self._is_new else message.number - self._next
        self._next, self._is_new = message.number + 1, False
        self.counters["overtaken"] += missed
        gap, self._gap, self._is_asked = self._gap or missed > 0, False, False
        self._silent_since = 0.0
        if self._gone_at is not None:
            self._said = f"back after {time.monotonic() - self._gone_at:.1f} s"
            self.counters["reconnects"] += 1
            self._gone_at = None
        values = np.frombuffer(message.payload, np.uint8).reshape(self.schema.shape)
        values.flags.writeable = False
        return Sample(0, self._boot, message.number, message.time_us, values, gap=gap)

    def _lose(self, why: str) -> None:
        """The process is of no use: another one will be tried, of a file only once at the same frame."""
        self._end_process()
        now = time.monotonic()
        if self._gone_at is None:
            self._gone_at = now
            self._said = f"gone: {self._name}: {why}"
        if self._kind == "file":
            if self._died_at == self._next:
                raise SourceLost(
                    f"{self._name}: frame {self._next} cannot be read ({why})", hint="is the file damaged?"
                )
            self._died_at = self._next
        else:
            self._boot, self._next, self._gap = (self._boot + 1) & 0xFFFF, 0, True
        self._check_patience(why)

    def _check_patience(self, why: str) -> None:
        if self._gone_at is not None and time.monotonic() - self._gone_at >= self._patience_s:
            raise SourceLost(f"{self._name}: the camera is gone ({why})", hint="is it still there?")

    def _try_again(self, timeout_s: float) -> None:
        pause_s = self._retry_at - time.monotonic()
        if pause_s > 0:
            time.sleep(min(timeout_s, pause_s))
        else:
            self._start()


def _understood(target: str) -> tuple[str, str, str]:
    """Kind, what OpenCV is given, and what errors call it: never with a password."""
    if target.isascii() and target.isdigit():
        return "device", f"/dev/video{int(target)}", f"camera:{target}"
    if re.fullmatch(r"/dev/video\d+", target):
        return "device", target, f"camera:{target}"
    scheme, separator, _ = target.partition("://")
    if not separator:
        return "file", target, f"camera:{target}"
    if scheme not in _SCHEMES:
        rule = f"a stream is one of {', '.join(_SCHEMES)}"
        raise BadSourceUrl(f"camera:{scheme}://…: {rule}", hint="such as camera:rtsp://HOST:554/PATH")
    address = re.sub("%3f", "?", target, flags=re.IGNORECASE)
    parts = urlsplit(address)
    return "stream", address, f"camera:{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _trouble(message: Message) -> tuple[str, str]:
    said = json.loads(message.payload)
    return said["words"], said["hint"]
