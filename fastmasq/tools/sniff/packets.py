"""What a sniffer shows of a VPN: IPv4 packets decoded as far as they are not encrypted, each with its line.

Shown are TCP with port 1723 (PPTP control, RFC 2637), GRE, UDP with port 500 or 4500 (ISAKMP, RFC 2408 and 7296; ESP in
UDP, RFC 3948), ESP (RFC 4303), AH, and ICMP errors about any of them. Sequence numbers are those of the packet, in host
order; SPIs and cookies are written in hex, as the logs of IKE daemons have them.
"""

from __future__ import annotations

import struct
from typing import Literal

from msgspec import Struct

from fastmasq.trackers.vpn.health import Kind
from fastmasq.wire import pptp
from fastmasq.wire.numbers import AH, ESP, GRE, ICMP, ISAKMP_PORT, NATT_PORT, PPTP_PORT, TCP, UDP
from fastmasq.wire.tunnels import Isakmp, name_natt, read_esp, read_gre, read_isakmp

EXCHANGES = {
    1: "base exchange",
    2: "identity protection (main mode)",
    3: "authentication only",
    4: "aggressive mode",
    5: "informational",
    32: "quick mode",
    33: "new group mode",
    34: "IKE_SA_INIT",
    35: "IKE_AUTH",
    36: "CREATE_CHILD_SA",
    37: "IKEv2 informational",
}  # RFC 2408 section 3.1, RFC 2409 appendix A, RFC 7296 section 3.1
_MAKES_SA = (32, 35, 36)
_ENCRYPTED, _RESPONSE = 0x01, 0x20  # flags of version 1, and of version 2

_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_LATER_FRAGMENT = 0x1FFF  # the offset in the fragment field

_UNREACHABLE = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    4: "fragmentation needed",
    9: "network administratively prohibited",
    10: "host administratively prohibited",
    13: "administratively prohibited",
}
FRAGMENTATION_NEEDED = "fragmentation needed"  # the one error that is no failure: the sender sends smaller packets


BARE = ("acknowledgment",)  # tags of a control segment that says nothing else


class Seen(Struct, frozen=True, kw_only=True):
    """One packet. `tags` are what a verdict counts; `problem` is why somebody refused something, or empty.

    An ICMP error has the kind, source and destination of the packet it is about, and `icmp_from` is who sent it.
    `server` is the end with port 1723: "source" or "destination", empty for other kinds; `client_port` is the other's.
    """

    kind: Kind
    source: str
    destination: str
    text: str
    tags: tuple[str, ...] = ()
    problem: str = ""
    server: Literal["source", "destination", ""] = ""
    client_port: int = 0
    icmp_from: str = ""
    icmp_to: str = ""

    def __str__(self) -> str:
        ends = (self.icmp_from, self.icmp_to) if self.icmp_from else (self.source, self.destination)
        return f"{ends[0]} -> {ends[1]}  {self.text}"


def decode(packet: bytes) -> Seen | None:
    """Return what an IPv4 packet shows of a VPN; None if nothing. Octets that are missing are never guessed."""
    header = (packet[0] & 15) * 4 if len(packet) >= 20 else 0
    if header < 20 or packet[0] >> 4 != 4 or len(packet) < header:
        return None
    total, fragment = struct.unpack_from("!2xH2xH", packet)
    protocol = packet[9]
    source, destination = (".".join(map(str, packet[start : start + 4])) for start in (12, 16))
    payload = packet[header : total if total > header else len(packet)]
    if fragment & _LATER_FRAGMENT:
        return _fragment(protocol, source, destination, len(payload))
    if protocol == ICMP:
        return _icmp(source, destination, payload)
    reader = {TCP: _control, UDP: _udp, GRE: _gre, ESP: _esp, AH: _ah}.get(protocol)
    return reader(source, destination, payload) if reader is not None else None


def _fragment(protocol: int, source: str, destination: str, octets: int) -> Seen | None:
    kinds: dict[int, Kind] = {GRE: "gre", ESP: "esp", AH: "ah"}
    if protocol not in kinds:
        return None
    kind = kinds[protocol]
    return Seen(
        kind=kind, source=source, destination=destination, text=f"{kind.upper()}, a later fragment, {octets} octets"
    )


# -- PPTP --------------------------------------------------------------------------------------------------------------


