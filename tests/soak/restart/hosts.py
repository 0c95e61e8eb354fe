"""The hosts of the restart soak: downloads, chats, a stream of datagrams, strangers at a forward, and who answers them.

Each of them is the life of a process. Of those in the two inside networks twenty use each port, so that most have
another one outside, and only fastmasq's table knows which.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import itertools
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from multiprocessing.connection import Connection
from random import Random
from typing import NamedTuple

from fastmasq.lab import hosts
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.soak.parts import told
from tests.soak.place import ORDINARY
from tests.soak.restart.place import FORWARDED, TARGET

FILE_PORT, CHAT_PORT, STREAM_PORT = 8000, 8001, 9000
CLIENT_PORTS = {"stranger": 2000, "file": 20_000, "chat": 26_000, "stream": 28_000}  # the first of each
PIECE, PIECES_PER_S = 4096, 10  # of a file
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 7.0  # of who says a line
PATIENCE_S = 20.0  # for what TCP carries: it sends again what was lost, at last after a long while
DATAGRAMS_PER_S = 100
VISITS_PER_S = 2
CHATS = 20
_FILE, _CHAT = struct.Struct(">II"), struct.Struct(">?I")
_PORT, _DATAGRAM = struct.Struct(">H"), struct.Struct(">IH")  # number, and the port that it came from

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Ports(NamedTuple):
    """An endpoint's port, and the one that the server has seen."""

    own: int
    seen: int


class File(NamedTuple):
    """One download, and what was wrong with it, if anything."""

    host: str
    ports: Ports
    failure: str


class Chat(NamedTuple):
    """One connection with lines said and answered, who says them, and what ended it too early, if anything did."""

    host: str
    ports: Ports
    speaker: str
    lines: int
    failure: str


class Datagram(NamedTuple):
    """When one was sent, in seconds from the start, and from which port the server saw it come; 0: no answer came."""

    at: float
    port: int


class Visit(NamedTuple):
    """A stranger's connection through the forward, and what was wrong with it, if anything."""

    at: float
    failure: str


def ordinary(number: int) -> tuple[str, str, int]:
    """Return (name of its namespace's host, address, place among its own) of the host that is number `number`."""
    everybody = [(host, address) for host, addresses in ORDINARY.items() for address in addresses]
    turn, place = divmod(number, len(everybody))
    return (*everybody[place], turn)


