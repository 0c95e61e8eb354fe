"""Runs the program nft, looks after one table of ours, and spells names so that nft accepts them."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping

from fastmasq.errors import KernelError
from fastmasq.kernel import netlink

_TIMEOUT_S = 30
_ATTEMPTS = 3  # to write a table without somebody else changing the rule set meanwhile

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_GENERATION = _SUBSYSTEM << 8 | 16  # NFT_MSG_GETGEN
_FAMILY = struct.Struct(">BBH")  # struct nfgenmsg: family, version, resource
_OBJECT = re.compile(r"^\t(\w+ \S+) {\n(.*?)^\t}$", re.MULTILINE | re.DOTALL)
FIRST_ATTRIBUTE = 1  # of a generation its number; of all other messages the name of the table


def run(purpose: str, *arguments: str, script: str | None = None) -> str:
    """Return nft's output; a script, on its standard input, is one transaction.

    Raises KernelError that begins with `purpose`.
    """
    nft = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if nft is None:
        raise KernelError(f"{purpose}: the program nft is not installed; install the package nftables")
    if script is not None:
        arguments = (*arguments, "-f", "-")
    try:
        done = subprocess.run(
            [nft, *arguments], input=script, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise KernelError(f"{purpose}: nft cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{purpose}: nft did not end within {_TIMEOUT_S} s") from None
    if done.returncode:
        reason = next(iter(done.stderr.splitlines()), f"nft ended with status {done.returncode}")
        raise KernelError(f"{purpose}: {reason.strip()}")
    return done.stdout


def escaped(name: str) -> str:
    """Return a part of a name, a different one for each `name`: eth0.10 becomes eth0_2e10."""
    return re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):02x}", name)


def generation() -> int | None:
    """Return the number of this namespace's rule set, one more after each transaction; None if it has none."""
    requests = netlink.RequestSocket(netlink.NETLINK_NETFILTER)
    try:
        reply = requests.get(_GET_GENERATION, _FAMILY.pack(0, 0, 0))
    except OSError:
        return None
    finally:
        requests.close()
    return int.from_bytes(table_attributes(reply).get(FIRST_ATTRIBUTE, b""), "big")


def table_attributes(message: bytes) -> dict[int, bytes]:
    """Return the attributes of a message of nftables."""
    return netlink.attributes(message[netlink.HEADER.size + _FAMILY.size :])


Objects = Mapping[str, str]
"""What a table has, as nft lists it without counts: "chain NAME", "set NAME" and the like with the text of each, and
what stands beside them (flags) as "table"; nothing if there is no such table."""


class Table:
    """One table of ours, and what somebody else may have made of it since it was written."""

    def __init__(self, purpose: str, family: str, name: str) -> None:
        self._purpose = purpose
        self._family = family
        self._name = name
        self._objects: Objects = {}
        self._listed_at: int | None = None  # the generation before it was listed
        self._written: Objects = {}

    def objects(self) -> Objects:
        """Return what it has now. Raises KernelError."""
        now = generation()
        if now is None or now != self._listed_at:
            listing = run(self._purpose, "--stateless", "list", "ruleset", self._family)
            self._objects = _read(listing, f"{self._family} {self._name}")
            self._listed_at = now
        return self._objects

    def write(self, script: Callable[[Objects], str]) -> None:
        """Do the transaction that `script` makes of what the table has; then that is how it is to be.

        If somebody else's came between it and our look at what it has become, it is done once more. Raises KernelError.
        """
        for _ in range(_ATTEMPTS):
            before = generation()
            run(self._purpose, script=script(self.objects()))
            self._written = self.objects()
            if before is None or generation() == before + 1:
                return

    def altered(self) -> list[str]:
        """Return which of the objects that were written are not as they were then. Raises KernelError."""
        now = self.objects()
        return [name for name, text in self._written.items() if now.get(name) != text]

    def delete(self) -> bool:
        """Take it away, also one that another process has written; return whether there was one. Raises KernelError."""
        self._written = {}
        if self._name not in run(self._purpose, "list", "tables", self._family).split():
            return False
        run(self._purpose, "delete", "table", self._family, self._name)
        return True


def names(objects: Objects, kind: str) -> list[str]:
    """Return the names of the objects of a kind."""
    return [each.removeprefix(f"{kind} ") for each in objects if each.startswith(f"{kind} ")]


def _read(listing: str, table: str) -> Objects:
    found = re.search(rf"^table {re.escape(table)} {{\n(.*?)^}}", listing, re.MULTILINE | re.DOTALL)
    if not found:
        return {}
    return {**dict(_OBJECT.findall(found[1])), "table": "".join(_OBJECT.sub("", found[1]).split())}
