"""The board's end of an MQTT topic: each frame one message, HELLO retained, nothing to be heard from the bridge.

All that tools/ know of paho.
"""

from __future__ import annotations

import threading
from collections import deque

from paho.mqtt.client import Client, MQTTMessageInfo, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from firmware_bridge.packet import encode_datagram
from firmware_bridge.sources.udp import DatagramDecoder
from firmware_bridge.wire import HELLO

_TYPE_AT = 1
_MOST_UNDERWAY = 200
_PATIENCE_S = 10.0


class MqttEnd:
    """Publishes with QoS 1 to a broker that is there; see far_ends.FarEnd."""

    is_stream = False
    hears = False

    def __init__(self, host: str, port: int, topic: str) -> None:
        self.url = f"mqtt://{host}:{port}/{topic}"
        self.encode, self.decoder = encode_datagram, DatagramDecoder()
        self._topic = topic
        self._underway: deque[MQTTMessageInfo] = deque()
        self._answered = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_publish = lambda *_: self._answered.set()
        self._client.connect(host, port)
        self._client.loop_start()

    @property
    def is_there(self) -> bool:
        """See far_ends.FarEnd."""
        return True

    def wait(self, timeout_s: float, *, for_room: bool = False) -> None:
        """See far_ends.FarEnd."""
        self._answered.clear()
        if not for_room or not self._has_room():
            self._answered.wait(timeout_s)

    def receive(self) -> bytes:
        """See far_ends.FarEnd; a broker carries nothing back."""
        return b""

    def write(self, data: bytes) -> int:
        """See far_ends.FarEnd; one message."""
        if not self._has_room():
            return 0
        is_hello = len(data) > _TYPE_AT and data[_TYPE_AT] == HELLO
        self._underway.append(self._client.publish(self._topic, data, qos=1, retain=is_hello))
        return len(data)

    def close(self) -> None:
        """See far_ends.FarEnd; behind the last message that the broker has taken."""
        for message in self._underway:
            message.wait_for_publish(_PATIENCE_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _has_room(self) -> bool:
        while self._underway and self._underway[0].is_published():
            self._underway.popleft()
        return len(self._underway) < _MOST_UNDERWAY
