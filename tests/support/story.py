"""Packet-case files: reading one, and playing it against a translator.

A case file is a story. Its first paragraph says what it is about. Then rows:

    settings: filtering=endpoint-independent ports=1024-1031
    0.0 in  inside   udp 10.0.0.2:4000 > 199.0.0.1:53 len=8                        | opens_a_mapping
        out outside  udp 200.200.200.200:4000 > 199.0.0.1:53 len=8 ttl=63          | port_kept
    2.5 in  inside   udp 10.0.0.2:4000 > 199.0.0.1:53 ttl=1                        | too_old
        reply inside icmp 10.0.0.1 > 10.0.0.2 time-exceeded/0 cut=28 quote={...}   | from_the_near_side
        drop ttl_exceeded
    9.0 in  outside  tcp 199.0.0.9:1 > 200.200.200.200:22 S                        | for_the_host
        deliver                                                                    | the_kernel_decides

Every `in` row is one packet put into a link, at a simulated time in seconds (that of the row before when left out). The
rows below it are everything it causes, in order: `out` a packet leaving on a link, compared byte for byte; `reply` an
ICMP error of the gateway's own (its TTL, type of service, identification and DF are free); `drop` a drop counter that
moves by one; `deliver` nothing at all: the packet is left to the host. The last column says what the row shows.

A variable ($name) in an `out` row takes the value seen there; `where` tests it. `sessions N` counts the sessions open.
Packets are written as tests/support/notation.py says; `#` starts a comment line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from tests.support.model.state import INSIDE, OUTSIDE, Settings
from tests.support.model.subjects import Seen, Subject, answer_difference
from tests.support.notation import Variables, bind, read_packet, show
from tests.support.packets import decode

_ROW = re.compile(r"(?:(?P<time>\d+(?:\.\d+)?)\s+)?(?P<verb>in|out|reply|drop|deliver|where|sessions)\b\s*(?P<rest>.*)")


class StoryError(ValueError):
    """A case file that cannot be read; str() is file, line and what is wrong."""


class Mismatch(AssertionError):
    """A row did not come true; str() is file, line, the row, and what was seen."""


@dataclass(frozen=True)
class Row:
    number: int  # line in the file
    verb: str
    text: str  # without time, verb, link and the last column
    link: str = ""
    time: float = 0.0
    shows: str = ""


@dataclass
class Event:
    """One packet in, and all it should cause."""

    cause: Row | None
    effects: list[Row] = field(default_factory=list)


@dataclass
class Story:
    path: Path
    intent: str
    settings: Settings
    events: list[Event]


# --- reading -------------------------------------------------------------------------------------------------------


def read_story(path: Path) -> Story:
    intent, rows = _split(path)
    story = Story(path, intent, Settings(), [])
    time = 0.0
    for number, line in rows:
        if line.startswith("settings:"):
            story.settings = _read_settings(line.removeprefix("settings:"), story.settings, f"{path.name}:{number}")
            continue
        row = _read_row(line, number, time, path)
        if row.time < time:
            raise StoryError(f"{path.name}:{number}: time runs backwards")
        time = row.time
        if row.verb == "in":
            story.events.append(Event(row))
        elif not story.events:
            raise StoryError(f"{path.name}:{number}: {row.verb!r} before the first 'in'")
        else:
            story.events[-1].effects.append(row)
    for event in story.events:
        _check_effects(event, path)
    return story


def _split(path: Path) -> tuple[str, list[tuple[int, str]]]:
    """Return the intent, and the numbered rows below it."""
    lines = path.read_text().splitlines()
    end = next((at for at, line in enumerate(lines) if not line.strip()), len(lines))
    intent = " ".join(line.strip() for line in lines[:end])
    if not intent.endswith("."):
        raise StoryError(f"{path.name}:1: the first paragraph, the intent, must be a sentence")
    rows = [(at + 1, line.strip()) for at, line in enumerate(lines) if at > end]
    return intent, [(number, line) for number, line in rows if line and not line.startswith("#")]


def _read_row(line: str, number: int, time: float, path: Path) -> Row:
    body, bar, shows = line.rpartition("|")
    if not bar:
        body, shows = line, ""
    match = _ROW.fullmatch(body.strip())
    if not match:
        raise StoryError(f"{path.name}:{number}: not a row: {line!r}")
    verb, rest, link = match["verb"], match["rest"].strip(), ""
    if verb in ("in", "out", "reply"):
        link, _, rest = rest.partition(" ")
        if link not in (INSIDE, OUTSIDE):
            raise StoryError(f"{path.name}:{number}: {link!r} is neither inside nor outside")
    if verb == "in" and not re.fullmatch(r"\w+", shows.strip()):
        raise StoryError(f"{path.name}:{number}: the last column of an 'in' row says in one word what it shows")
    return Row(number, verb, rest.strip(), link, float(match["time"] or time), shows.strip())


def _check_effects(event: Event, path: Path) -> None:
    verbs = [row.verb for row in event.effects]
    if not set(verbs) & {"out", "reply", "drop", "deliver"}:
        raise StoryError(f"{path.name}:{event.cause.number}: what does it cause? out, reply, drop or deliver")
    if "deliver" in verbs and set(verbs) & {"out", "reply", "drop"}:
        raise StoryError(f"{path.name}:{event.cause.number}: delivered to the host, and something else as well")


def _read_settings(text: str, settings: Settings, where: str) -> Settings:
    known = {f.name: f.type for f in fields(Settings)}
    for word in text.split():
        name, _, value = word.partition("=")
        if name not in known:
            raise StoryError(f"{where}: no setting {name!r}")
        settings = replace(settings, **{name: _setting(name, value)})
    return settings


def _setting(name: str, value: str) -> object:
    if name in ("ports", "identifiers"):
        ranges = [part.partition("-") for part in value.split(",")]
        return frozenset(port for first, _, last in ranges for port in range(int(first), int(last or first) + 1))
    return int(value) if value.isdigit() else value


# --- playing -------------------------------------------------------------------------------------------------------


def play(story: Story, subject: Subject) -> None:
    """Put the story's packets into the subject; raises Mismatch at the first row that does not come true."""
    variables: Variables = {}
    now = 0.0
    for event in story.events:
        row = event.cause
        subject.advance(row.time - now)
        now = row.time
        try:
            seen = subject.send(row.link, read_packet(row.text, variables))
        except ValueError as error:
            raise StoryError(f"{story.path.name}:{row.number}: {error}") from error
        wrong = _effects_difference(event, seen, subject, variables)
        if wrong:
            number, what = wrong
            raise Mismatch(f"{story.path.name}:{number}: {what}\n  the packet in was {row.link}: {row.text}")


