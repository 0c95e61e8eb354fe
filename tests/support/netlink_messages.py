"""Messages of rtnetlink as a kernel sent them, and how to damage one."""

from __future__ import annotations

import random
from pathlib import Path

from fastmasq.kernel import netlink

_FILE = Path(__file__).parents[1] / "data" / "netlink-messages"

RECORDED = {name: bytes.fromhex(text) for name, text in (line.split(": ") for line in _FILE.read_text().splitlines())}
"""What Linux 6.18 sent for what `ip` and `tc` had set up, by the name of that."""


def damaged(whole: bytes, chance: random.Random) -> bytes:
    """Return a message with octets behind its header changed, missing or too many, and perhaps cut short."""
    octets = bytearray(whole)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(netlink.HEADER.size, len(octets) + 1)
        octets[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
    if chance.random() < 0.5:
        del octets[chance.randrange(netlink.HEADER.size, len(octets) + 1) :]
    return bytes(octets)
