"""PPTP hosts that really speak: control connections on TCP 1723, calls, and PPP frames in GRE over raw sockets.

A PptpHost may call, be called, or both; no kernel module for GRE or PPP is needed. Control messages are scapy's, so
that nothing here shares an offset with fastmasq. What goes through a call's tunnel are PPP LCP echo requests (RFC 1661
section 5.8), which the other end answers; both number and acknowledge their packets (RFC 2637 section 4).

Everything is answered by a thread of the host, so a test only says what one end wants and waits for the outcome.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from scapy.layers import pptp
from scapy.packet import Packet

from fastmasq.lab import hosts
from fastmasq.wire.numbers import GRE, PPTP_PORT
from tests.support.lab_network import PATIENCE_S, eventually
from tests.support.speakers import Place, Speaker

CONNECTED, BUSY = 1, 4  # results of a call (RFC 2637 section 2.8)
DISCONNECTED = 4  # result in a Call-Disconnect-Notify: as requested (section 2.13)

PPP = 0x880B
LCP_ECHO_REQUEST, LCP_ECHO_REPLY = 9, 10
_KEY, _SEQUENCE, _VERSION_1, _ACKNOWLEDGMENT = 0x20, 0x10, 0x01, 0x80
_LCP = struct.Struct(">BBHBBHII")  # ff 03 c0 21, code, identifier, length, magic number, our number


class GrePacket(NamedTuple):
    """One GRE version 1 packet (RFC 2637 section 4.1); sequence and acknowledgment are None if absent."""

    call_id: int
    sequence: int | None = None
    acknowledgment: int | None = None
    payload: bytes = b""

    @classmethod
    def parse(cls, octets: bytes) -> GrePacket:
        """Read what follows the IPv4 header. Raises ValueError for what no PPTP host may send."""
        first, second, protocol, length, call_id = struct.unpack_from(">BBHHH", octets)
        if (first & ~_SEQUENCE, second & ~_ACKNOWLEDGMENT, protocol) != (_KEY, _VERSION_1, PPP):
            raise ValueError(f"not GRE as PPTP uses it: {octets[:8].hex()}")
        has_sequence, has_acknowledgment = bool(first & _SEQUENCE), bool(second & _ACKNOWLEDGMENT)
        start = 8 + 4 * (has_sequence + has_acknowledgment)
        if len(octets) != start + length or (length > 0) != has_sequence:
            raise ValueError(f"GRE says {length} octets of payload, and has {len(octets) - start}")
        numbers = iter(struct.unpack_from(f">{(start - 8) // 4}I", octets, 8))
        sequence = next(numbers) if has_sequence else None
        return cls(call_id, sequence, next(numbers) if has_acknowledgment else None, octets[start:])

    def emit(self) -> bytes:
        first = _KEY | (_SEQUENCE if self.sequence is not None else 0)
        second = _VERSION_1 | (_ACKNOWLEDGMENT if self.acknowledgment is not None else 0)
        numbers = [number for number in (self.sequence, self.acknowledgment) if number is not None]
        head = struct.pack(">BBHHH", first, second, PPP, len(self.payload), self.call_id)
        return head + struct.pack(f">{len(numbers)}I", *numbers) + self.payload


class Stray(NamedTuple):
    """A GRE packet that came to a host and belongs to no call of it."""

    remote: str
    octets: bytes


class Call:
    """One end of a call: our Call ID (in what comes) and the peer's (in what we send), numbers, and what was heard."""

    def __init__(self, connection: Connection, own_id: int) -> None:
        self.connection = connection
        self.own_id = own_id
        self.peer_id: int | None = None
        self.result: int | None = None  # of the reply; None until it has come
        self.disconnected = False  # a Call-Disconnect-Notify has come, or was sent
        self.link_infos: list[tuple[int, int]] = []  # ACCMs told by Set-Link-Info
        self.wan_errors = 0  # WAN-Error-Notify messages
        self.replies: list[int] = []  # numbers of the echo replies, as they came
        self.questions: list[int] = []  # numbers of the echo requests, as they came
        self.sent = 0  # data packets; the last one has the sequence number sent - 1
        self.received = -1  # the highest sequence number that came
        self.acknowledged = -1  # the highest number of ours that the peer has acknowledged
        self.late = 0  # data packets that came twice or out of order, and were discarded
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()

    def ask(self, size: int = 64) -> int:
        """Send one LCP echo request of `size` octets, and return the number it carries."""
        number = next(self._numbers)
        self._send_echo(LCP_ECHO_REQUEST, number, bytes(max(0, size - _LCP.size)))
        return number

    def exchange(self, count: int = 5, seconds: float = PATIENCE_S) -> None:
        """Send `count` echo requests, each once the one before is answered; fail the test if an answer is missing."""
        for _ in range(count):
            assert self.answers(seconds), f"no answer to an echo request in {self}: {self.state()}"
        eventually(lambda: self.acknowledged == self.sent - 1, seconds, f"the last acknowledgment in {self}")

    def answers(self, seconds: float = 0.5) -> bool:
        """Send one echo request, and return whether it is answered in time."""
        number = self.ask()
        return hosts.wait_until(lambda: number in self.replies, seconds)

    def state(self) -> str:
        """Return the counts of packets, for messages."""
        other = f"received up to {self.received}, {self.late} discarded, {len(self.replies)} replies"
        return f"{self.sent} sent, {self.acknowledged} acknowledged, {other}"

    def set_link_info(self) -> None:
        """Tell the peer our ACCMs, as the side that placed the call does (RFC 2637 section 2.15)."""
        self.connection.send(pptp.PPTPSetLinkInfo(peer_call_id=self.peer_id, send_accm=~0 & 0xFFFFFFFF))

    def notify_wan_error(self) -> None:
        """Tell the peer of a line error, as the called side does (section 2.14)."""
        self.connection.send(pptp.PPTPWANErrorNotify(peer_call_id=self.peer_id, crc_errors=1))

    def clear(self) -> None:
        """Ask the called side to end the call (section 2.12), and wait for its Call-Disconnect-Notify."""
        self.connection.send(pptp.PPTPCallClearRequest(call_id=self.own_id))
        eventually(lambda: self.disconnected, what=f"a disconnect of {self}")

    def disconnect(self) -> None:
        """End the call as the called side, unasked or asked (section 2.13)."""
        self.connection.send(pptp.PPTPCallDisconnectNotify(call_id=self.own_id, result_code=DISCONNECTED))
        self.disconnected = True

    def hear(self, packet: GrePacket) -> None:
        """Take a GRE packet that carries our Call ID."""
        if packet.acknowledgment is not None:
            self.acknowledged = max(self.acknowledged, packet.acknowledgment)
        if packet.sequence is None:
            return
        if packet.sequence <= self.received:
            self.late += 1
            return
        self.received = packet.sequence
        code, number, padding = _read_echo(packet.payload)
        if code == LCP_ECHO_REPLY:
            self._send(GrePacket(self.peer_id, None, self.received))
            self.replies.append(number)
        elif self.peer_id is not None:
            self.questions.append(number)
            self._send_echo(LCP_ECHO_REPLY, number, padding)

    def _send_echo(self, code: int, number: int, padding: bytes) -> None:
        length = _LCP.size - 4 + len(padding)
        frame = _LCP.pack(0xFF, 0x03, 0xC021, code, number & 0xFF, length, 0, number) + padding
        with self._sending:
            acknowledgment = self.received if self.received >= 0 else None
            self._send(GrePacket(self.peer_id, self.sent, acknowledgment, frame))
            self.sent += 1

    def _send(self, packet: GrePacket) -> None:
        with contextlib.suppress(OSError):  # what the kernel does not take is lost, as it might be further on
            self.connection.host.gre.sendto(packet.emit(), (self.connection.remote, 0))

    def __str__(self) -> str:
        return f"call {self.own_id} of {self.connection}"


