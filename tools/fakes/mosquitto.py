"""A real MQTT broker, Mosquitto, on a loopback port: started, killed, started again. Knows no topic and no message."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from tools.fakes.programs import program

_LOOPBACK = "127.0.0.1"
_START_S = 10.0


class Mosquitto:
    """The broker, with a folder for what must survive it; `settings` are further lines of its configuration."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self._program = program("mosquitto", "mosquitto")
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} {_LOOPBACK}", "user root"]
        lines += ["persistence true", f"persistence_location {folder}/"]
        lines += settings or ["allow_anonymous true"]
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it listens. Raises SystemExit if it does not."""
        self._process = subprocess.Popen([self._program, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((_LOOPBACK, self.port)) == 0:
                    return
            time.sleep(0.02)
        raise SystemExit(f"mosquitto does not listen (exit {self._process.poll()})")

    def kill(self) -> None:
        """As a power cut does; what is gone already stays gone."""
        self._end(by_force=True)

    def stop(self) -> None:
        """As its administrator does: it saves its sessions."""
        self._end(by_force=False)

    def url(self, topic: str, query: str = "") -> str:
        """Source of that topic."""
        return f"mqtt://{_LOOPBACK}:{self.port}/{topic}{query and '?' + query}"

    def _end(self, *, by_force: bool) -> None:
        if self._process is not None:
            self._process.kill() if by_force else self._process.terminate()
            self._process.wait()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
