"""Packets as one line of text, to be read and written by people: the language of the packet-case files.

    tcp 10.0.0.2:4000 > 199.0.0.1:80 S seq=1 win=8192 scale=7
    udp 10.0.0.2:4000 > 199.0.0.1:53 len=32 ttl=1 sum=none
    icmp 10.0.0.2 > 199.0.0.1 echo id=7 seq=1
    icmp 199.0.0.254 > 200.200.200.200 unreachable/4 mtu=1280 cut=28 quote={udp 200.200.200.200:4000 > 199.0.0.1:53}
    ip 10.0.0.2 > 199.0.0.1 proto=47 len=20

What is not written has its usual value: ttl 64, no options, an empty payload, right lengths and checksums.

    every packet  ttl= tos= ipid= df mf offset= opt=HEX version= ihl= total= ipsum= pad= (octets of link padding)
    payload       len= (a fixed pattern) or data=HEX
    tcp           flags of FSRPAUEC (- for none), seq= ack= win= urg= scale= options=HEX doff=
    udp           udplen=
    icmp          NAME or NAME/CODE or TYPE/CODE; queries: id= seq=; errors: mtu= cut= (octets quoted) quote={...}
    checksums     sum= and ipsum= take a number, `bad` (wrong by a fixed amount), or `none` (0)

Ports and identifiers may be variables, written $name.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from tests.support import packets
from tests.support.packets import BAD, ICMP, TCP, UDP, Packet, decode, dotted, pattern

ICMP_NAMES = {
    "echo-reply": 0,
    "unreachable": 3,
    "source-quench": 4,
    "redirect": 5,
    "echo": 8,
    "router-advertisement": 9,
    "router-solicitation": 10,
    "time-exceeded": 11,
    "parameter-problem": 12,
    "timestamp": 13,
    "timestamp-reply": 14,
    "information": 15,
    "information-reply": 16,
    "mask": 17,
    "mask-reply": 18,
}
NAME_OF_TYPE = {number: name for name, number in ICMP_NAMES.items()}

IP_KEYS = {
    "ttl": "ttl",
    "tos": "tos",
    "ipid": "identification",
    "df": "df",
    "mf": "mf",
    "offset": "offset",
    "opt": "options",
    "version": "version",
    "ihl": "header_length",
    "total": "total_length",
    "ipsum": "ip_checksum",
}
TCP_KEYS = {
    "seq": "seq",
    "ack": "ack",
    "win": "window",
    "urg": "urgent",
    "scale": "scale",
    "options": "tcp_options",
    "doff": "data_offset",
}

Variables = dict[str, int]


class NotationError(ValueError):
    """The text is not a packet; str() says what is wrong with it."""


# --- reading -------------------------------------------------------------------------------------------------------


def read_packet(text: str, variables: Variables | None = None) -> bytes:
    """Return the packet a line describes. Raises NotationError."""
    words, quote = _split(text)
    keys = _keys(words, variables or {})
    flags = [word for word in words[4:] if "=" not in word and word not in ("df", "mf")]
    if len(words) < 4 or words[2] != ">":
        raise NotationError(f"{text!r}: expected PROTOCOL SOURCE > DESTINATION ...")
    protocol, source, destination = words[0], words[1], words[3]
    ip = {IP_KEYS[key]: value for key, value in keys.items() if key in IP_KEYS}
    payload = bytes.fromhex(keys["data"]) if "data" in keys else pattern(keys.get("len", 0))
    common: dict[str, Any] = {"payload": payload, **ip}
    if "sum" in keys:
        common["checksum"] = keys["sum"]
    if protocol == "tcp":
        common |= {TCP_KEYS[key]: value for key, value in keys.items() if key in TCP_KEYS}
        ends = [_endpoint(end, variables) for end in (source, destination)]
        packet = packets.tcp(*ends, flags[0].replace("-", "") if flags else "A", **common)
    elif protocol == "udp":
        ends = [_endpoint(end, variables) for end in (source, destination)]
        packet = packets.udp(*ends, length=keys.get("udplen"), **common)
    elif protocol == "icmp":
        packet = _read_icmp(source, destination, flags, keys, quote, common, variables)
    elif protocol == "ip":
        packet = packets.ipv4(source, destination, keys["proto"], **common)
    else:
        raise NotationError(f"{protocol!r} is none of tcp, udp, icmp, ip")
    return packet + bytes(keys.get("pad", 0))


def unbound_names(text: str) -> list[str]:
    return re.findall(r"\$(\w+)", text)


def bind(text: str, packet: bytes, variables: Variables) -> None:
    """Give the variables in the outer header of a line, where they have no value yet, that of the packet seen."""
    words, _ = _split(text)
    seen = decode(packet)
    places = [(words[1], seen.source_port), (words[3], seen.destination_port)]
    places += [(word, seen.source_port) for word in words[4:] if word.startswith("id=$")]
    for word, value in places:
        name = word.partition("$")[2]
        if name and value is not None:
            variables.setdefault(name, value)


def _split(text: str) -> tuple[list[str], str | None]:
    """Return the words of a line without its quote, and the quote."""
    head, brace, rest = text.partition("quote={")
    if not brace:
        return text.split(), None
    quote, closing, tail = rest.rpartition("}")
    if not closing:
        raise NotationError(f"{text!r}: quote={{ without }}")
    return (head + tail).split(), quote


def _keys(words: list[str], variables: Variables) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for word in words[4:]:
        key, equals, value = word.partition("=")
        if word in ("df", "mf"):
            keys[word] = True
        elif equals:
            keys[key] = _value(key, value, variables)
    known = {*IP_KEYS, *TCP_KEYS, "sum", "len", "data", "udplen", "id", "mtu", "cut", "proto", "pad"}
    unknown = set(keys) - known
    if unknown:
        raise NotationError(f"unknown {', '.join(sorted(unknown))}= in {' '.join(words)!r}")
    return keys


def _value(key: str, text: str, variables: Variables) -> Any:
    if key in ("sum", "ipsum"):
        return BAD if text == "bad" else 0 if text == "none" else int(text, 0)
    if key in ("opt", "options"):
        return bytes.fromhex(text)
    if key == "data":
        return text
    return _number(text, variables)


def _number(text: str, variables: Variables) -> int:
    if text.startswith("$"):
        if text[1:] not in variables:
            raise NotationError(f"{text} has no value yet")
        return variables[text[1:]]
    return int(text, 0)


def _endpoint(text: str, variables: Variables | None) -> tuple[str, int]:
    address, colon, port = text.partition(":")
    if not colon:
        raise NotationError(f"{text!r} has no port")
    return address, _number(port, variables or {})


def _read_icmp(source, destination, flags, keys, quote, common, variables) -> bytes:
    if not flags:
        raise NotationError("an ICMP packet needs its type")
    name, _, code = flags[0].partition("/")
    kind = ICMP_NAMES[name] if name in ICMP_NAMES else int(name)
    common["code"] = int(code or 0)
    if quote is not None:
        common["payload"] = read_packet(quote, variables)[: keys.get("cut")]
    rest = keys.get("id", 0) << 16 | keys.get("seq", 0) | keys.get("mtu", 0)
    return packets.icmp(source, destination, kind, rest=rest, **common)


# --- writing -------------------------------------------------------------------------------------------------------


@functools.lru_cache(64)  # of each packet it is asked more than once
def show(packet: bytes) -> str:
    """Return the line that describes a packet; what is wrong with it is named at the end."""
    try:
        seen = decode(packet)
    except packets.Malformed as error:
        return f"not a packet ({error}): {packet.hex()}"
    words = {TCP: _show_tcp, UDP: _show_udp, ICMP: _show_icmp}.get(seen.protocol, _show_other)(seen)
    if seen.ttl != 64:
        words.append(f"ttl={seen.ttl}")
    if seen.tos:
        words.append(f"tos={seen.tos}")
    if seen.identification:
        words.append(f"ipid={seen.identification}")
    words += ["df"] * seen.df + ["mf"] * seen.mf
    if seen.offset:
        words.append(f"offset={seen.offset}")
    if seen.options:
        words.append(f"opt={seen.options.hex()}")
    wrong = packets.problems(packet)
    return " ".join(words) + (f"  [{', '.join(wrong)}]" if wrong else "")


def _show_tcp(seen: Packet) -> list[str]:
    if seen.flags is None:
        return _show_other(seen)
    letters = "".join(letter for letter, bit in packets.FLAG_BITS.items() if seen.flags & bit) or "-"
    words = [*_show_ends("tcp", seen), letters, f"seq={seen.seq}"]
    if seen.ack:
        words.append(f"ack={seen.ack}")
    if seen.window != 65535:
        words.append(f"win={seen.window}")
    if len(seen.body) - len(seen.payload) > 20:
        words.append(f"options={seen.body[20 : len(seen.body) - len(seen.payload)].hex()}")
    return words + _show_payload(seen)


def _show_udp(seen: Packet) -> list[str]:
    if seen.source_port is None:
        return _show_other(seen)
    none = ["sum=none"] if seen.body[6:8] == b"\0\0" else []
    return _show_ends("udp", seen) + _show_payload(seen) + none


def _show_icmp(seen: Packet) -> list[str]:
    if seen.kind is None:
        return _show_other(seen)
    words = ["icmp", dotted(seen.source), ">", dotted(seen.destination)]
    words.append(f"{NAME_OF_TYPE.get(seen.kind, seen.kind)}" + (f"/{seen.code}" if seen.code or seen.is_error else ""))
    if seen.is_query:
        return [*words, f"id={seen.source_port}", f"seq={seen.rest & 0xFFFF}", *_show_payload(seen)]
    if seen.rest:
        words.append(f"mtu={seen.rest}")
    if seen.is_error and len(seen.quote) >= 20:
        return [*words, f"cut={len(seen.quote)}", f"quote={{{_show_quote(seen.quote)}}}"]
    return words + _show_payload(seen)


def _show_quote(quote: bytes) -> str:
    text = show(quote).partition("  [")[0]
    wrong = packets.quote_problems(quote)
    return text + (f"  [{', '.join(wrong)}]" if wrong else "")


def _show_other(seen: Packet) -> list[str]:
    words = ["ip", dotted(seen.source), ">", dotted(seen.destination), f"proto={seen.protocol}"]
    return [*words, f"len={len(seen.body)}"]


def _show_ends(name: str, seen: Packet) -> list[str]:
    source = f"{dotted(seen.source)}:{seen.source_port}"
    return [name, source, ">", f"{dotted(seen.destination)}:{seen.destination_port}"]


def _show_payload(seen: Packet) -> list[str]:
    if not seen.payload:
        return []
    if seen.payload == pattern(len(seen.payload)):
        return [f"len={len(seen.payload)}"]
    return [f"data={seen.payload.hex()}"]
