"""`fastmasq test pptp`: a PPTP client's first steps with a server, each with what it shows."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from fastmasq.cli.options import Group, json_option

if TYPE_CHECKING:
    from fastmasq.tools.pptp_test.check import Step
    from fastmasq.tools.pptp_test.client import ControlConnection, Data

_VENDOR = "fastmasq"
_MARKS = {True: "ok", False: "FAILED", None: "-"}
_CALL_IDS = (1, 0xFFFF)


@click.group(cls=Group)
def test() -> None:
    """Try what a VPN needs, as a client would, and say what is wrong."""


@test.command()
@click.argument("server")
@click.option("--port", metavar="NUMBER", type=click.IntRange(1, 65535), default=1723, show_default=True,
              help="The server's TCP port.")  # fmt: skip
@click.option("--call", "wants_call", is_flag=True,
              help="Also place a call, and wait for its GRE if run as root; the server logs it.")  # fmt: skip
@click.option("--wait", "patience_s", metavar="SECONDS", type=click.FloatRange(0.1, 300), default=5.0,
              show_default=True, help="How long to wait for each answer.")  # fmt: skip
@json_option
def pptp(server: str, port: int, wants_call: bool, patience_s: float, as_json: bool) -> None:
    """Connect to a PPTP server, exchange Start messages, and end again; exit with 1 if a step fails.

    SERVER is a name or an IPv4 address. Run it on a host behind the gateway to test the way through it.
    """
    import msgspec

    from fastmasq.cli.render import print_json
    from fastmasq.tools.resolver import resolve

    address = resolve(server)
    steps = []
    for step in _steps(address, port, wants_call, patience_s):
        steps.append(step)
        if not as_json:
            _show(step)
    good = all(step.good is not False for step in steps)
    if as_json:
        print_json(
            {"server": server, "address": address, "port": port, "good": good, "steps": msgspec.to_builtins(steps)}
        )
    sys.exit(0 if good else 1)


def _show(step: Step) -> None:
    click.echo(f"{step.stage:<8} {_MARKS[step.good]:<7} {step.said}")
    if step.hint:
        click.echo(f"{'':16} {step.hint}")


def _steps(address: str, port: int, wants_call: bool, patience_s: float) -> Iterator[Step]:
    """Go as far as it goes, and yield each step when it is over."""
    from fastmasq.clock import now_ns
    from fastmasq.tools.pptp_test import check
    from fastmasq.tools.pptp_test.client import ControlConnection

    before = now_ns()
    try:
        control = ControlConnection(address, port, patience_s, now_ns)
    except OSError as error:
        yield check.failed("connect", error, patience_s)
        return
    with contextlib.closing(control):
        yield check.connected(address, port, now_ns() - before)
        step = _start(control, patience_s)
        yield step
        if not step.good:
            return
        if wants_call:
            yield from _call(control, address, patience_s)
        yield _stop(control)


def _start(control: ControlConnection, patience_s: float) -> Step:
    import socket

    from fastmasq.clock import now_ns
    from fastmasq.tools.pptp_test import check
    from fastmasq.wire import pptp

    before = now_ns()
    try:
        answer = control.ask(pptp.start_request(socket.gethostname(), _VENDOR), pptp.Type.START_REPLY)
        reply = pptp.Start.parse(answer)
        if reply is None:
            raise ValueError("the reply is cut short")
    except (OSError, EOFError, ValueError) as error:
        return check.failed("start", error, patience_s)
    return check.started(reply, now_ns() - before)


def _call(control: ControlConnection, address: str, patience_s: float) -> Iterator[Step]:
    """Place a call, listen for its GRE, and clear it."""
    import random

    from fastmasq.clock import now_ns
    from fastmasq.tools.pptp_test import check
    from fastmasq.tools.pptp_test.client import Data
    from fastmasq.wire import pptp

    own = random.randint(*_CALL_IDS)
    try:
        data = Data(address)
    except PermissionError:
        data = None
    with contextlib.closing(data) if data is not None else contextlib.nullcontext():
        before = now_ns()
        try:
            reply = pptp.CallReply.parse(control.ask(pptp.outgoing_call_request(own), pptp.Type.OUTGOING_CALL_REPLY))
            if reply is None:
                raise ValueError("the reply is cut short")
        except (OSError, EOFError, ValueError) as error:
            yield check.failed("call", error, patience_s)
            return
        step = check.called(reply, now_ns() - before)
        yield step
        if not step.good:
            return
        if data is None:
            yield check.failed("data", PermissionError(), patience_s)
        else:
            yield _hear(control, data, own, reply.call_id, patience_s)
        with contextlib.suppress(OSError):
            control.tell(pptp.message(pptp.Type.CALL_CLEAR_REQUEST, own.to_bytes(2, "big")))


def _hear(control: ControlConnection, data: Data, own: int, remote: int, patience_s: float) -> Step:
    from fastmasq.clock import now_ns
    from fastmasq.tools.pptp_test import check

    before = now_ns()
    try:
        data.greet(remote)
        header = data.hear(own, patience_s, now_ns)
    except OSError as error:
        return check.failed("data", EOFError() if control.is_closed() else error, patience_s)
    return check.heard(header.sequence, header.payload_length, now_ns() - before)


def _stop(control: ControlConnection) -> Step:
    from fastmasq.tools.pptp_test import check
    from fastmasq.wire import pptp

    try:
        control.ask(pptp.message(pptp.Type.STOP_REQUEST, b"\1"), pptp.Type.STOP_REPLY)
    except (OSError, EOFError, ValueError):
        return check.stopped(answered=False)
    return check.stopped(answered=True)
