"""Labels that a person or another program leaves for the daemon: one small file each, in DIR/labels.

Whoever leaves one needs no running daemon and waits for nobody; the file goes when what it says has been kept. Knows
JSON and names, not what a label means.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_cl.storage.atomic import NOTHING_CHANGED, read_whole, unlink_durable, write_atomic
from edge_cl.storage.errors import disk_faults

SPOOL_NAME = "labels"
MOST_FILES = 10_000  # that may wait; a daemon that is gone must not fill the disk


@dataclass(frozen=True, slots=True)
class Left:
    """What was left: the sample's id, its class (a name or a number), and the file that says so."""

    stream: int
    boot: int
    seq: int
    label: str
    file: Path


def leave(state: Path, stream: int, boot: int, seq: int, label: str) -> None:
    """Leave a label for the daemon on that state directory. Raises StorageFault; also if too many wait already."""
    folder = state / SPOOL_NAME
    with disk_faults("leave a label in", folder, rule=NOTHING_CHANGED):
        folder.mkdir(mode=0o700, exist_ok=True)
        if sum(1 for _ in os.scandir(folder)) >= MOST_FILES:
            raise OSError(errno.ENOSPC, f"{MOST_FILES:,} labels wait there already")
    name = f"{time.time_ns():020d}-{os.getpid()}.json"
    content = {"stream": stream, "boot": boot, "seq": seq, "label": label}
    write_atomic(folder / name, json.dumps(content).encode() + b"\n")


def waiting(state: Path) -> Iterator[Left]:
    """What was left, in order; a file that says nothing sensible is removed. Raises StorageFault."""
    folder = state / SPOOL_NAME
    with disk_faults("read", folder, rule=NOTHING_CHANGED):
        try:
            files = sorted(file for file in folder.iterdir() if file.suffix == ".json" and file.name[0] != ".")
        except FileNotFoundError:
            return
    for file in files:
        with disk_faults("read", file, rule=NOTHING_CHANGED):
            content = read_whole(file)
        try:
            said = json.loads(content)
            yield Left(int(said["stream"]), int(said["boot"]), int(said["seq"]), str(said["label"]), file)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            remove(file)


def remove(file: Path) -> None:
    """What the file says has been kept, or is of no use. Raises StorageFault."""
    unlink_durable(file)
