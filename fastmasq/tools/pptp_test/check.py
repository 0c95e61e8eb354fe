"""What the steps of `fastmasq test pptp` found, in words: what happened, and what the HOWTO says to look at."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from fastmasq.wire import pptp

Stage = Literal["connect", "start", "call", "data", "stop"]


class Step(Struct, frozen=True, kw_only=True):
    """One step; `good` is None where it could not be tried or does not matter. `hint` says what to look at."""

    stage: Stage
    good: bool | None
    said: str
    hint: str = ""


_WRONG_ADDRESS = (
    "is it the server's address, or that of its gateway if the server is masqueraded? a gateway must forward "
    "port 1723 and GRE to the server"
)
_NOT_ANSWERED = (
    "a firewall on the way drops TCP port 1723, or the address is wrong; here, check that port 1723 is masqueraded "
    "(`fastmasq rule trace`), and there, that the server's firewall accepts this network's external address"
)
_HINTS: dict[tuple[Stage, type[Exception]], str] = {
    ("connect", ConnectionRefusedError): _WRONG_ADDRESS,
    ("connect", TimeoutError): _NOT_ANSWERED,
    ("start", EOFError): (
        "the server does not want this address: it may allow one control connection for each address (RFC 2637 "
        "section 3), have an access list, or a firewall in front of it answers in its place"
    ),
    ("start", TimeoutError): (
        "what accepts the connection does not speak PPTP: a proxy or a firewall on the way, or a server that hangs"
    ),
    ("start", ValueError): "another service listens there; " + _WRONG_ADDRESS,
    ("call", EOFError): "the server gave up: its log says why, often that it has no free address or could not run PPP",
    ("call", TimeoutError): "the server has the request and is silent: look into its log",
    ("data", TimeoutError): (
        "the control connection works and GRE (IP protocol 47) does not come back: `fastmasq traceroute --gre` shows "
        "how far it gets, and at the gateway `fastmasq sniff` shows on which side it is missing"
    ),
    ("data", EOFError): "its log says why: no address is free, it could not run PPP, or our GRE did not reach it",
    ("data", PermissionError): "for GRE run this as root",
}
_HAPPENED: tuple[tuple[type[Exception], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (ConnectionError, "connection reset"),
    (EOFError, "the server closed the connection without an answer"),
    (ValueError, "the answer is not PPTP"),
)


def connected(address: str, port: int, elapsed_ns: int) -> Step:
    return Step(stage="connect", good=True, said=f"connected to {address} port {port} in {_ms(elapsed_ns)}")


def failed(stage: Stage, error: Exception, patience_s: float) -> Step:
    """Return the step that ended in `error`: an OSError, EOFError for a connection closed, ValueError for no PPTP."""
    untried = stage == "data" and isinstance(error, PermissionError)
    if untried:
        said = "not tried: a raw socket needs CAP_NET_RAW"
    elif stage == "data" and isinstance(error, EOFError):
        said = "the server ended the call without any GRE"
    elif isinstance(error, TimeoutError):
        said = f"no {'GRE came back' if stage == 'data' else 'answer'} within {patience_s:g} s"
    else:
        said = next((words for kind, words in _HAPPENED if isinstance(error, kind)), None) or str(
            getattr(error, "strerror", None) or error
        )
    kind = EOFError if isinstance(error, ConnectionResetError) else type(error)
    hint = _HINTS.get((stage, kind), "")
    if not hint and stage == "connect":
        hint = "an ICMP error or no route: try `ping` and `traceroute`; the path or a firewall's refusal is the matter"
    return Step(stage=stage, good=None if untried else False, said=said, hint=hint)


def started(reply: pptp.Start, elapsed_ns: int) -> Step:
    """Return what a Start-Control-Connection-Reply says (RFC 2637 section 2.2)."""
    words = pptp.result_in_words(pptp.Type.START_REPLY, reply.result, reply.error)
    named = ", ".join(
        f"{name} {value!r}" for name, value in (("host name", reply.host), ("vendor", reply.vendor)) if value
    )
    version = f"protocol version {reply.version >> 8}.{reply.version & 0xFF}, firmware {reply.firmware}"
    good = reply.result == pptp.CONNECTED
    return Step(
        stage="start",
        good=good,
        said=f"{words} in {_ms(elapsed_ns)}: {', '.join(part for part in (named, version) if part)}",
        hint="" if good else _refusal_hint(reply.result),
    )


def called(reply: pptp.CallReply, elapsed_ns: int) -> Step:
    """Return what an Outgoing-Call-Reply says (section 2.8)."""
    words = pptp.result_in_words(pptp.Type.OUTGOING_CALL_REPLY, reply.result, reply.error)
    good = reply.result == pptp.CONNECTED
    call = f": its Call ID {reply.call_id}, ours {reply.peer_call_id}, {reply.bps} bit/s" if good else ""
    hint = "" if good else "the server's log says why; its limit of calls or its list of addresses may be used up"
    return Step(stage="call", good=good, said=f"{words} in {_ms(elapsed_ns)}{call}", hint=hint)


def heard(sequence: int | None, octets: int, elapsed_ns: int) -> Step:
    """Return that a GRE packet for our call came, with its sequence number and octets of payload."""
    number = "without a sequence number" if sequence is None else f"sequence {sequence}"
    return Step(stage="data", good=True, said=f"GRE comes back after {_ms(elapsed_ns)}: {number}, {octets} octets")


def stopped(answered: bool) -> Step:
    """Return how the control connection ended; one that the server simply closes has ended as well."""
    said = "control connection closed" if answered else "control connection closed, without a Stop reply"
    return Step(stage="stop", good=True if answered else None, said=said)


def _refusal_hint(result: int) -> str:
    return {
        3: "another client behind the same external address has it: there is one for each pair of addresses (RFC 2637)",
        4: "the server's list of allowed addresses must have this network's external address",
    }.get(result, "look into the server's log")


def _ms(elapsed_ns: int) -> str:
    return f"{elapsed_ns / 1e6:.3g} ms"
