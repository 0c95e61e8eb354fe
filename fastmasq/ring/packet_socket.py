"""Packet sockets for a tap and for sending: options set one by one, with what the kernel refused kept in a list."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Sequence
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

# What may be refused, by the names that `status` and `fastmasq doctor kernel` have for it (kernel/features.py).
HEADER, RING_HEADER, RING_V3 = "virtio header", "virtio header on rings", "ring v3"
VLAN_FILTER, IGNORE_OUTGOING, BYPASS = "filter on VLAN tags", "taps without what we send", "sending past the queue"
RESERVED, LARGE_BUFFER = "room before each frame", "a large socket buffer"

GUARD_MARK = 0xFA57FA57  # what a guard marks packets with that are ours, see kernel/guard/specification
OTHERS_OCTETS = 1  # how much of a frame that is another station's comes to a tap behind it: enough to be counted

_libc = ctypes.CDLL(None, use_errno=True)
_UNKNOWN = (errno.EINVAL, errno.ENOPROTOOPT)  # what a kernel says to an option that it does not know


@dataclass
class Tap:
    """An open receiving socket: its ring (None in socket mode), and what of it the kernel refused: name and reason.

    behind: numbers of the interfaces it hears, see `open_tap`.
    """

    socket: socket.socket
    mode: str
    vnet_header: bool
    behind: tuple[int, ...] = ()
    is_deaf: bool = False
    geometry: RingGeometry | None = None
    memory: mmap.mmap | None = None
    refused: dict[str, str] = field(default_factory=dict)

    def hear(self) -> None:
        """Let in what is ours to look at from now on; before, nothing comes in."""
        self.is_deaf = False
        self._attach_filter()

    def hear_of(self, behind: tuple[int, ...]) -> None:
        """Have a tap behind the guard hear other interfaces from now on."""
        self.behind = behind
        self._attach_filter()

    def _attach_filter(self) -> None:
        if self.is_deaf:
            program = [_NOTHING]
        elif self.behind:
            program = _filter_behind(self.behind)
        else:
            program = _filter_before(on_tags=VLAN_FILTER not in self.refused)
        attach_program(self.socket, program)

    def statistics(self) -> tuple[int, int]:
        """Return (packets, drops) since the last call: the kernel resets the counters at each reading."""
        raw = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12)
        packets, drops = struct.unpack_from("II", raw)
        return packets, drops

    def close(self) -> None:
        if self.memory is not None:
            self.memory.close()
        self.socket.close()


class _Lacking(OSError):
    """The kernel does not know a `feature` that this way of opening a tap cannot do without."""

    def __init__(self, feature: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.feature = feature


@contextlib.contextmanager
def _asking_for(feature: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Lacking(feature, error) if error.errno in _UNKNOWN else error from None


def open_tap(
    interface: str,
    mode: str,
    *,
    vnet_header: bool = True,
    v2_may_stop: bool = False,
    frames: int = 4096,
    mtu: int = 1500,
    behind: tuple[int, ...] = (),
    deaf: bool = False,
) -> Tap:
    """Open a tap on all IPv4 packets that `interface` receives; `deaf`: from when it is told to `hear` them.

    It stands before all that the kernel's ingress hooks do. With `behind`, the numbers of the interface and of macvlans
    over it, it stands behind them, and behind a guard that marks: what comes to other interfaces over it, such as those
    of its VLANs, is not heard, and what is another station's comes as its first octet.

    mode: "v2", "v3", "socket", or "auto": the first of those that the kernel grants together with the virtio header,
    else the first without it. v2_may_stop says that packets may come which the kernel cannot describe in the header: it
    then keeps the slot of a ring v2 for itself, and the ring receives nothing more. So v2 gets no header, and plain
    sockets, which need no millisecond to hand a packet over, come before v3. Raises KernelError when none can be had.
    """
    reasons = []
    lacking: dict[str, str] = {}
    if vnet_header and v2_may_stop and mode != "v3":
        reasons.append("a packet that the header cannot tell of stops a ring v2")
        lacking[RING_HEADER] = reasons[0]
    for wanted, header in _attempts(mode, vnet_header, v2_may_stop):
        try:
            tap = _open(interface, wanted, header, frames, mtu, behind, deaf)
        except OSError as error:
            reasons.append(f"{wanted}: {error.strerror}")
            if isinstance(error, _Lacking):
                lacking[error.feature] = error.strerror
            continue
        if vnet_header and not header:
            lacking[HEADER] = lacking.get(HEADER) or reasons[0]
            lacking.pop(RING_HEADER, None)
        tap.refused |= lacking
        return tap
    raise KernelError(f"{interface}: no packet socket to be had ({'; '.join(reasons)})")


def _attempts(mode: str, vnet_header: bool, v2_may_stop: bool) -> list[tuple[str, bool]]:
    modes = MODES if mode == "auto" else (mode,)
    with_header = [each for each in ("socket", "v3") if each in modes] if v2_may_stop else modes
    return [(wanted, True) for wanted in with_header if vnet_header] + [(wanted, False) for wanted in modes]


def _open(
    interface: str, mode: str, vnet_header: bool, frames: int, mtu: int, behind: tuple[int, ...], deaf: bool
) -> Tap:  # fmt: skip
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        tap = Tap(raw, mode, vnet_header, behind, deaf)
        _optional(tap, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, IGNORE_OUTGOING)
        _optional(tap, socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER, LARGE_BUFFER)
        if not behind and (reason := why_no_vlan_filter()):
            tap.refused[VLAN_FILTER] = reason
        tap.hear_of(behind)
        if vnet_header:
            with _asking_for(HEADER):
                raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        if mode == "socket":
            raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        else:
            _make_ring(tap, v2_geometry(frames, mtu) if mode == "v2" else v3_geometry(frames))
        raw.bind((interface, ETH_P_IP if behind else ETH_P_ALL))
        return tap
    except BaseException:
        raw.close()
        raise


def _make_ring(tap: Tap, geometry: RingGeometry) -> None:
    raw = tap.socket
    with _asking_for(RING_V3 if tap.mode == "v3" else "ring v2"):
        raw.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2 if tap.mode == "v2" else TPACKET_V3)
    _optional(tap, SOL_PACKET, PACKET_RESERVE, RESERVE, RESERVED)
    request = [geometry.block_size, geometry.block_count, geometry.frame_size, geometry.frame_count]
    if tap.mode == "v2":
        raw.setsockopt(SOL_PACKET, PACKET_COPY_THRESH, COPY_THRESHOLD)
    else:
        request += [V3_RETIRE_MS, 0, 0]
    with _asking_for(RING_HEADER) if tap.vnet_header else contextlib.nullcontext():
        _request_ring(raw, struct.pack(f"{len(request)}I", *request))
    tap.memory = mmap.mmap(raw.fileno(), geometry.length, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    tap.geometry = geometry


def _request_ring(raw: socket.socket, request: bytes) -> None:
    """Have the kernel make the ring. Raises OSError.

    It waits until no processor is at packets that came before (some 10 ms): as a call of libc's, unlike a method of
    Python's socket, this lets other threads go on meanwhile.
    """
    if _libc.setsockopt(raw.fileno(), SOL_PACKET, PACKET_RX_RING, request, len(request)):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _optional(tap: Tap, level: int, option: int, value: int, name: str) -> None:
    try:
        tap.socket.setsockopt(level, option, value)
    except OSError as error:
        tap.refused[name] = error.strerror


_ANCILLARY = 0xFFFFF000  # SKF_AD_OFF
_PROTOCOL, _PACKET_TYPE, _INTERFACE = _ANCILLARY + 0, _ANCILLARY + 4, _ANCILLARY + 8
_MARK, _VLAN_PRESENT = _ANCILLARY + 20, _ANCILLARY + 48
_LOAD_HALF, _LOAD_WORD, _JUMP_EQUAL, _GIVE = 0x28, 0x20, 0x15, 0x06
_ALL = 0xFFFFFFFF

_NOTHING = (_GIVE, 0, 0, 0)

_Program = Sequence[tuple[int, int, int, int]]


def _filter_before(on_tags: bool) -> _Program:
    """Keep out what is not ours to look at: not IPv4, sent by this host, or tagged for a VLAN interface.

    Tags are left to the path where the kernel has no filter on them.
    """
    tags = [(_LOAD_WORD, 0, 0, _VLAN_PRESENT), (_JUMP_EQUAL, 0, 1, 0)] if on_tags else []
    return [
        (_LOAD_HALF, 0, 0, _PROTOCOL),
        (_JUMP_EQUAL, 0, 3 + len(tags), ETH_P_IP),
        (_LOAD_WORD, 0, 0, _PACKET_TYPE),
        (_JUMP_EQUAL, 1 + len(tags), 0, socket.PACKET_OUTGOING),
        *tags,
        (_GIVE, 0, 0, _ALL),
        _NOTHING,
    ]


def _filter_behind(interfaces: Sequence[int]) -> _Program:
    """Keep out what has come to an interface over the link that is not named, and most of what is another station's.

    The kernel hands a tap on a link what the link has passed on to those, and has by then taken off the tag of a VLAN.
    """
    left = range(len(interfaces), 0, -1)
    return [
        (_LOAD_WORD, 0, 0, _INTERFACE),
        *((_JUMP_EQUAL, steps, 0, number) for steps, number in zip(left, interfaces, strict=True)),
        _NOTHING,
        (_LOAD_WORD, 0, 0, _PACKET_TYPE),
        (_JUMP_EQUAL, 0, 2, socket.PACKET_OTHERHOST),
        (_LOAD_WORD, 0, 0, _MARK),
        (_JUMP_EQUAL, 0, 1, GUARD_MARK),
        (_GIVE, 0, 0, _ALL),
        (_GIVE, 0, 0, OTHERS_OCTETS),
    ]


def why_no_vlan_filter() -> str:
    """Return why filters cannot ask for VLAN tags here, "" if they can.

    Kernels before 3.7 accept such a filter and let nothing through, so a datagram has to pass one.
    """
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        try:
            attach_program(far, [(_LOAD_WORD, 0, 0, _VLAN_PRESENT), (_GIVE, 0, 0, _ALL)])
            near.send(b"?")
            far.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return "a filter that asks for them lets nothing through"
        except OSError as error:
            return error.strerror
    return ""


def attach_program(raw: socket.socket, program: _Program) -> None:
    """Have the kernel filter by a classic BPF program of (code, jump if true, jump if false, value). Raises OSError."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    raw.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))


