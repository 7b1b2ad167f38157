"""A connection to an MQTT broker that is made again whenever it breaks.

The only file that knows paho; none of its exceptions leaves it. paho comes with the extra edge-cl[mqtt] and is imported
when a link is opened. Has no thread: the network is served while poll() is called. Speaks MQTT 5, of which it needs
that the broker keeps a session for a stated time and bounds what it sends unacknowledged. Knows no sample.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firmware_bridge.errors import SourceLost, SourceUnavailable

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

_SLICE_S = 0.1
_CONNECT_S = 3.0  # for the broker to answer: with the pause below a broker that is back is found within 5 s
_LINGER_S = 0.1
_PAUSE_S = 0.5  # between two attempts
# Half of it is how often the broker is asked whether it is there; the broker forgets us after one and a half times it.
_KEEPALIVE_S = 30
_MAX_PACKET_BYTES = (4 << 20) + (1 << 16)  # a frame of the length that TCP takes, and a topic
_BRIEF_S = 10.0  # a connection that breaks so soon may be a quarrel of two clients about one id: not all brokers say so


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came. packet is 0 if it need not be acknowledged; again: the broker sends it once more."""

    topic: str
    payload: bytes
    packet: int
    again: bool
    retained: bool


@dataclass(frozen=True)
class Access:
    """How to get to a broker. ca: file of the certificates to trust, None the system's; only asked with tls."""

    host: str
    port: int
    tls: bool = False
    ca: Path | None = None
    user: str | None = None
    password: Path | None = None


