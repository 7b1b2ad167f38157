"""A daemon in a child process that is killed at a stated place of its journal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from edge_cl.keeping.keeper import Keeper

PATIENCE_S = 30.0


def killed_at(entry: int, run: Callable[[], object], *, durable: bool = False) -> int:
    """Run in a child that is killed as soon as it has taken so many journal entries down; its exit status.

    durable: once the last of them is on the disk.
    """
    child = os.fork()
    if child == 0:
        try:
            real = Keeper.note

            def note(self: Keeper, *args: object) -> None:
                real(self, *args)  # type: ignore[arg-type]
                if self.entry >= entry:
                    if durable:
                        self.wait_for(self.entry, PATIENCE_S)
                    os.kill(os.getpid(), signal.SIGKILL)

            Keeper.note = note  # type: ignore[method-assign]
            run()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
