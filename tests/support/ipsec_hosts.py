"""IPsec hosts that really speak: ISAKMP exchanges that agree on SAs, and encrypted ESP in tunnel mode over raw sockets.

The exchanges have the headers, cookies, message numbers and flags of IKEv1 (RFC 2408, 2409: main mode, quick mode) or
IKEv2 (RFC 7296: IKE_SA_INIT, IKE_AUTH, CREATE_CHILD_SA). What is in them is our own, and hidden as in the real ones: an
SPI and key material. ESP is scapy's, AES-CBC and HMAC-SHA-256 under the agreed keys, sequence numbers from 1 on; in it
are pings between tunnel addresses, which the other end answers. With NAT traversal (RFC 3947, 3948) all of it is in UDP
from and to port 4500, without UDP checksums.

Everything is answered by a thread of the host, so a test only says what one end wants and waits for the outcome.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import secrets
import socket
import struct
import threading
import time
from typing import NamedTuple

from scapy.layers.inet import ICMP, IP
from scapy.layers.ipsec import ESP, SecurityAssociation

from fastmasq.lab import hosts
from fastmasq.wire.numbers import ISAKMP_PORT, NATT_PORT
from tests.support.lab_network import PATIENCE_S, eventually
from tests.support.speakers import Place, Speaker

SO_NO_CHECK = 11
NO_COOKIE = bytes(8)

MAIN_MODE, INFORMATIONAL, QUICK_MODE = 2, 5, 32  # RFC 2408 section 3.1, RFC 2409 appendix A
IKE_SA_INIT, IKE_AUTH, CREATE_CHILD_SA = 34, 35, 36  # RFC 7296 section 3.1
ENCRYPTED = 0x01  # flag of IKEv1
INITIATOR, RESPONSE = 0x08, 0x20  # flags of IKEv2
REPEAT_S = 0.5  # until a message is sent again that was not answered

_HEADER = struct.Struct(">8s8sBBBBII")
_AGREED = struct.Struct(">BI32s")  # number of the message in its exchange, SPI (or 0), key material
_BODY_OCTETS = 120
_ECHO_REPLY = 0
_NON_ESP_MARKER = bytes(4)
_KEEP_ALIVE = b"\xff"


class Message(NamedTuple):
    """An ISAKMP message as its header describes it, and the body behind the header (RFC 2408 section 3.1)."""

    initiator: bytes
    responder: bytes
    version: int  # 1 or 2
    exchange: int
    flags: int
    number: int  # the message id
    body: bytes

    @classmethod
    def parse(cls, octets: bytes) -> Message:
        initiator, responder, _, version, exchange, flags, number, length = _HEADER.unpack_from(octets)
        if length != len(octets):
            raise ValueError(f"an ISAKMP message of {len(octets)} octets says {length}")
        return cls(initiator, responder, version >> 4, exchange, flags, number, octets[_HEADER.size :])

    def emit(self) -> bytes:
        payload = 46 if self.version == 2 else 8  # encrypted; hash
        head = (self.initiator, self.responder, payload, self.version << 4, self.exchange, self.flags, self.number)
        return _HEADER.pack(*head, _HEADER.size + len(self.body)) + self.body


class Stray(NamedTuple):
    """An ESP packet that came to a host and that no SA of it opens."""

    remote: str
    spi: int


class Sa:
    """A pair of SAs between two hosts: what comes is under `spi_in`, what is sent under `spi_out`."""

    def __init__(self, spi_in: int, key_in: bytes, spi_out: int, key_out: bytes, local: str, remote: str) -> None:
        self.spi_in, self.spi_out = spi_in, spi_out
        self._in = _association(spi_in, key_in, remote, local)
        self._out = _association(spi_out, key_out, local, remote)
        self._sending = threading.Lock()
        self.opened = 0  # packets that came and were authentic

    @property
    def sent(self) -> int:
        return self._out.seq_num - 1

    def seal(self, inner: IP) -> bytes:
        """Return an ESP packet, without its IP header."""
        with self._sending:
            return bytes(self._out.encrypt(inner)[ESP])

    def open(self, packet: IP) -> IP:
        """Return the packet in the tunnel. Raises IPSecIntegrityError for one that was changed or is another's."""
        inner = self._in.decrypt(packet)
        self.opened += 1
        return inner


