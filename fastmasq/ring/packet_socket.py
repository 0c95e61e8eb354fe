"""Packet sockets for a tap and for sending: options set one by one, with what the kernel refused kept in a list."""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastmasq.errors import KernelError
from fastmasq.ring.geometry import RingGeometry, v2_geometry, v3_geometry

SOL_PACKET = 263
ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800

PACKET_RX_RING = 5
PACKET_STATISTICS = 6
PACKET_COPY_THRESH = 7
PACKET_AUXDATA = 8
PACKET_VERSION = 10
PACKET_RESERVE = 12
PACKET_VNET_HDR = 15
PACKET_QDISC_BYPASS = 20
PACKET_IGNORE_OUTGOING = 23

SO_ATTACH_FILTER = 26
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33

TPACKET_V2 = 1
TPACKET_V3 = 2
V3_RETIRE_MS = 1  # the least the kernel grants: how long a block waits to be filled
RESERVE = 16  # octets before each frame for a longer link header
COPY_THRESHOLD = 1  # any packet that does not fit its slot is also queued whole
RECEIVE_BUFFER = 8 << 20  # octets of such copies: as much as a window; more queue is only delay, and cold in the cache
SEND_BUFFER = 16 << 20

MODES = ("v2", "v3", "socket")


@dataclass
class Tap:
    """An open receiving socket: its ring (None in socket mode), and the options that the kernel refused."""

    socket: socket.socket
    mode: str
    vnet_header: bool
    geometry: RingGeometry | None = None
    memory: mmap.mmap | None = None
    refused: list[str] = field(default_factory=list)

    def statistics(self) -> tuple[int, int]:
        """Return (packets, drops) since the last call: the kernel resets the counters at each reading."""
        raw = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12)
        packets, drops = struct.unpack_from("II", raw)
        return packets, drops

    def close(self) -> None:
        if self.memory is not None:
            self.memory.close()
        self.socket.close()


def open_tap(interface: str, mode: str, *, vnet_header: bool = True, frames: int = 4096, mtu: int = 1500) -> Tap:
    """Open a tap on all IPv4 packets that `interface` receives.

    mode: "v2", "v3", "socket", or "auto": the first of those that the kernel grants together with the virtio header,
    else the first without it. Raises KernelError when no mode can be had.
    """
    reasons = []
    for wanted, header in _attempts(mode, vnet_header):
        try:
            return _open(interface, wanted, header, frames, mtu)
        except OSError as error:
            reasons.append(f"{wanted}: {error.strerror}")
    raise KernelError(f"{interface}: no packet socket to be had ({'; '.join(reasons)})")


def _attempts(mode: str, vnet_header: bool) -> list[tuple[str, bool]]:
    modes = MODES if mode == "auto" else (mode,)
    headers = (True, False) if vnet_header else (False,)
    return [(wanted, header) for header in headers for wanted in modes]


def _open(interface: str, mode: str, vnet_header: bool, frames: int, mtu: int) -> Tap:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        tap = Tap(raw, mode, vnet_header)
        _optional(tap, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING")
        _optional(tap, socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER, "SO_RCVBUFFORCE")
        _attach_filter(raw)
        if vnet_header:
            raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        if mode == "socket":
            raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        else:
            _make_ring(tap, v2_geometry(frames, mtu) if mode == "v2" else v3_geometry(frames))
        raw.bind((interface, ETH_P_ALL))
        return tap
    except BaseException:
        raw.close()
        raise


def _make_ring(tap: Tap, geometry: RingGeometry) -> None:
    raw = tap.socket
    raw.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2 if tap.mode == "v2" else TPACKET_V3)
    _optional(tap, SOL_PACKET, PACKET_RESERVE, RESERVE, "PACKET_RESERVE")
    request = [geometry.block_size, geometry.block_count, geometry.frame_size, geometry.frame_count]
    if tap.mode == "v2":
        raw.setsockopt(SOL_PACKET, PACKET_COPY_THRESH, COPY_THRESHOLD)
    else:
        request += [V3_RETIRE_MS, 0, 0]
    raw.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack(f"{len(request)}I", *request))
    tap.memory = mmap.mmap(raw.fileno(), geometry.length, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    tap.geometry = geometry


def _optional(tap: Tap, level: int, option: int, value: int, name: str) -> None:
    try:
        tap.socket.setsockopt(level, option, value)
    except OSError:
        tap.refused.append(name)


def _attach_filter(raw: socket.socket) -> None:
    """Keep out what is not ours to look at: not IPv4, tagged for a VLAN interface, or sent by this host."""
    ancillary = 0xFFFFF000  # SKF_AD_OFF
    protocol, packet_type, vlan_present = ancillary + 0, ancillary + 4, ancillary + 48
    load_half, load_word, jump_equal, give = 0x28, 0x20, 0x15, 0x06
    program = [
        (load_half, 0, 0, protocol),
        (jump_equal, 0, 5, ETH_P_IP),
        (load_word, 0, 0, packet_type),
        (jump_equal, 3, 0, socket.PACKET_OUTGOING),
        (load_word, 0, 0, vlan_present),
        (jump_equal, 0, 1, 0),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    ]
    attach_program(raw, program)


def attach_program(raw: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    """Have the kernel filter by a classic BPF program of (code, jump if true, jump if false, value). Raises OSError."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    raw.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))


@dataclass
class SendSocket:
    """An open sending socket, bound to one link; it receives nothing."""

    socket: socket.socket
    vnet_header: bool
    qdisc_bypass: bool
    refused: list[str] = field(default_factory=list)

    def close(self) -> None:
        self.socket.close()


def open_sender(interface: str, *, vnet_header: bool = True, qdisc_bypass: bool = False) -> SendSocket:
    """Open a socket that sends on `interface`. The virtio header and the bypass are given up where refused."""
    try:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        raise KernelError("packet sockets need CAP_NET_RAW: run as root") from None
    try:
        refused = []
        for level, option, value, name, wanted in (
            (socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER, "SO_SNDBUFFORCE", True),
            (SOL_PACKET, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR", vnet_header),
            (SOL_PACKET, PACKET_QDISC_BYPASS, 1, "PACKET_QDISC_BYPASS", qdisc_bypass),
        ):
            if wanted:
                try:
                    raw.setsockopt(level, option, value)
                except OSError:
                    refused.append(name)
        raw.bind((interface, 0))
        raw.setblocking(False)
        return SendSocket(
            raw,
            vnet_header and "PACKET_VNET_HDR" not in refused,
            qdisc_bypass and "PACKET_QDISC_BYPASS" not in refused,
            refused,
        )
    except OSError as error:
        raw.close()
        raise KernelError(f"{interface}: cannot send on it: {error.strerror}") from None
