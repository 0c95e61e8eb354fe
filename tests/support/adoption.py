"""Tables whose rows outlive them: what is left in memory, adopted by another table, and what must be true of that."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from fastmasq.table import memory, rows
from fastmasq.table.adoption import adopt
from fastmasq.table.masq import MasqTable
from fastmasq.wire.numbers import ICMP
from tests.support.harness import PROGRAMS, address
from tests.support.tables import INSIDE, make_table

FREE, HELD_DOWN, MAPPING_OPEN = 0, 2, 1
LOCAL = 4
PROXIES = address(PROGRAMS), 2


def shared(capacity: int) -> mmap.mmap:
    """Return memory for the lasting rows of a table, which a forked process shares."""
    return mmap.mmap(-1, memory.size_of(capacity))


def unshared(capacity: int) -> mmap.mmap:
    """Return such memory that no other process shares: in large pages, a few instead of 3000 at the first look."""
    made = mmap.mmap(-1, memory.size_of(capacity), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without
        made.madvise(mmap.MADV_HUGEPAGE)
    return made


def adopted(left: mmap.mmap, capacity: int, now_ns: int, **settings: object) -> tuple[MasqTable, dict[str, int]]:
    """Return a table that has adopted what a table of the same capacity left in memory, and what was dropped."""
    table = make_table(capacity=capacity, external=None, now_ns=now_ns, **{"secret": None, **settings})
    return table, adopt_all(table, memory.lay_out(capacity, left), now_ns)


def adopt_all(table: MasqTable, former: memory.Memory, now_ns: int) -> dict[str, int]:
    span = memory.EDITS_OF_STREAM
    places = np.flatnonzero(former.streams["key0"]).tolist()
    streams = [(former.streams[place], former.edits[place * span : (place + 1) * span]) for place in places]
    return adopt(table, former.header[0], former.mappings, [former.sessions], now_ns, PROXIES, streams)


def holds(table: MasqTable) -> dict[int, int]:
    """Return the inside address that each external port is held down for, by the row of its mapping."""
    in_use = table.mappings["in_use"]
    taken = np.flatnonzero(in_use)  # few of many
    held = taken[in_use[taken] == HELD_DOWN]
    return dict(zip(held.tolist(), table.mappings["address"][held].tolist(), strict=True))


def assert_consistent(table: MasqTable, externals: tuple[int, ...]) -> None:
    """What a table counts is what its rows say, every session is found, and no two share an external endpoint."""
    found = table.sessions[: table.fresh]
    found = found[found["state"] != FREE]
    counts = table.counts()
    assert counts["active"] == len(found)
    out, back = found["flow"][:, 0], found["flow"][:, 1]
    for flows, direction in ((out, 0), (back, 1)):
        for at, flow in enumerate(flows):
            key0, key1 = int(flow["key0"]), int(flow["key1"])
            ends = (key0 >> 32, key1 >> 32 & 0xFFFF, key0 & 0xFFFFFFFF, key1 & 0xFFFFFFFF)
            hit = table.find(key1 >> 56, key1 >> 48 & 0xFF, *ends)
            assert hit is not None and hit[1] == direction
            assert table.sessions[hit[0]].tobytes() == found[at].tobytes()
    with_mapping = found[found["mapping"] != 0xFFFFFFFF]
    users, sessions = np.unique(with_mapping["mapping"], return_counts=True)
    assert (table.mappings["sessions"][users] == sessions).all()
    in_use = table.mappings["in_use"]
    taken = np.flatnonzero(in_use)  # few of many
    taken = taken[in_use[taken] != HELD_DOWN]
    assert set(taken) == set(users)
    assert counts["mappings"] == np.count_nonzero(in_use[taken] == MAPPING_OPEN)
    for session in with_mapping:
        row, flow = int(session["mapping"]), session["flow"][0]
        assert (row & 0xFFFF, row >> 16) == (flow["sid"], externals.index(flow["saddr"]) * 3 + session["port_class"])
        if in_use[row] == MAPPING_OPEN:
            mapping = table.mappings[row]
            assert (mapping["address"], mapping["id"]) == (flow["key0"] >> 32, flow["key1"] >> 32 & 0xFFFF)
    endpoints = [(row >> 16, *map(int, table.mappings[row][["address", "id"]])) for row in users if in_use[row] == 1]
    assert len(set(endpoints)) == len(endpoints), "an endpoint has one mapping on each address"
    is_of_client = (_side(out) == LOCAL) & (_side(back) == INSIDE)
    holders = np.where(is_of_client, out["key0"] & 0xFFFFFFFF, out["key0"] >> 32)
    hosts, number = np.unique(holders, return_counts=True)
    rows_of_hosts = table.hosts[table.hosts["address"] != 0]
    known = {int(row["address"]): int(row["sessions"]) for row in rows_of_hosts}
    assert known == dict(zip(hosts.tolist(), number.tolist(), strict=True))
    assert counts["icmp"] == sum(int(key1) >> 56 == ICMP for key1 in out["key1"])
    assert (out["hop"] == 0xFFFF).all() and (found["known"] == 0).all()
    assert rows.SESSION.itemsize == found.itemsize


def _side(flows: np.ndarray) -> np.ndarray:
    return flows["key1"] >> 48 & 0xFF


def empty(table: MasqTable) -> None:
    """Close every session: nothing may be left behind, whatever was adopted."""
    for row in np.flatnonzero(table.sessions["state"][: table.fresh]):
        table.close(int(row))
    counts = table.counts()
    assert (counts["active"], counts["mappings"], counts["hosts"]) == (0, 0, 0)
    in_use = table.mappings["in_use"]
    assert set(in_use[in_use != FREE]) <= {HELD_DOWN}
