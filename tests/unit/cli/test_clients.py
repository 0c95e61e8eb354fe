"""`status`, `sessions` and `release` against a forwarder that answers: how they find it, and what they print."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from fastmasq.cli.render import align, span
from fastmasq.cli.status import show
from fastmasq.errors import KernelError
from fastmasq.kernel.takeover import Restored

# how the forwarder is found


def test_by_option(run, forwarder):
    assert run("status", "--socket", forwarder.path).exit_code == 0


def test_by_environment(run, forwarder, monkeypatch):
    monkeypatch.setenv("FASTMASQ_SOCKET", forwarder.path)
    assert run("status").exit_code == 0
    assert run("status", "--socket", "/nowhere/else.sock").exit_code == 1


def test_by_configuration(run, config_file):
    assert run("status", "-c", config_file).exit_code == 0


def test_the_environment_comes_before_the_configuration(run, config_file, monkeypatch):
    monkeypatch.setenv("FASTMASQ_SOCKET", "/nowhere/else.sock")
    result = run("status", "-c", config_file)
    assert result.exit_code == 1
    assert "no fastmasq is running at /nowhere/else.sock; start" in result.stderr


def test_by_relative_path(run, forwarder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("status", "--socket", "fm.sock").exit_code == 0


def test_at_the_usual_place(run, monkeypatch, forwarder):
    for usual in (["/nowhere/1", forwarder.path], [forwarder.path, "/nowhere/2"]):
        monkeypatch.setattr("fastmasq.cli.options.USUAL_SOCKETS", usual)
        assert run("status").exit_code == 0


def test_at_no_usual_place(run, monkeypatch):
    monkeypatch.setattr("fastmasq.cli.options.USUAL_SOCKETS", ("/nowhere/1", "/nowhere/2"))
    assert "no fastmasq is running at /nowhere/1" in run("status").stderr


def test_a_wrong_configuration(run, tmp_path):
    (tmp_path / "f.toml").write_text("x = 1")
    result = run("status", "-c", tmp_path / "f.toml")
    assert result.exit_code == 2
    assert all(line.startswith(f"fastmasq: {tmp_path}/f.toml:1: ") for line in result.stderr.splitlines())


def test_a_socket_that_cannot_be(run):
    result = run("status", "--socket", "/" + "x" * 200)
    assert result.exit_code == 2
    assert "a socket's path at most 107" in result.stderr


# status


def squeezed(text):
    """Return the lines of a table with one blank for each run of blanks."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_status_for_people(run, forwarder):
    lines = squeezed(run("status", "--socket", forwarder.path).stdout)
    assert lines == [
        "fastmasq 0.1.0, process 4711, running for 2h3m, behaviour modern",
        "",
        "Links",
        "Link Side State Addresses Ring",
        "eth0 inside up 10.0.0.1/8 v2, vnet header, qdisc bypass",
        "ppp0 outside missing none none",
        "",
        "Traffic",
        "Link In packets/s bit/s Out packets/s bit/s Lost by ring",
        "eth0 1.23 M 5.4 G 12 0 7",
        "ppp0 0 0 0 0 0",
        "",
        "Guard nftables, netdev ingress on eth0 and ppp0",
        "External none: no session can be opened until the outside link has an address, ports 1024-20479,24576-65535",
        "Host connects from ports 20480-24575 (without fastmasq 32768-60999)",
        "Sessions 3 of 1000000 (tcp 1, udp 1, icmp 1)",
        "of 1 hosts, 2 external endpoints",
        "99 opened so far, 0.5 a second",
        "Packets forward 22, deliver 1, reply 2, punt 3, drop 4",
        "",
        "Dropped",
        "Packets a second Reason",
        "3 1.5 ttl_exceeded The packet had been forwarded too often.",
        "1 0 no_route No route to the destination.",
        "",
        "Noted",
        "Count Note",
        "5 held Packets that had to wait.",
        "",
        "Done without, as this kernel lacks it",
        "Links Instead Cost",
        "eth0 virtio header on rings plain sockets a copy of each packet",
        "",
    ]


def test_status_without_drops(run, forwarder):
    forwarder.status = {
        **forwarder.status,
        "drops": [],
        "external": {
            "missing": [],
            "address": "200.200.200.200",
            "addresses": ["200.200.200.200", "200.200.200.201"],
            "ports": "61000-65095",
        },
    }
    lines = squeezed(run("status", "--socket", forwarder.path).stdout)
    assert "No packet was dropped." in lines
    assert "External 200.200.200.200, 200.200.200.201, ports 61000-65095" in lines


