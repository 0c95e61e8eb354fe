"""How figures and tables look on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 240  # no line is broken where a program reads it

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def make_console() -> Console:
    """Return a console as wide as the terminal; in a pipe, as wide as any table."""
    from rich.console import Console

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def make_table(*columns: str, title: str | None = None) -> Table:
    """Return an empty table; a column whose name begins with > is aligned to the right, for figures."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    return table


def align(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a long table, columns as in `make_table`: rich would take a minute for 100 000 rows."""
    lines = [[column.removeprefix(">") for column in columns], *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    form = "  ".join(
        f"{{:{'>' if name.startswith('>') else '<'}{width}}}" for name, width in zip(columns, widths, strict=True)
    )
    return (form.format(*cells).rstrip() for cells in lines)


def print_json(value: Any) -> None:
    """Print a value as JSON for machines and people."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def span(seconds: float) -> str:
    """Return a time span for people, in its two largest units: 2h3m, 51s, 0s; below zero is zero."""
    rest = max(0, int(seconds))
    parts = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
    return "".join(parts[:2]) or "0s"


def spi(number: int | None) -> str:
    """Return an SPI as eight hexadecimal digits, or "-" for none."""
    return "-" if number is None else f"{number:08x}"
