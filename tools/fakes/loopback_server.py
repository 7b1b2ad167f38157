"""A server on loopback for one client at a time, which can be stopped and started again on the same port."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

_LOOPBACK = "127.0.0.1"
_LOOK_S = 0.02


class LoopbackServer:
    """Serves each client by `talk_to`, in a thread, from `start` to `stop`; n_clients is the subclass's to count."""

    def __init__(self) -> None:
        self.n_clients = 0
        self.port = 0
        self.closing = threading.Event()
        self._thread: threading.Thread | None = None

    def talk_to(self, client: socket.socket) -> None:
        """Serve a client until it hangs up or `closing` is set; may raise OSError when it has."""
        raise NotImplementedError

    def start(self) -> None:
        """Listen, on the same port again after a stop."""
        self.closing.clear()
        server = socket.create_server((_LOOPBACK, self.port))
        self.port = server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(server,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hang up and listen no more."""
        self.closing.set()
        assert self._thread is not None
        self._thread.join()

    def _serve(self, server: socket.socket) -> None:
        server.settimeout(_LOOK_S)
        with server:
            while not self.closing.is_set():
                try:
                    client, _ = server.accept()
                except TimeoutError:
                    continue
                with client, suppress(OSError):
                    self.talk_to(client)