def _control(source: str, destination: str, segment: bytes) -> Seen | None:
    """Read a TCP segment of a control connection. Messages are found where a segment begins with one."""
    if len(segment) < 8:
        return None
    ports = struct.unpack_from("!HH", segment)
    if PPTP_PORT not in ports:
        return None
    server: Literal["source", "destination"] = "destination" if ports[1] == PPTP_PORT else "source"
    flags = segment[13] if len(segment) > 13 else 0
    words, tags, problem = [], [], ""
    if flags & _SYN:
        words.append("connects" if not flags & _ACK else "accepts the connection")
        tags.append("syn_ack" if flags & _ACK else "syn")
    if flags & _RST:
        words.append("resets the connection")
        tags.append("rst")
    if flags & _FIN:
        words.append("closes the connection")
        tags.append("fin")
    rest = segment[(segment[12] >> 4) * 4 :] if len(segment) >= 20 else b""
    if not words and not rest and len(segment) >= 20:
        words, tags = ["acknowledgment"], list(BARE)
    while rest:
        said, tag, wrong = _message(rest)
        words.append(said)
        tags += tag
        problem = problem or wrong
        header = pptp.Header.parse(rest)
        rest = rest[header.length :] if header is not None else b""
    return Seen(
        kind="control",
        source=source,
        destination=destination,
        text=f"PPTP {'; '.join(words) or 'control connection'}",
        tags=tuple(tags),
        problem=problem,
        server=server,
        client_port=ports[0] if server == "destination" else ports[1],
    )


def _message(octets: bytes) -> tuple[str, tuple[str, ...], str]:
    """Return words, tags and problem of the control message at the start of `octets`."""
    header = pptp.Header.parse(octets)
    layout = header.layout if header is not None else None
    if header is None or layout is None:
        return f"{len(octets)} octets in the middle of a message", (), ""
    kind = pptp.Type(header.control_type)
    words, tags, problem = str(kind), [kind.name.lower()], ""
    ids = [
        f"{name} {int.from_bytes(octets[at : at + 2], 'big')}"
        for name, at in (("Call ID", layout.call_id), ("Peer's Call ID", layout.peer_call_id))
        if at is not None and len(octets) >= at + 2
    ]
    if ids:
        words += f" ({', '.join(ids)})"
    start = pptp.Start.parse(octets) if kind in (pptp.Type.START_REQUEST, pptp.Type.START_REPLY) else None
    if start is not None and (start.host or start.vendor):
        words += f" (host {start.host!r}, vendor {start.vendor!r})"
    if layout.result is not None and len(octets) > layout.result + 1:
        result, error = octets[layout.result], octets[layout.result + 1]
        said = pptp.result_in_words(kind, result, error)
        words += f": {said}"
        if kind in (pptp.Type.START_REPLY, pptp.Type.OUTGOING_CALL_REPLY, pptp.Type.INCOMING_CALL_REPLY):
            accepted = result == pptp.CONNECTED
            if kind is not pptp.Type.START_REPLY and accepted:
                tags.append("call_accepted")
            problem = "" if accepted else f"{kind}: {said}"
    return words, tuple(tags), problem


def _gre(source: str, destination: str, payload: bytes) -> Seen | None:
    if len(payload) < 4:
        return None
    header = read_gre(payload)
    if header is None and (cut := read_gre(payload.ljust(16, b"\0"))) is not None and len(payload) >= 8:
        return Seen(kind="gre", source=source, destination=destination, text=f"GRE Call ID {cut.call_id}, cut")
    if header is None:
        text = f"GRE that is not PPTP's, version {payload[1] & 7}, {len(payload)} octets"
        return Seen(kind="gre", source=source, destination=destination, text=text, tags=("other",))
    numbers = [
        f"{name} {number}"
        for name, number in (("sequence", header.sequence), ("acknowledges", header.acknowledgment))
        if number is not None
    ]
    content = f"{header.payload_length} octets" if header.payload_length else "no data"
    text = ", ".join([f"GRE Call ID {header.call_id}", *numbers, content])
    return Seen(kind="gre", source=source, destination=destination, text=text)


# -- IPsec -------------------------------------------------------------------------------------------------------------


