"""`rule list` and `rule trace`, asked of a real rule set over a socket."""

from __future__ import annotations

import copy
import json

import pytest

from tests.support.answers import STATUS
from tests.support.legacy import chains_after

SET = (
    "ipchains -P forward DENY",
    "ipchains -N vpn",
    "ipchains -A input -i eth0 -p udp",
    "ipchains -A input -i eth0 -s ! 10.0.0.0/8 -l -j DENY",
    "ipchains -A forward -i eth1 -s 10.0.0.2 -j vpn",
    "ipchains -A vpn -p 47 -d 199.0.0.1 -j MASQ",
    "ipchains -A vpn -p tcp -d 199.0.0.1 1723 -y -j MASQ",
    "ipchains -A output -i eth1 -p tcp -s 200.200.200.200 -t 0x01 0x10 -j ACCEPT",
    "ipchains -A output -i eth1 -p icmp -s 0/0 3 -d 0/0 4 -j REJECT",
)
WAY = ("--in", "eth0", "--out", "eth1")


@pytest.fixture
def ruled(forwarder):
    """Return the forwarder with the rules of SET, and with an address outside."""
    forwarder.rules.put(chains_after(*SET))
    forwarder.status = copy.deepcopy(STATUS)
    forwarder.status["links"][1].update(name="eth1", addresses=["200.200.200.200/24"])
    forwarder.status["external"]["address"] = "200.200.200.200"
    return forwarder


@pytest.fixture
def ask(run, ruled):
    return lambda *words: run("rule", *words, "--socket", ruled.path)


def test_list_says_what_the_rules_want_and_do(ask):
    lines = ask("list").stdout.splitlines()
    assert lines[0] == "chain input: policy ACCEPT (0 packets, 0 bytes)"
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "1 - udp any any eth0 0 0\n2 DENY all not 10.0.0.0/8 any eth0 log 0 0" in text
    assert "chain vpn: 1 rule leads to it" in text
    assert "2 MASQ tcp any 199.0.0.1 1723 any syn 0 0" in text
    assert "1 ACCEPT tcp 200.200.200.200 any eth1 tos and 0x01 xor 0x10 0 0" in text
    assert "2 REJECT icmp any any eth1 type 3, code 4 0 0" in text


def test_list_of_one_chain_and_as_json(ask):
    assert ask("list", "--chain", "vpn").stdout.startswith("chain vpn")
    [chain] = json.loads(ask("list", "--chain", "forward", "--json").stdout)["chains"]
    assert (chain["policy"], chain["rules"][0]["rule"]["target"]) == ("DENY", "vpn")
    assert ask("list", "--chain", "nowhere").exit_code == 2


def test_list_says_which_rules_came_at_run_time(ask, ruled):
    answer = ruled.rules.listed({"chain": "input"})
    for rule, origin in zip(answer["chains"][0]["rules"], ("command", "configuration"), strict=True):
        rule["from"] = origin
    ruled.handlers["rules"] = lambda _: answer
    lines = [" ".join(line.split()) for line in ask("list").stdout.splitlines()]
    assert lines[1].endswith("Bytes By")
    assert lines[2] == "1 - udp any any eth0 0 0 command"
    assert lines[3] == "2 DENY all not 10.0.0.0/8 any eth0 log 0 0 configuration"


def test_list_of_untouched_rules(run, forwarder):
    assert "masqueraded" in run("rule", "list", "--socket", forwarder.path).stdout


def test_trace_follows_a_packet_until_it_leaves_masqueraded(ask):
    result = ask("trace", "--from", "10.0.0.2:1025", "--to", "199.0.0.1:1723", "--syn", *WAY)
    assert result.stdout.splitlines() == [
        "input on eth0: tcp 10.0.0.2:1025 -> 199.0.0.1:1723",
        "  input policy: ACCEPT",
        "  -> ACCEPT",
        "forward on eth1: tcp 10.0.0.2:1025 -> 199.0.0.1:1723",
        "  forward rule 1: vpn",
        "  vpn rule 2: MASQ",
        "  -> MASQ",
        "output on eth1: tcp 200.200.200.200:1025 -> 199.0.0.1:1723",
        "  output rule 1: ACCEPT",
        "  -> ACCEPT",
    ]


