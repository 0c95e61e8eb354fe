"""`fastmasq setup`: the questions, their defaults, and what it refuses."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from ipaddress import IPv4Address

import pytest

from fastmasq.config.load import load
from fastmasq.deploy import links
from fastmasq.deploy.links import Candidate, default_inside, default_outside

PRIVATE, PUBLIC = (IPv4Address("10.0.0.1"),), (IPv4Address("203.0.113.7"),)
LINKS = [
    Candidate("eth0", True, PRIVATE),
    Candidate("eth1", True, (IPv4Address("8.8.8.8"),)),
    Candidate("eth2", False, (IPv4Address("192.168.7.1"),)),
    Candidate("tun0", True, ()),
]
ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
docker0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t00000000\t0101A8C0\t0003\t0\t0\t50\t00000000\t0\t0\t0
eth1\t00000000\t0100CBC0\t0003\t0\t0\t5\t00000000\t0\t0\t0
"""


@pytest.fixture(autouse=True)
def these_links(monkeypatch):
    monkeypatch.setattr(links, "candidates", lambda: LINKS)
    monkeypatch.setattr(links, "default_outside", lambda found: "eth1")


def interfaces(path):
    read = load(path).settings.interfaces
    return list(read.inside), read.outside


def test_without_questions(run, tmp_path):
    path = tmp_path / "fm.toml"
    result = run("setup", "-c", path, "--inside", "eth0", "--inside", "eth2", "--outside", "ppp0")
    assert result.stdout == f"{path}: inside eth0, eth2, outside ppp0\nthen: fastmasq check -c {path}\n"
    assert interfaces(path) == (["eth0", "eth2"], "ppp0")


def test_a_file_that_exists_is_not_touched(run, tmp_path):
    path = tmp_path / "fm.toml"
    path.write_text("mine")
    result = run("setup", "-c", path, "--inside", "eth0", "--outside", "eth1")
    assert (result.exit_code, path.read_text()) == (1, "mine")
    assert result.stderr.startswith(f"fastmasq: {path} exists; change it there, or move it away")


def test_without_a_terminal_it_is_one_line(run, tmp_path):
    result = run("setup", "-c", tmp_path / "fm.toml", "--inside", "eth0")
    assert result.exit_code == 2
    assert result.stderr == "fastmasq: name the links with --inside and --outside: there is no terminal to ask at\n"
    assert not (tmp_path / "fm.toml").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--inside", "eth0", "--outside", "eth0"), "eth0 is named inside and outside: a link has one side."),
        (("--inside", "eth7", "--outside", "eth1"), "no link eth7 here; there are: eth0, eth1, eth2, tun0."),
        (("--inside", "a link", "--outside", "eth1"), "Invalid value for '--inside'"),
    ],
)
def test_what_cannot_be_is_not_written(run, tmp_path, words, said):
    result = run("setup", "-c", tmp_path / "fm.toml", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "fm.toml").exists()


def test_the_defaults_are_the_default_route_and_private_addresses():
    assert default_outside(LINKS, ROUTES) == "eth1", "the best metric of a link that can be one"
    assert default_outside(LINKS, ROUTES.partition("docker0")[0]) == ""
    assert default_inside(LINKS, "eth1") == ["eth0"]
    assert default_inside([LINKS[2], LINKS[3]], "eth1") == ["eth2"], "one that is down, if none is up"
    assert default_inside([Candidate("eth0", True, PUBLIC)], "eth1") == []


TALK = """if True:
    import sys
    from ipaddress import IPv4Address
    from fastmasq.deploy import links
    found = [links.Candidate("eth0", True, (IPv4Address("10.0.0.1"),)), links.Candidate("eth1", False, ())]
    links.candidates = lambda: found
    links.default_outside = lambda found: "eth1"
    from fastmasq.cli.main import main
    sys.argv = ["fastmasq", "setup", "-c", {path!r}]
    main()
"""


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("\n\n", (["eth0"], "eth1")),
        ("eth0\neth1\n", (["eth1"], "eth0")),
        ("not a link\nppp0\neth0, eth1\n", (["eth0", "eth1"], "ppp0")),
    ],
)
def test_the_questions(tmp_path, answers, expected):
    path = tmp_path / "fm.toml"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TALK.format(path=str(path))], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(ours, answers.encode())
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # its other end is closed
        pass
    os.close(ours)
    assert process.wait(30) == 0, said
    assert b"eth0            up   10.0.0.1" in said
    assert b"eth1            down no address" in said
    assert b"Outside, the link to the internet [eth1]:" in said
    assert interfaces(path) == expected
