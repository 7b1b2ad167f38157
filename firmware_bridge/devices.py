"""Which ports and cameras this machine has, and what stands in the way of using each. Opens none of them.

To open a serial port resets many boards, and a camera can be open once only: so rights, groups and who holds it are
asked of the file system and of /proc.
"""

from __future__ import annotations

import grp
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import serialx

_CAMERA = re.compile(r"video(\d+)")


@dataclass(frozen=True, slots=True)
class Device:
    """A port or a camera: its source URL, what it says of itself, and what is wrong with it, "" if nothing is."""

    kind: str
    path: str
    source: str
    name: str
    serial_number: str
    problem: str
    hint: str


def devices() -> list[Device]:
    """Serial ports, then cameras, by path."""
    return [*_ports(), *_cameras()]


def _ports() -> Iterator[Device]:
    for port in sorted(serialx.list_serial_ports(), key=lambda port: port.device):
        if not _is_there(port.resolved_device):
            continue
        known = (port.manufacturer, port.product, port.interface_description)
        name = " ".join(text for text in known if text) or "no name"
        source = f"serial://{port.device}?baud=115200"
        yield Device("serial", port.device, source, name, port.serial_number or "", *_problem(port.device))


def _cameras() -> Iterator[Device]:
    found = [path for path in Path("/dev").glob("video*") if _CAMERA.fullmatch(path.name) and _gives_pictures(path)]
    for path in sorted(found, key=lambda path: int(path.name[5:])):
        described = Path("/sys/class/video4linux") / path.name / "name"
        name = described.read_text(encoding="utf-8", errors="replace").strip() if described.exists() else "no name"
        yield Device("camera", str(path), f"camera:{path.name[5:]}", name, "", *_problem(str(path)))


def _gives_pictures(path: Path) -> bool:
    """Whether it is a camera's first node: the others of a USB camera give metadata."""
    index = Path("/sys/class/video4linux") / path.name / "index"
    return not index.exists() or index.read_text(encoding="ascii").strip() == "0"


def _is_there(path: str) -> bool:
    """Whether a driver has a device behind the name: a PC lists serial ports that nobody ever soldered in."""
    driver = Path("/sys/class/tty") / Path(path).name / "device" / "driver"
    if not driver.exists() or driver.resolve().name != "serial8250":
        return True
    kind = Path("/sys/class/tty") / Path(path).name / "type"
    return not kind.exists() or kind.read_text(encoding="ascii").strip() != "0"


def _problem(path: str) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    try:
        status = Path(path).stat()
    except OSError as exc:
        return f"cannot be looked at ({exc.strerror})", "plug it in again"
    if not stat.S_ISCHR(status.st_mode):
        return "is no device", "look what lies under that name"
    if not os.access(path, os.R_OK | os.W_OK):
        try:
            group = grp.getgrgid(status.st_gid).gr_name
        except KeyError:
            group = str(status.st_gid)
        return f"permission denied (group {group})", f"sudo usermod -aG {group} $USER, then log in again"
    if holder := _holder(path):
        return f"busy: process {holder} has it open", f"end it, or find it with: fuser {path}"
    return "", ""


def _holder(path: str) -> int | None:
    """A process that has the device open, of those that this user may look at."""
    wanted = os.path.realpath(path)
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.path.realpath(link) == wanted for link in folder.iterdir()):
                return int(folder.parent.name)
        except OSError:  # another user's, or just ended
            continue
    return None
