"""What reads the payloads of strangers (PPTP, ISAKMP, FTP) can only read: no ctypes, no files, no programs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.source.test_layers import PACKAGE, cython_imports, python_imports

PURE = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "heapq",
    "ipaddress",
    "itertools",
    "msgspec",
    "re",
    "struct",
    "typing",
}
OF_OURS = {"errors", "units", "wire", "trackers", "path"}  # what these may import; of the path only names
UNSAFE = re.compile(r"(?<![.\w])(?<!def )(eval|exec|compile|open|__import__)\(")
READERS = sorted(
    path for folder in ("trackers", "wire") for path in (PACKAGE / folder).rglob("*") if path.suffix in (".py", ".pyx")
)


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_reader_imports_what_cannot_harm(path: Path) -> None:
    text = path.read_text()
    found = python_imports(text, path) if path.suffix == ".py" else cython_imports(text)
    for _, name in found:
        first, _, rest = name.partition(".")
        if first == "fastmasq":
            assert rest.partition(".")[0] in OF_OURS, name
        else:
            assert first in PURE | {"libc"}, name
    assert not UNSAFE.search(text)


def test_readers_are_found() -> None:
    names = {str(path.relative_to(PACKAGE)) for path in READERS}
    assert {"trackers/vpn/pptp.py", "trackers/vpn/isakmp.py", "wire/pptp.py", "wire/tunnels.pyx"} <= names
