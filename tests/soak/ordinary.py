"""The twenty ordinary hosts of the soak: their pings and those of the control pair, their conversations, their server.

Each of the three is the life of a process. Sockets are made in the namespaces of their hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from fastmasq.lab import hosts
from fastmasq.lab.topology import SERVER_ADDRESS
from tests.soak.parts import told
from tests.soak.place import CONTROL, CONTROL_SERVER, ISAKMP_PORT, ORDINARY, SERVICE_PORT
from tests.support.packets import internet_checksum

PINGS_PER_S = 4  # of each host
PATIENCE_S = 2.0  # for the answer to a ping or a datagram
STREAM_PATIENCE_S = 8.0  # for what TCP carries: it sends again what was lost
PAUSE_S = 1.0  # of a host between two of a kind
MESSAGES = 100  # of all kinds, until a host agrees on new keys
_LENGTH = struct.Struct(">I")
_ISAKMP = struct.Struct(">QQBBBBII")


class Ping(NamedTuple):
    """One ping: when it was sent, and after how long it was answered, both in seconds; None: it was not."""

    host: str
    at: float
    after: float | None


class Talk(NamedTuple):
    """One conversation of a host with the server, from when to when in seconds, and whether all of it was right."""

    host: str
    kind: str
    at: float
    until: float
    is_good: bool


# -- pings ------------------------------------------------------------------------------------------------------------


def ping_all(namespaces: dict[str, str], started: float, orders: Connection) -> None:
    """Ping the server from every ordinary host, and as often by the way past the gateway, until told to stop.

    namespaces are names by host; `started` is the monotonic time that seconds count from. Sends the pings, the control
    pair's under CONTROL.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    sockets = {address: _icmp_socket(namespaces[host], address) for host, address in _ordinary()}
    sockets[CONTROL] = _icmp_socket(namespaces["inside"], CONTROL)
    for made in sockets.values():
        selector.register(made, selectors.EVENT_READ)
    selector.register(orders, selectors.EVENT_READ)
    sent: list[tuple[str, float]] = []
    answers: dict[int, float] = {}
    interval = 1 / (PINGS_PER_S * (len(sockets) - 1))
    due = time.monotonic()
    turns = itertools.cycle([address for pair in zip(*ORDINARY.values(), strict=True) for address in pair])
    stops_at = None
    while stops_at is None or time.monotonic() < stops_at:
        ready = selector.select(max(0.0, min(due - time.monotonic(), 0.1)))
        for key, _ in ready:
            if key.fileobj is not orders:
                _hear(key.fileobj, answers)
            elif stops_at is None:
                orders.recv()
                stops_at = time.monotonic() + PATIENCE_S
        if time.monotonic() >= due and stops_at is None:
            for address, remote in ((next(turns), SERVER_ADDRESS), (CONTROL, CONTROL_SERVER)):
                with contextlib.suppress(OSError):  # while its link is away; it is a ping that is not answered
                    sockets[address].sendto(_echo(len(sent)), (remote, 0))
                sent.append((address, time.monotonic()))
            due = max(due + interval, time.monotonic() - 1)
    pings = []
    for number, (address, at) in enumerate(sent):
        after = answers[number] - at if number in answers else None
        pings.append(Ping(address, at - started, after if after is not None and after < PATIENCE_S else None))
    orders.send(pings)


def _ordinary() -> Iterator[tuple[str, str]]:
    """Yield (name of the namespace's host, address) of each ordinary host."""
    for host, addresses in ORDINARY.items():
        for address in addresses:
            yield host, address


def _icmp_socket(namespace: str, address: str) -> socket.socket:
    with hosts.entered(namespace):
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    made.bind((address, 0))
    made.setblocking(False)
    return made


def _echo(number: int) -> bytes:
    """Return a ping whose identifier and payload say which it is."""
    identifier = 1000 + number % 64  # a host has few, as programs do
    head = struct.pack(">BBHHH", 8, 0, 0, identifier, number & 0xFFFF)
    payload = struct.pack(">I", number).ljust(56, b".")
    checksum = internet_checksum(head + payload)
    return head[:2] + struct.pack(">H", checksum) + head[4:] + payload


def _hear(ready: socket.socket, answers: dict[int, float]) -> None:
    with contextlib.suppress(OSError):
        while True:
            packet = ready.recv(2048)
            message = packet[(packet[0] & 15) * 4 :]
            if len(message) == 64 and message[0] == 0:
                answers.setdefault(struct.unpack_from(">I", message, 8)[0], time.monotonic())


# -- the server -------------------------------------------------------------------------------------------------------


