"""A real MQTT broker on a loopback port, and somebody who sends to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from tools.fakes.mosquitto import Mosquitto

_SENT_S = 10.0


class Broker(Mosquitto):
    """One that can be told what to send."""

    def send(self, topic: str, payloads: Sequence[bytes | str], *, quality: int = 1, retain: bool = False) -> None:
        """Publish them one after another, and return when the broker has them."""
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        try:
            for sent in [client.publish(topic, payload, quality, retain) for payload in payloads]:
                sent.wait_for_publish(_SENT_S)
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
