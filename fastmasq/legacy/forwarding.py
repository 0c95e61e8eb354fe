"""The programs ipportfw, ipmasqadm and ipfwd: thin fronts of the running forwarder.

They find it by FASTMASQ_SOCKET, else in the usual place, and end with the texts and exit statuses of the originals.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from fastmasq.errors import ConfigurationError, FastmasqError
from fastmasq.legacy import ipfwd, ipmasqadm, ipportfw
from fastmasq.legacy.command import ask

Ask = Callable[..., Any]


def run_ipportfw(words: Sequence[str], ask: Ask) -> Iterable[str]:
    """Do what the words say; return the lines to print. Raises FastmasqError."""
    request = ipportfw.parse(words)
    if request.kind == "help":
        return ipportfw.HELP.splitlines()
    forwards = _fetch(ask, "forwards", "Could not open /proc/net/ip_portfw")
    if request.kind == "list":
        return ipportfw.listing(forwards)
    _change(ask, "forwards.change", request.changes, "ipfwadm: setsockopt failed: ")
    return ()


def run_ipmasqadm(words: Sequence[str], ask: Ask) -> Iterable[str]:
    """Do what the words say; return the lines to print. Raises FastmasqError."""
    request = ipmasqadm.parse(words)
    if request.kind == "help":
        return request.text.splitlines()
    missing = 'Could not open "/proc/net/ip_masq/portfw"\nCheck if you have enabled portforwarding'
    forwards = _fetch(ask, "forwards", missing)
    if request.kind == "list":
        return ipmasqadm.listing(forwards, numeric=request.numeric)
    _change(ask, "forwards.change", request.changes, f"{words[0]}: setsockopt failed: ")
    return ()


def run_ipfwd(words: Sequence[str], ask: Ask) -> Iterable[str]:
    """Do what the words say; return the lines to print. Raises FastmasqError."""
    request = ipfwd.parse(words)
    if request.kind == "help":
        return ipfwd.HELP.splitlines()
    if request.kind == "list":
        return ipfwd.listing(ask("redirects"))
    _change(ask, "redirects.change", request.changes, "ipfwd: ")
    return ()


def _fetch(ask: Ask, method: str, missing: str) -> Any:
    """Ask, and say what the original said when the kernel had no such table."""
    try:
        return ask(method)
    except FastmasqError as error:
        raise ipmasqadm.Failed(f"{missing}\n{error}") from None


def _change(ask: Ask, method: str, changes: Sequence[Any], refused: str) -> None:
    try:
        ask(method, changes=[msgspec.to_builtins(change) for change in changes])
    except ConfigurationError as error:
        text = "No such process" if "no such" in str(error) else str(error)
        raise ipmasqadm.Failed(f"{refused}{text}") from None


def _main(run: Callable[[Sequence[str], Ask], Iterable[str]]) -> None:
    try:
        for line in run(sys.argv[1:], ask):
            print(line)
    except FastmasqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)


def main_ipportfw() -> None:
    """Run the program ipportfw; this is a console script."""
    _main(run_ipportfw)


def main_ipmasqadm() -> None:
    """Run the program ipmasqadm; this is a console script."""
    _main(run_ipmasqadm)


def main_ipfwd() -> None:
    """Run the program ipfwd; this is a console script."""
    _main(run_ipfwd)
