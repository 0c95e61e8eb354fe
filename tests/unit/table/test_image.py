"""What another version of a table has left: read by name, whatever its layout, and adopted like any; or not at all."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fastmasq.table import image, memory, rows
from fastmasq.table.image import Array, Description, Number, Source
from tests.support.adoption import adopted, assert_consistent, empty, shared
from tests.support.images import Change, adopt_image, read, rewritten
from tests.support.tables import (
    EXTERNAL,
    ICMP,
    OTHER_HOST,
    SECOND,
    TCP,
    UDP,
    allowed,
    external_port,
    make_table,
    opened,
)

CAPACITY = 64
NOW = 1000 * SECOND
PORTS = range(2000, 2003)
STATES = {
    1: "free syn-sent syn-received established fin-out fin-in closing transitory resumed active active unanswered "
    "unanswered active"
}
FIRST = {  # what version 1 has in its rows since it was first written
    "header": "secret.0 secret.1 external.0 external.1 external.2 external.3 current rows",
    "mappings": "address sessions id in_use",
    "sessions": "expires mapping state flags port_class "
    + " ".join(f"tcp.{end}.{name}" for end in (0, 1) for name in ("end", "ack", "edge"))
    + "".join(
        f" flow.{way}.{name}"
        for way in (0, 1)
        for name in ("key0", "key1", "saddr", "daddr", "sid", "did", "address_delta", "transport_delta")
    ),
}


def left() -> Any:
    """Return what a table with sessions of all classes and a port that is held down has left."""
    buffer = shared(CAPACITY)
    table = make_table(PORTS, capacity=CAPACITY, buffer=buffer, now_ns=NOW)
    table.close(opened(table, UDP, 2001, now_ns=NOW))
    for protocol, port in ((TCP, 2000), (UDP, 2000), (ICMP, 2002)):
        opened(table, protocol, port, now_ns=NOW)
    sessions = memory.lay_out(CAPACITY, buffer).sessions[: table.fresh]
    sessions["flow"]["packets"], sessions["flow"]["path_mtu"], sessions["scale"] = 70_000, 1400, 0x79
    sessions["tcp"]["end"], sessions["tcp"]["ack"], sessions["tcp"]["edge"] = 1, 2, 0xFFFFFFFF
    memory.lay_out(CAPACITY, buffer).header["rows"] = table.fresh
    return buffer


LEFT = left()


def as_it_is(number: Number) -> Number:
    return number


def lacking(*names: str) -> Change:
    return lambda number: None if number.name.split(".")[-1] in names else number


def typed(kind: str) -> Change:
    return lambda number: replace(number, type=kind)


def short_counts(number: Number) -> Number:
    return replace(number, type="<u2") if "packets" in number.name else number


def other_order(number: Number) -> Number:
    return replace(number, type=number.type.replace("<", ">"))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (as_it_is, {}),
        (lacking("packets"), {"packets": 0}),
        (lacking("path_mtu", "hop", "known", "timer_next", "timer_prev", "host"), {"path_mtu": 0}),
        (lacking("scale"), {"scale": 0xFF}),
        (
            lambda number: replace(number, type="<u2") if "packets" in number.name else number,
            {"packets": 70_000 % 65536},
        ),
        (typed("<u8"), {}),
        (typed(">u8"), {}),
        (other_order, {}),
    ],
)
def test_another_layout_is_read_by_name(change: Change, differs: dict[str, int]) -> None:
    description, octets = rewritten(CAPACITY, LEFT, change)
    assert image.complaint(image.VERSION, description) is None
    table = make_table(capacity=CAPACITY, external=None, now_ns=NOW, secret=None)
    assert adopt_image(table, read(image.VERSION, description, octets), NOW) == {}
    same, dropped = adopted(LEFT, CAPACITY, NOW)
    assert dropped == {} and table.counts()["adopted"] == 3
    for name in ("packets", "path_mtu"):
        if name in differs:
            same.sessions["flow"][name][:3] = differs[name]
    same.sessions["scale"][:3] = differs.get("scale", 0x79)
    assert table.sessions[:4].tobytes() == same.sessions[:4].tobytes()
    assert table.mappings.tobytes() == same.mappings.tobytes()
    assert_consistent(table, (EXTERNAL,))
    table.set_external(EXTERNAL, allowed(PORTS))
    assert external_port(table, opened(table, UDP, 2001, now_ns=NOW)) == 2001, "held down for this host"
    assert external_port(table, opened(table, UDP, 2001, host=OTHER_HOST, now_ns=NOW)) == 2002


def test_a_number_that_is_too_large_for_ours_is_the_largest() -> None:
    """A count is no less true by it; anything else fits no session."""
    description, octets = rewritten(CAPACITY, LEFT, typed("<u8"))
    wide = bytearray(octets)
    array = description["sessions"]

    def put(row: int, name: str) -> None:
        [number] = [each for each in array.numbers if each.name == name]
        at = array.at + row * array.size + number.at
        wide[at : at + 8] = (1 << 40).to_bytes(8, "little")

    put(0, "flow.0.packets")
    put(1, "flow.1.did")
    table = make_table(capacity=CAPACITY, external=None, now_ns=NOW, secret=None)
    assert adopt_image(table, read(image.VERSION, description, bytes(wide)), NOW) == {"torn": 1}
    assert table.sessions["flow"]["packets"][0].tolist() == [0xFFFFFFFF, 70_000]


def test_another_version_is_read_by_what_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that had another name for the source of a flow, and other numbers for states."""

    def change(number: Number) -> Number:
        return replace(number, name=number.name.replace("saddr", "source"))

    description, octets = rewritten(CAPACITY, LEFT, change)
    assert image.complaint(0, description) == "another version of fastmasq has written it"
    sources = {f"flow.{way}.saddr": Source((f"flow.{way}.source",)) for way in (0, 1)}
    backwards = Source(("state",), lambda state: np.where(state, 14 - np.minimum(state, 14), 0))
    monkeypatch.setitem(image.CONVERTERS, 0, {"sessions": {**sources, "state": backwards}})
    assert image.complaint(0, description) is None
    found = read(0, description, octets).rows("sessions", 0, 3)
    was = memory.lay_out(CAPACITY, LEFT).sessions[:3]
    assert found["flow"].tobytes() == was["flow"].tobytes()
    assert found["state"].tolist() == [14 - state for state in was["state"].tolist()]
    lacks, _ = rewritten(CAPACITY, LEFT, as_it_is)
    assert image.complaint(0, lacks) == "another version of fastmasq has written it, without flow.0.source in sessions"


