"""Runs what `make run` runs and draws what it showed: docs/img/run.svg, the screen, and docs/img/summary.svg, its end.

    python tools/screenshot.py                       a minute, into docs/img
    python tools/screenshot.py --out DIR SPEED=max   the Makefile's variables work here, too

Nothing in the pictures is made up: the figures are the status file's and the summary's of that run, the drawing is the
command line's own. Knows the Makefile, the status file and the two drawings; imports no learner.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console, RenderableType
from rich.screen import Screen

from edge_cl.service.dashboard import render
from edge_cl.service.status import Status, Summary, read_status
from edge_cl.service.summary import summary

ROOT = Path(__file__).resolve().parent.parent
STATE = "run"  # as in the Makefile; relative, so that no path of this machine gets into a picture
WIDTH, HEIGHT = 112, 28
MOMENT = 0.75  # of the run: every state was there, went away and came back
POLL_S = 0.2


def main() -> int:
    """Run the demonstration and write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "img", help="folder of the pictures (docs/img)")
    parser.add_argument("variables", nargs="*", metavar="NAME=VALUE", help="of the Makefile: SAMPLES, SPEED")
    options = parser.parse_args()
    statuses, result = watch(demo_command(options.variables))
    if not statuses or not result["snapshot"]:
        print("error: the run was too short to show anything", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    status = statuses[int(MOMENT * (len(statuses) - 1))]
    shell = "edge-cl export --state run --out model.onnx"
    for name, drawing, height in (
        ("run", Screen(render(status, full_screen=True)), HEIGHT),
        ("summary", summary(result, next_step=shell), None),
    ):
        picture = options.out / f"{name}.svg"
        picture.write_text(svg(drawing, name=name, height=height), encoding="utf-8")
        print(picture)
    return 0


def demo_command(variables: list[str]) -> list[str]:
    """The command of `make run`, as make itself says it, with this interpreter and with JSON lines for output."""
    said = subprocess.run(
        ["make", "-n", "--no-print-directory", "run", *variables], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    line = next(line for line in said.splitlines() if " -m edge_cl run " in line)
    return [sys.executable, *shlex.split(line)[1:], "--config", str(ROOT / "config.yaml"), "--json"]


def watch(command: list[str]) -> tuple[list[Status], Summary]:
    """Run it in a folder of its own; every status it wrote while it ran, and its summary."""
    statuses: list[Status] = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                status = read_status(Path(folder) / STATE)
                if status and status["state"] == "running" and (not statuses or status != statuses[-1]):
                    statuses.append(status)
                time.sleep(POLL_S)
        if process.returncode != 0:
            raise SystemExit(f"error: {shlex.join(command)} ended with exit code {process.returncode}")
        output.seek(0)
        result: Summary = json.loads(output.read().splitlines()[-1])
    return statuses, result


def svg(drawing: RenderableType, *, name: str, height: int | None) -> str:
    """The drawing as a terminal window; a fixed id, and no font from somewhere on the net."""
    size = {} if height is None else {"height": height}
    console = Console(
        record=True,
        file=io.StringIO(),
        width=WIDTH,
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
        **size,
    )
    console.print(drawing)
    picture = console.export_svg(title="make run", unique_id=name)
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
