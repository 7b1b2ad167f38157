"""A network camera that is not there: an endless MJPEG stream over HTTP on loopback; its picture is made by ffmpeg."""

from __future__ import annotations

import select
import socket
import subprocess
import threading
import time

from tools.fakes.programs import program

_PATIENCE_S = 20.0


def ffmpeg(*arguments: str, given: bytes = b"") -> bytes:
    """What ffmpeg writes to its output. Raises SystemExit if it is not installed."""
    command = [program("ffmpeg", "ffmpeg"), "-v", "error", "-nostdin" if not given else "-y", *arguments]
    return subprocess.run(command, input=given or None, capture_output=True, check=True).stdout


class MjpegServer:
    """An HTTP server that sends the same picture again and again, as many network cameras do, to one client at a time.

    hanging: hold the connection and send nothing. n_sent, n_clients: pictures and connections so far.
    """

    def __init__(self, period_s: float = 0.02) -> None:
        self.hanging = threading.Event()
        self.n_sent = self.n_clients = 0
        self._period_s = period_s
        self._picture = ffmpeg("-f", "lavfi", "-i", "color=red:size=32x24", "-frames:v", "1", "-f", "mjpeg", "-")
        self._port = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.start()

    @property
    def url(self) -> str:
        """Source of the stream."""
        return f"camera:http://127.0.0.1:{self._port}/video.mjpeg"

    def start(self) -> None:
        """Listen, on the same port again after a stop."""
        self._closing.clear()
        server = socket.create_server(("127.0.0.1", self._port))
        self._port = server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(server,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hang up and listen no more."""
        self._closing.set()
        assert self._thread is not None
        self._thread.join()

    def wait_for(self, n_sent: int) -> None:
        """Return when so many pictures were sent."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.n_sent < n_sent:
            assert time.monotonic() < deadline, f"{self.n_sent} of {n_sent} pictures were taken"
            time.sleep(0.01)

    def _serve(self, server: socket.socket) -> None:
        server.settimeout(0.02)
        with server:
            while not self._closing.is_set():
                try:
                    client, _ = server.accept()
                except TimeoutError:
                    continue
                with client:
                    self._talk_to(client)

    def _talk_to(self, client: socket.socket) -> None:
        self.n_clients += 1
        part = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(self._picture)
        try:
            client.settimeout(0.2)
            client.recv(4096)
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=next\r\n\r\n")
            while not self._closing.wait(self._period_s):
                if self.hanging.is_set():
                    if select.select([client], [], [], 0)[0]:
                        return  # it says nothing more but that it gave up
                    continue
                client.sendall(part + self._picture + b"\r\n")
                self.n_sent += 1
        except OSError:
            return