def test_what_version_1_first_wrote_is_read_and_means_the_same() -> None:
    """Whoever has changed rows so that this fails gives a number a default, or counts VERSION up: see image.py."""
    numbers = {name: text.split() for name, text in FIRST.items()}
    description = {
        name: Array(0, 1, 1024, tuple(Number(each, "<u8", 8 * at) for at, each in enumerate(names)))
        for name, names in numbers.items()
    }
    assert image.complaint(1, description) is None
    assert " ".join(rows.STATES).startswith(STATES[image.VERSION]), "more may follow"
    assert (rows.MAPPING_FORWARD, rows.MAPPING_ORPHAN, rows.MAPPING_BY_SESSION, rows.CLASS_NONE) == (3, 4, 5, 3)


def test_the_description_has_room_in_the_first_page() -> None:
    assert len(msgspec.json.encode(image.describe(1 << 26))) < 3000


# -- what can be no description ----------------------------------------------------------------------------------------

DESCRIPTION, OCTETS = rewritten(CAPACITY, LEFT, other_order)
NAMES = sorted({number.name for array in DESCRIPTION.values() for number in array.numbers})
PLACES = st.integers(0, 1023)
TYPES = st.sampled_from(["|u1", "<u2", ">u2", "<u4", ">u4", "<u8", ">u8"])
NUMBERS = st.builds(Number, st.sampled_from([*NAMES, "", "another"]), TYPES, PLACES)
FARTHEST = st.one_of(st.integers(0, len(OCTETS) + 5000), st.just(1 << 40))
CHANGES = st.one_of(
    st.fixed_dictionaries({"at": FARTHEST}),
    st.fixed_dictionaries({"rows": st.one_of(st.integers(1, 200), st.just(1 << 26))}),
    st.fixed_dictionaries({"size": st.integers(1, 1024)}),
    st.fixed_dictionaries({"numbers": st.tuples(st.integers(0, 50), NUMBERS)}),
    st.fixed_dictionaries({"types": st.tuples(st.integers(0, 50), TYPES)}),
    st.fixed_dictionaries({"places": st.tuples(st.integers(0, 50), st.integers(0, 200))}),
)