class Connection:
    """One end of a control connection. `messages` are all that came, as scapy reads them."""

    def __init__(self, host: PptpHost, stream: socket.socket) -> None:
        self.host = host
        self.stream = stream
        self.remote: str = stream.getpeername()[0]
        self.messages: list[Packet] = []
        self.calls: list[Call] = []
        self.ended = False  # no more can come: FIN or RST
        self.cuts: tuple[int, ...] = ()  # offsets at which each message is cut into segments
        self.copies = 1  # of each message that is sent
        self.answer = CONNECTED  # the result that calls get
        self._unread = b""
        self._held: bytes | None = None
        self._serial = itertools.count(1)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # -- what a test has this end do -----------------------------------------------------------------------------

    def start(self) -> None:
        """Introduce ourselves, and wait for the reply."""
        self.send(pptp.PPTPStartControlConnectionRequest())
        self.wait_for(pptp.PPTPStartControlConnectionReply)

    def begin_call(self, call_id: int) -> Call:
        """Ask for an outgoing call with this Call ID of ours, and do not wait."""
        call = self._new_call(call_id)
        self.send(pptp.PPTPOutgoingCallRequest(call_id=call_id, call_serial_number=next(self._serial)))
        return call

    def call(self, call_id: int) -> Call:
        """Have an outgoing call with this Call ID of ours connected."""
        call = self.begin_call(call_id)
        eventually(lambda: call.result is not None, what=f"a reply to {call}")
        assert call.result == CONNECTED, f"{call} was refused with {call.result}"
        return call

    def offer(self, call_id: int) -> Call:
        """Offer the other side an incoming call (RFC 2637 section 2.9) and have it connected."""
        call = self._new_call(call_id)
        self.send(pptp.PPTPIncomingCallRequest(call_id=call_id, call_serial_number=next(self._serial)))
        eventually(lambda: call.result is not None, what=f"a reply to {call}")
        self.send(pptp.PPTPIncomingCallConnected(peer_call_id=call.peer_id))
        return call

    def echo(self) -> None:
        """Have one keep-alive answered (section 2.5)."""
        identifier = next(self._serial)
        self.send(pptp.PPTPEchoRequest(identifier=identifier))
        self.wait_for(pptp.PPTPEchoReply, identifier=identifier)

    def stop(self) -> None:
        """Have the control connection stopped by message (section 2.3), then close it."""
        self.send(pptp.PPTPStopControlConnectionRequest(reason=3))
        self.wait_for(pptp.PPTPStopControlConnectionReply)
        self.close()

    def close(self) -> None:
        """End with FIN, without a word before."""
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End with RST."""
        self.host.read_no_more(self.stream)
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.close()

    # -- octets --------------------------------------------------------------------------------------------------

    def send(self, message: Packet) -> None:
        """Send a message in the segments that `cuts` make of it, `copies` times."""
        octets = bytes(message)
        octets = struct.pack(">H", len(octets)) + octets[2:]  # scapy has a wrong length for the Incoming-Call-Reply
        if self._held is not None:
            self._held += octets * self.copies
            return
        for _ in range(self.copies):
            for start, end in itertools.pairwise((0, *(at for at in self.cuts if at < len(octets)), len(octets))):
                self.stream.sendall(octets[start:end])

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Send all messages of the block together, in one segment."""
        self._held = b""
        yield
        held, self._held = self._held, None
        self.stream.sendall(held)

    def heard(self, kind: type[Packet], **fields: int) -> list[Packet]:
        """Return the messages of a kind that have come so far, with these values in their fields."""
        return [
            message
            for message in self.messages
            if type(message) is kind and all(getattr(message, name) == value for name, value in fields.items())
        ]

    def wait_for(self, kind: type[Packet], **fields: int) -> Packet:
        """Wait until a message of a kind has come; return the last one."""
        eventually(lambda: self.heard(kind, **fields), what=f"a {kind.__name__} for {self}")
        return self.heard(kind, **fields)[-1]

    def call_of(self, **ids: int) -> Call | None:
        """Return the newest call with these ids."""
        found = [call for call in self.calls if all(getattr(call, name) == value for name, value in ids.items())]
        return found[-1] if found else None

    # -- what the host's thread does -----------------------------------------------------------------------------

    def read(self) -> bool:
        """Take what has come, and answer it; return whether more can come."""
        try:
            piece = self.stream.recv(65536)
        except OSError:
            piece = b""
        if not piece:
            self.ended = True
            return False
        self._unread += piece
        while len(self._unread) >= 2 and len(self._unread) >= (length := int.from_bytes(self._unread[:2], "big")):
            octets, self._unread = self._unread[:length], self._unread[length:]
            message = pptp.PPTP(octets)
            assert message.magic_cookie == 0x1A2B3C4D and length >= 12, octets.hex()
            self.messages.append(message)
            with contextlib.suppress(OSError):
                self._answer(message)
        return True

    def _answer(self, message: Packet) -> None:
        match message:
            case pptp.PPTPStartControlConnectionRequest():
                self.send(pptp.PPTPStartControlConnectionReply())
            case pptp.PPTPStopControlConnectionRequest():
                self.send(pptp.PPTPStopControlConnectionReply())
            case pptp.PPTPEchoRequest():
                self.send(pptp.PPTPEchoReply(identifier=message.identifier))
            case pptp.PPTPOutgoingCallRequest():
                call = self._called(message.call_id)
                reply = pptp.PPTPOutgoingCallReply(call_id=call.own_id, peer_call_id=call.peer_id)
                reply.result_code = self.answer
                self.send(reply)
            case pptp.PPTPIncomingCallRequest():
                call = self._called(message.call_id)
                self.send(pptp.PPTPIncomingCallReply(call_id=call.own_id, peer_call_id=call.peer_id))
            case pptp.PPTPOutgoingCallReply() | pptp.PPTPIncomingCallReply():
                if call := self.call_of(own_id=message.peer_call_id):
                    call.peer_id = message.call_id
                    call.result = message.result_code
            case pptp.PPTPCallClearRequest():
                if call := self.call_of(peer_id=message.call_id):
                    call.disconnect()
            case pptp.PPTPCallDisconnectNotify():
                if call := self.call_of(peer_id=message.call_id):
                    call.disconnected = True
            case pptp.PPTPSetLinkInfo():
                if call := self.call_of(own_id=message.peer_call_id):
                    call.link_infos.append((message.send_accm, message.receive_accm))
            case pptp.PPTPWANErrorNotify():
                if call := self.call_of(own_id=message.peer_call_id):
                    call.wan_errors += 1

    def _called(self, peer_id: int) -> Call:
        """Return the call that the peer asks for: the same one again if it repeats itself."""
        call = self.call_of(peer_id=peer_id)
        if call is None or call.disconnected:
            call = self._new_call(self.host.next_call_id())
            call.peer_id, call.result = peer_id, self.answer
        return call

    def _new_call(self, own_id: int) -> Call:
        call = Call(self, own_id)
        self.calls.append(call)
        return call

    def __str__(self) -> str:
        return f"{self.host.address} with {self.remote}"


