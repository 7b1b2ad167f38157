"""The board's end of an MQTT topic: each frame one message, HELLO retained, nothing to be heard from the bridge.

All that tools/ know of paho.
"""

from __future__ import annotations

import threading
import time

from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion

from firmware_bridge.packet import encode_datagram
from firmware_bridge.sources.udp import DatagramDecoder
from firmware_bridge.wire import HELLO

_TYPE_AT = 1
_MOST_UNDERWAY = 200
_PATIENCE_S, _SLICE_S = 10.0, 0.01


class MqttEnd:
    """Publishes with QoS 1 to a broker that is there; see far_ends.FarEnd."""

    is_stream = False
    hears = False

    def __init__(self, host: str, port: int, topic: str) -> None:
        self.url = f"mqtt://{host}:{port}/{topic}"
        self.encode, self.decoder = encode_datagram, DatagramDecoder()
        self._topic = topic
        self._n_sent = self._n_taken = 0  # by us, by the broker
        self._answered, self._lost = threading.Event(), threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        self._client.on_publish = lambda *_: self._taken()
        self._client.on_connect = lambda *_: self._lost.clear()
        self._client.on_disconnect = lambda *_: self._lost.set()
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
        self._client.publish(self._topic, data, qos=1, retain=is_hello)
        self._n_sent += 1
        return len(data)

    def close(self) -> None:
        """See far_ends.FarEnd; once the broker has taken the last message, if it is still there."""
        deadline = time.monotonic() + _PATIENCE_S
        while self._n_taken < self._n_sent and not self._lost.is_set() and time.monotonic() < deadline:
            time.sleep(_SLICE_S)
        self._client.disconnect()
        self._client.loop_stop()
        del self._client  # paho closes its sockets when it is collected, which is now: nothing else refers to it

    def _taken(self) -> None:
        self._n_taken += 1
        self._answered.set()

    def _has_room(self) -> bool:
        return self._n_sent - self._n_taken < _MOST_UNDERWAY
