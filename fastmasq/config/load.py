"""Reads fastmasq.toml into Settings; every mistake is reported with file, line and a suggestion."""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fastmasq import files
from fastmasq.config.lines import Place, find_lines
from fastmasq.config.lists import read_forwards, read_redirects
from fastmasq.config.schema import SHARE, Compat, Settings, defaults, derive
from fastmasq.config.values import Bounds, Duration, Floor, in_toml
from fastmasq.errors import ConfigurationError

SAMPLE = Path(__file__).with_name("sample.toml")
LARGEST = 1 << 20  # octets of a configuration
MOST_MISTAKES = 100  # in a file: it is another one that was meant
LONGEST = 400  # characters of a remark
DEEPEST = 32  # names in a key: the time that TOML takes grows with their square

_WANTED = {int: "a whole number", bool: "true or false", str: "text in quotes"}
_TOML_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True)
class Loaded:
    """Settings, and what is allowed but unwise about them: lines `FILE:LINE: what; suggestion`.

    places: FILE:LINE of each forward and redirect, by its spelling.
    """

    settings: Settings
    warnings: tuple[str, ...]
    places: Mapping[str, str] = field(default_factory=dict)


def load(path: str | Path) -> Loaded:
    """Read the file at `path`. Raises ConfigurationError whose text has one line for each mistake."""
    try:
        content = files.read(path, LARGEST)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}; name a configuration with -c FILE "
            "(`fastmasq check --sample` prints one to start from)"
        ) from None
    try:
        text = content.decode("utf-8-sig")  # some editors put a mark before the text
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{line}: not UTF-8; save the file as UTF-8 text") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> Loaded:
    """Read a configuration; `name` stands for the file in messages. Raises ConfigurationError as `load` does."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.partition("=")[0].count(".") > DEEPEST and _names_key(line):
            raise ConfigurationError(f"{name}:{number}: a key of more than {DEEPEST} names; no key has so many")
    try:
        table = tomllib.loads(text)
        reading = _Reading(name, find_lines(text))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(_syntax_mistake(text, name, error)) from None
    try:
        settings = reading.read(table)
    except _TooManyError:
        more = f"{name}: more than {MOST_MISTAKES} mistakes; the rest was not looked at, is this the right file?"
        raise ConfigurationError("\n".join([*reading.lines(reading.mistakes), more])) from None
    if reading.mistakes:
        raise ConfigurationError("\n".join(reading.lines(reading.mistakes)))
    return Loaded(settings, tuple(reading.lines(reading.warnings)), reading.places)


def _names_key(line: str) -> bool:
    """Whether a line is a header or begins with a key, and does not go on with a list."""
    first = line.lstrip()[:1]
    return first.isalnum() or first in ("[", "_", "-") or (first in ("'", '"') and "=" in line)


def _shortened(text: str) -> str:
    """Return a remark that may quote a very long word, with its beginning and its remedy."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


class _TooManyError(Exception):
    """There are MOST_MISTAKES."""


def _syntax_mistake(text: str, name: str, error: Exception) -> str:
    message = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "nested too deep, or a number too long"
    position = _TOML_POSITION.search(message)
    line = position[1] if position and position[1] else text.rstrip().count("\n") + 1
    return f"{name}:{line}: not TOML: {_TOML_POSITION.sub('', message)}; the rest of the file was not read"


