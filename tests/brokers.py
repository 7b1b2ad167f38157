"""A real MQTT broker on a loopback port, and somebody who sends to it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

_START_S = 10.0


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """mosquitto with a folder for what must survive it; `settings` are further lines of its configuration."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "user root", "persistence true", f"persistence_location {folder}/"]
        lines += settings or ["allow_anonymous true"]
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it listens."""
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        assert program, "MQTT is tested with a real broker: apt-get install mosquitto"
        self._process = subprocess.Popen([program, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"mosquitto does not listen (exit {self._process.poll()})")

    def kill(self) -> None:
        """As a power cut does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """As its administrator does: it saves its sessions."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def url(self, topic: str, query: str = "") -> str:
        """Source of that topic."""
        return f"mqtt://127.0.0.1:{self.port}/{topic}{query and '?' + query}"

    def send(self, topic: str, payloads: Sequence[bytes | str], *, quality: int = 1, retain: bool = False) -> None:
        """Publish them one after another, and return when the broker has them."""
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        try:
            for sent in [client.publish(topic, payload, quality, retain) for payload in payloads]:
                sent.wait_for_publish(_START_S)
                assert sent.is_published()
            client.disconnect()
        finally:
            client.loop_stop()


@contextmanager
def broker(folder: Path, *settings: str) -> Iterator[Broker]:
    """A broker that listens."""
    found = Broker(folder, *settings)
    found.start()
    try:
        yield found
    finally:
        found.stop()