class Peer:
    """What a host has agreed on with one remote: cookies, SAs, and pings in the tunnel between the two.

    Packets under all SAs are opened. What is sent goes by the newest that the peer is known to have, and to the address
    that the last authentic packet came from.
    """

    def __init__(self, host: IpsecHost, remote: tuple[str, int], initiator: bytes, version: int, began: bool) -> None:
        self.host = host
        self.remote = remote  # where its ISAKMP comes from
        self.initiator, self.responder = initiator, NO_COOKIE
        self.version = version
        self.began = began  # we are the initiator of phase 1
        self.first = b""  # body of the message that began it, if the peer did
        self.sas: list[Sa] = []
        self.sa: Sa | None = None  # by which we send
        self.replies: list[int] = []  # numbers of the pings of ours that were answered
        self.questions: list[int] = []  # numbers of the peer's pings
        self.repeated = 0  # pings that had to be sent again
        self._numbers = itertools.count(1)
        self._message_ids = itertools.count(0)
        self._exchanges: dict[tuple[int, bool], _Exchange] = {}  # by message id, and whether we have begun it

    # -- what a test has this end do -----------------------------------------------------------------------------

    def negotiate(self) -> Peer:
        """Do phase 1 as the initiator, and the first SA with it; return the peer itself."""
        if self.version == 1:
            self._run(0, MAIN_MODE, 6)
            self.rekey()
        else:
            self._run(next(self._message_ids), IKE_SA_INIT, 2)
            self._agree(next(self._message_ids), IKE_AUTH, 2)
        return self

    def rekey(self) -> Sa:
        """Agree on a new pair of SAs under the cookies there are, whoever began phase 1; the old ones still open."""
        if self.version == 1:
            return self._agree(secrets.randbits(32) | 1, QUICK_MODE, 3)
        return self._agree(next(self._message_ids), CREATE_CHILD_SA, 2)

    def inform(self) -> None:
        """Send an informational message, which nobody answers in IKEv1 (dead peer detection, notifies)."""
        message = self._message(INFORMATIONAL, ENCRYPTED if self.version == 1 else 0, secrets.randbits(32) | 1)
        self.host.send_isakmp(self.remote, message._replace(body=secrets.token_bytes(_BODY_OCTETS)))

    def ping(self, size: int = 56) -> int:
        """Send one ping through the tunnel; return its number."""
        eventually(lambda: self.sa is not None, what=f"an SA of {self.host.address} with {self.remote[0]}")
        number = next(self._numbers)
        self._send_ping(number, size)
        return number

    def exchange(self, count: int = 5, seconds: float = PATIENCE_S, again_s: float = 1.0) -> None:
        """Send `count` pings, each once the one before is answered, and again if it is not answered for a second."""
        for _ in range(count):
            assert self.answers(seconds, again_s), f"no answer to a ping from {self.host.address} to {self.remote[0]}"

    def answers(self, seconds: float = 0.5, again_s: float = 1.0) -> bool:
        """Send one ping, and return whether it is answered in time."""
        number = self.ping()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if hosts.wait_until(lambda: number in self.replies, min(again_s, left)):
                return True
            self.repeated += 1
            self._send_ping(number)
        return False

    # -- exchanges -----------------------------------------------------------------------------------------------

    def _agree(self, number: int, kind: int, length: int) -> Sa:
        return self._run(number, kind, length).sa

    def _run(self, number: int, kind: int, length: int) -> _Exchange:
        """Begin an exchange and see it through: what is not answered is sent again."""
        exchange = self._exchanges[number, True] = _Exchange(kind, length, ours=True)
        self._say(exchange, number)
        deadline = time.monotonic() + PATIENCE_S
        while not exchange.over and time.monotonic() < deadline:
            step = exchange.step
            if not hosts.wait_until(lambda step=step: exchange.step != step or exchange.over, REPEAT_S):
                self.host.send_isakmp(self.remote, exchange.last)
        assert exchange.over, f"{self.host.address}: exchange {kind} with {self.remote[0]} stopped at {exchange.step}"
        return exchange

    def take(self, message: Message) -> None:
        """Take a message of the peer's, move its exchange on, and answer."""
        if self.responder == NO_COOKIE:
            self.responder = message.responder
        if message.exchange == INFORMATIONAL:
            return
        ours = bool(message.flags & RESPONSE) if self.version == 2 else (message.number, True) in self._exchanges
        exchange = self._exchanges.get((message.number, ours))
        if exchange is None:
            length = {MAIN_MODE: 6, QUICK_MODE: 3}.get(message.exchange, 2)
            exchange = self._exchanges[message.number, ours] = _Exchange(message.exchange, length, ours=False)
        step, spi, material = _AGREED.unpack_from(_hidden(message))
        if step != exchange.step + 1:
            if step == exchange.step - 1:  # the peer repeats itself: our answer was lost
                self.host.send_isakmp(self.remote, exchange.last)
            return
        exchange.step = step
        if spi:
            exchange.peer_spi, exchange.peer_material = spi, material
        if exchange.makes_sa and exchange.sa is None:
            self._make_sa(exchange)
        if step < exchange.length:
            self._say(exchange, message.number)
        if exchange.makes_sa and (exchange.ours or step == 3):
            self.sa = exchange.sa
        exchange.over = exchange.step == exchange.length

    def _say(self, exchange: _Exchange, number: int) -> None:
        """Send our next message of an exchange."""
        exchange.step += 1
        spi = exchange.spi if exchange.makes_sa and exchange.step <= 2 else 0
        body = _AGREED.pack(exchange.step, spi, exchange.material).ljust(_BODY_OCTETS, b"\0")
        flags = ENCRYPTED if exchange.kind == QUICK_MODE or (exchange.kind == MAIN_MODE and exchange.step > 4) else 0
        if self.version == 2:
            flags = (INITIATOR if self.began else 0) | (0 if exchange.ours else RESPONSE)
        message = self._message(exchange.kind, flags, number)._replace(body=body)
        exchange.last = message._replace(body=_hidden(message))
        self.host.send_isakmp(self.remote, exchange.last)

    def _message(self, kind: int, flags: int, number: int) -> Message:
        return Message(self.initiator, self.responder, self.version, kind, flags, number, b"")

    def __str__(self) -> str:
        return f"{self.host.address} with {self.remote[0]}"

    def _make_sa(self, exchange: _Exchange) -> None:
        """Make the SAs of an exchange in which both have told their SPIs."""
        key_in = _key(exchange.spi, exchange.material, exchange.peer_material)
        key_out = _key(exchange.peer_spi, exchange.material, exchange.peer_material)
        exchange.sa = Sa(exchange.spi, key_in, exchange.peer_spi, key_out, self.host.address, self.remote[0])
        self.sas.append(exchange.sa)

    # -- the tunnel ----------------------------------------------------------------------------------------------

    def _send_ping(self, number: int, size: int = 56) -> None:
        self._send(ICMP(type="echo-request", id=1, seq=number & 0xFFFF) / struct.pack(">I", number).ljust(size, b"."))

    def _send(self, inner: ICMP) -> None:
        packet = IP(src=self.host.address, dst=self.remote[0]) / inner
        self.host.send_esp(self.remote, self.sa.seal(packet))

    def hear(self, sa: Sa, packet: IP, remote: tuple[str, int]) -> None:
        """Take an ESP packet under one of our SAs; the peer has that SA, then. Raises IPSecIntegrityError."""
        inner = sa.open(packet)
        self.remote = remote
        if self.sa is None or self.sas.index(sa) > self.sas.index(self.sa):
            self.sa = sa
        (number,) = struct.unpack_from(">I", bytes(inner[ICMP].payload))
        if inner[ICMP].type == _ECHO_REPLY:
            self.replies.append(number)
        else:
            self.questions.append(number)
            self._send(ICMP(type="echo-reply", id=1, seq=number & 0xFFFF) / bytes(inner[ICMP].payload))


