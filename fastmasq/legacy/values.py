"""Reads the values that options of both programs take; each says a mistake in its own way of quoting."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from fastmasq.legacy.names import ALL_ONES, Names, read_mask
from fastmasq.legacy.tokens import hex_octet, number
from fastmasq.wire.numbers import ICMP

_MOST_SECONDS = 0x7FFFFFFF


class Values:
    """The values of one command line. fail: raises the mistake. quote: how the program shows a word in it."""

    def __init__(self, names: Names, fail: Callable[[str], NoReturn], quote: Callable[[str], str]) -> None:
        self.names = names
        self._fail = fail
        self._quote = quote

    def addresses(self, text: str) -> list[tuple[int, int]]:
        """Return each different (address, mask) of "ADDRESS[/MASK]"; the address is cut to the mask."""
        name, slash, mask_text = text.rpartition("/")
        mask = read_mask(mask_text) if slash else ALL_ONES
        if mask is None:
            self._fail(f"invalid mask {self._quote(mask_text)} specified")
        name = name if slash else text
        found = self.names.addresses(name) if mask else [0]  # "any/0": the name does not count
        if not found:
            self._fail(f"host/network {self._quote(name)} not found")
        return list(dict.fromkeys((address & mask, mask) for address in found))

    def port(self, text: str, protocol: int) -> int:
        """Return a port by number or name of service, or an ICMP type by number."""
        port = number(text, 0, 0xFFFF)
        if port is None and protocol == ICMP:
            self._fail(f"invalid ICMP type {self._quote(text)} specified")
        if port is None:
            port = self.names.port(text, protocol)
        return self._fail(f"invalid port/service {self._quote(text)} specified") if port is None else port

    def hexbyte(self, text: str) -> int:
        octet = hex_octet(text)
        return self._fail(f"invalid hexbyte {self._quote(text)} specified") if octet is None else octet

    def timeout(self, text: str) -> int:
        seconds = number(text, 0, _MOST_SECONDS)
        return self._fail(f"invalid timeout value {self._quote(text)} specified") if seconds is None else seconds
