"""Real far ends of serial lines: the fake board as a process, and a pseudo-terminal that says what it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from firmware_bridge.frame import CTRL_SAY_HELLO, Control, FrameDecoder, encode_control

SAY_HELLO = b"\0" + encode_control(Control(0, 0, 0, CTRL_SAY_HELLO))


@contextmanager
def fake_board(*arguments: str) -> Iterator[str]:
    """The fake board as a process of its own; gives the path of its port."""
    command = [sys.executable, "-m", "firmware_bridge.fake_board", *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["port"]
        finally:
            process.terminate()


@contextmanager
def talking_line(wire: bytes) -> Iterator[str]:
    """A pseudo-terminal that sends these bytes, less than its 4 KiB, once it was asked for HELLO; gives its path."""
    master, slave = os.openpty()
    tty.setraw(slave)

    def talk() -> None:
        decoder = FrameDecoder()
        while not decoder.feed(os.read(master, 4096)):
            pass
        os.write(master, wire)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        os.write(slave, SAY_HELLO)  # ends the thread where nobody asked
        thread.join()
        os.close(slave)
        os.close(master)
