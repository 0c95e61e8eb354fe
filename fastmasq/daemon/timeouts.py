"""Changes the timeouts of the running forwarder, in seconds as `ipfwadm -M -s` and `ipchains -M -S` say them.

Control method, with parameters and result:

    timeouts {"tcp": 7200, "tcp_fin": 10, "udp": 60}    0, or no key, keeps the present value (rule C-20)
     -> {"tcp": 7200, "tcp_fin": 10, "udp": 60}         what is in force now

tcp is for established connections, tcp_fin for those with a FIN in both directions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from fastmasq.errors import ConfigurationError
from fastmasq.table.timeouts import SECOND, Timeouts

_Seconds = Annotated[int, Meta(ge=0, le=0x7FFFFFFF)]


class _Wanted(Struct, forbid_unknown_fields=True):
    tcp: _Seconds = 0
    tcp_fin: _Seconds = 0
    udp: _Seconds = 0


def changed(present: Timeouts, params: dict) -> Timeouts:
    """Return the timeouts after a request. Raises ConfigurationError."""
    try:
        wanted = msgspec.convert(params, _Wanted)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"timeouts: {error}; name tcp, tcp_fin, udp in seconds") from None
    return replace(
        present,
        tcp_established=wanted.tcp * SECOND or present.tcp_established,
        tcp_closing=wanted.tcp_fin * SECOND or present.tcp_closing,
        udp=wanted.udp * SECOND or present.udp,
    )


def describe(timeouts: Timeouts) -> dict[str, int]:
    """Return what is in force, in whole seconds."""
    closing = timeouts.tcp_transitory if timeouts.tcp_closing is None else timeouts.tcp_closing
    return {
        "tcp": timeouts.tcp_established // SECOND,
        "tcp_fin": closing // SECOND,
        "udp": timeouts.udp // SECOND,
    }
