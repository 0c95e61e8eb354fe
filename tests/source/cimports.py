"""What Cython files cimport and never use: said by `python -m tests.source.cimports`, which `scripts/dev lint` runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("fastmasq", "bench", "tests") for path in (ROOT / folder).rglob("*.p[yx][dx]"))

CIMPORT = re.compile(
    r"^[ \t]*from[ \t]+(?P<module>[\w.]+)[ \t]+cimport[ \t]*(?:\((?P<several>[^)]*)\)|(?P<names>[^\n]*))", re.MULTILINE
)


def names_of(match: re.Match) -> list[tuple[str, str]]:
    """Return (name, what it is called here) of everything that one statement cimports."""
    listed = re.sub(r"#[^\n]*", "", match["several"] or match["names"] or "")
    pairs = [part.strip().partition(" as ") for part in listed.split(",") if part.strip()]
    return [(name.strip(), (alias or name).strip()) for name, _, alias in pairs]


def unused(text: str) -> list[str]:
    """Return the cimported names that the rest of a file never mentions."""
    rest = re.sub(r'#[^\n]*|"""(?:.|\n)*?"""', "", CIMPORT.sub("", text))
    called = [alias for match in CIMPORT.finditer(text) for _, alias in names_of(match)]
    return [alias for alias in called if not re.search(rf"(?<!\.)\b{alias}\b", rest)]


def cimported(text: str, package: str) -> set[str]:
    """Return the modules of a package, as `fastmasq.path`, that a file cimports."""
    found = set()
    for match in CIMPORT.finditer(text):
        if match["module"] == package:
            found |= {name for name, _ in names_of(match)}
        elif match["module"].startswith(f"{package}."):
            found.add(match["module"].removeprefix(f"{package}."))
    return found


def complaints() -> list[str]:
    """Return a line for each file that cimports what it never mentions."""
    found = [(path.relative_to(ROOT), unused(path.read_text())) for path in SOURCES]
    return [f"{path}: cimported and not used: {', '.join(names)}" for path, names in found if names]


if __name__ == "__main__":
    sys.exit("\n".join(complaints()) or None)
