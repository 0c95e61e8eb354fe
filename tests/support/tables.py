"""Small tables with a fixed secret for the tests of this folder, and how to read what they hold."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import OUTBOUND
from fastmasq.wire.numbers import ICMP, TCP, UDP
from tests.support.harness import columns, new_table

CLASS = {TCP: 0, UDP: 1, ICMP: 2}
PROTOCOLS = (TCP, UDP, ICMP)
ECHO = 8  # the "port" of the remote in a ping's key
SECRET = bytes(range(16))
SECOND = 1_000_000_000
TICK = SECOND // 4

HOST, OTHER_HOST = 0x0A000002, 0x0A000003
REMOTE, OTHER_REMOTE = 0xC7000001, 0xC7000002
EXTERNAL, NEW_EXTERNAL = 0xC8C8C8C8, 0xC8C8C8C9
INSIDE, OUTSIDE, REPLY = 0, 1, 2


def allowed(ports: Iterable[int]) -> np.ndarray:
    """Return the same allowed ports for every class."""
    bits = np.zeros((3, 65536), bool)
    bits[:, columns(ports)] = True
    return bits


def make_table(
    ports: Iterable[int] = range(1, 65536), *, capacity: int = 1024, external: int | None = EXTERNAL, **settings
) -> MasqTable:
    """Return a table that masquerades behind `external` with these ports; times start at 0 unless now_ns says other."""
    table = new_table(capacity, **settings)
    if external is not None:
        table.set_external(external, allowed(ports))
    return table


def opened(
    table: MasqTable,
    protocol: int,
    port: int,
    *,
    host: int = HOST,
    remote: int = REMOTE,
    remote_port: int = 80,
    now_ns: int = 0,
) -> int:
    """Open a session that must not be refused; return its row."""
    row = table.open(protocol, host, port, remote, remote_port, now_ns)
    assert isinstance(row, int), f"refused: {row}"
    return row


def external_endpoint(table: MasqTable, row: int) -> tuple[int, int]:
    """Return (address, port) that the outbound flow of a session writes as its source."""
    flow = table.sessions["flow"][row, OUTBOUND]
    return int(flow["saddr"]), int(flow["sid"])


def external_port(table: MasqTable, row: int) -> int:
    return external_endpoint(table, row)[1]


def is_open(table: MasqTable, row: int) -> bool:
    return bool(table.sessions["state"][row])


def outbound_key(protocol: int, host: int, port: int, remote: int, remote_port: int) -> tuple[int, int]:
    """Return the 16-byte key of a packet from inside as two words (keys.pxd, make_key0 and make_key1)."""
    return host << 32 | remote, protocol << 56 | INSIDE << 48 | port << 32 | remote_port


def key_hash(key: tuple[int, int]) -> int:
    return MasqTable.siphash(SECRET, *key) & 0xFFFFFFFF