def changed(array: Array, change: dict[str, Any]) -> Array:
    """Return an array with another beginning or size, a number more or in the place of one, or one elsewhere."""
    numbers = list(array.numbers)
    for kind, value in change.items():
        if kind not in ("numbers", "types", "places"):
            return replace(array, **change)
        at, new = value[0] % (len(numbers) + (kind == "numbers")), value[1]
        if kind == "numbers":
            numbers[at : at + 1] = [new]
        else:
            numbers[at] = replace(numbers[at], **{kind.removesuffix("s").replace("place", "at"): new})
    return replace(array, numbers=tuple(numbers))


@given(st.lists(st.tuples(st.sampled_from([*DESCRIPTION]), CHANGES), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_of_any_description_only_what_is_consistent_is_adopted(changes: list[tuple[str, dict[str, Any]]]) -> None:
    description = dict(DESCRIPTION)
    for name, change in changes:
        description[name] = changed(description[name], change)
    assert msgspec.json.decode(msgspec.json.encode(description), type=Description) == description
    if image.complaint(image.VERSION, description) is not None:
        return
    table = make_table(capacity=CAPACITY, external=None, now_ns=NOW, secret=None)
    found = read(image.VERSION, description, OCTETS)
    adopt_image(table, found, NOW)
    assert_consistent(table, tuple(int(one) for one in found.rows("header", 0, 1)["external"][0]))
    table.set_external(EXTERNAL, allowed(PORTS))
    empty(table)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)), PLACES)
def test_what_is_no_description_at_all(value: Any, where: int) -> None:
    """Whatever is in the place of something: it is not of the type that a description is, or is judged."""
    plain = json.loads(msgspec.json.encode(DESCRIPTION))
    array = plain["sessions"]
    holders = [
        (plain, "sessions"),
        *((array, key) for key in array),
        *((each, at) for each in array["numbers"] for at in range(3)),
    ]
    holder, key = holders[where % len(holders)]
    holder[key] = value
    try:
        description = msgspec.json.decode(json.dumps(plain), type=Description)
    except msgspec.DecodeError:
        return
    if image.complaint(image.VERSION, description) is None:
        read(image.VERSION, description, OCTETS).rows("sessions", 0, CAPACITY)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("sessions", None, "another version of fastmasq has written it, without sessions"),
        ("sessions", {"size": 40}, "it is damaged"),
        ("mappings", {"numbers": DESCRIPTION["mappings"].numbers * 2}, "it is damaged"),
        ("mappings", {"numbers": ()}, "another version of fastmasq has written it, without address in mappings"),
        ("header", {"numbers": DESCRIPTION["header"].numbers[1:]}, "without rows in header"),
    ],
)
def test_what_is_wrong_with_a_description(name: str, array: dict[str, Any] | None, words: str) -> None:
    description = {**DESCRIPTION, name: replace(DESCRIPTION[name], **(array or {}))}
    if array is None:
        del description[name]
    assert words in (image.complaint(image.VERSION, description) or "")