class _Reading:
    """One pass over one file: lays what is written over the defaults; collects mistakes and warnings."""

    def __init__(self, name: str, line_of: Mapping[Place, int]) -> None:
        self.name = name
        self.line_of = line_of
        self.mistakes: list[tuple[Place, str]] = []
        self.warnings: list[tuple[Place, str]] = []
        self.places: dict[str, str] = {}  # of forwards and redirects, see `Loaded`
        self.written: set[tuple[str, ...]] = set()  # the paths of all known keys in the file, right or wrong

    def blame(self, place: Place, text: str) -> None:
        """Note a mistake. Raises _TooManyError."""
        if len(self.mistakes) == MOST_MISTAKES:
            raise _TooManyError
        self.mistakes.append((place, _shortened(text)))

    def lines(self, remarks: list[tuple[Place, str]]) -> list[str]:
        """Return remarks as they are shown, in the order of the file."""
        numbered = sorted((self.line_of.get(place, 1), text) for place, text in remarks)
        return [f"{self.name}:{line}: {text}" for line, text in numbered]

    def read(self, table: dict[str, Any]) -> Settings:
        """Return the settings; worthless when there are mistakes."""
        compat = table.get("compat")
        base = defaults(compat) if compat in get_args(Compat) else defaults()
        lists = {"forward": read_forwards, "redirect": read_redirects}
        sections = {key: value for key, value in table.items() if key not in lists}
        written = self._overlay(base, sections, ())
        settings = derive(written, self.written)
        for key in lists.keys() & table.keys():
            found = lists[key](table[key], self.blame)
            settings = replace(settings, **{key: tuple(found)})
            self.places |= {str(one): f"{self.name}:{self.line_of.get(place, 1)}" for one, place in found.items()}
        self._require_interfaces(table)
        self._check_relations(settings)
        return settings

    def _overlay(self, base: Struct, table: dict[str, Any], place: tuple[str, ...]) -> Any:
        """Return `base` with what `table` says; what is wrong there becomes a mistake and keeps its default."""
        hints = get_type_hints(type(base), include_extras=True)
        values = {}
        for key, written in table.items():
            here = (*place, key)
            if key not in hints:
                self.blame(here, _unknown_key(key, place, hints))
                continue
            self.written.add(here)
            try:
                if not isinstance(getattr(base, key), Struct):
                    values[key] = _convert(written, hints[key], getattr(base, key))
                    self._advise(here, written, values[key], hints[key])
                elif isinstance(written, dict):
                    values[key] = self._overlay(getattr(base, key), written, here)
                else:
                    raise ValueError(f"is a section, not a key; write [{_dotted(here)}]")
            except ValueError as error:
                self.blame(here, f"{_dotted(here)}: {error}")
        return replace(base, **values)

    def _advise(self, here: Place, written: Any, value: Any, hint: Any) -> None:
        for floor in _annotations(hint, Floor):
            if value < Duration.read(floor.least):
                self.warnings.append(
                    (
                        here,
                        f"{_dotted(here)}: {in_toml(written)} is less than the {floor.least} of {floor.source}, "
                        f"live sessions may be cut; use {floor.least} or more",
                    )
                )

    def _require_interfaces(self, table: dict[str, Any]) -> None:
        if not isinstance(table.get("interfaces", {}), dict):
            return
        for key, example in (("inside", '["eth0"]'), ("outside", '"eth1"')):
            if ("interfaces", key) not in self.written:
                self.blame(("interfaces",), f"interfaces.{key}: missing; write {key} = {example} under [interfaces]")

    def _check_relations(self, settings: Settings) -> None:
        """Compare keys with each other; a wrong key has its default here and is not blamed twice."""
        inside, outside = settings.interfaces.inside, settings.interfaces.outside
        limits, ports = settings.limits, settings.masquerade.ports
        if outside in inside:
            self.blame(
                ("interfaces", "outside"),
                f"interfaces.outside: {in_toml(outside)} is named inside, too; a link has one side",
            )
        if limits.sessions_per_host > limits.sessions:
            self.blame(
                ("limits", "sessions_per_host"),
                f"limits.sessions_per_host: {limits.sessions_per_host} is more than limits.sessions = "
                f"{limits.sessions}; use at most {limits.sessions}",
            )
        if ports and limits.ports_per_host >= ports.count and ("limits", "ports_per_host") in self.written:
            self.warnings.append(
                (
                    ("limits", "ports_per_host"),
                    f"limits.ports_per_host: one host may take all {ports.count} ports of {ports}; "
                    f"use fewer, by default {max(1, ports.count // SHARE)}",
                )
            )


def _convert(written: Any, hint: Any, default: Any) -> Any:
    """Return a value of the type `hint`. Raises ValueError with what is wrong and a suggestion."""
    if get_origin(hint) is Literal:
        return _choose(written, get_args(hint))
    kind = get_args(hint)[0] if _annotations(hint, object) else hint
    try:
        value = msgspec.convert(written, kind, dec_hook=lambda kind, written: kind.read(written))
    except msgspec.ValidationError as error:
        if kind in _WANTED:
            raise ValueError(
                f"{in_toml(written)} is not {_WANTED[kind]}; write for example {in_toml(default)}"
            ) from None
        raise ValueError(str(error)) from None
    for bounds in _annotations(hint, Bounds):
        least, most = (kind.read(bound) if isinstance(bound, str) else bound for bound in (bounds.least, bounds.most))
        if not least <= value <= most:
            raise ValueError(f"{in_toml(written)} is out of bounds; use {bounds.least} to {bounds.most}")
    return value


def _choose(written: Any, choices: tuple[str, ...]) -> str:
    if written in choices:
        return str(written)
    listed = " or ".join(in_toml(choice) for choice in choices)
    near = difflib.get_close_matches(str(written), choices, n=1)
    raise ValueError(
        f"{in_toml(written)} is not {listed}; did you mean {in_toml(near[0])}?"
        if near
        else f"{in_toml(written)} is not known; use {listed}"
    )


def _unknown_key(key: str, place: tuple[str, ...], known: Mapping[str, Any]) -> str:
    """Return what is wrong with a key that is not in the schema, with the likeliest remedy."""
    what = f"{_dotted((*place, key))}: unknown key"
    elsewhere = _elsewhere()
    if key in elsewhere:
        section = _dotted(elsewhere[key])
        return f"{what}; {key} belongs {f'under [{section}]' if section else 'at the top of the file'}"
    if near := difflib.get_close_matches(key, known, n=1):
        return f"{what}; did you mean {near[0]}?"
    if near := difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.75):
        return f"{what}; did you mean {_dotted((*elsewhere[near[0]], near[0]))}?"
    return f"{what}; the keys here are {', '.join(known)}"


@functools.cache
def _elsewhere() -> dict[str, tuple[str, ...]]:
    return dict(_all_keys(Settings))


def _all_keys(section: type[Struct], place: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each key of the schema with the section it belongs to; sections within sections are keys, too."""
    for key, hint in get_type_hints(section, include_extras=True).items():
        yield key, place
        if isinstance(hint, type) and issubclass(hint, Struct):
            yield from _all_keys(hint, (*place, key))


def _annotations(hint: Any, kind: type) -> list[Any]:
    return [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, kind)]


def _dotted(place: Place) -> str:
    return ".".join(key if re.fullmatch(r"[\w-]+", key, re.ASCII) else in_toml(key) for key in map(str, place))
