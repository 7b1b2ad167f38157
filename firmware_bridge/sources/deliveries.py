"""Which messages of a broker may be acknowledged, and which of them came before.

A message is acknowledged once what was in it is safe with the learner, and never before an earlier one of the same
connection: MQTT wants that order. Packet ids mean something within one connection, or, if the broker kept the session,
in the connection after it. Knows ids and keys, no network and no clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

GONE = -1


class Deliveries:
    """Packet ids of this connection in order, and keys of what was handed out and is not safe yet."""

    def __init__(self) -> None:
        self.n_again = 0  # samples and labels that came again over a later connection
        self._pending: deque[tuple[int, Hashable | None]] = deque()
        self._handed_out: OrderedDict[Hashable, None] = OrderedDict()
        self._before: dict[int, Hashable | None] = {}  # delivered over the connection before and not acknowledged

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
        key = self._before.pop(packet)
        self.n_again += key is not None
        self._pending.append((packet, key))
        return True

    def holds(self, key: Hashable) -> bool:
        """Whether this was handed out and is not safe yet."""
        return key in self._handed_out

    def note(self, packet: int, key: Hashable | None) -> None:
        """What is in this message is handed out under the key, again perhaps; None: nothing in it is of use.

        packet: 0 for a message that need not be acknowledged, GONE if its connection is.
        """
        if key is not None and packet:
            self._handed_out[key] = None
        if packet > 0:
            self._pending.append((packet, key))

    def safe(self, upto: Hashable) -> None:
        """All that was handed out up to this key is safe. A key that is not waited for says nothing."""
        if upto in self._handed_out:
            while self._handed_out.popitem(last=False)[0] != upto:
                pass

    def due(self) -> list[int]:
        """Packet ids to acknowledge now, in order; each is named once."""
        packets = []
        while self._pending and self._pending[0][1] not in self._handed_out:
            packets.append(self._pending.popleft()[0])
        return packets

    def connected_again(self, *, resumed: bool) -> None:
        """A connection begins; resumed: the broker kept the session, and sends again what was not acknowledged."""
        if resumed:
            self._before.update(self._pending)
        else:
            self._before.clear()
        self._pending.clear()
