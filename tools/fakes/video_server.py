"""A network camera that is not there: an endless MJPEG stream over HTTP on loopback; its picture is made by ffmpeg."""

from __future__ import annotations

import select
import socket
import subprocess
import threading
import time

from tools.fakes.loopback_server import LoopbackServer
from tools.fakes.programs import program

_PATIENCE_S = 20.0


def ffmpeg(*arguments: str, given: bytes = b"") -> bytes:
    """What ffmpeg writes to its output. Raises SystemExit if it is not installed."""
    command = [program("ffmpeg", "ffmpeg"), "-v", "error", "-nostdin" if not given else "-y", *arguments]
    return subprocess.run(command, input=given or None, capture_output=True, check=True).stdout


class MjpegServer(LoopbackServer):
    """An HTTP server that sends the same picture again and again, as many network cameras do, to one client at a time.

    hanging: hold the connection and send nothing. n_sent, n_clients: pictures and connections so far.
    """

    def __init__(self, period_s: float = 0.02) -> None:
        super().__init__()
        self.hanging = threading.Event()
        self.n_sent = 0
        self._period_s = period_s
        self._picture = ffmpeg("-f", "lavfi", "-i", "color=red:size=32x24", "-frames:v", "1", "-f", "mjpeg", "-")
        self.start()

    @property
    def url(self) -> str:
        """Source of the stream."""
        return f"camera:http://127.0.0.1:{self.port}/video.mjpeg"

    def wait_for(self, n_sent: int) -> None:
        """Return when so many pictures were sent."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.n_sent < n_sent:
            assert time.monotonic() < deadline, f"{self.n_sent} of {n_sent} pictures were taken"
            time.sleep(0.01)

    def talk_to(self, client: socket.socket) -> None:
        """Send the picture over and over."""
        self.n_clients += 1
        part = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(self._picture)
        client.settimeout(0.2)
        client.recv(4096)
        client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=next\r\n\r\n")
        while not self.closing.wait(self._period_s):
            if self.hanging.is_set():
                if select.select([client], [], [], 0)[0]:
                    return  # it says nothing more but that it gave up
                continue
            client.sendall(part + self._picture + b"\r\n")
            self.n_sent += 1