class _Exchange:
    """One exchange of messages under a message id; `ours` if we have begun it."""

    def __init__(self, kind: int, length: int, *, ours: bool) -> None:
        self.kind, self.length, self.ours = kind, length, ours
        self.makes_sa = kind in (QUICK_MODE, IKE_AUTH, CREATE_CHILD_SA)
        self.step = 0  # the number of the last message, either way
        self.over = False
        self.sa: Sa | None = None
        self.last: Message | None = None  # that we have sent
        self.spi = secrets.randbelow((1 << 32) - 256) + 256  # smaller ones are reserved (RFC 4303 section 2.1)
        self.material = secrets.token_bytes(32)
        self.peer_spi, self.peer_material = 0, b""


class IpsecHost(Speaker):
    """One host at one address, which may begin and answer. With `natt` ISAKMP and ESP are in UDP on port 4500."""

    def __init__(self, place: Place, address: str, *, natt: bool = False) -> None:
        super().__init__(place, address)
        self.natt = natt
        self.peers: list[Peer] = []
        self.strays: list[Stray] = []
        self.unknown: list[Message] = []  # ISAKMP under cookies that are not ours
        self.udp = self.make_socket(socket.SOCK_DGRAM, port=NATT_PORT if natt else ISAKMP_PORT)
        self.esp = self.make_socket(socket.SOCK_RAW, socket.IPPROTO_ESP)
        if natt:
            self.udp.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        self.read_with(self.udp, self._read_udp)
        self.read_with(self.esp, self._read_esp)
        self.start()

    def negotiate(self, remote: str, *, version: int = 1, cookie: bytes | None = None) -> Peer:
        """Do phase 1 with a remote, with this initiator cookie if given, and agree on the first SAs."""
        port = NATT_PORT if self.natt else ISAKMP_PORT
        peer = Peer(self, (remote, port), cookie or secrets.token_bytes(8), version, began=True)
        self.peers.append(peer)
        return peer.negotiate()

    def peer_of(self, sa: Sa) -> Peer:
        """Return our view of a peer that has the other end of these SAs."""
        return next(peer for peer in self.peers for own in peer.sas if own.spi_out == sa.spi_in)

    def send_isakmp(self, remote: tuple[str, int], message: Message) -> None:
        self._send(self.udp, (_NON_ESP_MARKER if self.natt else b"") + message.emit(), remote)

    def send_esp(self, remote: tuple[str, int], esp: bytes) -> None:
        if self.natt:
            self._send(self.udp, esp, remote)
        else:
            self._send(self.esp, esp, (remote[0], 0))

    def keep_alive(self, peer: Peer) -> None:
        """Send a NAT keep-alive (RFC 3948 section 2.3)."""
        self._send(self.udp, _KEEP_ALIVE, peer.remote)

    @staticmethod
    def _send(through: socket.socket, octets: bytes, remote: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):  # what the kernel does not take is lost, as it might be further on
            through.sendto(octets, remote)

    def _read_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                octets, remote = self.udp.recvfrom(65536)
                if not self.natt:
                    self._take_isakmp(Message.parse(octets), remote)
                elif octets.startswith(_NON_ESP_MARKER):
                    self._take_isakmp(Message.parse(octets[4:]), remote)
                elif octets != _KEEP_ALIVE:
                    self._take_esp(IP(src=remote[0], dst=self.address, proto=socket.IPPROTO_ESP) / ESP(octets), remote)

    def _read_esp(self) -> None:
        """Take one packet, and before it all ISAKMP there is: an SA is agreed on before the first packet under it."""
        self._read_udp()
        packet = IP(self.esp.recv(65536))
        self._take_esp(packet, (packet.src, ISAKMP_PORT))

    def _take_esp(self, packet: IP, remote: tuple[str, int]) -> None:
        for peer in self.peers:
            for sa in peer.sas:
                if sa.spi_in == packet[ESP].spi:
                    peer.hear(sa, packet, remote)
                    return
        self.strays.append(Stray(remote[0], packet[ESP].spi))

    def _take_isakmp(self, message: Message, remote: tuple[str, int]) -> None:
        peer = next((peer for peer in self.peers if _concerns(message, remote, peer)), None)
        if peer is None and message.responder != NO_COOKIE:
            self.unknown.append(message)
            return
        if peer is None:
            peer = Peer(self, remote, message.initiator, message.version, began=False)
            peer.responder, peer.first = secrets.token_bytes(8), message.body
            self.peers.append(peer)
        peer.remote = remote
        peer.take(message)


