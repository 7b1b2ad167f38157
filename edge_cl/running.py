"""A daemon that runs on a state directory, from outside: what it shows, and the one thing it can be told.

Knows its lock, its status file and its signal. Must not know learners, nor import what learns.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from edge_cl.errors import NotRunning, TryAgain
from edge_cl.service.status import Status, blank, read_status
from edge_cl.storage.state_dir import running_pid

POLL_S: Final = 0.1


def look(state: Path) -> tuple[int | None, Status]:
    """The running daemon's pid and the last status of a state directory, made honest if its writer died."""
    pid, last = running_pid(state), read_status(state)
    if last is None:
        last = blank()
        last["message"] = f"nothing is known of {state}" if pid is None else "the daemon has just been started"
    if pid is None and last["state"] in ("starting", "running"):
        last["message"] = (
            last["message"] if last["updated_s"] is None else "it ended without a word: killed, or no power"
        )
        last["state"] = "stopped" if last["updated_s"] is None else "failed"
    return pid, last


def consolidate(state: Path, timeout_s: float) -> Status:
    """Tell the running daemon to consolidate and to publish; its status once it has consolidated.

    Raises NotRunning if none runs or it ends meanwhile, TryAgain if it is not ready, or not done in time.
    """
    pid, before = look(state)
    if pid is None:
        raise NotRunning(f"no daemon runs on {state}", hint=f"edge-cl run --state {state}")
    if before["state"] != "running" or before["pid"] != pid:  # before it listens, the signal would end it
        raise TryAgain(f"the daemon on {state} is {before['state']}", hint="try again in a moment")
    if before["steps"] == 0:
        raise TryAgain(f"the daemon on {state} has learnt nothing yet", hint="it needs samples that carry a label")
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + timeout_s
    while (now := look(state)[1])["consolidations"] <= before["consolidations"]:
        if look(state)[0] != pid:
            raise NotRunning(f"the daemon on {state} ended before it had consolidated", hint="edge-cl status tells why")
        if time.monotonic() >= deadline:
            raise TryAgain(
                f"not done after {timeout_s:g} s",
                hint="it was told and will do it; edge-cl consolidate --timeout waits longer",
            )
        time.sleep(POLL_S)
    return now
