"""Pictures from a camera, a file or a stream, in the size and colours that are wanted.

The only file that knows OpenCV, which comes with the extra edge-cl[camera]; imported in the camera's own process, never
in the daemon's. Knows no process and no pipe.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from firmware_bridge.sample import Values
from firmware_bridge.sources.camera_process import Settings


@dataclass(frozen=True)
class Frame:
    """A picture, uint8, (height, width) or (height, width, 3) in the order red, green, blue; and when it was taken."""

    number: int
    time_us: int
    values: Values


class TroubleError(Exception):
    """What is wrong with the camera, in words, and what to do about it."""

    def __init__(self, words: str, hint: str = "") -> None:
        super().__init__(words)
        self.hint = hint


def size_of(settings: Settings, height: int, width: int) -> tuple[int, int]:
    """Height and width that frames of that size are to get: one that is not given follows from the other."""
    if settings.width is not None and settings.height is not None:
        return settings.height, settings.width
    if settings.width is not None:
        return max(1, round(height * settings.width / width)), settings.width
    if settings.height is not None:
        return settings.height, max(1, round(width * settings.height / height))
    return height, width


def fitted(picture: Values, height: int, width: int, fit: str) -> Values:
    """The picture in that size. crop: its middle, undistorted; stretch: all of it; pad: all of it, black around it."""
    if fit == "crop":
        picture = _middle(picture, height, width)
    if picture.shape[:2] == (height, width):
        return picture
    if fit == "pad":
        scale = min(height / picture.shape[0], width / picture.shape[1])
        inner = (max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale)))
        padded = np.zeros((height, width, *picture.shape[2:]), np.uint8)
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        padded[top : top + inner[0], left : left + inner[1]] = _resized(picture, *inner)
        return padded
    return _resized(picture, height, width)


def _middle(picture: Values, height: int, width: int) -> Values:
    """The largest part around the centre with the sides' proportion."""
    rows = min(picture.shape[0], max(1, round(picture.shape[1] * height / width)))
    columns = min(picture.shape[1], max(1, round(picture.shape[0] * width / height)))
    top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    return picture[top : top + rows, left : left + columns]


def _resized(picture: Values, height: int, width: int) -> Values:
    smaller = height * width < picture.shape[0] * picture.shape[1]
    resized: Values = cv2.resize(
        picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )
    return resized


class Rate:
    """Which frames a limit of frames per second lets through, by the times at which they were taken.

    is_live: times are when frames arrived, and so not even: one that comes a little early is let through.
    """

    def __init__(self, fps: float | None, *, is_live: bool) -> None:
        self._period_us = 0.0 if fps is None else 1e6 / fps
        self._early_us = self._period_us / 4 if is_live else 1.0
        self._due_us: float | None = None

    def lets_through(self, time_us: int) -> bool:
        """Whether the frame of that time is due; times must not go back by more than a frame's."""
        if self._due_us is None:
            self._due_us = float(time_us)
        if time_us < self._due_us - self._early_us:
            return False
        self._due_us = max(self._due_us + self._period_us, time_us - self._period_us)
        return True


def opened(settings: Settings) -> cv2.VideoCapture:
    """The camera. Raises TroubleError."""
    cv2.setNumThreads(1)  # this process shares the machine with the learner
    if settings.kind == "device":
        capture = cv2.VideoCapture(settings.target, cv2.CAP_V4L2)
    elif settings.kind == "file":
        capture = cv2.VideoCapture(settings.target, cv2.CAP_FFMPEG)
    else:
        # The parent waits for the deadline, and counts what passes it; this is for where it has died.
        limit_ms = max(1, int(settings.deadline * 1000))
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 2 * limit_ms]
        capture = cv2.VideoCapture(settings.target, cv2.CAP_FFMPEG, limits)
    if not capture.isOpened():
        capture.release()
        raise TroubleError(*_CANNOT_OPEN[settings.kind])
    return capture


def frames(capture: cv2.VideoCapture, settings: Settings) -> Iterator[Frame]:
    """Frames of an open camera, in any case the first one; of a file, those before settings.first are left out then.

    Ends with a file; raises TroubleError when a camera or stream gives no more.
    """
    rate, number, size = Rate(settings.fps, is_live=settings.kind != "file"), -1, None
    while capture.grab():
        time_us = time.monotonic_ns() // 1000
        if settings.kind == "file":
            time_us = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1000)
        if not rate.lets_through(time_us):
            continue
        number += 1
        if size is not None and number < settings.first:
            continue
        has_one, picture = capture.retrieve()
        if not has_one:
            raise TroubleError("a frame cannot be decoded")
        picture = _coloured(picture, settings.channels)
        size = size or size_of(settings, *picture.shape[:2])
        yield Frame(number, time_us, np.ascontiguousarray(fitted(picture, *size, settings.fit)))
    if settings.kind != "file":
        raise TroubleError("no more frames come")


_CANNOT_OPEN = {
    "device": ("it cannot be opened as a camera", "does another program use it? see: fuser /dev/video*"),
    "file": ("it cannot be opened as a video", "what does ffprobe say of it?"),
    "stream": ("it cannot be opened as a video stream", "does it play elsewhere? try: ffplay URL"),
}


def _coloured(picture: Values, channels: str) -> Values:
    """OpenCV's own order is blue, green, red."""
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise TroubleError(f"its frames are {picture.dtype} of shape {picture.shape}", "8 bits a channel are needed")
    if picture.ndim == 2 or picture.shape[2] == 1:
        gray = picture.reshape(picture.shape[:2])
        return gray if channels == "gray" else np.repeat(gray[:, :, None], 3, axis=2)
    if picture.shape[2] == 4:
        picture = picture[:, :, :3]
    coloured: Values = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY if channels == "gray" else cv2.COLOR_BGR2RGB)
    return coloured
