"""A table that leaves small indexes for larger ones: nothing that it knows is lost, at a border, above or below."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Iterable

import numpy as np
import pytest

from fastmasq.table.rows import YOUNG
from tests.support.tables import (
    CLASS,
    EXTERNAL,
    HOST,
    INSIDE,
    NEW_EXTERNAL,
    OUTSIDE,
    REMOTE,
    TICK,
    UDP,
    allowed,
    external_port,
    make_table,
    opened,
    outbound_key,
)

HOSTS = 32
PORTS = range(1025, 1281)
REMOTES = 9
SESSIONS = HOSTS * len(PORTS) * REMOTES  # 73 728, 8192 mappings


def every(number: int) -> tuple[int, int, int]:
    """Return (host, port, remote) of a session, by turns from another host."""
    number, host = divmod(number, HOSTS)
    remote, port = divmod(number, len(PORTS))
    return HOST + host, PORTS[port], REMOTE + remote


def fill(table, sessions: range) -> list[int]:
    """Open these sessions; return their rows."""
    rows = []
    for number in sessions:
        host, port, remote = every(number)
        rows.append(opened(table, UDP, port, host=host, remote=remote))
    return rows


@pytest.fixture
def table():
    return make_table(capacity=100_000)


def assert_known(table, numbers: range, rows: list[int]) -> None:
    """Both flows of each session are found, and its remote may send to its mapping."""
    for number, row in zip(numbers, rows, strict=True):
        host, port, remote = every(number)
        external = external_port(table, row)
        assert table.find(UDP, INSIDE, host, port, remote, 80) == (row, 0)
        assert table.find(UDP, OUTSIDE, remote, 80, EXTERNAL, external) == (row, 1)
        assert table.admits(EXTERNAL, CLASS[UDP], external, remote)


def test_a_growing_table_knows_all_that_the_young_one_knew(table) -> None:
    numbers = range(SESSIONS)
    rows = fill(table, numbers)
    assert_known(table, numbers, rows)
    # an endpoint of the time before has its mapping still, and one permit is not two
    last = opened(table, UDP, PORTS[0], host=HOST, remote=REMOTE + REMOTES)
    assert external_port(table, last) == external_port(table, rows[0])
    assert table.counts()["mappings"] == HOSTS * len(PORTS)
    table.close(rows[0])
    assert not table.admits(EXTERNAL, CLASS[UDP], external_port(table, last), REMOTE)


def test_a_table_that_has_grown_empties_to_the_last_entry(table) -> None:
    rows = fill(table, range(SESSIONS))
    for row in rows:
        table.close(row)
    assert (table.counts()["active"], table.counts()["mappings"], table.counts()["hosts"]) == (0, 0, 0)
    again = fill(table, range(1000))
    assert_known(table, range(1000), again)


@pytest.mark.parametrize("asked", [0, 2000, 10_000, YOUNG + 10, SESSIONS - 10])
def test_memory_may_be_made_ready_at_any_time(table, asked: int) -> None:
    """Before it is wanted, while the small indexes do, when they are more than half full, and when it is too late."""
    table.make_ready()
    rows = fill(table, range(asked))
    table.make_ready()
    assert not table.wants_memory
    rows += fill(table, range(asked, SESSIONS))
    assert_known(table, range(SESSIONS), rows)
    table.make_ready()
    assert not table.wants_memory


def test_memory_is_wanted_long_before_the_indexes_are_full(table) -> None:
    table.make_ready()
    fill(table, range(4090))
    assert not table.wants_memory
    fill(table, range(4090, 4100))
    assert table.wants_memory, "for the rows that come next"
    table.make_ready()
    # so early as a 32nd part of those that the next are for (growth.pxd): the larger those, the longer it takes
    asked_at = YOUNG - 100_000 // 32
    fill(table, range(4100, asked_at - 10))
    assert not table.wants_memory
    fill(table, range(asked_at - 10, asked_at + 10))
    assert table.wants_memory


def keys(numbers: Iterable[int]) -> np.ndarray:
    """Return the outbound keys of these sessions, which `find_many` looks for."""
    return np.array([outbound_key(UDP, *every(number), 80) for number in numbers], "u8")


@pytest.mark.parametrize("seed", range(2))
def test_what_is_opened_and_closed_while_entries_move_is_known_or_not(table, seed: int) -> None:
    """Against a dict, on both sides of the border; entries are in the old indexes, in the new, and on their way."""
    chance = random.Random(seed)
    open_ = dict(zip(range(YOUNG - 400), fill(table, range(YOUNG - 400)), strict=True))
    unknown = set(range(YOUNG - 400, SESSIONS))
    for step in range(30):
        for number in chance.sample(sorted(unknown), chance.randrange(600)):
            open_[number] = fill(table, range(number, number + 1))[0]
            unknown.discard(number)
        for number in chance.sample(sorted(open_), chance.randrange(400)):
            table.close(open_.pop(number))
            unknown.add(number)
        if step % 4 == 3:  # time goes on, and moves some as well
            table.expire(step * TICK)
        assert table.find_many(keys(open_)) == len(open_)
        assert table.find_many(keys(chance.sample(sorted(unknown), 2000))) == 0
    for number, row in open_.items():
        assert_known(table, range(number, number + 1), [row])
    assert table.counts()["mappings"] == len({every(number)[:2] for number in open_})
    for row in open_.values():
        table.close(row)
    assert (table.counts()["active"], table.counts()["mappings"]) == (0, 0)
    assert table.find_many(keys(open_)) == 0


def test_a_table_grows_through_all_sizes_and_gives_the_old_ones_back() -> None:
    """Each size is sixteen times the one before, but for the last; the kernel has the memory of what was left again."""
    table = make_table(capacity=600_000, ports_per_host=65535)
    assert [each.rows for each in table.memory.indexes] == [YOUNG, 16 * YOUNG, 600_000]
    assert [each.rows for each in table.memory.mapping_indexes] == [YOUNG, 16 * YOUNG, 600_000]
    opened_ = 0
    for size, until in enumerate([YOUNG + 20_000, 16 * YOUNG + 70_000]):
        for number in range(opened_, until):
            opened(table, UDP, number % 60_000 + 1, remote=REMOTE + number // 60_000)
            if table.wants_memory:
                table.make_ready()
        opened_ = until
        for tick in range(1150 * size):
            table.expire(tick * TICK)
        table.make_ready()
        left = table.memory.indexes[size].arrays
        assert {name: resident(array) for name, array in left.items()} == {"index": 0, "permits": 0}
    assert resident(table.memory.mapping_indexes[0].arrays["mapping_index"]) == 0
    wanted = np.array(
        [outbound_key(UDP, HOST, number % 60_000 + 1, REMOTE + number // 60_000, 80) for number in range(opened_)], "u8"
    )
    assert table.find_many(wanted) == opened_


def test_the_index_of_mappings_grows_as_there_are_mappings() -> None:
    """Sessions of few endpoints leave it as it is; and its growth leaves those of sessions as they are."""
    table = make_table(capacity=600_000, ports_per_host=65535)
    larger = [each.arrays["mapping_index"] for each in table.memory.mapping_indexes[1:]]
    last = table.memory.indexes[2].arrays["index"]
    for array in (*larger, last):
        give_back(array)  # where malloc had it of another array, it was cleared by writing
    table.make_ready()
    fill(table, range(SESSIONS))
    table.make_ready()
    assert [resident(array) for array in larger] == [0, 0]
    assert resident(table.memory.indexes[1].arrays["index"])
    for port in range(2000, 2000 + YOUNG):
        opened(table, UDP, port, host=HOST + HOSTS, remote=REMOTE)
    assert table.wants_memory
    table.make_ready()
    assert resident(larger[0])
    for port in range(2000 + YOUNG, 2000 + 2 * YOUNG - 15_000):
        opened(table, UDP, port, host=HOST + HOSTS, remote=REMOTE)
    assert resident(last) == 0
    again = opened(table, UDP, 2000, host=HOST + HOSTS, remote=REMOTE + 1)
    known, _ = table.find(UDP, INSIDE, HOST + HOSTS, 2000, REMOTE, 80)
    assert external_port(table, again) == external_port(table, known)


def pages(array: np.ndarray) -> tuple[ctypes.c_void_p, int]:
    """Return where an array's first whole page is, and how many it has."""
    first = -(-array.ctypes.data // mmap.PAGESIZE)
    return ctypes.c_void_p(first * mmap.PAGESIZE), (array.ctypes.data + array.nbytes) // mmap.PAGESIZE - first


def resident(array: np.ndarray) -> int:
    """Return how many whole pages of an array have memory (mincore(2))."""
    at, count = pages(array)
    found = (ctypes.c_ubyte * count)()
    assert ctypes.CDLL(None).mincore(at, ctypes.c_size_t(count * mmap.PAGESIZE), found) == 0
    return sum(each & 1 for each in found)


def give_back(array: np.ndarray) -> None:
    """Have no memory for the whole pages of an array."""
    at, count = pages(array)
    assert ctypes.CDLL(None).madvise(at, ctypes.c_size_t(count * mmap.PAGESIZE), mmap.MADV_DONTNEED) == 0


def test_a_small_table_wants_none() -> None:
    table = make_table(capacity=YOUNG)
    table.make_ready()
    rows = fill(table, range(YOUNG))
    assert not table.wants_memory
    assert_known(table, range(YOUNG), rows)
    assert table.open(UDP, HOST, 1, REMOTE, 80, 0) == "table_full"


def test_the_filter_of_a_grown_table_is_changed_as_that_of_a_young_one(table) -> None:
    rows = fill(table, range(SESSIONS))
    table.set_filtering("endpoint-independent")
    table.close(rows[0])
    table.set_filtering("address-dependent")
    assert_known(table, range(1, SESSIONS), rows[1:])
    table.set_external(NEW_EXTERNAL, allowed(range(1, 65536)))
    assert not table.admits(EXTERNAL, CLASS[UDP], external_port(table, rows[1]), REMOTE + REMOTES)