def bound(namespace: str, address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    with hosts.entered(namespace):
        made = socket.socket(socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setblocking(False)
    made.bind((address, port))
    return made


def said(error: OSError | EOFError) -> str:
    """Return an error in a few words, the same for all of its kind."""
    if isinstance(error, TimeoutError):
        return str(error) or f"nothing came for {PATIENCE_S:g} s"
    return getattr(error, "strerror", None) or str(error)


# -- who answers ------------------------------------------------------------------------------------------------------


async def serve(namespaces: dict[str, str], orders: Connection) -> None:
    """Be the server of files, chats and the stream, and the inside host that the forward leads to; say when it is."""
    outside, inside = namespaces["server"], namespaces["inside"]
    loop = asyncio.get_running_loop()
    mirror = bound(outside, SERVER_ADDRESS, STREAM_PORT, socket.SOCK_DGRAM)
    await loop.create_datagram_endpoint(_Mirror, sock=mirror)
    servers = []
    for namespace, address, port, give in (
        (outside, SERVER_ADDRESS, FILE_PORT, _give_file),
        (outside, SERVER_ADDRESS, CHAT_PORT, _chat),
        (inside, *TARGET, _answer),
    ):
        listener = bound(namespace, address, port, socket.SOCK_STREAM)
        servers.append(await asyncio.start_server(_closing(give), sock=listener, backlog=512))
    orders.send("begun")
    await asyncio.gather(*(server.serve_forever() for server in servers))


class _Mirror(asyncio.DatagramProtocol):
    """Sends each number back with the port that it came from."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(data[:4] + _PORT.pack(address[1]), address)


def _closing(serve: Callable[..., Awaitable[None]]) -> Callable[..., Coroutine[None, None, None]]:
    """Return what serves a connection and closes it, whatever happens."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            await serve(reader, writer)
        writer.close()

    return served


async def _give_file(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send the port that the client has here, a file, piece by piece, and its digest."""
    number, pieces = _FILE.unpack(await reader.readexactly(_FILE.size))
    writer.write(_PORT.pack(writer.get_extra_info("peername")[1]))
    digest = hashlib.sha256()
    async for piece in _paced(1 / PIECES_PER_S):
        if piece == pieces:
            break
        octets = (b"%d %d " % (number, piece)).ljust(PIECE, b".")
        digest.update(octets)
        writer.write(octets)
        await writer.drain()
    writer.write(digest.digest())
    await writer.drain()


async def _chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send the port that the client has here; then say lines if it wants us to, or answer its own."""
    speaks, seed = _CHAT.unpack(await reader.readexactly(_CHAT.size))
    writer.write(_PORT.pack(writer.get_extra_info("peername")[1]))
    async for _ in _spoken(reader, writer, Random(seed)) if speaks else _answered(reader, writer):
        pass


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async for _ in _answered(reader, writer):
        pass


async def _spoken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, random: Random) -> AsyncIterator[None]:
    """Say a line now and then; yield when it has been answered. Raises OSError and EOFError."""
    for number in itertools.count(1):
        await asyncio.sleep(random.uniform(SHORTEST_PAUSE_S, LONGEST_PAUSE_S))
        line = b"line %d\n" % number
        writer.write(line)
        await _same(reader, line)
        yield


async def _answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Answer each line by itself, until there are no more; yield when one has been. Raises OSError."""
    while line := await _line(reader, LONGEST_PAUSE_S + PATIENCE_S):
        writer.write(line)
        await writer.drain()
        yield


async def _same(reader: asyncio.StreamReader, line: bytes) -> None:
    heard = await _line(reader, PATIENCE_S)
    if heard != line:
        raise ConnectionError(f"{line!r} was answered by {heard!r}" if heard else "it was closed")


async def _line(reader: asyncio.StreamReader, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return await reader.readline()
    except TimeoutError:
        raise TimeoutError(f"nothing came for {seconds:g} s") from None


async def _paced(every_s: float) -> AsyncIterator[int]:
    """Count from 0, once in so many seconds; what is late is made up for."""
    begun = asyncio.get_running_loop().time()
    for number in itertools.count():
        await asyncio.sleep(begun + number * every_s - asyncio.get_running_loop().time())
        yield number


# -- downloads --------------------------------------------------------------------------------------------------------


async def download_all(namespaces: dict[str, str], first: int, count: int, seconds: float, orders: Connection) -> None:
    """Download so many files of so many seconds, number `first` and on; say when all have begun, and how it went."""
    begun: asyncio.Queue[None] = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        pieces = int(seconds * PIECES_PER_S)
        tasks = [group.create_task(_download(namespaces, first + n, pieces, begun)) for n in range(count)]
        for _ in range(count):
            await begun.get()
        orders.send("begun")
    orders.send([task.result() for task in tasks])


async def _download(namespaces: dict[str, str], number: int, pieces: int, begun: asyncio.Queue[None]) -> File:
    host, address, turn = ordinary(number)
    own, seen, failure = CLIENT_PORTS["file"] + turn, 0, ""
    writer = None
    try:
        try:
            reader, writer = await _connect(namespaces[host], address, own, FILE_PORT)
            writer.write(_FILE.pack(number, pieces))
            (seen,) = _PORT.unpack(await reader.readexactly(_PORT.size))
        finally:
            begun.put_nowait(None)
        digest = hashlib.sha256()
        for _ in range(pieces):
            async with asyncio.timeout(PATIENCE_S):
                digest.update(await reader.readexactly(PIECE))
        async with asyncio.timeout(PATIENCE_S):
            if await reader.read() != digest.digest():
                failure = "it is not what was sent"
    except (OSError, EOFError) as error:
        failure = said(error)
    finally:
        if writer is not None:
            writer.close()
    return File(address, Ports(own, seen), failure)


async def _connect(namespace: str, address: str, port: int, remote_port: int) -> Streams:
    made = bound(namespace, address, port, socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_connect(made, (SERVER_ADDRESS, remote_port))
    except BaseException:
        made.close()
        raise
    return await asyncio.open_connection(sock=made)


# -- chats ------------------------------------------------------------------------------------------------------------


async def chat_all(namespaces: dict[str, str], orders: Connection) -> None:
    """Have CHATS connections on which one end says lines, half of them the outside one; say when all have begun."""
    chats = [_Chat(namespaces, number) for number in range(CHATS)]
    await asyncio.gather(*(chat.begin() for chat in chats))
    orders.send("begun")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(chat.go_on()) for chat in chats]
        await told(orders)
        for task in tasks:
            task.cancel()
    orders.send([chat.result() for chat in chats])


class _Chat:
    def __init__(self, namespaces: dict[str, str], number: int) -> None:
        host, self._address, turn = ordinary(number)
        self._namespace = namespaces[host]
        self._own, self._seen = CLIENT_PORTS["chat"] + turn, 0
        self._seed, self._is_outside_first = number, bool(number % 2)
        self._lines = 0
        self._failure = ""

    async def begin(self) -> None:
        """Raises OSError."""
        self._streams = reader, writer = await _connect(self._namespace, self._address, self._own, CHAT_PORT)
        writer.write(_CHAT.pack(self._is_outside_first, self._seed))
        (self._seen,) = _PORT.unpack(await reader.readexactly(_PORT.size))

    async def go_on(self) -> None:
        """Return when the connection has broken."""
        way = _answered(*self._streams) if self._is_outside_first else _spoken(*self._streams, Random(self._seed))
        try:
            async for _ in way:
                self._lines += 1
            self._failure = "it was closed"
        except (OSError, EOFError) as error:
            self._failure = said(error)

    def result(self) -> Chat:
        speaker = "outside" if self._is_outside_first else "inside"
        return Chat(self._address, Ports(self._own, self._seen), speaker, self._lines, self._failure)


# -- datagrams --------------------------------------------------------------------------------------------------------


async def stream(namespaces: dict[str, str], started: float, orders: Connection) -> None:
    """Send numbered datagrams from one endpoint, whose port another host has outside; say when the first are back."""
    loop = asyncio.get_running_loop()
    sent: list[float] = []
    seen: dict[int, int] = {}
    first = loop.create_future()

    class Ears(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _: object) -> None:
            number, port = _DATAGRAM.unpack(data)
            seen[number] = port
            if not first.done():
                first.set_result(None)

    async def speak() -> None:
        async for number in _paced(1 / DATAGRAMS_PER_S):
            transport.sendto(struct.pack(">I", number), remote)
            sent.append(time.monotonic() - started)

    remote = (SERVER_ADDRESS, STREAM_PORT)
    others, speaking = (
        bound(namespaces[host], address, CLIENT_PORTS["stream"], socket.SOCK_DGRAM)
        for host, address, _ in map(ordinary, (0, 1))
    )
    with others:
        await loop.sock_sendto(others, struct.pack(">I", 0), remote)
        await loop.sock_recv(others, 64)
    transport, _ = await loop.create_datagram_endpoint(Ears, sock=speaking)
    task = asyncio.create_task(speak())
    async with asyncio.timeout(PATIENCE_S):
        await first
    orders.send("begun")
    await told(orders)
    task.cancel()
    await asyncio.sleep(0.5)
    transport.close()
    orders.send([Datagram(at, seen.get(number, 0)) for number, at in enumerate(sent)])


# -- strangers --------------------------------------------------------------------------------------------------------


async def visit_all(namespace: str, started: float, orders: Connection) -> None:
    """Have strangers connect through the forward, say a line and hear it come back, VISITS_PER_S.

    Each comes from a port of its own: the kernel would choose one again now and then, and that has a session still.
    Told "hold" they wait, and when nobody is on the way any more, they say how many have connected so far; "go" has
    them go on. Told "stop" they say how it went.
    """
    visits: list[Visit] = []
    may_go = asyncio.Event()
    may_go.set()
    going: set[asyncio.Task[None]] = set()

    async def visit(port: int) -> None:
        at = time.monotonic() - started
        visits.append(Visit(at, await _visit(namespace, port)))

    async def send_all() -> None:
        async for number in _paced(1 / VISITS_PER_S):
            await may_go.wait()
            task = asyncio.create_task(visit(CLIENT_PORTS["stranger"] + number))
            going.add(task)
            task.add_done_callback(going.discard)

    sending = asyncio.create_task(send_all())
    while (order := await told(orders)) != "stop":
        if order == "hold":
            may_go.clear()
            while going:
                await asyncio.wait(going)
            orders.send(len(visits))
        else:
            may_go.set()
    sending.cancel()
    while going:
        await asyncio.wait(going)
    orders.send(visits)


async def _visit(namespace: str, port: int) -> str:
    """Return what was wrong, if anything."""
    with bound(namespace, "0.0.0.0", port, socket.SOCK_STREAM) as made:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_connect(made, (EXTERNAL_ADDRESS, FORWARDED))
                _, writer = streams = await asyncio.open_connection(sock=made)
                writer.write(b"a stranger\n")
                await _same(streams[0], b"a stranger\n")
                writer.close()
                await writer.wait_closed()
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return "refused" if error.errno == errno.ECONNREFUSED else said(error)
    return ""