@pytest.mark.parametrize(
    ("words", "verdicts"),
    [
        ("--protocol udp --from 10.0.0.2 --to 199.0.0.1:53", [("input", "ACCEPT"), ("forward", "DENY")]),
        ("--protocol 47 --from 192.168.0.2 --to 199.0.0.1", [("input", "DENY")]),
        (
            "--protocol gre --from 10.0.0.2 --to 199.0.0.1",
            [("input", "ACCEPT"), ("forward", "MASQ"), ("output", "ACCEPT")],
        ),
    ],
)
def test_trace_ends_where_the_packet_does(ask, words, verdicts):
    stages = json.loads(ask("trace", *words.split(), *WAY, "--json").stdout)
    assert [(stage["chain"], stage["verdict"]) for stage in stages] == verdicts


def test_trace_of_a_packet_that_the_gateway_sends(ask):
    result = ask("trace", "--icmp", "3/4", "--from", "200.200.200.200", "--to", "199.0.0.1", "--out", "eth1")
    assert result.stdout.splitlines() == [
        "output on eth1: icmp 3/4 200.200.200.200 -> 199.0.0.1",
        "  output rule 2: REJECT",
        "  -> REJECT",
    ]


def test_trace_knows_that_an_untouched_chain_masquerades(ask, ruled):
    ruled.rules.put(chains_after())
    stages = json.loads(ask("trace", "--from", "10.0.0.2", "--to", "199.0.0.1:80", *WAY, "--json").stdout)
    assert [stage["verdict"] for stage in stages] == ["ACCEPT", "MASQ", "ACCEPT"]
    back = ask("trace", "--from", "199.0.0.1", "--to", "10.0.0.2:80", "--in", "eth1", "--out", "eth0", "--json").stdout
    assert json.loads(back)[-1]["verdict"] == "DENY"


@pytest.mark.parametrize(("arriving", "leaving"), [("lo", "eth1"), ("lo", "eth0"), ("eth0", "lo"), ("eth1", "lo")])
def test_s51_t5_an_untouched_chain_forwards_nothing_by_loopback(ask, ruled, arriving, leaving):
    ruled.rules.put(chains_after())
    result = ask("trace", "--from", "127.0.0.1", "--to", "199.0.0.1:80", "--in", arriving, "--out", leaving, "--json")
    assert [stage["verdict"] for stage in json.loads(result.stdout)] == ["ACCEPT", "DENY"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--from 10.0.0.2 --to 199.0.0.1:80", "--in"),
        ("--from 10.0.0.2 --to 199.0.0.1 --in eth0", "to which port?"),
        ("--from 10.0.0.256 --to 199.0.0.1:80 --in eth0", "'10.0.0.256' is no IPv4 address"),
        ("--from 10.0.0.2:99999 --to 199.0.0.1:80 --in eth0", "'99999' is no port"),
        ("--from 10.0.0.2 --to 199.0.0.1:80 --in eth7", "no such link"),
        ("--from 10.0.0.2 --to 199.0.0.1 --protocol nonsense --in eth0", "no such protocol"),
        ("--from 10.0.0.2 --to 199.0.0.1 --icmp 3/x --in eth0", "--icmp 3/x"),
        ("--from 10.0.0.2 --to 199.0.0.1:80 --in eth0 --syn --ack", "exclude"),
    ],
)
def test_trace_says_what_is_wrong_with_its_options(ask, words, said):
    result = ask("trace", *words.split())
    assert result.exit_code == 2
    assert said in result.stderr
