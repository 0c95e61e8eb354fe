"""The programs ipfwadm, ipchains, ipchains-save and ipchains-restore: thin fronts of the running forwarder.

They find it by FASTMASQ_SOCKET, else in the usual place. The word --tolerant among the arguments, which the originals
did not have, makes reading tolerant. Exit status: that of the originals, 2 for a command line they would not take, 1
when it cannot be done; ipfwadm has 255 for what the kernel refused, and (an oversight of 1999) for a packet that would
be masqueraded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from fastmasq import output
from fastmasq.config.values import USUAL_SOCKETS
from fastmasq.control.client import call, find_running
from fastmasq.errors import FastmasqError
from fastmasq.legacy.names import Names
from fastmasq.legacy.requests import Changes, Check, List, ListSessions, Request, SetTimeouts, Text
from fastmasq.legacy.tokens import Misuse
from fastmasq.policy.chains import ACCOUNTING, BUILT_IN, Chain, RuleError

TOLERANT = "--tolerant"
MOST_SESSIONS = 200_000  # in one listing

_IPFWADM_VERDICTS = {"MASQ": "masqueraded", "REJECT": "rejected", "DENY": "denied"}  # all others: accepted
_IPCHAINS_VERDICTS = {
    **{"ACCEPT": "accepted", "MASQ": "masqueraded", "DENY": "denied", "REJECT": "rejected", "REDIRECT": "redirected"},
    **{"LOOP": "caught in loop", "RETURN": "passed through chain"},
}
_IPCHAINS_REASONS = {
    "no chain": "No chain by that name",
    "no target": "No target by that name",
    "exists": "Chain already exists",
    "not empty": "Chain is not empty",
    "no rule": "bad rule (does a matching rule exist in that chain?)",
    "busy": "Device or resource busy",
    "too many": "Cannot allocate memory",
}
_REFUSED = 255  # the exit status of ipfwadm after setsockopt failed
_MASQUERADED = 255


def ipfwadm() -> None:
    """Run the program ipfwadm; this is a console script."""
    sys.exit(output.end("ipfwadm", lambda: _guarded("ipfwadm", _run_ipfwadm, sys.argv[1:])))


def ipchains() -> None:
    """Run the program ipchains; this is a console script."""
    sys.exit(output.end("ipchains", lambda: _guarded("ipchains", _run_ipchains, sys.argv[1:])))


def ipchains_save() -> None:
    """Run the program ipchains-save; this is a console script."""
    sys.exit(output.end("ipchains-save", lambda: _guarded("ipchains-save", _run_save, sys.argv[1:])))


def ipchains_restore() -> None:
    """Run the program ipchains-restore; this is a console script."""
    sys.exit(output.end("ipchains-restore", lambda: _guarded("ipchains-restore", _run_restore, sys.argv[1:])))


def ask(method: str, **params: Any) -> Any:
    """Return what the running forwarder answers. Raises what `control.client.call` does."""
    return call(os.environ.get("FASTMASQ_SOCKET") or find_running(USUAL_SOCKETS), method, **params)


def fetch_chains(chain: str | None = None, *, zero: bool = False) -> list[tuple[Chain, int]]:
    """Return the forwarder's chains, accounting last, each with the number of rules that jump to it."""
    answer = ask("rules", chain=chain, zero=zero)
    return [(msgspec.convert(one, Chain), one["references"]) for one in answer["chains"]]