class PptpHost(Speaker):
    """One host at one address, which may call and be called.

    `first_id` is the first Call ID it gives to calls that others ask for; the next ones follow.
    """

    def __init__(self, place: Place, address: str, *, first_id: int = 0x11) -> None:
        super().__init__(place, address)
        self.connections: list[Connection] = []
        self.strays: list[Stray] = []
        self._ids = itertools.count(first_id)
        self.gre = self.make_socket(socket.SOCK_RAW, GRE)
        self.read_with(self.gre, self._read_gre)
        self.start()

    def listen(self, port: int = PPTP_PORT) -> PptpHost:
        """Accept control connections from now on; return the host itself."""
        listener = self.make_socket(socket.SOCK_STREAM, port=port)
        listener.listen(64)
        self.read_with(listener, lambda: self._add(listener.accept()[0]))
        return self

    def connect(self, remote: str, port: int = PPTP_PORT) -> Connection:
        """Open a control connection, introductions not yet made. Raises OSError."""
        stream = self.make_socket(socket.SOCK_STREAM)
        stream.settimeout(PATIENCE_S)
        stream.connect((remote, port))
        return self._add(stream)

    def dial(self, remote: str, call_id: int) -> Call:
        """Do all that is needed for a call with this Call ID of ours."""
        connection = self.connect(remote)
        connection.start()
        return connection.call(call_id)

    def next_call_id(self) -> int:
        return next(self._ids)

    def calls(self) -> list[Call]:
        """Return all calls of all connections, oldest connection first."""
        return [call for connection in self.connections for call in connection.calls]

    def _add(self, stream: socket.socket) -> Connection:
        stream.settimeout(PATIENCE_S)
        connection = Connection(self, self.keep(stream))
        self.connections.append(connection)

        def read() -> None:
            if not connection.read():
                self.read_no_more(stream)
                connection.close()

        self.read_with(stream, read)
        return connection

    def _read_gre(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (remote, _) = self.gre.recvfrom(65536)
                octets = packet[(packet[0] & 15) * 4 :]
                call = self._owner(remote, octets)
                if call is None:
                    self.strays.append(Stray(remote, octets))
                else:
                    call.hear(GrePacket.parse(octets))

    def _owner(self, remote: str, octets: bytes) -> Call | None:
        """Return the newest call with this remote that has the packet's Call ID, unless it has ended."""
        with contextlib.suppress(ValueError, struct.error):
            call_id = GrePacket.parse(octets).call_id
            found = [call for call in self.calls() if call.connection.remote == remote and call.own_id == call_id]
            return found[-1] if found and not found[-1].disconnected else None
        return None


def _read_echo(frame: bytes) -> tuple[int, int, bytes]:
    """Return code, number and padding of an LCP echo packet. Raises ValueError if it is none."""
    head, control, protocol, code, _, length, _, number = _LCP.unpack_from(frame)
    if (head, control, protocol) != (0xFF, 0x03, 0xC021) or length != len(frame) - 4:
        raise ValueError(f"not an LCP packet: {frame.hex()}")
    return code, number, frame[_LCP.size :]