async def serve(namespace: str) -> None:
    """Send back datagrams, and over TCP as many octets as are asked for."""
    loop = asyncio.get_running_loop()
    with hosts.entered(namespace):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER_ADDRESS, SERVICE_PORT))
        datagrams = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for each, port in zip(datagrams, (SERVICE_PORT, ISAKMP_PORT), strict=True):
        each.bind((SERVER_ADDRESS, port))
        each.setblocking(False)
        await loop.create_datagram_endpoint(_Mirror, sock=each)
    server = await asyncio.start_server(_give, sock=listener, backlog=512)
    await server.serve_forever()


class _Mirror(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(data, address)


async def _give(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            writer.write(_octets(length))
            await writer.drain()
    writer.close()


def _octets(length: int) -> bytes:
    return (b"0123456789abcde" * (length // 15 + 1))[:length]


# -- conversations ----------------------------------------------------------------------------------------------------


async def talk_all(namespaces: dict[str, str], started: float, orders: Connection) -> None:
    """Have every ordinary host talk to the server in all its ways until told to stop; send the talks."""
    talks: list[Talk] = []
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, (host, address) in enumerate(_ordinary()):
            speaker = _Speaker(namespaces[host], address, started, talks)
            ways = [speaker.stream, speaker.fetch, speaker.ask]
            ways += [speaker.exchange_keys] if number % 5 == 0 else []
            tasks += [group.create_task(_repeat(way, number / 20)) for way in ways]
        await told(orders)
        for task in tasks:
            task.cancel()
    orders.send(talks)


async def _repeat(way: Callable[[], Coroutine[None, None, None]], later_s: float) -> None:
    await asyncio.sleep(later_s)
    while True:
        await way()
        await asyncio.sleep(PAUSE_S)


class _Speaker:
    """One ordinary host: each method is one talk, or a long one."""

    def __init__(self, namespace: str, address: str, started: float, talks: list[Talk]) -> None:
        self._namespace, self._address = namespace, address
        self._started, self._talks = started, talks
        self._numbers = itertools.count(1)

    async def stream(self) -> None:
        """A connection that stays: a little now and then, until it breaks."""
        connection = await self._talk("long-lived TCP", STREAM_PATIENCE_S, self._connect())
        if connection is None:
            return
        while await self._talk("long-lived TCP", STREAM_PATIENCE_S, _get(*connection, 1000)):
            await asyncio.sleep(PAUSE_S / 2)
        connection[1].close()

    async def fetch(self) -> None:
        """A connection for one thing."""
        await self._talk("short TCP", STREAM_PATIENCE_S, self._fetch())

    async def ask(self) -> None:
        """A datagram from a new port."""
        await self._talk("UDP", PATIENCE_S, self._ask(0, SERVICE_PORT, b"question %d" % next(self._numbers)))

    async def exchange_keys(self) -> None:
        """An ISAKMP message, from the port that it always comes from; now and then under new cookies."""
        cookie = int.from_bytes(socket.inet_aton(self._address)) << 32 | next(self._numbers) // MESSAGES
        message = _ISAKMP.pack(cookie, 0, 1, 0x10, 2, 0, 0, _ISAKMP.size)
        await self._talk("ISAKMP", PATIENCE_S, self._ask(ISAKMP_PORT, ISAKMP_PORT, message))

    async def _talk(self, kind: str, patience_s: float, part: Coroutine[None, None, Any]) -> Any:
        """Await a part of a conversation, and note how it went; return what it returns, None if it went wrong."""
        at = time.monotonic()
        result = None
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
            async with asyncio.timeout(patience_s):
                result = await part
        until = time.monotonic()
        self._talks.append(Talk(self._address, kind, at - self._started, until - self._started, result is not None))
        return result

    async def _ask(self, port: int, remote_port: int, question: bytes) -> bool:
        """Send a datagram from a port and wait until it comes back."""
        loop = asyncio.get_running_loop()
        with self._socket(socket.SOCK_DGRAM, port) as made:
            await loop.sock_sendto(made, question, (SERVER_ADDRESS, remote_port))
            while await loop.sock_recv(made, 2048) != question:  # others may send here, too
                pass
        return True

    async def _fetch(self) -> bool:
        reader, writer = await self._connect()
        try:
            return await _get(reader, writer, 30_000)
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        made = self._socket(socket.SOCK_STREAM)
        try:
            await asyncio.get_running_loop().sock_connect(made, (SERVER_ADDRESS, SERVICE_PORT))
        except BaseException:
            made.close()
            raise
        return await asyncio.open_connection(sock=made)

    def _socket(self, kind: int, port: int = 0) -> socket.socket:
        with hosts.entered(self._namespace):
            made = socket.socket(socket.AF_INET, kind)
        made.setblocking(False)
        made.bind((self._address, port))
        return made


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> bool:
    """Ask for octets; return True. Raises ValueError if others come."""
    writer.write(_LENGTH.pack(length))
    if await reader.readexactly(length) != _octets(length):
        raise ValueError("other octets than were sent")
    return True
