"""Features of links that merge packets or cut them, by the names of ethtool(8), switched by ioctl SIOCETHTOOL.

Where a tap has no virtio header, nothing tells it the segment size of a packet that stands for many. For TCP any size
does; for UDP the size is what the sender meant, so what merges UDP on the way in has to be off. What a neighbour on the
same machine (the other end of a veth pair, a virtual machine) sends as one packet, none of our links' features changes:
that is the neighbour's `tx-udp-segmentation`, or its own program's choice.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable, Iterator

from fastmasq.errors import KernelError

# On the way in, of a link with a tap: packets of a size that nothing tells, and TCP that was put together by the card.
MERGING = ("rx-gro-list", "rx-udp-gro-forwarding", "rx-gro-hw", "rx-lro")
# On the way out, of our link to programs of this host: what they send comes in by its other end.
BURSTS = ("tx-udp-segmentation",)

_SIOCETHTOOL = 0x8946
_GET_STRINGS, _GET_SET_INFO, _GET_FEATURES, _SET_FEATURES = 0x1B, 0x37, 0x3A, 0x3B  # linux/ethtool.h
_FEATURE_NAMES, _NAME_BYTES = 4, 32  # ETH_SS_FEATURES, ETH_GSTRING_LEN
_COMMAND = struct.Struct("=II")
_SET_INFO = struct.Struct("=IIQI")
_STATE = struct.Struct("=IIII")  # available, requested, active, never changed; 32 features each
_CHANGE = struct.Struct("=II")  # valid, requested
_IFREQ = struct.Struct("16sP16x")
_WORD = 32


def switched_on(interface: str, wanted: Iterable[str]) -> list[str]:
    """Return which of these features a link has, may change, and has on; none of a link that is missing."""
    try:
        with _asking(interface) as ask:
            return [name for name, number in _numbers(ask, wanted).items() if _is_on(ask, number)]
    except OSError:  # it has gone, or its driver knows no features
        return []


def switch(interface: str, features: Iterable[str], *, on: bool) -> list[str]:
    """Switch features of a link; return those that are others now. Nothing happens to a link that is missing.

    Raises KernelError.
    """
    try:
        with _asking(interface) as ask:
            changed = {name: number for name, number in _numbers(ask, features).items() if _is_on(ask, number) != on}
            if changed:
                _set(ask, changed.values(), on)
            return list(changed)
    except OSError as error:
        if not _exists(interface):
            return []
        raise KernelError(f"{interface}: {', '.join(features)} cannot be switched: {error.strerror}") from None


class _Asked:
    """One link that is asked, and the names of the features that this kernel has, in order."""

    def __init__(self, control: socket.socket, interface: str) -> None:
        self._control = control
        self._interface = interface.encode()
        raw = self.do(_SET_INFO.pack(_GET_SET_INFO, 0, 1 << _FEATURE_NAMES, 0))
        count = _SET_INFO.unpack(raw)[3]
        raw = self.do(struct.pack("=III", _GET_STRINGS, _FEATURE_NAMES, count) + bytes(count * _NAME_BYTES))
        self.names = [
            raw[12 + at * _NAME_BYTES : 12 + (at + 1) * _NAME_BYTES].rstrip(b"\0").decode() for at in range(count)
        ]
        self.words = -(-count // _WORD)

    def do(self, request: bytes) -> bytes:
        """Do one request of ethtool; return its buffer as the kernel has filled it. Raises OSError."""
        buffer = array.array("B", request)
        fcntl.ioctl(self._control, _SIOCETHTOOL, _IFREQ.pack(self._interface, buffer.buffer_info()[0]))
        return buffer.tobytes()


@contextlib.contextmanager
def _asking(interface: str) -> Iterator[_Asked]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        yield _Asked(control, interface)


def _exists(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True


def _numbers(ask: _Asked, wanted: Iterable[str]) -> dict[str, int]:
    return {name: ask.names.index(name) for name in wanted if name in ask.names}


def _is_on(ask: _Asked, number: int) -> bool:
    raw = ask.do(_COMMAND.pack(_GET_FEATURES, ask.words) + bytes(ask.words * _STATE.size))
    available, requested, _, fixed = _STATE.unpack_from(raw, _COMMAND.size + number // _WORD * _STATE.size)
    bit = 1 << number % _WORD
    return bool(requested & bit and available & bit and not fixed & bit)


def _set(ask: _Asked, numbers: Iterable[int], on: bool) -> None:
    valid, requested = [0] * ask.words, [0] * ask.words
    for number in numbers:
        valid[number // _WORD] |= 1 << number % _WORD
        requested[number // _WORD] |= on << number % _WORD
    changes = b"".join(_CHANGE.pack(*pair) for pair in zip(valid, requested, strict=True))
    ask.do(_COMMAND.pack(_SET_FEATURES, ask.words) + changes)
