"""A process that opens, moves and closes sessions over shared memory until it is killed, and what must be there."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time

from fastmasq.table.forward_table import ForwardTable
from fastmasq.table.masq import MasqTable
from fastmasq.wire.numbers import ICMP, TCP, UDP
from tests.support.adoption import adopted, assert_consistent, empty, shared
from tests.support.tables import EXTERNAL, HOST, REMOTE, SECOND, allowed, make_table

CAPACITY = 256
PORTS = range(2000, 2100)
PROTOCOLS = (TCP, UDP, ICMP)
STATES = {TCP: (1, 3, 4, 6, 7), UDP: (9,), ICMP: (10,)}
STEPS_BETWEEN_TICKS = 20

Key = tuple[int, int]  # of the outbound flow


class Story:
    """Random steps on a table, the same for a seed: sessions open, move, idle and close, forwards come and go."""

    def __init__(self, seed: int, table: MasqTable) -> None:
        self._random = random.Random(seed)
        self._table = table
        self._forwards = ForwardTable(table)
        self._now = 0
        table.set_external(EXTERNAL, allowed(PORTS))

    @property
    def now_ns(self) -> int:
        return self._now

    def step(self) -> None:
        choose = self._random
        kind = choose.randrange(STEPS_BETWEEN_TICKS)
        row = choose.randrange(len(self._table.sessions))
        protocol = choose.choice(PROTOCOLS)
        port, host = choose.choice(PORTS[:40]), HOST + choose.randrange(3)
        is_open = self._table.sessions["state"][row] != 0
        if kind == 0:
            self._now += choose.randrange(2 * SECOND)
            self._table.expire(self._now)
        elif kind == 1:
            self._forwards.place(EXTERNAL, 0, 2000 + port % 4, [(host, port, 10), (host + 1, port, 10)])
        elif kind == 2:
            self._forwards.remove(EXTERNAL, 0, 2000 + port % 4)
        elif kind < 8 and is_open:
            self._table.close(row)
        elif kind < 11 and is_open:
            protocol = int(self._table.sessions["flow"][row, 0]["key1"]) >> 56
            self._table.retime(row, choose.choice(STATES[protocol]), self._now)
        else:
            remote = REMOTE + choose.randrange(4)
            if self._table.find(protocol, 0, host, port, remote, 80) is None:
                self._table.open(protocol, host, port, remote, 80, self._now)

    def sessions(self) -> dict[Key, int]:
        """Return the external port of every session, by the key of its outbound flow."""
        return sessions(self._table)


def sessions(table: MasqTable) -> dict[Key, int]:
    """Return the external port of every session of a table, by the key of its outbound flow."""
    found = table.sessions[: table.fresh]
    return {
        (int(flow["key0"]), int(flow["key1"])): int(flow["sid"]) for flow in found["flow"][:, 0][found["state"] != 0]
    }


def killed(seed: int) -> tuple[mmap.mmap, int]:
    """Return what a process left that was killed somewhere in the story of a seed, and how many steps it had done."""
    rows = shared(CAPACITY)
    done = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # stored at once; struct.pack_into writes 0 before
    child = os.fork()
    if child == 0:
        try:
            story = Story(seed, make_table(capacity=CAPACITY, buffer=rows, external=None))
            number = 0
            while True:
                story.step()
                number += 1
                done[0] = number
        finally:
            os._exit(1)
    pause = random.Random(seed).uniform(0.0005, 0.005)
    while not done[0]:
        time.sleep(0.001)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"
    return rows, done[0]


def check(seed: int) -> None:
    """Kill a process in its story, and adopt what it left: the sessions of before or after the step it was in."""
    left, steps = killed(seed)
    story = Story(seed, make_table(capacity=CAPACITY, external=None))
    for _ in range(steps):
        story.step()
    before, began = story.sessions(), story.now_ns
    story.step()
    after = story.sessions()
    table, dropped = adopted(left, CAPACITY, began)
    found = sessions(table)
    assert set(dropped) <= {"expired"} and (not dropped or story.now_ns != began), f"seed {seed}: {dropped}"
    assert before.items() & after.items() <= found.items(), f"seed {seed}: sessions are missing"
    assert found.items() <= before.items() | after.items(), f"seed {seed}: sessions that never were"
    assert_consistent(table, (EXTERNAL,))
    table.set_external(EXTERNAL, allowed(PORTS))
    empty(table)
