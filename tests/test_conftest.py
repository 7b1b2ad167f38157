"""On CI a skipped test fails the run, unless it is the missing GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAIN = "import pytest\n@pytest.mark.skip(reason='too lazy')\ndef test_a(): pass\n"
MODULE = "import pytest\npytest.skip('not today', allow_module_level=True)\n"
GPU = "import pytest\n@pytest.mark.skip(reason='no NVIDIA GPU here')\ndef test_a(): pass\n"
XFAIL = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_a(): assert False\n"


@pytest.mark.parametrize(
    ("source", "ci", "code", "said"),
    [
        (PLAIN, "true", 1, "SKIPPED, which fails on CI: test_x.py::test_a: too lazy"),
        (MODULE, "true", 1, "SKIPPED, which fails on CI: test_x.py: not today"),
        (PLAIN, "", 0, "1 passed, 1 skipped"),
        (GPU, "true", 0, "1 passed, 1 skipped"),
        (XFAIL, "true", 0, "1 passed, 1 xfailed"),
    ],
)
def test_a_skip_fails_on_ci_and_is_named(source: str, ci: str, code: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    (tmp_path / "test_x.py").write_text(source)
    (tmp_path / "test_y.py").write_text("def test_that_passes(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said in done.stdout
    assert done.returncode == code
