"""The configuration of a host that is to become a gateway: the sample, with its links, and the service's socket."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastmasq.config.load import SAMPLE
from fastmasq.config.values import SERVICE_SOCKET

PATH = "/etc/fastmasq.toml"


def compose(inside: Sequence[str] = (), outside: str = "") -> str:
    """Return the sample with these links, and those of the sample where there are none."""
    text = _set(SAMPLE.read_text(), "socket", f'"{SERVICE_SOCKET}"')
    if inside:
        text = _set(text, "inside", "[" + ", ".join(f'"{name}"' for name in inside) + "]")
    return _set(text, "outside", f'"{outside}"') if outside else text


def _set(text: str, key: str, value: str) -> str:
    """Give a key of the sample another value, written out."""
    return re.sub(rf"^#?{key} = .*$", lambda _: f"{key} = {value}", text, count=1, flags=re.MULTILINE)
