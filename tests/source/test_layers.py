"""The layers of the program as data, and the imports of every file compared with them.

   11  lab
   10  cli
    9  daemon
    8  migrate   tools   deploy
    7  advice   legacy
    6  offload
    5  kernel   config   observe   control
    4  policy   trackers
    3  path
    2  ring | table
    1  wire   mishaps
    0  errors   units   clock   log_limit   program   files   output   scarcity

A module may import from lower layers and from its own folder, and from nothing else. Commands that need a higher layer
load it by name, when they are run. No module imports itself in a circle, not even for type checkers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastmasq"

LAYERS = (
    ("errors", "units", "clock", "log_limit", "program", "files", "output", "scarcity"),
    ("wire", "mishaps"),
    ("ring", "table"),
    ("path",),
    ("policy", "trackers"),
    ("kernel", "config", "observe", "control"),
    ("offload",),
    ("advice", "legacy"),
    ("migrate", "tools", "deploy"),
    ("daemon",),
    ("cli",),
    ("lab",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

APART = {
    ("policy", "ring"): "policy must be testable with bytes and a number for the time",
    ("trackers", "ring"): "trackers must be testable with bytes and a number for the time",
    ("legacy", "table"): "old syntaxes end in policy objects",
    ("legacy", "path"): "old syntaxes end in policy objects",
    ("legacy", "ring"): "old syntaxes end in policy objects",
    ("legacy", "kernel"): "old syntaxes ask the running forwarder, not the kernel",
}

CLOCK_READERS = ("daemon", "cli", "control", "lab")  # folders that may ask what time it is

SOURCES = sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyx", ".pxd"))


def folder_of(path: Path) -> str:
    """Return the folder (or top-level module) a file belongs to: what LAYERS has names for."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """Return (line, dotted name) of every import and cimport of the package's own modules."""
    text = path.read_text()
    found = cython_imports(text) if path.suffix != ".py" else python_imports(text, path)
    return [(line, name) for line, name in found if name == "fastmasq" or name.startswith("fastmasq.")]


def python_imports(text: str, path: Path) -> list[tuple[int, str]]:
    found = []
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def cython_imports(text: str) -> list[tuple[int, str]]:
    """Read `import` and `cimport` lines; names in parentheses may go over several lines."""
    found = []
    pattern = r"^[ \t]*from[ \t]+([\w.]+)[ \t]+c?import[ \t]*(?:\(([^)]*)\)|([^\n]*))|^[ \t]*c?import[ \t]+([\w., \t]+)"
    for match in re.finditer(pattern, text, re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        module, inside, names, plain = match.groups()
        if plain:
            found += [(line, name.split(" as ")[0].strip()) for name in plain.split(",")]
            continue
        listed = re.sub(r"#[^\n]*", "", inside or names or "").split(",")
        found += [(line, f"{module}.{name.split(' as ')[0].strip()}") for name in listed if name.strip()]
    return found


def complaint(path: Path, line: int, name: str) -> str | None:
    """Return what is wrong with a file importing a module, or None."""
    where = f"{path.relative_to(ROOT)}:{line}: {name}"
    here, parts = folder_of(path), name.split(".")
    there = parts[1] if len(parts) > 1 else "__init__"
    if there in ("__init__", "__version__") or here == there:
        return None
    if there not in LAYER:
        return f"{where}: {there} is in no layer"
    if here == "__main__":
        return None if there == "cli" else f"{where}: __main__ starts the command line, nothing else"
    if LAYER[there] >= LAYER[here]:
        return f"{where}: {here} (layer {LAYER[here]}) imports {there} (layer {LAYER[there]})"
    if (here, there) in APART:
        return f"{where}: {APART[here, there]}"
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    complaints = [complaint(path, line, name) for line, name in imported_modules(path)]
    assert not [text for text in complaints if text]


def module_of(path: Path) -> str:
    """Return the dotted name of the module that a file is, or is a part of."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_by_module() -> dict[str, set[str]]:
    """Return which modules of the package each one imports anywhere, also for type checkers alone."""
    found: dict[str, set[str]] = {module_of(path): set() for path in SOURCES}
    for path in SOURCES:
        for _, name in imported_modules(path):
            module = name
            while module not in found:
                module = module.rpartition(".")[0]
            found[module_of(path)].add(module)
    return {module: names - {module, "fastmasq"} for module, names in found.items()}


def circles(imports: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """Return the largest sets of modules each of which imports all others of its set, at least in some turns."""
    reached = {module: reachable(module, imports) for module in imports}
    found = [{other for other in reached[module] if module in reached[other]} for module in imports]
    return [circle for number, circle in enumerate(found) if circle and circle not in found[:number]]


def reachable(module: str, imports: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the modules that one imports in one or more turns."""
    found: set[str] = set()
    waiting = list(imports[module])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imports[name]
    return found


def test_no_module_imports_itself_in_a_circle() -> None:
    assert circles(imports_by_module()) == []


def test_every_folder_has_a_layer() -> None:
    folders = {folder_of(path) for path in SOURCES} - {"__init__", "__main__"}
    assert folders <= set(LAYER)


def test_the_package_itself_imports_nothing() -> None:
    assert imported_modules(PACKAGE / "__init__.py") == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_time_is_an_argument(path: Path) -> None:
    """Only the outermost layers read a clock; everything else is told the time."""
    if folder_of(path) in CLOCK_READERS or path.name == "clock.py":
        return
    calls = r"\btime\.(?:time|monotonic|perf_counter)(?:_ns)?\(|\bclock_gettime\(|\bdatetime\.now\("
    read = re.findall(calls, path.read_text())
    imported = [name for _, name in imported_modules(path) if name.startswith("fastmasq.clock")]
    assert not read and not imported


# --- the reader itself -------------------------------------------------------------------------------------------


def test_cython_imports_are_found() -> None:
    text = (
        "from libc.stdint cimport uint8_t\n"
        "from fastmasq.wire.octets cimport (\n    load16, store16,  # both\n    load32 as load,\n)\n"
        "cimport fastmasq.table.masq\n"
        "import fastmasq.errors as errors, numpy\n"
    )
    assert cython_imports(text) == [
        (1, "libc.stdint.uint8_t"),
        (2, "fastmasq.wire.octets.load16"),
        (2, "fastmasq.wire.octets.store16"),
        (2, "fastmasq.wire.octets.load32"),
        (6, "fastmasq.table.masq"),
        (7, "fastmasq.errors"),
        (7, "numpy"),
    ]


def test_circles_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a", "d"}, "g": set()}
    assert circles(imports) == [{"a", "b", "c"}, {"d", "e"}]


@pytest.mark.parametrize(
    ("file", "name", "wrong"),
    [
        ("wire/x.pxd", "fastmasq.wire.octets.load16", False),
        ("table/x.pyx", "fastmasq.wire.octets.load16", False),
        ("table/x.pyx", "fastmasq.ring.ring.Frame", True),
        ("wire/x.pxd", "fastmasq.table.masq.Table", True),
        ("kernel/x.py", "fastmasq.config.load", True),
        ("policy/x.py", "fastmasq.ring.ring", True),
        ("daemon/x.py", "fastmasq.__version__", False),
        ("errors.py", "fastmasq.units.parse_rate", True),
        ("__main__.py", "fastmasq.cli.main.main", False),
        ("__main__.py", "fastmasq.daemon.engine", True),
    ],
)
def test_complaints(file: str, name: str, wrong: bool) -> None:
    assert (complaint(PACKAGE / file, 1, name) is not None) == wrong