def _concerns(message: Message, remote: tuple[str, int], peer: Peer) -> bool:
    """Whether a message is from a peer; one without a responder cookie is, if it repeats what began the exchange."""
    if message.initiator != peer.initiator:
        return False
    if message.responder != NO_COOKIE and peer.responder != NO_COOKIE:
        return message.responder == peer.responder
    return remote[0] == peer.remote[0] and (peer.began or message.body == peer.first)


def _association(spi: int, key: bytes, source: str, destination: str) -> SecurityAssociation:
    return SecurityAssociation(
        ESP, spi, crypt_algo="AES-CBC", crypt_key=key[:16], auth_algo="SHA2-256-128", auth_key=key[16:48],
        tunnel_header=IP(src=source, dst=destination),
    )  # fmt: skip


def _key(spi: int, *material: bytes) -> bytes:
    """Return 48 octets of key for the SA with an SPI; the same at both ends."""
    return hashlib.sha384(struct.pack(">I", spi) + b"".join(sorted(material))).digest()


def _hidden(message: Message) -> bytes:
    """Return the body hidden, or uncovered again; nobody between can read it (there is no secret to keep in a test)."""
    return bytes(a ^ b for a, b in zip(message.body, _stream(message.initiator, message.number), strict=True))


@functools.lru_cache(64)
def _stream(initiator: bytes, number: int) -> bytes:
    return hashlib.shake_128(initiator + struct.pack(">I", number)).digest(_BODY_OCTETS)
