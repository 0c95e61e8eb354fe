"""Rows of a table as octets that say themselves what they are, so that a program of another version can read them.

An *image* is the arrays of a table that last (memory.py), as they lie in memory, and a description: where each begins,
how many rows it has, and of each number in a row its name, place, width and byte order. A reader takes by name what it
knows, of whatever width; what it does not know it leaves, and what is new to it has its default. The file that sessions
outlive a process in is an image: for the next start, for an upgrade, and for whoever else is given it.

The description is judged here, to the last octet. What the rows say is for adoption.pyx to judge, as ever: a number
that ours cannot hold is the largest that it can, and fits no session unless it was a count.

Who adds a number to a row gives it a default, if it may be lacking. Who gives one another name or another meaning
counts VERSION up, and says in CONVERTERS what it is made of in each version before that is to be read still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, NamedTuple

import numpy as np
from msgspec import Meta, Struct

from fastmasq.table import memory
from fastmasq.table.masq import MAXIMUM_SESSIONS

VERSION = 1
"""Of what the numbers in rows mean; their names and types are in the description."""


class Source(NamedTuple):
    """The numbers that one of ours is made of, and how: from an array of each, of one length."""

    names: tuple[str, ...]
    make: Callable[..., np.ndarray] = lambda same: same


CONVERTERS: dict[int, dict[str, dict[str, Source]]] = {}
"""What our numbers are made of, by version, array and name, where it is not the number of that name. Versions that are
not here are not read."""

DEFAULTS = {
    "header": {"pool": 0},
    "mappings": {"host": 0},
    "sessions": {
        **dict.fromkeys(("hop", "known", "timer_next", "timer_prev"), 0),  # of one process
        **dict.fromkeys(("path_mtu", "packets"), 0),
        "scale": 0xFF,  # unknown, of both ends
    },
    "streams": {"reserved": 0},
    "edits": {"reserved": 0},
    "followers": {"reserved": 0},
}
"""The numbers that an image may lack, by array, and what they are then."""

LACKING = ("streams", "edits", "followers")
"""The arrays that an image may lack: none of their rows is used then."""

_LARGEST_ROW = 1024  # octets
_FARTHEST = 1 << 40  # octets from the beginning


class Number(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One of a row: its path, such as flow.0.key0, its type as numpy writes it, and where it begins."""

    name: Annotated[str, Meta(max_length=64)]
    type: Annotated[str, Meta(pattern=r"^(\|u1|[<>]u[248])$")]
    at: Annotated[int, Meta(ge=0, lt=_LARGEST_ROW)]

    @property
    def end(self) -> int:
        return self.at + int(self.type[2:])


class Array(Struct, frozen=True):
    """One of an image: where it begins, how many rows it has, the octets of one, and the numbers in them."""

    at: Annotated[int, Meta(ge=0, le=_FARTHEST)]
    rows: Annotated[int, Meta(ge=1, le=MAXIMUM_SESSIONS)]
    size: Annotated[int, Meta(ge=1, le=_LARGEST_ROW)]
    numbers: Annotated[tuple[Number, ...], Meta(max_length=_LARGEST_ROW)]


Description = dict[str, Array]
Read = Callable[[np.ndarray, int], None]
"""Fills octets with those of an image from a place on; what it does not have stays as it is."""


def describe(capacity: int) -> Description:
    """Return what the buffer of a table for so many sessions is (memory.lay_out)."""
    return {
        name: Array(memory.offset_of(name, capacity), shape[0], dtype.itemsize, _NUMBERS[name])
        for name, (dtype, shape) in memory.lasting(capacity).items()
    }


def complaint(version: int, description: Description) -> str | None:
    """Return why nothing of such an image can be read, None if it can be."""
    if version != VERSION and version not in CONVERTERS:
        return "another version of fastmasq has written it"
    for name, ours in _NUMBERS.items():
        if name not in description and name in LACKING:
            continue
        if name not in description:
            return f"another version of fastmasq has written it, without {name}"
        array = description[name]
        theirs = {number.name for number in array.numbers}
        if len(theirs) < len(array.numbers) or any(number.end > array.size for number in array.numbers):
            return "it is damaged"
        for number in ours:
            lacking = set(_source(version, name, number.name).names) - theirs
            if lacking and _default(name, number.name) is None:
                return f"another version of fastmasq has written it, without {min(lacking)} in {name}"
    return None


class Image:
    """An image that there is no `complaint` about, to be read as rows of ours."""

    def __init__(self, version: int, description: Description, read: Read) -> None:
        self._version = version
        self._description = description
        self._read = read

    def count(self, name: str) -> int:
        """Return how many rows an array has, 0 if there is none."""
        return self._description[name].rows if name in self._description else 0

    def rows(self, name: str, first: int, count: int) -> np.ndarray:
        """Return so many rows of an array, from `first` on, as ours; where the image has none they are of zeros."""
        rows = np.zeros(count, _OURS[name])
        array = self._description.get(name)
        if array is None:
            return rows
        there = rows[: max(array.rows - first, 0)]
        if self._version == VERSION and (array.size, array.numbers) == (rows.itemsize, _NUMBERS[name]):
            self._read(there.view("u1"), array.at + first * array.size)
        else:
            self._convert(name, first, there)
        return rows

    def _convert(self, name: str, first: int, rows: np.ndarray) -> None:
        array, ours = self._description[name], rows.view(row_type(_NUMBERS[name], rows.itemsize))
        sources = {number.name: _source(self._version, name, number.name) for number in _NUMBERS[name]}
        read = {one for source in sources.values() for one in source.names}
        theirs = np.zeros(len(rows), row_type((number for number in array.numbers if number.name in read), array.size))
        self._read(theirs.view("u1"), array.at + first * array.size)
        for path, source in sources.items():
            if theirs.dtype.fields.keys() >= set(source.names):
                ours[path] = _held(source.make(*(theirs[each] for each in source.names)), ours.dtype[path])
            else:
                ours[path] = _default(name, path)


def row_type(numbers: Iterable[Number], size: int) -> np.dtype:
    """Return the type of a row in which each of these numbers is a field by itself."""
    fields = list(numbers)
    names, types, places = ([getattr(number, part) for number in fields] for part in ("name", "type", "at"))
    return np.dtype({"names": names, "formats": types, "offsets": places, "itemsize": size})


def _source(version: int, name: str, path: str) -> Source:
    return CONVERTERS.get(version, {}).get(name, {}).get(path) or Source((path,))


def _default(name: str, path: str) -> int | None:
    """Return what a number is where there is none, None if there must be one."""
    parts = [part for part in path.split(".") if not part.isdecimal()]
    return DEFAULTS[name].get(parts[-1])


def _held(numbers: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Return numbers as another type can hold them."""
    if numbers.dtype.itemsize <= kind.itemsize:
        return numbers
    return np.minimum(numbers, numbers.dtype.type(np.iinfo(kind).max))


def _numbers(dtype: np.dtype, path: str = "", at: int = 0) -> Iterator[Number]:
    """Yield the numbers of a row."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        for place in range(int(np.prod(shape))):
            yield from _numbers(base, f"{path}.{place}", at + place * base.itemsize)
    elif dtype.fields is not None:
        for name, (kind, offset) in dtype.fields.items():
            yield from _numbers(kind, f"{path}.{name}" if path else name, at + offset)
    else:
        yield Number(path, dtype.str, at)


_OURS = {name: dtype for name, (dtype, _) in memory.lasting(1).items()}
_NUMBERS = {name: tuple(_numbers(dtype)) for name, dtype in _OURS.items()}
