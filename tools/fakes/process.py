"""The fake board as a process of its own, for tools and tests that look at the bridge from both ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOOL = Path(__file__).parent.parent / "fake_board.py"
_END_S = 30.0


class BoardProcess:
    """A fake board that runs; url is what to give the bridge."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(TOOL), "--json", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the fake board did not start (exit {self.process.wait()})")
        self.url = str(json.loads(line)["url"])

    def told(self) -> dict[str, Any]:
        """Its last line; waits until it has ended, which it does once the bridge has hung up."""
        output, _ = self.process.communicate(timeout=_END_S)
        return dict(json.loads(output.splitlines()[-1]))

    def kill(self) -> None:
        """End it now."""
        self.process.kill()
        self.process.communicate()


@contextmanager
def board_process(*arguments: str) -> Iterator[BoardProcess]:
    """A fake board that is gone behind the block."""
    board = BoardProcess(*arguments)
    try:
        yield board
    finally:
        board.kill()
