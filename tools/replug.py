#!/usr/bin/env python3
"""A cable pulled and plugged in again, over and over: how soon is the bridge back, and does it leave anything behind?

    python tools/replug.py --link pty --times 100 [--json]

The far end is closed while it sends, and another one is opened: a pseudo-terminal under the same name, or the same TCP
port. back_s_max is the longest time from there to the next sample, at most 5 s. threads and descriptors are the
bridge's, with the cable in, at the first round and the most of all others: they must be the same. Exit 1 if not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from firmware_bridge.inlet import Inlet
from firmware_bridge.registry import make_source
from tools.fakes.board import Habits, StreamingBoard
from tools.fakes.far_ends import FarEnd, PtyEnd, TcpEnd
from tools.fakes.faults import BadLine
from tools.fakes.signals import signal

MOST_S = 5.0
ENDLESS, RATE_HZ = 1 << 40, 200.0
PATIENCE_S = 30.0


class Cable:
    """Something to pull: a board that is there while `plugged_in`, always at the same url."""

    def __init__(self, link: str, folder: Path) -> None:
        self._link, self._path = link, folder / "port"
        self._port = 0
        self.url = ""
        self._boot = 0

    @contextmanager
    def plugged_in(self) -> Iterator[None]:
        """A board at the far end, in a thread; pulled behind the block, in the middle of whatever it sends."""
        end = self._end()
        schema, samples = signal("imu", 0, RATE_HZ)
        self._boot += 1
        habits = Habits(ENDLESS, rate_hz=RATE_HZ, first_boot=self._boot)
        board = StreamingBoard(end, schema, samples, habits, BadLine(0, 0.0, 0.0, is_stream=True))
        thread = threading.Thread(target=board.run, name="board")
        thread.start()
        try:
            yield
        finally:
            board.stop()
            thread.join()
            end.close()

    def _end(self) -> FarEnd:
        if self._link == "tcp":
            tcp = TcpEnd(self._port, "length")
            self._port, self.url = int(tcp.url.rpartition(":")[2]), tcp.url
            return tcp
        pty = PtyEnd()
        self._path.unlink(missing_ok=True)
        self._path.symlink_to(pty.url.removeprefix("serial://"))
        self.url = f"serial://{self._path}"
        return pty


def replug(link: str, times: int) -> dict[str, Any]:
    """Pull and plug in again so many times."""
    waits: list[float] = []
    threads: list[int] = []
    descriptors: list[int] = []
    with tempfile.TemporaryDirectory(prefix="edge-cl-") as folder:
        cable = Cable(link, Path(folder))
        with cable.plugged_in():
            source = make_source(cable.url)
            source.open()
            inlet = Inlet(source, 1 << 20)
            _next_of(inlet, 1)
        for time_no in range(times):
            with cable.plugged_in():
                started = time.monotonic()
                _next_of(inlet, time_no + 2)
                waits.append(time.monotonic() - started)
                threads.append(threading.active_count())
                descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
        inlet.close()
        source.close()
    return {
        "times": times,
        "back_s_median": round(statistics.median(waits), 3),
        "back_s_max": round(max(waits), 3),
        "threads": [threads[0], max(threads)],
        "descriptors": [descriptors[0], max(descriptors)],
        "reconnects": source.counters["reconnects"],
        "restarts": source.counters["restarts"],
        "queue_oldest": inlet.counters["queue_oldest"],
    }


def _next_of(inlet: Inlet, boot: int) -> None:
    """Wait for a sample of this boot."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        item = inlet.get(0.1)
        if item is not None and item.boot == boot:
            return
    raise SystemExit(f"nothing of boot {boot} came in {PATIENCE_S:g} s")


def is_well(result: dict[str, Any]) -> bool:
    """Whether it came back in time each time and left nothing behind."""
    constant = all(first == most for first, most in (result["threads"], result["descriptors"]))
    return constant and result["back_s_max"] <= MOST_S and result["reconnects"] == result["times"]


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", choices=("pty", "tcp"), default="pty", help="the line (pty)")
    parser.add_argument("--times", type=int, default=100, help="how often (100)")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    options = parser.parse_args()
    result = replug(options.link, options.times)
    print(json.dumps(result) if options.json else "\n".join(f"{key:14} {value}" for key, value in result.items()))
    return 0 if is_well(result) else 1


if __name__ == "__main__":
    sys.exit(main())
