"""The table of `fastmasq sessions`: its lines fit, and its words are those of the help."""

from __future__ import annotations

from typing import Any

from fastmasq.cli import sessions
from fastmasq.table.rows import STATES


def test_the_states_of_sessions_are_those_that_the_help_names(run) -> None:
    assert tuple(dict.fromkeys(STATES[1:])) == sessions.STATES
    shown = " ".join(run("sessions", "--help").stdout.split())
    assert ", ".join(sessions.STATES) in shown


def session(state: str, inside: str, external: str, remote: str) -> dict[str, Any]:
    ends = {"inside": inside, "external": external, "remote": remote}
    counts = {"idle_s": 86_399, "expires_s": 7440, "packets_out": 10**9, "packets_in": 0}
    return {"protocol": "icmp", "state": state, **ends, **counts}


LONGEST = ("192.168.123.234:65535", "200.200.200.200:65535", "255.255.255.255:65535")


def test_sessions_fit_into_80_columns(run, forwarder) -> None:
    """Those of programs of the host have other external addresses, and those of GRE no port."""
    forwarder.sessions = [
        session("syn-received", *LONGEST),
        session("active", "10.0.0.2", "200.200.200.201", "199.0.0.1"),
        session("established", *LONGEST),
    ]
    forwarder.total = 3
    lines = run("sessions", "--socket", forwarder.path).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines[:6]] == [
        ["Proto", "State"],
        ["external", "200.200.200.200"],
        ["icmp", "syn-received"],
        ["icmp", "established"],
        ["external", "200.200.200.201"],
        ["icmp", "active"],
    ]
    assert lines[6:] == ["", "--wide shows Out, In, Expires as well", "3 sessions"]
    wide = run("sessions", "--socket", forwarder.path, "--wide").stdout.splitlines()
    assert wide[0].split()[-6:] == ["External", "Remote", "Idle", "Out", "In", "Expires"]
    assert wide[1].split()[2:5] == list(LONGEST)


def test_a_wider_terminal_shows_more(run, forwarder, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = run("sessions", "--socket", forwarder.path).stdout.splitlines()
    assert lines[0].split()[-1] == "Expires"
    assert "--wide" not in lines[-2]
