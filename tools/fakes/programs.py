"""Other people's programs that tools and tests need: found, or named with what installs them."""

from __future__ import annotations

import os
import shutil


def program(name: str, package: str) -> str:
    """Path of a program; also looks where servers are installed. Raises SystemExit if it is not there."""
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    if found is None:
        raise SystemExit(f"{name} is needed and not installed: apt-get install {package}")
    return found