def test_status_says_where_the_host_connects_from(run, forwarder):
    host = {"range": "1024-65000", "own": "1024-65000", "reason": "somebody has set it"}
    forwarder.status = {**forwarder.status, "host_ports": host}
    lines = squeezed(run("status", "--socket", forwarder.path).stdout)
    assert "Host connects from ports 1024-65000: somebody has set it" in lines


def test_status_tells_of_private_sources_that_leave_as_they_are(run, forwarder):
    hosts = [
        {"source": "10.0.0.3", "destination": "203.0.113.5", "packets": 7},
        {"source": "10.0.0.2", "destination": "199.0.0.1", "packets": 2},
    ]
    forwarder.status = {**forwarder.status, "untranslated": {"packets": 12, "hosts": hosts}}
    lines = squeezed(run("status", "--socket", forwarder.path).stdout)
    at = lines.index("Left with a private source")
    assert lines[at + 1 : at + 5] == [
        "Packets Private source Last to",
        "7 10.0.0.3 203.0.113.5",
        "2 10.0.0.2 199.0.0.1",
        "12 in all",
    ]


def test_status_tells_of_what_was_adopted(run, forwarder):
    adopted = {"sessions": 812, "calls": 3, "sas": 2, "exchanges": 0, "dropped": {"torn": 1, "expired": 4}}
    forwarder.status = {**forwarder.status, "adopted": adopted}
    lines = squeezed(run("status", "--socket", forwarder.path).stdout)
    assert "812 adopted from the run before, 3 calls, 2 SAs; dropped: torn 1, expired 4" in lines


def test_status_tells_of_rules_that_are_not_followed(run, forwarder):
    forwarder.status = {**forwarder.status, "ip_rules": ["77: from 10.0.0.0/24 lookup 100"]}
    lines = squeezed(run("status", "--socket", forwarder.path).stdout)
    assert "Not followed ip rule 77: from 10.0.0.0/24 lookup 100" in lines


def test_status_counts_sessions_of_all_protocols(run, forwarder):
    sessions = {**forwarder.status["sessions"], "active": 5, "other": 2}
    forwarder.status = {**forwarder.status, "sessions": sessions}
    lines = squeezed(run("status", "--socket", forwarder.path).stdout)
    assert "Sessions 5 of 1000000 (tcp 1, udp 1, icmp 1, other 2)" in lines


def test_status_says_which_addresses_nobody_leaves_with(run, forwarder):
    external = {**forwarder.status["external"], "missing": ["9.9.9.9", "8.8.8.8"]}
    forwarder.status = {**forwarder.status, "external": external}
    shown = run("status", "--socket", forwarder.path).stdout
    assert "until the outside link has one of these" in shown
    assert "Missing 9.9.9.9, 8.8.8.8, of [masquerade] addresses: nobody leaves with that" in " ".join(shown.split())


def test_status_says_what_waits_to_be_confirmed(run, forwarder):
    forwarder.status = {**forwarder.status, "confirm": {"what": "the reload", "left_s": 43.2}}
    lines = run("status", "--socket", forwarder.path).stdout.splitlines()
    assert lines[2] == "the reload goes back in 43s, unless you say `fastmasq confirm`"


def test_status_before_there_are_links(run, forwarder):
    forwarder.status = {**forwarder.status, "links": []}
    assert run("status", "--socket", forwarder.path).exit_code == 0


def test_status_fits_80_columns(forwarder):
    console = Console(file=io.StringIO(), width=80, markup=False, highlight=False)
    show(forwarder.status, console)
    text = console.file.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_status_as_json(run, forwarder):
    result = run("status", "--socket", forwarder.path, "--json")
    assert json.loads(result.stdout) == forwarder.status


# sessions


def test_sessions_for_people(run, forwarder):
    text = run("sessions", "--socket", forwarder.path).stdout
    header, address, first, second, blank, hidden, footer = text.splitlines()
    assert address == "external 200.200.200.200"
    assert squeezed(first) == ["tcp established 10.0.0.2:40000 40000 199.0.0.1:80 8s 12"]
    assert squeezed(second)[0].startswith("icmp active 10.255.255.254:7 61000 ")
    assert (blank, hidden, footer) == ("", "--wide shows In, Expires as well", "2 sessions")
    assert header.index("Inside") == first.index("10.0.0.2")


def test_the_widest_row_is_not_broken(run, forwarder):
    lines = run("sessions", "--socket", forwarder.path, "--wide").stdout.splitlines()
    assert len(lines) == 5
    assert squeezed(lines[1]) == ["tcp established 10.0.0.2:40000 200.200.200.200:40000 199.0.0.1:80 8s 12 10 2h3m"]
    assert max(map(len, lines)) <= 140
    for column, cell in (("Out", "12"), ("Expires", "2h3m")):
        assert lines[0].index(column) + len(column) == lines[1].index(f" {cell}") + 1 + len(cell)


