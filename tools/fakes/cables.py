"""Something to pull and to plug in again, over and over: a board's line, a broker, the process that has a camera.

A cable keeps its url. What comes after it was plugged in has a boot of its own, one above that before, so that it can
be told from what was under way.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from firmware_bridge.source import Source
from firmware_bridge.sources.camera import Camera
from tools.fakes.board import Habits, StreamingBoard
from tools.fakes.far_ends import FarEnd, PtyEnd, TcpEnd
from tools.fakes.faults import BadLine
from tools.fakes.mosquitto import Mosquitto
from tools.fakes.signals import signal as make_signal
from tools.fakes.video_server import MjpegServer

LINKS = ("pty", "tcp", "mqtt", "camera")
_ENDLESS, _RATE_HZ = 1 << 40, 200.0
_TOPIC = "imu"


class Cable(Protocol):
    """What may be pulled; url is what to give the bridge, once it was plugged in."""

    url: str

    def plug_in(self) -> None:
        """Be there, and send without end."""

    def pull(self, source: Source) -> None:
        """Be gone in the middle of whatever is sent, to this source."""

    def close(self) -> None:
        """Be gone for good, plugged in or not."""


def make_cable(link: str, folder: Path) -> Cable:
    """The cable of that link, not plugged in. Raises SystemExit if a program that it needs is not installed."""
    if link == "mqtt":
        return BrokerCable(folder)
    if link == "camera":
        return CameraCable()
    return BoardCable(SamePort() if link == "tcp" else SameName(folder / "port"))


class BoardCable:
    """A line whose far end is closed; then another board opens one at the same place."""

    def __init__(self, new_end: Callable[[], FarEnd]) -> None:
        self._new_end, self._boards = new_end, Boards()
        self.url = ""

    def plug_in(self) -> None:
        """See Cable."""
        end = self._new_end()
        self.url = end.url
        self._boards.start(end)

    def pull(self, source: Source) -> None:
        """See Cable."""
        self._boards.stop()

    def close(self) -> None:
        """See Cable."""
        self._boards.stop()


class BrokerCable:
    """A broker that is killed while a board publishes; then it is started again, and another board publishes."""

    def __init__(self, folder: Path) -> None:
        self._broker, self._boards = Mosquitto(folder), Boards()
        self.url = self._broker.url(_TOPIC)

    def plug_in(self) -> None:
        """See Cable."""
        from tools.fakes.mqtt_end import MqttEnd  # the extra edge-cl[mqtt]

        self._broker.start()
        self._boards.start(MqttEnd("127.0.0.1", self._broker.port, _TOPIC))

    def pull(self, source: Source) -> None:
        """See Cable."""
        self._broker.kill()
        self._boards.stop()

    def close(self) -> None:
        """See Cable."""
        self._boards.stop()
        self._broker.stop()


class CameraCable:
    """A network camera that stays: what is killed is the bridge's process that reads it."""

    def __init__(self) -> None:
        self._server = MjpegServer()
        self.url = self._server.url

    def plug_in(self) -> None:
        """See Cable; the bridge itself has to."""

    def pull(self, source: Source) -> None:
        """See Cable."""
        pid = cast(Camera, source).pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """See Cable."""
        self._server.stop()


class Boards:
    """Boards one after another, each in a thread of its own and one boot above that before."""

    def __init__(self) -> None:
        self._boot = 0
        self._running: tuple[StreamingBoard, threading.Thread, FarEnd] | None = None

    def start(self, end: FarEnd) -> None:
        """Another one, on this end of a line."""
        self._boot += 1
        schema, samples = make_signal("imu", 0, _RATE_HZ)
        habits = Habits(_ENDLESS, rate_hz=_RATE_HZ, first_boot=self._boot)
        board = StreamingBoard(end, schema, samples, habits, BadLine(0, 0.0, 0.0, is_stream=end.is_stream))
        thread = threading.Thread(target=board.run, name="board")
        thread.start()
        self._running = board, thread, end

    def stop(self) -> None:
        """End the one that runs, if one does, in the middle of whatever it sends, and close its end."""
        if self._running is not None:
            board, thread, end = self._running
            board.stop()
            thread.join()
            end.close()
            self._running = None


class SamePort:
    """Far ends of TCP that listen on one port."""

    def __init__(self) -> None:
        self._port = 0

    def __call__(self) -> FarEnd:
        """The next one; the one before is closed."""
        end = TcpEnd(self._port, "length")
        self._port = int(end.url.rpartition(":")[2])
        return end


class SameName:
    """Pseudo-terminals under one name, a link in the file system."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> FarEnd:
        """The next one; the one before is closed."""
        end = PtyEnd()
        self._path.unlink(missing_ok=True)
        self._path.symlink_to(end.url.removeprefix("serial://"))
        end.url = f"serial://{self._path}"
        return end
