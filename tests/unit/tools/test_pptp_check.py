"""The steps of `fastmasq test pptp` in words: every way to fail says what happened and what to look at."""

from __future__ import annotations

import errno

import pytest

from fastmasq.tools.pptp_test import check
from fastmasq.wire.pptp import CallReply, Start


@pytest.mark.parametrize(("stage", "error", "said", "hint"), [
    ("connect", ConnectionRefusedError(), "connection refused", "is it the server's address"),
    ("connect", TimeoutError(), "no answer within 5 s", "a firewall on the way drops TCP port 1723"),
    ("connect", OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host", "an ICMP error or no route"),
    ("connect", PermissionError(errno.EPERM, "Operation not permitted"), "Operation not permitted", "an ICMP error"),
    ("start", EOFError(), "the server closed the connection without an answer", "one control connection for each"),
    ("start", ConnectionResetError(), "connection reset", "one control connection for each"),
    ("start", TimeoutError(), "no answer within 5 s", "does not speak PPTP"),
    ("start", ValueError("no PPTP header"), "the answer is not PPTP", "another service listens there"),
    ("call", EOFError(), "the server closed the connection without an answer", "could not run PPP"),
    ("data", EOFError(), "the server ended the call without any GRE", "could not run PPP"),
    ("data", TimeoutError(), "no GRE came back within 5 s", "fastmasq traceroute --gre"),
])  # fmt: skip
def test_h_61_every_failure_says_what_to_look_at(stage, error: Exception, said: str, hint: str) -> None:
    step = check.failed(stage, error, 5.0)
    assert step.good is False
    assert step.said == said
    assert hint in step.hint


def test_what_could_not_be_tried_is_no_failure() -> None:
    assert check.failed("data", PermissionError(), 5.0).good is None


def test_a_start_reply_names_the_server() -> None:
    step = check.started(Start(0x0100, 1, 0, 1, "vpn", "linux"), 12_345_678)
    assert step.good
    assert step.said == "accepted in 12.3 ms: host name 'vpn', vendor 'linux', protocol version 1.0, firmware 1"


def test_a_refused_start_has_its_reason() -> None:
    step = check.started(Start(0x0100, 3, 0, 1, "", ""), 1_000_000)
    assert step.good is False
    assert "there is a control connection from this address already" in step.said
    assert "another client behind the same external address has it" in step.hint


def test_a_call_reply_names_both_call_ids() -> None:
    step = check.called(CallReply(7, 8, 1, 0, 0, 64_000), 1_000_000)
    assert step.good
    assert step.said == "connected in 1 ms: its Call ID 7, ours 8, 64000 bit/s"
    assert check.called(CallReply(7, 8, 4, 0, 0, 0), 1_000_000).said == "refused: busy in 1 ms"