def test_no_sessions(run, forwarder):
    forwarder.total = 0
    assert run("sessions", "--socket", forwarder.path).stdout == "0 sessions\n"


def test_what_the_limit_hides_is_said(run, forwarder):
    forwarder.total = 52_341
    said = "2 of 52341 sessions shown; --limit shows more, --host, --protocol and --state fewer"
    assert run("sessions", "--socket", forwarder.path).stdout.splitlines()[-1] == said
    result = run("sessions", "--socket", forwarder.path, "--json")
    assert json.loads(result.stdout) == forwarder.sessions
    assert result.stderr == f"fastmasq: {said}\n"


def test_filters_are_passed_on(run, forwarder):
    run("sessions", "--socket", forwarder.path)
    run(
        *("sessions", "--socket", forwarder.path, "--host", "10.0.0.2", "--protocol", "tcp"),
        *("--state", "established", "--limit", "5"),
    )
    assert forwarder.asked == [
        {"host": None, "protocol": None, "state": None, "limit": 1000},
        {"host": "10.0.0.2", "protocol": "tcp", "state": "established", "limit": 5},
    ]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--host", "10.0.0", "'10.0.0' is not an IPv4 address; write for example 10.0.0.2"),
        ("--host", "::1", "is not an IPv4 address"),
        ("--protocol", "gre", "'tcp', 'udp', 'icmp'"),
        ("--limit", "0", "range"),
        ("--limit", "many", "not a valid integer"),
    ],
)
def test_wrong_filters(run, forwarder, option, value, said):
    result = run("sessions", "--socket", forwarder.path, option, value)
    assert result.exit_code == 2
    assert said in result.stderr
    assert forwarder.asked == []


@pytest.mark.timeout(10)
def test_a_hundred_thousand_rows_take_seconds():
    row = ["tcp", "established", "10.0.0.2", "40000"]
    lines = list(align(["Protocol", "State", ">Inside", ">port"], [row] * 100_000))
    assert lines[0] == "Protocol  State          Inside   port"
    assert lines[-1] == "tcp       established  10.0.0.2  40000"


# release


def test_release_tells_what_it_restored(run, stand_in, tmp_path):
    given = []

    def release(former_journal):
        given.append(str(former_journal))
        return Restored(["net.ipv4.ip_forward = 1", "guard removed"], [])

    stand_in("fastmasq.kernel.takeover", release=release)
    result = run("release", "--socket", tmp_path / "fm.sock")
    assert (result.exit_code, result.stdout) == (0, "net.ipv4.ip_forward = 1\nguard removed\n")
    assert given == [str(tmp_path / "fm.journal")]


def test_release_with_nothing_to_restore(run, stand_in, tmp_path):
    stand_in("fastmasq.kernel.takeover", release=lambda former_journal: Restored([], []))
    result = run("release", "--socket", tmp_path / "fm.sock")
    assert result.exit_code == 0
    assert result.stdout == "nothing to restore: no fastmasq has left anything changed in this network namespace\n"


def test_release_says_at_the_end_what_is_left(run, stand_in, tmp_path):
    restored = Restored(["guard removed"], ["an odd entry; put that back by hand", "another"])
    stand_in("fastmasq.kernel.takeover", release=lambda former_journal: restored)
    result = run("release", "--socket", tmp_path / "fm.sock")
    assert (result.exit_code, result.stdout) == (1, "guard removed\n")
    assert result.stderr == "fastmasq: an odd entry; put that back by hand\nfastmasq: another\n"


def test_release_does_not_pull_the_rug_from_a_living_forwarder(run, stand_in, forwarder):
    stand_in("fastmasq.kernel.takeover", release=lambda former_journal: pytest.fail("released"))
    result = run("release", "--socket", forwarder.path)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"fastmasq: fastmasq is running at {forwarder.path}; stop it first")


def test_release_that_fails(run, stand_in, tmp_path):
    def release(former_journal):
        raise KernelError("only root may restore; use sudo")

    stand_in("fastmasq.kernel.takeover", release=release)
    result = run("release", "--socket", tmp_path / "fm.sock")
    assert result.exit_code == 1
    assert result.stderr == "fastmasq: only root may restore; use sudo\n"


# figures


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (0.9, "0s"),
        (-5, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (61, "1m1s"),
        (7431.2, "2h3m"),
        (7200, "2h"),
        (7205, "2h"),
        (86_400, "1d"),
        (90_000, "1d1h"),
        (86_460, "1d"),
    ],
)
def test_spans(seconds, shown):
    assert span(seconds) == shown
