"""Which messages of a broker may be acknowledged, and which of them came before.

A message is acknowledged once everything is safe with the learner that had been handed out when it was taken in, and
never before an earlier one of the same connection: MQTT wants that order. Packet ids mean something within one
connection, or, if the broker kept the session, in the connection after it. Knows counts and keys, no network and no
clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from firmware_bridge.sample import Label, SampleId
from firmware_bridge.sequence import BOOTS

GONE = -1
_MODULUS = 1 << 32


class Deliveries:
    """Packet ids of this connection in order, and keys of what was handed out and is not safe yet.

    before: the last samples of each boot that were handed out before.
    """

    def __init__(self, before: Iterable[SampleId] = ()) -> None:
        self.n_again = 0  # samples and labels that came again before they were safe
        self._n_safe = 0  # of what was handed out
        self._pending: deque[tuple[int, int, bool]] = deque()  # packet id, see note, whether it was of use
        self._not_safe: OrderedDict[SampleId | Label, int] = OrderedDict()
        self._last = {(sample.stream, sample.boot): sample.seq for sample in before}  # of each boot
        self._before: dict[int, tuple[int, int, bool]] = {}  # delivered over the connection before, not acknowledged

    @property
    def n_pending(self) -> int:
        """Messages that the broker waits to see acknowledged."""
        return len(self._pending)

    def is_again(self, packet: int) -> bool:
        """Whether the message that the broker sends again under this packet id was taken in before; notes that it came.

        Only to be asked of a message that the broker marks as sent again.
        """
        if packet not in self._before:
            return False
        delivery = self._before.pop(packet)
        self.n_again += delivery[2]
        self._pending.append(delivery)
        return True

    def holds(self, key: SampleId | Label | None) -> bool:
        """Whether this was handed out and is not safe yet; counts that it came again."""
        self.n_again += key in self._not_safe
        return key in self._not_safe

    def passed(self, sample: SampleId) -> bool:
        """Whether this one or a later one of its boot was handed out; counts that it came again.

        Only to be asked of one that the broker sends again: else a board may use the number of a boot once more.
        """
        last = self._last.get((sample.stream, sample.boot))
        has_passed = last is not None and (last - sample.seq) % _MODULUS < _MODULUS // 2
        self.n_again += has_passed
        return has_passed

    def note(self, packet: int, n_handed_out: int, key: SampleId | Label | None) -> None:
        """With this message so many items are handed out since the start, the last one under the key.

        key: None if nothing in it is of use. packet: 0 for a message that need not be acknowledged, GONE if its
        connection is.
        """
        if key is not None and packet:
            self._not_safe[key] = n_handed_out
        if isinstance(key, SampleId):
            self._last.pop((key.stream, key.boot), None)  # so that the oldest stands first
            self._last[key.stream, key.boot] = key.seq
            if len(self._last) > BOOTS:
                del self._last[next(iter(self._last))]
        if packet > 0:
            self._pending.append((packet, n_handed_out, key is not None))

    def safe(self, n: int) -> None:
        """The first n that were handed out are safe."""
        self._n_safe = max(self._n_safe, n)
        while self._not_safe and next(iter(self._not_safe.values())) <= self._n_safe:
            self._not_safe.popitem(last=False)

    def due(self) -> list[int]:
        """Packet ids to acknowledge now, in order; each is named once."""
        packets = []
        while self._pending and self._pending[0][1] <= self._n_safe:
            packets.append(self._pending.popleft()[0])
        return packets

    def connected_again(self, *, resumed: bool) -> None:
        """A connection begins; resumed: the broker kept the session, and sends again what was not acknowledged."""
        if resumed:
            self._before.update((delivery[0], delivery) for delivery in self._pending)
        else:
            self._before.clear()
        self._pending.clear()
