"""A topic of an MQTT broker: messages from the link through the board's rules to samples and labels.

    mqtt://HOST[:PORT]/TOPIC?stream=0&client=NAME&tls=1&ca=FILE&user=NAME&password=@FILE&key=@FILE

Samples, HELLO and labels come on TOPIC, labels on TOPIC/labels, too; mqtt_payload.py says what a message holds. A
message is acknowledged once the learner has what was in it safe, so a broker that keeps the session sends again what
was not. What comes again is dropped by its id. Knows no network.
"""

from __future__ import annotations

import math
import socket
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from firmware_bridge.auth import NO_FLOOR, board_key, key_option, raised
from firmware_bridge.board import Board
from firmware_bridge.errors import BadSourceUrl, EndOfSource, SourceLost, SourceUnavailable
from firmware_bridge.options import flag, in_file, patience, seconds, streams, whole, words
from firmware_bridge.receipts import Receipts
from firmware_bridge.sample import Label, Sample, SampleId, Schema
from firmware_bridge.source import SourceBase
from firmware_bridge.sources.deliveries import GONE, Deliveries
from firmware_bridge.sources.mqtt_link import Access, Link, Message
from firmware_bridge.sources.mqtt_payload import PayloadDecoder, is_hello
from firmware_bridge.wire import SAMPLE

_FORM = "such as mqtt://localhost:1883/motor?client=learner"
_WEEK_S = 7 * 86400
_SLICE_S = 0.05  # how long what may be acknowledged waits for it
_HELLO_S = 0.5  # a retained HELLO comes at once
_FLOOR_EVERY_S = 0.1  # see Receipts
_MAX_EARLY, _MAX_EARLY_BYTES = 256, 4 << 20  # of what waits for it; the bytes are those of one message at most