def _guarded(program: str, run: Callable[[list[str]], int], words: list[str]) -> int:
    """Run a program; say what it cannot do on standard error."""
    try:
        return run(words)
    except Misuse as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except RuleError as error:
        if program == "ipfwadm":
            text = "Cannot allocate memory" if error.reason == "too many" else "Invalid argument"
            print(f"ipfwadm: setsockopt failed: {text}", file=sys.stderr)
            return _REFUSED
        print(f"{program}: {_IPCHAINS_REASONS.get(error.reason, 'Invalid argument')}", file=sys.stderr)
    except FastmasqError as error:
        print(f"{program}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _tolerance(words: list[str]) -> tuple[list[str], bool]:
    return [word for word in words if word != TOLERANT], TOLERANT in words


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def _warn(program: str, warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"{program}: warning: {warning}", file=sys.stderr)


def _change(request: Changes | SetTimeouts) -> None:
    method, params = request.call()
    ask(method, **params)


def _verdicts(request: Check) -> list[str]:
    from fastmasq.legacy.requests import packet_of

    packets = [msgspec.to_builtins(packet_of(rule)) for rule in request.rules]
    return [ask("rules.check", chain=request.chain, packet=packet)["verdict"] for packet in packets]


def _print_sessions(request: ListSessions, names: Names, *, capitals: bool) -> None:
    from fastmasq.legacy.listing import Shown, session_lines

    answer = ask("sessions", limit=MOST_SESSIONS, masqueraded=True, tunnels=True)
    shown = Shown(names, request.numeric)
    _say(session_lines(answer["sessions"], shown, deltas=request.extended, capitals=capitals))
    if answer["total"] > len(answer["sessions"]):
        print(f"fastmasq: {len(answer['sessions'])} of {answer['total']} sessions listed", file=sys.stderr)


# -- ipfwadm -----------------------------------------------------------------------------------------------------------


def _run_ipfwadm(words: list[str]) -> int:
    from fastmasq.legacy.ipfwadm import parse

    names = Names()
    words, tolerant = _tolerance(words)
    request = parse(words, names, tolerant=tolerant)
    _warn("ipfwadm", request.warnings)
    return _answer_ipfwadm(request, names)


def _answer_ipfwadm(request: Request, names: Names) -> int:
    from fastmasq.legacy import ipfwadm_listing
    from fastmasq.legacy.listing import Shown

    match request:
        case Changes():
            if request.verbose:
                is_accounting = request.changes[0].chain == ACCOUNTING
                shown = Shown(names, numeric=True)
                _say(
                    [ipfwadm_listing.rule_line(one.rule, shown, is_accounting=is_accounting) for one in request.changes]
                )
            _change(request)
        case List():
            ((chain, _),) = fetch_chains(request.chain, zero=request.zero)
            shown = Shown(names, request.numeric)
            _say(ipfwadm_listing.chain_lines(chain, shown, extended=request.extended, exact=request.exact))
        case ListSessions():
            _print_sessions(request, names, capitals=False)
        case SetTimeouts():
            _change(request)
        case Text():
            print(request.text, end="")
        case Check():
            verdicts = _verdicts(request)
            for rule, verdict in zip(request.rules, verdicts, strict=True):
                if request.verbose:
                    print(ipfwadm_listing.packet_line(rule, Shown(names, numeric=True)))
                print(f"packet {_IPFWADM_VERDICTS.get(verdict, 'accepted')}")
            return _MASQUERADED if "MASQ" in verdicts else 0
    return 0


# -- ipchains ----------------------------------------------------------------------------------------------------------


def _run_ipchains(words: list[str]) -> int:
    from fastmasq.legacy.ipchains import parse

    names = Names()
    words, tolerant = _tolerance(words)
    chains = [chain.name for chain, _ in fetch_chains()] if tolerant else []
    request = parse(words, names, tolerant=tolerant, chains=chains)
    _warn("ipchains", request.warnings)
    _answer_ipchains(request, names)
    return 0


def _answer_ipchains(request: Request, names: Names) -> None:
    from fastmasq.legacy import ipchains_listing
    from fastmasq.legacy.listing import Shown

    match request:
        case Changes():
            if request.verbose:
                _say(_announcements(request, names))
            _change(request)
        case List():
            shown = Shown(names, request.numeric)
            for chain, references in fetch_chains(request.chain, zero=request.zero):
                if chain.name != ACCOUNTING:
                    _say(
                        ipchains_listing.chain_lines(
                            chain,
                            references,
                            shown,
                            verbose=request.extended,
                            exact=request.exact,
                            line_numbers=request.line_numbers,
                        )
                    )
        case ListSessions():
            _print_sessions(request, names, capitals=True)
        case SetTimeouts():
            _change(request)
        case Text():
            print(request.text, end="")
        case Check():
            for rule, verdict in zip(request.rules, _verdicts(request), strict=True):
                if request.verbose:
                    print(ipchains_listing.rule_line(rule, Shown(names, numeric=True)))
                print(_IPCHAINS_VERDICTS[verdict])


def _announcements(request: Changes, names: Names) -> list[str]:
    """Return what -v says before the changes are made."""
    from fastmasq.legacy import ipchains_listing
    from fastmasq.legacy.listing import Shown

    shown = Shown(names, numeric=True)
    lines = [ipchains_listing.rule_line(change.rule, shown) for change in request.changes if change.rule]
    change = request.changes[0]
    verb = {"flush": "Flushing", "zero": "Zeroing", "delete_chain": "Deleting"}.get(change.do)
    if verb:
        chains = [change.chain] if change.chain else [chain.name for chain, _ in fetch_chains()]
        if change.chain is None and change.do == "delete_chain":
            chains = [name for name in chains if name not in BUILT_IN]
        lines += [f"{verb} chain `{name}'" for name in chains if name != ACCOUNTING]
    return lines


# -- ipchains-save and ipchains-restore --------------------------------------------------------------------------------


def _run_save(words: list[str]) -> int:
    from fastmasq.legacy import save

    verbose = "-v" in words
    names = [word for word in words if word != "-v"]
    if len(names) > 1 or any(name.startswith("-") for name in names):
        raise Misuse("ipchains-save", "unknown arguments found on commandline", "Usage: ipchains-save [CHAIN] [-v]")
    chains = save.savable(chain for chain, _ in fetch_chains(names[0] if names else None))
    _say([save.policy_line(chain) for chain in chains])
    status = 0
    for chain in chains:
        print(f"Saving `{chain.name}'.", file=sys.stderr)
        for counted in chain.rules:
            try:
                line = save.rule_line(chain.name, counted.rule)
            except FastmasqError as error:
                print(f"ipchains-save: {error}; it is not saved", file=sys.stderr)
                status = 1
                continue
            print(line)
            if verbose:
                print(line, file=sys.stderr)
    return status


def _run_restore(words: list[str]) -> int:
    from fastmasq.legacy import save

    if set(words) - {"-v", "-f"}:
        raise Misuse(
            "ipchains-restore", "unknown arguments found on commandline", "Usage: ipchains-restore [-v] [-f] <FILE"
        )
    lines = sys.stdin.read().splitlines()
    present = [chain.name for chain, _ in fetch_chains()]
    shall_flush = (lambda name: True) if "-f" in words else _ask_to_flush
    changes, restored, skipped = save.restore(lines, Names(), present, shall_flush)
    for verb, names in (("Restoring", restored), ("Skipping", skipped)):
        for name in names:
            print(f"{verb} `{name}'.", file=sys.stderr)
    if "-v" in words:
        _say([save.rule_line(change.chain, change.rule) for change in changes if change.rule])
    _change(Changes(tuple(changes)))
    return 0


def _ask_to_flush(name: str) -> bool:
    """Ask at the terminal, since standard input is the file; without a terminal the chain is left as it is."""
    try:
        with open("/dev/tty", "r+") as terminal:
            terminal.write(f"Chain `{name}' already exists. Skip or flush? [S/f]? ")
            terminal.flush()
            return terminal.readline().strip().lower() == "f"
    except OSError:
        return False
