"""Numbered entries on disk, so that what was acknowledged survives a kill and a power cut. Entries are opaque bytes.

Must not know a learner. One process writes, the one that holds the state directory's lock; in it, one thread of the
journal's own, so that whoever appends never waits for the disk.

    append → queue → (32 entries wait, or the oldest has waited commit_ms, or somebody waits) → one transaction → ack

    DIR/journal/NNNNNNNNNNNN.db, -wal         a segment, see segment.py; a later one counts from its first entry on
    DIR/journal/newest                        see mark.py
    DIR/journal/NNNNNNNNNNNN.db.aside, -wal   of a damaged journal: behind where recovery ended

After any fault the segment is given up and the next attempt begins a new one with the first entry that was not
acknowledged, more and more seldom, for ever: a disk that was full may be freed.
"""

import contextlib
import errno
import threading
import time
from collections import deque
from pathlib import Path

from edge_cl.storage.errors import StorageFault
from edge_cl.storage.journal_folder import prepare, remove
from edge_cl.storage.journal_reading import JournalState, inspect, read
from edge_cl.storage.mark import Mark
from edge_cl.storage.segment import NOT_ACKNOWLEDGED, Segment
from edge_cl.storage.state_dir import JOURNAL_NAME

__all__ = ["Journal", "JournalState", "inspect", "journal_of", "read"]

GROUP_BYTES = 1 << 20  # of one transaction: SQLite holds it in memory, and so does its log's cache
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0

Entry = tuple[int, bytes]
Queued = tuple[int, bytes, float]  # when it came, in seconds


