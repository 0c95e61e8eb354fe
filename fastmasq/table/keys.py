"""The ends of a flow read from the two words of its key (keys.pxd), one flow or an array of them at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Ends(NamedTuple):
    """Who talks to whom: addresses and ids as integers, or arrays of them."""

    saddr: int | np.ndarray
    sid: int | np.ndarray
    daddr: int | np.ndarray
    did: int | np.ndarray


def ends_of(flow) -> Ends:
    """Return the ends of the packets that a flow (rows.FLOW) carries, as they arrive: integers, or arrays of many."""
    key0, key1 = _words(flow)
    return Ends(key0 >> 32, key1 >> 32 & 0xFFFF, key0 & 0xFFFFFFFF, key1 & 0xFFFFFFFF)


def side_of(flow):
    """Return the side that the packets of a flow come from, with KEY_REPLY for ICMP replies."""
    return _words(flow)[1] >> 48 & 0xFF


def protocol_of(flow):
    """Return the IP protocol of a flow."""
    return _words(flow)[1] >> 56


def _words(flow):
    key0, key1 = flow["key0"], flow["key1"]
    return (key0, key1) if np.ndim(key0) else (int(key0), int(key1))
