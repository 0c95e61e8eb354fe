"""What a command line of ipmasqadm asks for, whatever its module, and how its words are refused."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from typing import Any

from msgspec import Struct

from fastmasq.errors import FastmasqError
from fastmasq.policy.forwards import read_address

METHODS = {"portfw": "forwards", "autofw": "triggers", "mfw": "marks"}  # what each module asks the forwarder about


class Request(Struct, frozen=True):
    """What a command line asks for: "help" (with its text), "list" or "change" (after printing its text).

    changes: those of the policy that the module is about.
    """

    kind: str
    changes: tuple[Any, ...] = ()
    numeric: bool = False
    text: str = ""
    module: str = "portfw"

    @property
    def method(self) -> str:
        """The control method that makes the changes."""
        return f"{METHODS[self.module]}.change"


class Failed(FastmasqError):
    """What the program says when it ends with status 1."""


class Refused(FastmasqError):
    """What the program says when the kernel, now fastmasq, does not take a change."""

    exit_status = 255


def find_address(text: str, *, numeric: bool) -> str | None:
    """Return the dotted form of an address or a host's name, which is not looked up if numeric; None for neither."""
    if read_address(text) is not None:
        return str(IPv4Address(text))
    if numeric:
        return None
    try:
        return socket.gethostbyname(text)
    except OSError:
        return None


def service_name(port: int, protocol: str) -> str:
    """Return the name of a port, or its number if it has none."""
    try:
        return socket.getservbyport(port, protocol)
    except OSError:
        return str(port)