class Journal:
    """The journal in `folder`, to be gone on with behind entry `after`; what lies behind it on disk is set aside.

    queue_bytes: the bodies that may wait. commit_ms: the longest an entry waits for others; commit_entries: so many
    are not made to wait. `committed` is the newest entry that survives a power cut, `queued_bytes` what waits, `fault`
    why the last commit failed, None while commits work. The disk is not touched before the first entry.
    """

    def __init__(
        self, folder: Path, *, after: int, queue_bytes: int, commit_ms: float = 100.0, commit_entries: int = 32
    ) -> None:
        if after < 0:
            raise ValueError(f"after: must not be negative (got {after})")
        if commit_entries < 1:
            raise ValueError(f"commit_entries: must be at least 1 (got {commit_entries})")
        self.folder = folder
        self.committed = after
        self.queued_bytes = 0
        self.fault: StorageFault | None = None
        self._queue_bytes = queue_bytes
        self._enough = min(GROUP_BYTES, queue_bytes // 2)  # so that the rest of a step finds room meanwhile
        self._commit_s = commit_ms / 1000
        self._commit_entries = commit_entries

        self._lock = threading.Lock()  # of everything from here on
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._queue: deque[Queued] = deque()
        self._newest = after
        self._wanted = 0  # somebody waits for this entry
        self._borders: deque[int] = deque()  # the last entries of segments that are to end
        self._forget = 0
        self._deadline_s: float | None = None  # closing
        self._ended = False

        self._segment: Segment | None = None  # from here on: the writer thread's own
        self._mark: Mark | None = None
        self._pause_s = FIRST_PAUSE_S
        self._retry_s = 0.0
        self._writer = threading.Thread(target=self._run, name="journal", daemon=True)
        self._writer.start()

    def append(self, body: bytes) -> int | None:
        """The entry's number, None if the queue has no room. Never waits for the disk.

        A body larger than the whole queue gets in when nothing else waits. Raises ValueError on a closed journal.
        """
        with self._lock:
            if self._deadline_s is not None:
                raise ValueError("the journal is closed")
            if not self._fits(len(body)):
                return None
            self._newest += 1
            self._queue.append((self._newest, body, time.monotonic()))
            self.queued_bytes += len(body)
            waiting = len(self._queue)
            # The writer is not woken for each: it sleeps until the oldest is due.
            if waiting in (1, self._commit_entries) or self.queued_bytes >= self._enough > self.queued_bytes - len(
                body
            ):
                self._work.notify()
            return self._newest

    def has_room(self, nbytes: int) -> bool:
        """Whether an entry of so many bytes would be taken now."""
        with self._lock:
            return self._fits(nbytes)

    def _fits(self, nbytes: int) -> bool:
        return not self._queue or self.queued_bytes + nbytes <= self._queue_bytes

    def wait(self, number: int, timeout_s: float) -> bool:
        """Have the entry committed at once, with all that wait before it; False if that did not work in time.

        After a fault it waits for the next attempt.
        """
        with self._lock:
            self._wanted = max(self._wanted, number)
            self._work.notify()
            self._done.wait_for(lambda: self.committed >= number or self._ended, timeout_s)
            return self.committed >= number

    def rotate(self) -> None:
        """Let the next entry be the first of a new segment."""
        with self._lock:
            self._borders.append(self._newest)
            self._work.notify()

    def forget(self, upto: int) -> None:
        """Have the segments removed, soon, whose entries all are at most `upto`; a fault is left to the next call."""
        with self._lock:
            self._forget = max(self._forget, upto)
            self._work.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Commit what waits, and end the thread; entries that the disk refuses for `timeout_s` seconds are given up."""
        with self._lock:
            if self._deadline_s is None:
                self._deadline_s = time.monotonic() + timeout_s
            self._work.notify()
        self._writer.join(timeout_s + LONGEST_PAUSE_S)  # longer only if the disk hangs: nothing could end that wait

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as exc:
            ended = OSError(errno.EIO, f"the writer ended: {exc!r}")
            self.fault = StorageFault("write", self.folder, ended, rule=NOT_ACKNOWLEDGED)
            raise
        finally:
            for opened in (self._segment, self._mark):
                if opened is not None:
                    opened.close()
            with self._lock:
                self._ended = True
                self._done.notify_all()

    def _step(self) -> bool:
        """Wait for something to do and do it; False when the journal is closed and all is done."""
        with self._lock:
            while not (due := self._is_due()) and not self._forget and not self._is_over():
                self._work.wait(self._next_s())
            ended = self._is_border_reached()
            group = self._group() if due else []
            forget, self._forget = self._forget, 0
        if not group and not forget:
            return False
        if ended:
            self._end_segment()
        if forget:  # first: it may free the space that the entries need
            self._remove(forget)
        if group:
            self._try(group)
        return True

    def _is_due(self) -> bool:
        now = time.monotonic()
        return (
            bool(self._queue)
            and now >= self._retry_s
            and (
                len(self._queue) >= self._commit_entries
                or self.queued_bytes >= self._enough
                or self._wanted > self.committed
                or self._deadline_s is not None
                or now >= self._queue[0][2] + self._commit_s
            )
        )

    def _is_over(self) -> bool:
        if self._deadline_s is None:
            return False
        return not self._queue or time.monotonic() >= self._deadline_s

    def _next_s(self) -> float | None:
        """Seconds until the clock alone makes something due, None if it never does."""
        if not self._queue:
            return None
        at = self._queue[0][2] + self._commit_s
        if self._wanted > self.committed or self._deadline_s is not None:
            at = 0.0
        at = max(at, self._retry_s)
        if self._deadline_s is not None:
            at = min(at, self._deadline_s)
        return max(at - time.monotonic(), 0.0)

    def _is_border_reached(self) -> bool:
        reached = False
        while self._borders and self._borders[0] <= self.committed:
            self._borders.popleft()
            reached = True
        return reached

    def _group(self) -> list[Entry]:
        """What the next transaction takes: not across the end of a segment, and at least one entry."""
        group: list[Entry] = []
        nbytes = 0
        for number, body, _ in self._queue:
            nbytes += len(body)
            if group and (nbytes > GROUP_BYTES or (self._borders and number > self._borders[0])):
                break
            group.append((number, body))
        return group

    def _try(self, group: list[Entry]) -> None:
        try:
            self._commit(group)
        except StorageFault as fault:
            if self._segment is not None:
                self._segment.abandon()
                self._segment = None
            self.fault = fault
            self._retry_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        else:
            self._acknowledge(group)

    def _commit(self, group: list[Entry]) -> None:
        mark = self._prepared()
        if self._segment is None:
            self._segment = Segment(self.folder, group[0][0])
        self._segment.write(group)
        mark.set(group[-1][0])

    def _acknowledge(self, group: list[Entry]) -> None:
        self._pause_s, self._retry_s = FIRST_PAUSE_S, 0.0
        with self._lock:
            for _, body in group:
                self._queue.popleft()
                self.queued_bytes -= len(body)
            self.committed = group[-1][0]
            self.fault = None
            self._done.notify_all()

    def _prepared(self) -> Mark:
        if self._mark is None:
            prepare(self.folder, self.committed)
            self._mark = Mark(self.folder, self.committed)
        return self._mark

    def _end_segment(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def _remove(self, upto: int) -> None:
        # A fault here loses nothing, and the next checkpoint asks again.
        with contextlib.suppress(StorageFault):
            self._prepared()
            remove(self.folder, upto, self.committed if self._segment is None else upto + 1)


def journal_of(state: Path) -> Path:
    """The journal's folder in a state directory."""
    return state / JOURNAL_NAME
