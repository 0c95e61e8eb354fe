"""`run` and `check`: which settings they make of files and options, and what they say about them."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import dataclass

import pytest

from fastmasq.config.load import SAMPLE
from fastmasq.errors import KernelError
from tests.support.answers import STATUS

GOOD = '[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n'


@pytest.fixture(autouse=True)
def keep_logging():
    root, ours = logging.getLogger(), logging.getLogger("fastmasq")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


@pytest.fixture
def started(stand_in):
    """The settings that the forwarder was started with."""
    started = []

    def run_forever(settings, announce, read_again=None, **_):
        started.append(settings)
        announce("forwarding between eth0 and eth1")

    stand_in("fastmasq.daemon.engine", run_forever=run_forever)
    return started


@pytest.fixture
def file(tmp_path):
    def file(text):
        path = tmp_path / "f.toml"
        path.write_text(text)
        return path

    return file


# run


def test_run_with_a_file(run, started, file):
    result = run("run", "--config", file(GOOD + '[rings]\nmode = "v3"'))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "forwarding between eth0 and eth1\n", "")
    assert started[0].interfaces.outside == "eth1"
    assert started[0].rings.mode == "v3"


def test_run_with_the_usual_file(run, started, file, monkeypatch):
    monkeypatch.setattr("fastmasq.cli.run.CONFIG_FILE", str(file(GOOD)))
    assert run("run").exit_code == 0
    assert started[0].interfaces.inside == ("eth0",)


def test_run_without_a_file(run, started):
    links = ("--inside", "eth0", "--inside", "wlan0", "--inside", "eth0", "--outside", "ppp0")
    result = run("run", *links, "--ring", "v2", "--socket", "/tmp/x.sock")
    assert result.exit_code == 0
    assert started[0].interfaces.inside == ("eth0", "wlan0")
    assert started[0].interfaces.outside == "ppp0"
    assert started[0].rings.mode == "v2"
    assert started[0].control.socket == "/tmp/x.sock"
    assert started[0].masquerade.hairpin


def test_an_observer_prints_in_the_end_what_it_has_seen(run, stand_in):
    report = copy.deepcopy(STATUS) | {
        "observed": {
            "answers_to_host": 7,
            "opened": {"tcp": 90, "udp": 8, "icmp": 1, "other": 0},
            "forwards": [{"forward": "tcp eth1:8080", "sessions": 3}],
            "dropped": [
                {
                    **{"packets": 3, "reason": "input_denied", "rule": "input rule 2", "link": "eth0", "protocol": 17},
                    **{"source": "10.0.0.3", "destination": "199.0.0.1", "port": 53},
                },
                {
                    **{"packets": 1, "reason": "icmp_type_refused", "rule": None, "link": None, "protocol": 1},
                    **{"source": "10.0.0.4", "destination": "199.0.0.1", "port": 5},
                },
            ],
            "dropped_others": 2,
        }
    }

    def run_forever(settings, announce, read_again=None, *, observed=None, **_):
        announce("observing")
        observed(report)

    stand_in("fastmasq.daemon.engine", run_forever=run_forever)
    result = run("run", "--inside", "eth0", "--outside", "eth1", "--observe")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    reasons = "3 ttl_exceeded, 1 no_route"
    assert lines[:2] == [
        "observing",
        f"fastmasq only observes: would forward 22 packets, would drop 4 ({reasons}), would open 99 sessions",
    ]
    assert "tcp eth1:8080 3" in lines
    assert "3 input_denied input rule 2 eth0 udp 10.0.0.3 199.0.0.1:53" in lines
    assert "1 icmp_type_refused - - icmp 5 10.0.0.4 199.0.0.1" in lines
    assert "2 of other flows" in lines


def test_run_listens_where_the_file_says_whatever_the_environment_of_clients(run, started, file, monkeypatch):
    monkeypatch.setenv("FASTMASQ_SOCKET", "/tmp/y.sock")
    run("run", "-c", file(GOOD))
    assert started[0].control.socket == "/run/fastmasq.sock"


def test_options_come_before_the_file(run, started, file):
    run(
        "run", "-c", file(GOOD + '[rings]\nmode = "v3"\n[control]\nsocket = "/a"'), "--ring", "socket", "--socket", "/b"
    )
    assert (started[0].rings.mode, started[0].control.socket) == ("socket", "/b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--inside", "eth0"], "--inside and --outside are both needed"),
        (["--outside", "eth0"], "--inside and --outside are both needed"),
        (["--inside", "eth0", "--outside", "eth0"], "eth0 is named inside and outside"),
        (["-c", "x", "--inside", "eth0"], "exclude each other"),
        (["--inside", "a b", "--outside", "c"], '"a b" cannot be the name of a link'),
        (["--inside", "a", "--outside", "b", "--ring", "v4"], "'auto', 'v3', 'v2', 'socket'"),
        (["--inside", "a", "--outside", "b", "--observe", "--keep"], "--observe goes without --keep"),
        (
            ["--inside", "a", "--outside", "b", "--observe", "--supervise"],
            "--observe goes without --keep and --supervise",
        ),
    ],
)
def test_run_refuses_wrong_usage(run, started, options, said):
    result = run("run", *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not started
    result = run("run", *options, "--log-json")
    [entry] = map(json.loads, result.stderr.splitlines())
    assert (result.exit_code, result.stdout, entry["level"]) == (2, "", "error")
    assert said in entry["message"]


def test_run_refuses_a_wrong_file_with_every_mistake(run, started, file):
    path = file("compat = 1\n[rings]\nmode = 1")
    result = run("run", "-c", path)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 4
    assert all(line.startswith(f"fastmasq: {path}:") for line in result.stderr.splitlines())
    assert not started


def test_run_without_anything(run, started, monkeypatch):
    monkeypatch.setattr("fastmasq.cli.run.CONFIG_FILE", "/nowhere/fastmasq.toml")
    result = run("run")
    assert result.exit_code == 2
    assert result.stderr.startswith("fastmasq: /nowhere/fastmasq.toml: cannot be read: No such file or directory; name")


def test_run_ends_with_the_reason_when_it_cannot_start(run, stand_in):
    def run_forever(settings, announce, read_again=None, **_):
        raise KernelError("eth0: missing; plug it in")

    stand_in("fastmasq.daemon.engine", run_forever=run_forever)
    result = run("run", "--inside", "eth0", "--outside", "eth1")
    assert (result.exit_code, result.stderr) == (1, "fastmasq: eth0: missing; plug it in\n")


def test_run_logs_warnings_of_the_configuration(run, started, file):
    path = file(GOOD + "[masquerade.timeouts]\nudp = 30")
    assert run("run", "-c", path).stderr.startswith(f"fastmasq: warning: {path}:5: masquerade.timeouts.udp: 30 is less")
    entry = json.loads(run("run", "-c", path, "--log-json").stderr)
    assert entry["level"] == "warning"
    assert entry["message"].startswith(f"{path}:5: ")


def test_run_says_everything_in_json_if_asked(run, stand_in):
    def run_forever(settings, announce, read_again=None, **_):
        announce("fastmasq is forwarding")
        raise KernelError("eth0: missing; plug it in\neth1: missing")

    stand_in("fastmasq.daemon.engine", run_forever=run_forever)
    result = run("run", "--inside", "eth0", "--outside", "eth1", "--log-json")
    assert result.exit_code == 1
    entries = [json.loads(line) for line in (*result.stdout.splitlines(), *result.stderr.splitlines())]
    assert [(entry["level"], entry["message"]) for entry in entries] == [
        ("info", "fastmasq is forwarding"),
        ("error", "eth0: missing; plug it in"),
        ("error", "eth1: missing"),
    ]
    assert all(entry["time"] and entry["logger"] == "fastmasq.engine" for entry in entries)


# check


@dataclass
class Finding:
    severity: str
    text: str


@pytest.fixture
def found(stand_in):
    found = []
    stand_in("fastmasq.daemon.preflight", findings=lambda settings: found)
    return found


def test_check_of_a_good_file(run, found, file):
    path = file(GOOD)
    result = run("check", "-c", path)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{path}: ready to run\n", "")


def test_check_prints_warnings_and_findings(run, found, file):
    found += [Finding("warning", "ports 1024-4999: the host uses them, too"), Finding("note", "rings: v3 and v2 work")]
    path = file(GOOD + "[masquerade.timeouts]\nudp = 30")
    result = run("check", "-c", path)
    assert result.exit_code == 0
    warning, *others = result.stdout.splitlines()
    assert warning.startswith(f"warning: {path}:5: masquerade.timeouts.udp: 30 is less than the 2m of RFC 4787 REQ-5")
    assert others == [
        "warning: ports 1024-4999: the host uses them, too",
        "note: rings: v3 and v2 work",
        f"{path}: ready to run",
    ]


def test_check_fails_where_something_is_lacking(run, found, file):
    found.append(Finding("error", "eth1: no such link; see `ip link`"))
    result = run("check", "-c", file(GOOD))
    assert (result.exit_code, result.stdout) == (1, "error: eth1: no such link; see `ip link`\n")


def test_check_is_not_ready_where_packets_would_go_another_way(run, found, file):
    found.append(Finding("problem", "no default route leads over eth1 (outside): see `ip route`"))
    result = run("check", "-c", file(GOOD))
    assert (result.exit_code, result.stdout) == (
        1, "problem: no default route leads over eth1 (outside): see `ip route`\n",
    )  # fmt: skip


def test_check_prints_every_mistake_as_editors_read_them(run, found, file):
    path = file("[interface]\n[vpn]\npptp = 1\n")
    result = run("check", "-c", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"{path}:1: interface: unknown key; did you mean interfaces?",
        f'{path}:1: interfaces.inside: missing; write inside = ["eth0"] under [interfaces]',
        f'{path}:1: interfaces.outside: missing; write outside = "eth1" under [interfaces]',
        f"{path}:3: vpn.pptp: 1 is not true or false; write for example true",
    ]


def test_check_sample_is_the_sample(run):
    assert run("check", "--sample").stdout == SAMPLE.read_text()
