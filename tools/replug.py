#!/usr/bin/env python3
"""A cable pulled and plugged in again, over and over: how soon is the bridge back, and does it leave anything behind?

    python tools/replug.py --link pty|tcp|mqtt|camera --times 100 [--json]

pty, tcp: the far end is closed while it sends, and another one is opened, a pseudo-terminal under the same name, or the
same TCP port. mqtt: Mosquitto is killed while a board publishes, and started again. camera: the process that reads an
endless stream is killed. back_s_max is the longest time from then, when all is there again, to the next sample, at most
5 s. threads and descriptors are this process's, with the cable in, at the first round and the most of all others: they
must be the same. Exit 1 if not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from firmware_bridge.errors import BridgeError
from firmware_bridge.inlet import Inlet
from firmware_bridge.registry import make_source
from firmware_bridge.sample import Sample
from firmware_bridge.source import Source
from tools.fakes.cables import LINKS, Cable, make_cable

MOST_S = 5.0
QUEUE_BYTES = 1 << 20
PATIENCE_S = 30.0


class Bridge:
    """An open source behind its queue, and a learner that has everything safe at once."""

    def __init__(self, source: Source) -> None:
        self._source, self._inlet = source, Inlet(source, QUEUE_BYTES)

    def next_sample(self, boot: int | None = None) -> Sample:
        """The next one, or the next of this boot. Raises SystemExit if none comes."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            item = self._inlet.get(0.1)
            if item is None:
                continue
            self._source.acknowledge(self._inlet.taken)
            if isinstance(item, Sample) and boot in (None, item.boot):
                return item
        raise SystemExit(f"nothing came in {PATIENCE_S:g} s; {self._source.said}; {dict(self.counters)}")

    @property
    def counters(self) -> Mapping[str, int]:
        """The source's and the queue's."""
        return self._inlet.counters

    def close(self) -> None:
        """Read no more."""
        self._inlet.close()


def replug(link: str, times: int) -> dict[str, Any]:
    """Pull and plug in again so many times."""
    with tempfile.TemporaryDirectory(prefix="edge-cl-") as folder:
        cable = make_cable(link, Path(folder))
        try:
            cable.plug_in()
            with make_source(cable.url) as source, closing(Bridge(source)) as bridge:
                return _rounds(cable, source, bridge, times)
        finally:
            cable.close()


def _rounds(cable: Cable, source: Source, bridge: Bridge, times: int) -> dict[str, Any]:
    waits: list[float] = []
    threads: list[int] = []
    descriptors: list[int] = []
    first_boot = bridge.next_sample().boot
    for time_no in range(1, times + 1):
        cable.pull(source)
        cable.plug_in()
        started = time.monotonic()
        bridge.next_sample((first_boot + time_no) & 0xFFFF)
        waits.append(time.monotonic() - started)
        threads.append(threading.active_count())
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
    counters = bridge.counters
    return {
        "times": times,
        "back_s_median": round(statistics.median(waits), 3),
        "back_s_max": round(max(waits), 3),
        "threads": [threads[0], max(threads)],
        "descriptors": [descriptors[0], max(descriptors)],
        "reconnects": counters["reconnects"],
        "restarts": counters.get("restarts", 0),  # of boards, which a camera is not
        "queue_oldest": counters["queue_oldest"],
    }


def is_well(result: dict[str, Any]) -> bool:
    """Whether it came back in time each time and left nothing behind."""
    constant = all(first == most for first, most in (result["threads"], result["descriptors"]))
    return constant and result["back_s_max"] <= MOST_S and result["reconnects"] == result["times"]


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", choices=LINKS, default="pty", help="what is pulled (pty)")
    parser.add_argument("--times", type=int, default=100, help="how often (100)")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    options = parser.parse_args()
    try:
        result = replug(options.link, options.times)
    except BridgeError as exc:
        raise SystemExit(f"{exc}\nhint: {exc.hint}") from exc
    print(json.dumps(result) if options.json else "\n".join(f"{key:14} {value}" for key, value in result.items()))
    return 0 if is_well(result) else 1


if __name__ == "__main__":
    sys.exit(main())
