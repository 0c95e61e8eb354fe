"""What outlives the process of sessions that lie in arrays of the kernel's: a copy, which a start goes on from."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import pytest

from fastmasq.table import memory, rows
from fastmasq.table.adoption import adopt
from tests.support import packets
from tests.support.carried import CAPACITY, CarriedHarness

HOST, REMOTE, EXTERNAL = "10.0.0.2:4000", "199.0.0.1:80", "200.200.200.200:4000"
ENDS = 0x3C  # SESSION_SEEN_* and SESSION_ACKED_*


@pytest.fixture
def net() -> Iterator[CarriedHarness]:
    """A path with a connection that is carried, and a copy in the buffer where sessions lay."""
    buffer = mmap.mmap(-1, memory.size_of(CAPACITY))
    harness = CarriedHarness(buffer=buffer)
    harness.buffer = buffer
    harness.send("inside", packets.tcp(HOST, REMOTE, "S", seq=0, scale=0))
    harness.send("outside", packets.tcp(REMOTE, EXTERNAL, "SA", seq=1000, ack=1, scale=0))
    harness.send("inside", packets.tcp(HOST, REMOTE, "A", seq=1, ack=1001))
    yield harness
    harness.close()


def data(seq: int) -> bytes:
    return packets.tcp(HOST, REMOTE, "PA", seq=seq, ack=1001, payload=b"data")


def kept(net: CarriedHarness) -> np.ndarray:
    return np.frombuffer(net.buffer, rows.SESSION, CAPACITY, memory.offset_of("sessions", CAPACITY))


def test_the_copy_is_as_the_session_but_for_what_moves_on(net: CarriedHarness) -> None:
    session, copy = net.table.sessions[0].copy(), kept(net)[0]
    assert session["flags"] & ENDS == ENDS and copy["flags"] & ENDS == 0
    session["flags"] &= ~ENDS & 0xFF
    for name in ("flow", "tcp", "expires", "mapping", "state", "flags", "scale", "port_class"):
        assert (session[name] == copy[name]).all(), name


def test_the_copy_goes_with_the_session(net: CarriedHarness) -> None:
    net.table.close(0)
    assert kept(net)["state"][0] == 0


def test_when_a_carried_session_ends_is_kept_once_a_second(net: CarriedHarness) -> None:
    net.advance(1000)
    assert len(net.take("inside", data(1))) == 1
    before = int(kept(net)["expires"][0])
    assert net.table.sessions["expires"][0] == before + 4000
    net.table.keep_carried()
    assert kept(net)["expires"][0] == before + 4000
    assert kept(net)["flow"]["packets"][0].tolist() == [3, 1]


def test_at_an_orderly_end_all_is_kept(net: CarriedHarness) -> None:
    for number in range(5):
        net.take("inside", data(1 + 4 * number))
    net.forwarder.carry(False)
    net.table.keep_carried(exactly=True)
    whole = net.table.sessions[0].copy()
    whole["flow"]["packets"] += net.table.carried_rows["packets"][0].astype("u4")
    assert kept(net)[0] == whole
    assert kept(net)["tcp"]["end"][0].tolist() == [21, 1001]


def test_a_start_goes_on_from_the_copy_wherever_both_ends_are_by_then(net: CarriedHarness) -> None:
    far = 1 << 30
    after = CarriedHarness(now_ns=net.now_ns)
    header = np.frombuffer(net.buffer, rows.HEADER, 1)[0]
    copies = [kept(net)[: net.table.fresh].copy()]
    assert adopt(after.table, header, net.table.mappings, copies, net.now_ns) == {}
    after.table.set_external(int(header["external"][0]), after.allowed)
    assert len(after.send("inside", data(far))) == 1
    assert len(after.send("outside", packets.tcp(REMOTE, EXTERNAL, "A", seq=9000, ack=far + 4))) == 1
    assert [session["state"] for session in after.sessions()] == ["established"]
    assert len(after.take("inside", packets.tcp(HOST, REMOTE, "A", seq=far + 4, ack=9000))) == 1
    after.close()


def test_without_a_buffer_nothing_is_kept() -> None:
    net = CarriedHarness()
    net.table.keep_carried()
    net.close()
