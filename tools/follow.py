#!/usr/bin/env python3
"""Does `edge-cl bridge tail --json` follow a fast board without loss? A motion sensor of six axes, a frame each sample.

    python tools/follow.py --link pty|tcp --seconds 60 [--rate 1000] [--json]

tools/fake_board.py and the command run as processes of their own; what the command prints is read from a pipe. lost
must be 0: generated less shown, which is wire_lost (board_dropped are among them: the line was full), restart_lost,
away, queue_oldest and in_flight (what the board never sent), and else unexplained. rate is that of the samples shown;
a board that is too slow itself has one below --rate, and loses nothing. most_behind_ms is how much later a sample was
shown than the quickest of them. tail_cpu is the share of one core that the command took from its first sample on. Exit
1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.fakes.process import board_process

ROOT = Path(__file__).parent.parent
COUNTED = ("wire_lost", "restart_lost", "away", "queue_oldest")
READ_BYTES = 1 << 16
QUIET_S = 30.0  # then the line is dead


class Shown:
    """What the command prints, line by line; of each piece that is read the last line is looked into.

    first_s, last_s: when it showed samples, on the monotonic clock. most_behind_s: see above.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.first_s = self.last_s = 0.0
        self.last_line: dict[str, Any] = {}
        self._rest = b""
        self._behind_s: list[float] = []

    @property
    def most_behind_s(self) -> float:
        """How much later a sample came than the quickest; where both clocks begin is not known."""
        return max(self._behind_s) - min(self._behind_s)

    def take(self, data: bytes) -> None:
        """The next piece."""
        now_s = time.monotonic()
        *whole, self._rest = (self._rest + data).split(b"\n")
        if not whole:
            return
        self.lines += len(whole)
        self.last_line = json.loads(whole[-1])
        if "time_us" in self.last_line:
            self._behind_s.append(now_s - self.last_line["time_us"] / 1e6)
            self.first_s, self.last_s = self.first_s or now_s, now_s


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--link", choices=("pty", "tcp"), default="pty", help="the line (pty)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--rate", type=float, default=1000.0, help="samples a second (1000)")
    parser.add_argument("--bit-error-rate", type=float, default=0.0, help="chance that a byte is damaged (0)")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    options = parser.parse_args()
    result = follow(options.link, options.seconds, options.rate, options.bit_error_rate)
    print(json.dumps(result) if options.json else "\n".join(f"{key:14} {value}" for key, value in result.items()))
    return 1 if result["lost"] else 0


def follow(link: str, seconds: float, rate_hz: float, bit_error_rate: float = 0.0) -> dict[str, Any]:
    """Run the board to its last sample, and the command to its end. Raises SystemExit if one of them fails."""
    samples = max(2, round(seconds * rate_hz))
    habits = ["--samples", str(samples), "--rate", str(rate_hz)]
    if bit_error_rate:
        habits += ["--bit-error-rate", str(bit_error_rate)]
    with board_process("--link", link, "--signal", "imu", *habits) as board:
        shown, cpu_s = tail(board.url, samples)
        told = board.told()
    counters: dict[str, int] = shown.last_line["counters"]
    counted = {name: counters[name] for name in COUNTED}
    n_shown, took_s = shown.lines - 1, shown.last_s - shown.first_s
    lost = told["generated"] - n_shown
    return {
        "generated": told["generated"],
        "shown": n_shown,
        "lost": lost,
        "board_dropped": told["dropped"],
        **counted,
        "in_flight": told["in_flight"],
        "unexplained": lost - sum(counted.values()) - told["in_flight"],
        "rate": round((n_shown - 1) / took_s, 1),
        "most_behind_ms": round(1000 * shown.most_behind_s, 1),
        "tail_cpu": round(cpu_s / took_s, 3),
    }


def tail(url: str, samples: int) -> tuple[Shown, float]:
    """What the command showed, and its seconds of processor time from then on. Raises SystemExit if it fails."""
    command = [sys.executable, "-m", "edge_cl", "bridge", "tail", "--json", "--source", url]
    command += ["-n", str(samples), "--timeout", str(QUIET_S)]
    shown, before_s = Shown(), 0.0
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), READ_BYTES):
            before_s = before_s or _cpu_s(process.pid)
            shown.take(data)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or shown.lines < 3:
        raise SystemExit(f"edge-cl bridge tail failed (exit {process.returncode})")
    return shown, usage.ru_utime + usage.ru_stime - before_s


def _cpu_s(pid: int) -> float:
    """Processor time that a process has had, in user's and system's mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