def _udp(source: str, destination: str, datagram: bytes) -> Seen | None:
    if len(datagram) < 8:
        return None
    ports = struct.unpack_from("!HH", datagram)
    payload = datagram[8:]
    if NATT_PORT in ports:
        return _natt(source, destination, payload)
    if ISAKMP_PORT not in ports:
        return None
    if not payload:
        return Seen(kind="isakmp", source=source, destination=destination, text="UDP port 500")
    header = read_isakmp(payload)
    if header is None:
        text = f"UDP port 500, {len(payload)} octets that are not ISAKMP"
        return Seen(kind="isakmp", source=source, destination=destination, text=text, tags=("other",))
    odd = "" if ports == (ISAKMP_PORT, ISAKMP_PORT) else f", ports {ports[0]} and {ports[1]}"
    return _isakmp(source, destination, header, odd)


def _isakmp(source: str, destination: str, header: Isakmp, where: str) -> Seen:
    first_version = header.version >> 4 == 1
    name = EXCHANGES.get(header.exchange, f"exchange {header.exchange}")
    words = [f"ISAKMP {name}"]
    if not first_version:
        words.append("response" if header.flags & _RESPONSE else "request")
    elif header.flags & _ENCRYPTED:
        words.append("encrypted")
    words.append(f"cookies {header.initiator.hex()}/{header.responder.hex()}")
    if header.message_id:
        words.append(f"message {header.message_id:#010x}")
    tags = ["begins"] if not any(header.responder) else []
    if header.exchange in _MAKES_SA:
        tags.append("makes_sa")
    return Seen(kind="isakmp", source=source, destination=destination, text=", ".join(words) + where, tags=tuple(tags))


def _natt(source: str, destination: str, payload: bytes) -> Seen:
    content = name_natt(payload)
    header = read_isakmp(payload[4:]) if content == "ike" else None
    if header is not None:
        seen = _isakmp(source, destination, header, ", on UDP port 4500")
        return Seen(kind="isakmp", source=source, destination=destination, text=seen.text, tags=(*seen.tags, "moved"))
    esp = read_esp(payload) if content == "esp" else None
    if esp is not None:
        text = f"ESP in UDP, SPI {esp.spi:#010x}, sequence {esp.sequence}, {len(payload)} octets"
        return Seen(kind="natt", source=source, destination=destination, text=text, tags=("data",))
    text = "NAT keep-alive" if content == "keepalive" else f"UDP port 4500, {len(payload)} octets"
    return Seen(kind="natt", source=source, destination=destination, text=text)


def _esp(source: str, destination: str, payload: bytes) -> Seen | None:
    header = read_esp(payload)
    if header is None:
        return None
    text = f"ESP SPI {header.spi:#010x}, sequence {header.sequence}, {len(payload)} octets"
    return Seen(kind="esp", source=source, destination=destination, text=text)


def _ah(source: str, destination: str, payload: bytes) -> Seen:
    return Seen(kind="ah", source=source, destination=destination, text=f"AH, {len(payload)} octets")


# -- ICMP --------------------------------------------------------------------------------------------------------------


def _icmp(sender: str, receiver: str, message: bytes) -> Seen | None:
    """Read an ICMP error about a packet that would be shown itself (RFC 792, RFC 1812 section 5.2.7.1)."""
    if len(message) < 8 + 20 or message[0] not in (3, 11, 12):
        return None
    kind, code = message[0], message[1]
    quoted = decode(message[8:])
    if quoted is None or quoted.icmp_from:
        return None
    unreachable = _UNREACHABLE.get(code, f"destination unreachable, code {code}")
    words = {11: "time exceeded", 12: "parameter problem"}.get(kind, unreachable)
    return Seen(
        kind=quoted.kind,
        source=quoted.source,
        destination=quoted.destination,
        text=f"ICMP {words}, about {quoted.source} -> {quoted.destination} {quoted.text}",
        tags=("icmp",),
        problem="" if words == FRAGMENTATION_NEEDED else f"{sender} says {words} about {NAMES[quoted.kind]}",
        icmp_from=sender,
        icmp_to=receiver,
    )


NAMES: dict[Kind, str] = {
    "control": "TCP port 1723",
    "gre": "GRE (IP protocol 47)",
    "isakmp": "ISAKMP (UDP port 500)",
    "esp": "ESP (IP protocol 50)",
    "natt": "ESP in UDP (port 4500)",
    "ah": "AH (IP protocol 51)",
}
