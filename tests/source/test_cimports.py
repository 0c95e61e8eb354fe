"""What Cython files cimport: names that they use, and of their own folder no file that comes later."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.source.test_layers import PACKAGE, ROOT

SOURCES = sorted(path for folder in (PACKAGE, ROOT / "bench") for path in folder.rglob("*.p[yx][dx]"))

CIMPORT = re.compile(
    r"^[ \t]*from[ \t]+(?P<module>[\w.]+)[ \t]+cimport[ \t]*(?:\((?P<several>[^)]*)\)|(?P<names>[^\n]*))", re.MULTILINE
)
ORDERED = ("path", "table")  # folders whose files stand in an order
ARRAY_SIZE = re.compile(
    r"^ +(?!if |elif |while |return )(?:const )?[\w.]+ \**(?!reserved)\w+(?:\[[^\]]*\])*\[\d+\]", re.MULTILINE
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


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, in order; none without one."""

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            found = walk(other, [*way, module])
            if found:
                return found
        done.add(module)
        return []

    done: set[str] = set()
    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_cimported_name_is_used(path: Path) -> None:
    assert unused(path.read_text()) == []


@pytest.mark.parametrize("folder", ORDERED)
def test_no_file_knows_a_later_one(folder: str) -> None:
    """Without a circle there is an order: each file is a stage that knows those before it."""
    graph: dict[str, set[str]] = {}
    for path in (PACKAGE / folder).glob("*.p[yx][dx]"):
        graph.setdefault(path.stem, set()).update(cimported(path.read_text(), f"fastmasq.{folder}") - {path.stem})
    assert circle(graph) == []


@pytest.mark.parametrize("folder", ORDERED)
def test_arrays_have_their_sizes_by_name(folder: str) -> None:
    files = (PACKAGE / folder).glob("*.pxd")
    assert [(path.name, match[0]) for path in files for match in ARRAY_SIZE.finditer(path.read_text())] == []


# --- the reader itself -------------------------------------------------------------------------------------------


def test_unused_names_are_found() -> None:
    text = (
        "from libc.stdint cimport uint8_t\n"
        "from fastmasq.wire cimport ipv4, tcp  # and udp\n"
        "from fastmasq.wire.octets cimport (\n    load16, load32 as load,\n)\n\n\n"
        'cdef uint8_t octet = load16(ipv4.TTL)  # load\n"""Not tcp."""\n'
    )
    assert unused(text) == ["tcp", "load"]


def test_cimported_modules_are_found() -> None:
    text = (
        "from fastmasq.path cimport links, verdict as v\n"
        "from fastmasq.path.state cimport Path\n"
        "from fastmasq.table cimport keys\n"
    )
    assert cimported(text, "fastmasq.path") == {"links", "verdict", "state"}


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c"]),
    ],
)
def test_circles_are_found(graph: dict[str, set[str]], found: list[str]) -> None:
    assert circle(graph) == found


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("    Link links[16]\n", True),
        ("    uint64_t ours[CLASSES][1024]\n", True),
        ("    const uint8_t *rows[4]\n", True),
        ("    Link links[LINKS]\n", False),
        ("    link = links[16]\n", False),
        ("    if links[16].up:\n", False),
        ("    uint8_t reserved[3]\n", False),
    ],
)
def test_sizes_in_figures_are_found(line: str, wrong: bool) -> None:
    assert (ARRAY_SIZE.search(line) is not None) == wrong