class Mqtt(SourceBase):
    """Samples of one or more streams that come on a topic.

    client: id at the broker, default this machine's and the topic's. session: seconds that the broker keeps messages
    for us; 0: it keeps nothing, nobody is told what arrived, and what cannot be taken at once is lost. unacknowledged:
    most messages that the broker sends before it waits; the learner must be able to keep one of so many. wait: seconds
    that open() waits for a HELLO or a sample, of which the schema is taken. key: secret that frames are signed with.
    stream, after, reconnect: see BoardSource; after has the latest boots, for what was sent in them may come again.
    floor: the replay floor to go on from.
    """

    OPTIONS: Mapping[str, Callable[[str], Any]] = {
        "stream": streams,
        "client": words,
        "session": whole(0, 0xFFFFFFFF),
        "unacknowledged": whole(1, 0xFFFF),
        "wait": seconds,
        "reconnect": patience,
        "tls": flag,
        "ca": Path,
        "user": words,
        "password": in_file,
        "key": key_option,
    }

    def __init__(
        self,
        target: str,
        *,
        after: Sequence[SampleId] = (),
        stream: Sequence[int] = (),
        client: str | None = None,
        session: int = _WEEK_S,
        unacknowledged: int = 1000,
        wait: float = 10.0,
        reconnect: float = math.inf,
        tls: bool = False,
        ca: Path | None = None,
        user: str | None = None,
        password: Path | None = None,
        key: bytes | None = None,
        floor: Mapping[str, Any] = NO_FLOOR,
    ) -> None:
        host, port, self._topic = _parts(target)
        if (ca is not None and not tls) or (password is not None and user is None):
            raise BadSourceUrl(f"mqtt:{target}: ca needs tls=1, and password needs user", hint=_FORM)
        access = Access(host, port or (8883 if tls else 1883), tls, ca, user, password)
        self._name = f"mqtt://{host}:{access.port}/{self._topic}"
        self.needs_acknowledgement = session > 0  # the broker holds back what comes after too many that are not safe
        self.can_wait = session > 0  # else the broker sends whether we keep up or not
        self._wait_s, self._most = wait, unacknowledged
        self._decoder = PayloadDecoder(stream[0] if stream else 0, None if key is None else board_key(key))
        self._decoder.set_floor(raised(floor, SAMPLE, after))
        self._floors = Receipts[Mapping[str, Any]](_FLOOR_EVERY_S, self._decoder.floor())
        self._board = Board(self._name, self._decoder, streams=stream, after=after)
        self._deliveries = Deliveries(after)
        self._lock = threading.Lock()  # of the deliveries: acknowledge() is called by the learner's thread
        self._early: list[Message] = []  # came before the schema was known
        self._retained = self._handed_out = 0
        self._client_id = client or (_own_id(self._name) if session else f"edge-cl-{uuid.uuid4().hex[:12]}")
        self._make_link = partial(
            Link,
            self._name,
            access,
            (self._topic, f"{self._topic}/labels"),
            most_unacknowledged=unacknowledged,
            on_connected=self._connected,
            on_event=self._say,
        )
        self._link = self._make_link(self._client_id, session_s=session, patience_s=reconnect)

    @property
    def schema(self) -> Schema:
        """As announced, or that of the first sample."""
        return self._board.schema

    @property
    def streams(self) -> Sequence[int]:
        """Those that its samples are of, as the device numbers them."""
        return self._board.streams

    def schema_of(self, stream: int) -> Schema:
        """As announced."""
        return self._board.schemas[stream]

    @property
    def said(self) -> str:
        """Text of the last event: the broker gone or back, or a line from the board."""
        return self._board.said

    @property
    def counters(self) -> Mapping[str, int]:
        """Faults of messages, what the sequence numbers tell, retained samples, and how often the broker came back."""
        own = {"retained": self._retained, "reconnects": self._link.reconnects}
        board = self._board.counters
        return {**board, **own, "duplicate": board["duplicate"] + self._deliveries.n_again}

    def open(self) -> None:
        """Subscribe, and learn the schema. Raises SourceUnavailable."""
        self._look_for_hello()
        self._link.open()
        try:
            self._learn_schema()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Acknowledge what is safe and take leave of the broker; a second call does nothing."""
        self._acknowledge_due()
        self._link.close()

    def floor_at(self, n: int) -> Mapping[str, Any]:
        """As it was when these had been handed out, or up to _FLOOR_EVERY_S before: never above a label behind them."""
        return self._floors.safe(n)

    def acknowledge(self, n: int) -> None:
        """The broker will be told, when the source is read or closed, that it need not send those again."""
        with self._lock:
            self._deliveries.safe(n)

    def read(self, timeout_s: float) -> Sample | Label | None:
        """Next sample or late label, None if none came in time; a broker that is gone is waited for.

        Raises EndOfSource when the board said that it sends no more, SourceLost if another client took our id.
        """
        deadline = time.monotonic() + timeout_s
        ready = self._board.ready
        while not ready:
            if self._board.ended is not None:
                raise EndOfSource(self._board.ended)
            self._pump(deadline)
            if not ready and self._board.ended is None and time.monotonic() >= deadline:
                return None
        self._handed_out += 1
        return ready.popleft()

    def _look_for_hello(self) -> None:
        """Take the HELLO that the broker retains, if there is one.

        As somebody else, who comes and goes: to us the broker first sends what it kept for us, and that may be so much
        that it waits for acknowledgements before the HELLO's turn comes.
        """
        guest = self._make_link(f"{self._client_id}-hello", session_s=0, patience_s=0)
        with suppress(SourceUnavailable, SourceLost):  # the link will say it better, or do without
            guest.open()
            deadline = time.monotonic() + _HELLO_S
            while not self._board.is_known and time.monotonic() < deadline:
                for message in guest.poll(_SLICE_S):
                    if message.retained and is_hello(message.payload):
                        self._hear(message)
        guest.close()

    def _learn_schema(self) -> None:
        """Wait for a HELLO, or a sample and no HELLO soon behind it; what comes before waits to be understood."""
        deadline = time.monotonic() + self._wait_s
        while not self._board.is_known and time.monotonic() < deadline and len(self._early) < _MAX_EARLY:
            had = len(self._early)
            self._pump(deadline)
            if self._early and not had:
                deadline = min(deadline, time.monotonic() + _HELLO_S)
            if sum(len(early.payload) for early in self._early) > _MAX_EARLY_BYTES:
                break
        if not self._board.is_known:
            keys = [self._hear(message) for message in self._early]
            if not self._board.settle():
                raise self._silent()
            for message, key in zip(self._early, keys, strict=True):
                self._note(message, key)
            self._early.clear()

    def _silent(self) -> SourceUnavailable:
        what = f"messages came, but no sample ({self._board.heard})"
        if self._decoder.counters["auth"]:
            hint = "is key=@FILE the sender's? with a key JSON is refused, and without one what has a tag"
        elif self._board.heard:
            hint = 'a message is a frame as docs/WIRE.md has it, or JSON such as {"values": [1.5, 2]}'
        else:
            what = f"nothing came in {self._wait_s:g} s"
            hint = f"is {self._topic!r} the topic that the device sends to? wait longer with ?wait=…"
        return SourceUnavailable(f"{self._name}: {what}", hint=hint)

    def _pump(self, deadline: float) -> None:
        self._acknowledge_due()
        wait_s = max(0.0, min(_SLICE_S, deadline - time.monotonic()))
        if self._deliveries.n_pending > self._most:  # some brokers send up to twice as many as they were asked to
            time.sleep(wait_s)
            return
        for message in self._link.poll(wait_s):
            self._take(message)

    def _acknowledge_due(self) -> None:
        if self._link.is_connected:
            with self._lock:
                due = self._deliveries.due()
            self._link.acknowledge(due)

    def _connected(self, resumed: bool) -> None:
        with self._lock:
            self._deliveries.connected_again(resumed=resumed)
        self._early = [replace(early, packet=GONE) for early in self._early if not (resumed and early.packet)]
        self._board.line_broke()

    def _say(self, text: str) -> None:
        self._board.said = text

    def _take(self, message: Message) -> None:
        with self._lock:
            if message.again and self._deliveries.is_again(message.packet):
                return
        if not self._board.is_known and not is_hello(message.payload):
            self._early.append(message)
            return
        key = self._hear(message)
        if self._board.is_known:
            for early in self._early:  # which came before it, and are acknowledged before it
                self._note(early, self._hear(early))
            self._early.clear()
        self._note(message, key)

    def _hear(self, message: Message) -> SampleId | Label | None:
        """Tell the board what is in the message; the key of the sample or label in it, if it is handed out."""
        if message.retained and not is_hello(message.payload):
            self._retained += 1  # as old as the broker likes: nobody knows whether it was learnt before
            return None
        n_ready = len(self._board.ready)
        for event in self._decoder.feed(message.payload):  # one at most
            key = event.id if isinstance(event, Sample) else event if isinstance(event, Label) else None
            if self._came_before(key, message.again):
                return None
            self._board.take(event)
            return key if len(self._board.ready) > n_ready or not self._board.is_known else None
        return None

    def _came_before(self, key: SampleId | Label | None, again: bool) -> bool:
        """Whether it was handed out already; what only its number tells, and not its boot, is left to the board.

        To the board a sample of an earlier boot is another restart, although the broker only sends it again.
        """
        with self._lock:
            if again and isinstance(key, SampleId) and key.boot != self._board.boot and self._deliveries.passed(key):
                return True
            return self._deliveries.holds(key)

    def _note(self, message: Message, key: SampleId | Label | None) -> None:
        n_handed_out = self._handed_out + len(self._board.ready)
        with self._lock:
            self._deliveries.note(message.packet, n_handed_out, key)
            if key is not None:
                self._floors.note(n_handed_out, self._decoder.floor(), time.monotonic())


def _parts(target: str) -> tuple[str, int | None, str]:
    """Host, port and topic."""
    try:
        parts = urlsplit(f"//{target}")
        host, port, topic = parts.hostname, parts.port, unquote(parts.path.removeprefix("/"))
    except ValueError as exc:
        raise BadSourceUrl(f"mqtt://{target}: {exc}", hint=_FORM) from exc
    if parts.username is not None:
        raise BadSourceUrl(f"mqtt://…@{host}: a user is given as user=NAME&password=@FILE", hint=_FORM)
    if not host or not topic:
        raise BadSourceUrl(f"mqtt://{target}: a host and a topic are needed", hint=_FORM)
    if set(topic) & set("+#\0"):
        raise BadSourceUrl(f"mqtt://{target}: one topic is one device: no + and no #", hint=_FORM)
    return host, port, topic


def _own_id(name: str) -> str:
    """The same at each start and another on each machine, so that nobody takes another's session."""
    machine = f"{socket.gethostname()} {uuid.getnode()} {name}"
    return f"edge-cl-{zlib.crc32(machine.encode()):08x}"
