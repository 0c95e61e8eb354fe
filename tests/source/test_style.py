"""The linters have nothing to say: ruff of Python, cython-lint of Cython."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "--no-cache", "."), ("cython-lint", "fastmasq", "bench", "tests")],
    ids=lambda command: command[0],
)
def test_linters_are_content(command: tuple[str, ...]) -> None:
    """cython-lint runs pycodestyle by its name, so their folder must be on the path."""
    environment = {**os.environ, "PATH": f"{PROGRAMS}:{os.environ.get('PATH', '')}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