def _effects_difference(event: Event, seen: Seen, subject: Subject, variables: Variables) -> tuple[int, str] | None:
    """Return the line that did not come true, and why."""
    out = list(seen.out)
    drops = dict(seen.drops)
    for row in event.effects:
        if row.verb in ("out", "reply"):
            if not out:
                return row.number, f"expected {row.link}: {row.text}\n  but saw {seen}"
            wrong = _packet_difference(row, *out.pop(0), variables)
        elif row.verb == "drop":
            wrong = None if drops.pop(row.text, 0) == 1 else f"expected drop {row.text}, but saw {seen}"
        elif row.verb == "where":
            wrong = None if eval(row.text, {"__builtins__": {}}, dict(variables)) else f"not true: {variables}"
        elif row.verb == "sessions":
            count = len(subject.sessions())
            wrong = None if count == int(row.text) else f"expected {row.text} sessions, but there are {count}"
        else:
            wrong = None
        if wrong:
            return row.number, wrong
    if out or drops:
        return event.cause.number, f"not expected: {Seen(out, drops)}"
    return None


def _packet_difference(row: Row, link: str, packet: bytes, variables: Variables) -> str | None:
    if link != row.link:
        return f"expected on the {row.link}, but on the {link}: {show(packet)}"
    bind(row.text, packet, variables)
    expected = read_packet(row.text, variables)
    if row.verb == "reply":
        return answer_difference(expected, packet)
    if packet == expected:
        return None
    same = "" if show(packet) != show(expected) else f"\n  octets   {expected.hex()}\n  but      {packet.hex()}"
    decode(packet)
    return f"expected {show(expected)}\n  but      {show(packet)}{same}"