class Link:
    """Subscription to topics of a broker; `name` is what errors call it.

    session_s: for so long the broker keeps messages for us while we are away; 0: it keeps nothing, and nothing is
    acknowledged. on_connected is called at each connection, before any message of it, with whether the broker kept the
    session; on_event with what happened, in words. patience_s: how long a broker that is gone is tried again.
    reconnects: how often it came back.
    """

    def __init__(
        self,
        name: str,
        access: Access,
        topics: Iterable[str],
        client_id: str,
        *,
        session_s: int,
        most_unacknowledged: int,
        patience_s: float,
        on_connected: Callable[[bool], None],
        on_event: Callable[[str], None],
    ) -> None:
        self.reconnects = 0
        self._name, self._access, self._topics = name, access, tuple(topics)
        self._client_id, self._session_s, self._most = client_id, session_s, most_unacknowledged
        self._patience_s, self._on_connected, self._on_event = patience_s, on_connected, on_event
        self._client: Client | None = None
        self._phase = _Phase.DOWN
        self._trouble: str | None = None  # why the connection that there is is of no use
        self._tried_at = 0.0
        self._gone_at: float | None = None
        self._received: list[Message] = []

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._phase is not _Phase.DOWN

    def open(self) -> None:
        """Connect and subscribe. Raises SourceUnavailable."""
        client = self._make_client()
        self._client = client
        try:
            self._connect(client)
            while self._phase is _Phase.RISING and self._trouble is None:
                self._serve(client, _SLICE_S)
        except Exception as exc:  # paho raises OSError, ValueError, and what its parser meets
            self._client = None
            raise self._unavailable(exc) from exc
        if self._phase is not _Phase.UP:
            self._client = None
            raise SourceUnavailable(f"{self._name}: {self._trouble}", hint=_hint(self._trouble or ""))

    def close(self) -> None:
        """Take leave of the broker; a second call does nothing."""
        client, self._client = self._client, None
        if client is not None and self._phase is _Phase.UP:
            with suppress(Exception):  # it may have gone in this moment
                self._linger(client)
                client.disconnect()
        self._phase = _Phase.DOWN
        # paho closes its sockets when the client is collected, which is now: nothing else refers to it.

    def _linger(self, client: Client) -> None:
        """Read on for a moment: closed with bytes unread, a connection is reset, and our last words may be lost."""
        deadline = time.monotonic() + _LINGER_S
        while client.loop(_LINGER_S / 4) == 0 and time.monotonic() < deadline:
            pass

    def poll(self, timeout_s: float) -> list[Message]:
        """What came, after at most timeout_s, or the time of an attempt to connect. Raises SourceLost."""
        client = self._client
        if client is None:
            raise SourceLost(f"{self._name}: the broker is not connected")
        try:
            if self._phase is not _Phase.DOWN:
                self._serve(client, timeout_s)
            elif (pause_s := self._tried_at + _PAUSE_S - time.monotonic()) > 0:
                time.sleep(min(timeout_s, pause_s))
            else:
                self._connect(client)
        except Exception as exc:  # as in open
            self._trouble = _in_words(exc)
        if self._trouble is not None:
            self._lose(self._trouble)
        received, self._received = self._received, []
        return received

    def acknowledge(self, packets: Iterable[int]) -> None:
        """Tell the broker that these messages of this connection need not be sent again."""
        try:
            for packet in packets:
                if self._client is not None:
                    self._client.ack(packet, 1)
        except Exception as exc:  # as in open
            self._trouble = _in_words(exc)

    def _connect(self, client: Client) -> None:
        self._tried_at = time.monotonic()
        client.reconnect()
        self._phase = _Phase.RISING

    def _serve(self, client: Client, timeout_s: float) -> None:
        """Let one packet through, or wait."""
        code = client.loop(max(0.0, timeout_s))
        if code and self._trouble is None:
            self._trouble = "the connection broke"
        late = self._phase is _Phase.RISING and time.monotonic() - self._tried_at > _CONNECT_S
        if late and self._trouble is None:
            self._trouble = f"no answer in {_CONNECT_S:g} s"

    def _lose(self, why: str) -> None:
        """The connection is gone: said once, however many attempts to have it back fail."""
        now = time.monotonic()
        if self._phase is _Phase.UP and now - self._tried_at < _BRIEF_S:
            why += f"; does another client use the id {self._client_id!r}?"
        self._phase, self._trouble = _Phase.DOWN, None
        if self._gone_at is None:
            self._gone_at = now
            self._on_event(f"gone: {self._name}: {why}")
        if now - self._gone_at >= self._patience_s:
            raise SourceLost(f"{self._name}: the broker is gone ({why})", hint=_hint(why))

    def _rise(self) -> None:
        """Everything is subscribed: messages will come."""
        self._phase = _Phase.UP
        if self._gone_at is not None:
            self._on_event(f"back after {time.monotonic() - self._gone_at:.1f} s")
            self._gone_at = None
            self.reconnects += 1

    def _make_client(self) -> Client:
        try:
            from paho.mqtt.client import Client, MQTTv5
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as exc:
            raise SourceUnavailable(
                f"{self._name}: paho-mqtt is not installed", hint="pip install 'edge-cl[mqtt]'"
            ) from exc
        access = self._access
        client = Client(CallbackAPIVersion.VERSION2, self._client_id, protocol=MQTTv5, manual_ack=self._session_s > 0)
        client.connect_timeout = _CONNECT_S
        client.on_connect, client.on_subscribe = self._connected, self._subscribed
        client.on_disconnect, client.on_message = self._disconnected, self._came
        try:
            if access.tls:
                client.tls_set_context(ssl.create_default_context(cafile=access.ca))
            if access.user is not None:
                client.username_pw_set(access.user, _secret(access.password))
        except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
            raise SourceUnavailable(
                f"{self._name}: {_in_words(exc)}", hint="check the files named by ca= and password="
            ) from exc
        # Only notes it all down, for reconnect() to use.
        client.connect_async(
            access.host,
            access.port,
            keepalive=_KEEPALIVE_S,
            clean_start=self._session_s == 0,
            properties=self._wishes(),
        )
        return client

    def _wishes(self) -> Properties:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        wishes = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's own
        wishes.SessionExpiryInterval = self._session_s
        wishes.ReceiveMaximum = self._most
        wishes.MaximumPacketSize = _MAX_PACKET_BYTES
        return wishes

    def _connected(
        self, client: Client, data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._trouble = f"the broker refuses: {reason}"
            return
        self._on_connected(flags.session_present)
        if flags.session_present:  # messages may come at once: we are subscribed, and ask only for what is retained
            self._rise()
        quality = 1 if self._session_s else 0
        client.subscribe([(topic, quality) for topic in self._topics])

    def _subscribed(
        self, client: Client, data: Any, packet: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        for topic, reason in zip(self._topics, reasons, strict=True):
            if reason.is_failure:
                self._trouble = f"the broker refuses {topic}: {reason}"
                return
        if self._phase is _Phase.RISING:
            self._rise()

    def _disconnected(
        self, client: Client, data: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._trouble = f"the broker says: {reason}"
        else:
            self._trouble = self._trouble or "the connection broke"

    def _came(self, client: Client, data: Any, message: MQTTMessage) -> None:
        packet = message.mid if message.qos == 1 and self._session_s else 0
        self._received.append(Message(message.topic, bytes(message.payload), packet, message.dup, message.retain))

    def _unavailable(self, exc: Exception) -> SourceUnavailable:
        words = _in_words(exc)
        return SourceUnavailable(f"{self._name}: {words}", hint=_hint(words))


class _Phase(Enum):
    DOWN = "no connection"
    RISING = "connected, not yet subscribed"
    UP = "messages come"


def _in_words(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {exc.verify_message}"
    if isinstance(exc, OSError):
        return exc.strerror or str(exc) or type(exc).__name__
    return str(exc) or type(exc).__name__


def _hint(words: str) -> str:
    if "certificate" in words:
        return "name the file of the authority that signed it: ?tls=1&ca=FILE"
    if "not authorised" in words.lower() or "not authorized" in words.lower() or "user name" in words.lower():
        return "give user=NAME&password=@FILE, and look into the broker's list of who may read what"
    if "protocol version" in words.lower():
        return "the broker must speak MQTT 5"
    return "does a broker listen there? try: mosquitto_sub -h HOST -p PORT -t TOPIC"


def _secret(file: Path | None) -> str | None:
    return None if file is None else file.read_text(encoding="utf-8").rstrip("\r\n")