@dataclass
class SendSocket:
    """An open sending socket, bound to one link; it receives nothing."""

    socket: socket.socket
    vnet_header: bool
    qdisc_bypass: bool
    refused: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        self.socket.close()


def open_sender(interface: str, *, vnet_header: bool = True, qdisc_bypass: bool = False) -> SendSocket:
    """Open a socket that sends on `interface`. The virtio header and the bypass are given up where refused."""
    try:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        raise KernelError("packet sockets need CAP_NET_RAW: run as root") from None
    try:
        refused = {}
        for level, option, value, name, wanted in (
            (socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER, LARGE_BUFFER, True),
            (SOL_PACKET, PACKET_VNET_HDR, 1, HEADER, vnet_header),
            (SOL_PACKET, PACKET_QDISC_BYPASS, 1, BYPASS, qdisc_bypass),
        ):
            if wanted:
                try:
                    raw.setsockopt(level, option, value)
                except OSError as error:
                    refused[name] = error.strerror
        raw.bind((interface, 0))
        raw.setblocking(False)
        return SendSocket(raw, vnet_header and HEADER not in refused, qdisc_bypass and BYPASS not in refused, refused)
    except OSError as error:
        raw.close()
        raise KernelError(f"{interface}: cannot send on it: {error.strerror}") from None


def lacking() -> dict[str, str]:
    """Return what packet sockets cannot do here, by name, with the reason; they hear nothing meanwhile. KernelError."""
    found = {}
    reason = why_no_vlan_filter()
    if reason:
        found[VLAN_FILTER] = reason
    geometry = v2_geometry(64, 1500)
    ring = struct.pack("4I", geometry.block_size, geometry.block_count, geometry.frame_size, geometry.frame_count)
    for name, options in (
        (RING_V3, [(PACKET_VERSION, TPACKET_V3)]),
        (HEADER, [(PACKET_VNET_HDR, 1)]),
        (RING_HEADER, [(PACKET_VNET_HDR, 1), (PACKET_VERSION, TPACKET_V2), (PACKET_RX_RING, ring)]),
        (IGNORE_OUTGOING, [(PACKET_IGNORE_OUTGOING, 1)]),
        (BYPASS, [(PACKET_QDISC_BYPASS, 1)]),
    ):
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
                for option, value in options:
                    raw.setsockopt(SOL_PACKET, option, value)
        except PermissionError:
            raise KernelError("packet sockets need CAP_NET_RAW: run as root") from None
        except OSError as error:
            found[name] = error.strerror
    return found
