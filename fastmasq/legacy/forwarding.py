"""The programs ipportfw, ipmasqadm and ipfwd: thin fronts of the running forwarder.

They find it by FASTMASQ_SOCKET, else in the usual place, and end with the texts and exit statuses of the originals.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from fastmasq import output
from fastmasq.errors import ConfigurationError, FastmasqError
from fastmasq.legacy import ipfwd, ipmasqadm, ipmasqadm_mfw, ipportfw
from fastmasq.legacy.command import ask
from fastmasq.legacy.ipmasqadm_request import METHODS, Failed, Refused

Ask = Callable[..., Any]

_KERNEL_WORDS = (("no such", "No such process"), ("not in use", "Invalid argument"))  # for what a policy says
_MISSING = {
    "portfw": 'Could not open "/proc/net/ip_masq/portfw"\nCheck if you have enabled portforwarding',
    "autofw": "autofw: setsockopt failed: Protocol not available",
    "mfw": 'Could not open "/proc/net/ip_masq/mfw"\nCheck if you have enabled fwmark-forwarding',
}


def run_ipportfw(words: Sequence[str], ask: Ask) -> Iterable[str]:
    """Do what the words say; return the lines to print. Raises FastmasqError."""
    request = ipportfw.parse(words)
    if request.kind == "help":
        return ipportfw.HELP.splitlines()
    forwards = _fetch(ask, "forwards", "Could not open /proc/net/ip_portfw")
    if request.kind == "list":
        return ipportfw.listing(forwards)
    _change(ask, request.method, request.changes, "ipfwadm: setsockopt failed: ")
    return ()


def run_ipmasqadm(words: Sequence[str], ask: Ask) -> Iterable[str]:
    """Do what the words say; return the lines to print. Raises FastmasqError."""
    request = ipmasqadm.parse(words)
    if request.kind == "help":
        return request.text.splitlines()
    rows = _fetch(ask, METHODS[request.module], _MISSING[request.module])
    if request.kind == "list":
        write = ipmasqadm_mfw.listing if request.module == "mfw" else ipmasqadm.listing
        return write(rows, numeric=request.numeric)
    _change(ask, request.method, request.changes, f"{request.module}: setsockopt failed: ", Refused)
    return request.text.splitlines()


def run_ipfwd(words: Sequence[str], ask: Ask) -> Iterable[str]:
    """Do what the words say; return the lines to print. Raises FastmasqError."""
    request = ipfwd.parse(words)
    if request.kind == "help":
        return ipfwd.HELP.splitlines()
    if request.kind == "list":
        return ipfwd.listing(ask("redirects"))
    _change(ask, request.method, request.changes, "ipfwd: ")
    return ()


def _fetch(ask: Ask, method: str, missing: str) -> Any:
    """Ask, and say what the original said when the kernel had no such table."""
    try:
        return ask(method)
    except FastmasqError as error:
        raise Failed(f"{missing}\n{error}") from None


def _change(ask: Ask, method: str, changes: Sequence[Any], refused: str, kind: type[FastmasqError] = Failed) -> None:
    try:
        ask(method, changes=[msgspec.to_builtins(change) for change in changes])
    except ConfigurationError as error:
        text = next((said for told, said in _KERNEL_WORDS if told in str(error)), str(error))
        raise kind(f"{refused}{text}") from None


def _main(program: str, run: Callable[[Sequence[str], Ask], Iterable[str]]) -> None:
    sys.exit(output.end(program, lambda: _printed(run)))


def _printed(run: Callable[[Sequence[str], Ask], Iterable[str]]) -> int:
    try:
        for line in run(sys.argv[1:], ask):
            print(line)
    except FastmasqError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


def main_ipportfw() -> None:
    """Run the program ipportfw; this is a console script."""
    _main("ipportfw", run_ipportfw)


def main_ipmasqadm() -> None:
    """Run the program ipmasqadm; this is a console script."""
    _main("ipmasqadm", run_ipmasqadm)


def main_ipfwd() -> None:
    """Run the program ipfwd; this is a console script."""
    _main("ipfwd", run_ipfwd)
