"""The linters have nothing to say: ruff of Python, cython-lint of Cython."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
FOLDERS = ("fastmasq", "bench", "tests")


def complaints(*command: str) -> str:
    done = subprocess.run([PROGRAMS / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "--no-cache", "."), ("cython-lint", "--no-pycodestyle", *FOLDERS)],
    ids=lambda command: command[0],
)
def test_linters_are_content(command: tuple[str, ...]) -> None:
    assert complaints(*command) == ""


def test_pycodestyle_is_content_as_cython_lint_asks_it() -> None:
    """Which starts it for each file anew, and takes three times as long."""
    from cython_lint.cython_lint import PYCODESTYLE_CODES

    longest = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cython-lint"]["max-line-length"]
    how = (f"--ignore={','.join(PYCODESTYLE_CODES)}", f"--max-line-length={longest}", "--filename=*.pyx,*.pxd")
    assert complaints("pycodestyle", *how, *FOLDERS) == ""
