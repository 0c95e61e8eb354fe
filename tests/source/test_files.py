"""Every file says first what it is for, and no file knows the machine it was written on."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("fastmasq", "tests", "bench", "scripts", ".ci")
CODE = (".py", ".pyx", ".pxd", ".toml", ".sh")
TEXT = (*CODE, ".md", ".case", "")
GENERATED = ("__pycache__", ".egg-info")

ONE_MACHINE = re.compile("|".join([r"/home/\w", r"/Users/\w", "/root" + r"/\w", "/wo" + "rk/", "/tmp" + "/fm"]))


def files(*suffixes: str) -> Iterator[Path]:
    """Yield the project's own files with these suffixes; extension modules and their C code are generated."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            generated = any(name in part for part in path.parts for name in GENERATED)
            if path.is_file() and path.suffix in suffixes and not generated:
                yield path
    own = (path for path in sorted(ROOT.iterdir()) if path.name != ".git")  # a file in a working tree beside others
    yield from (path for path in own if path.is_file() and path.suffix in suffixes)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def introduction(path: Path) -> str:
    """Return what a file says first: the first line of its docstring, or its first paragraph of comment as one line."""
    text = path.read_text()
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    lines = [line for line in text.splitlines() if line.strip() and not re.match(r"#!|# (cython|distutils):", line)]
    if lines and lines[0].startswith('"""'):
        return lines[0].strip('"')
    comment = itertools.takewhile(lambda line: re.match(r"# +\S", line), lines)
    return " ".join(line.removeprefix("#").strip() for line in comment)


def has_code(path: Path) -> bool:
    return (path.suffix in CODE and path.name != "pyproject.toml") or path.read_bytes()[:2] == b"#!"


@pytest.mark.parametrize("path", [path for path in files(*CODE, "") if has_code(path)], ids=name_of)
def test_a_file_begins_with_its_sentence(path: Path) -> None:
    said = introduction(path)
    assert said, "the file does not say what it is for"
    assert said[-1] in ".:?!", f"not a sentence: {said!r}"
    assert path.suffix != ".py" or ". " not in said, f"more than one sentence: {said!r}"


@pytest.mark.parametrize("path", list(files(*TEXT)), ids=name_of)
def test_no_file_knows_this_machine(path: Path) -> None:
    found = ONE_MACHINE.findall(path.read_text())
    assert not found
