"""Every rule set of the HOWTO, word for word: the chains it makes, and its verdicts on a table of probe packets.

The verdicts are asked for as `-c` and `-C` would, by rows H-30 to H-32, H-43 to H-46 and H-68 of original-systems.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmasq.legacy.ipchains_listing import chain_lines as ipchains_lines
from fastmasq.legacy.ipfwadm_listing import chain_lines as ipfwadm_lines
from fastmasq.legacy.listing import Shown
from fastmasq.legacy.requests import packet_of
from fastmasq.legacy.script import Prepared, prepare
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.changes import apply
from fastmasq.policy.evaluate import Packet, evaluate
from fastmasq.wire.numbers import AH, ESP, GRE, ICMP, TCP, UDP
from tests.support.legacy import NAMES, chains_after, net, read

FOLDER = Path(__file__).parents[2] / "data" / "howto-rules"
SETS = sorted(file.stem for tool in ("ipfwadm", "ipchains") for file in FOLDER.glob(f"*-{tool}-*.rules"))


def read_set(*names: str, tolerant: bool = True) -> tuple[RuleSet, Prepared]:
    """Return the chains that rule sets make, one after the other, and how they were read."""
    start = RuleSet(default_forward=False)
    prepared = prepare([FOLDER / f"{name}.rules" for name in names], NAMES, start, tolerant=tolerant)
    return apply(start, prepared.changes), prepared


def listed(rules: RuleSet, chain: str) -> list[str]:
    """Return a chain as `ipfwadm -l -n -e` shows it, the columns reduced to single spaces, without header."""
    lines = ipfwadm_lines(rules.chain(chain), Shown(NAMES, numeric=True), extended=True, exact=False)
    return [" ".join(line.split()[2:]) for line in lines[2:]]


# -- the chains --------------------------------------------------------------------------------------------------------


def test_all_sets_with_rules_are_here():
    assert len(SETS) == 12


@pytest.mark.parametrize("name", SETS)
def test_each_line_is_one_change(name):
    lines = [line for line in (FOLDER / f"{name}.rules").read_text().splitlines() if line and not line.startswith("#")]
    _, prepared = read_set(name)
    assert len(prepared.changes) == len(lines)
    assert prepared.others == []
    assert len(prepared.warnings) == (1 if name.startswith("3.9") else 0)


@pytest.mark.parametrize("name", [name for name in SETS if not name.startswith("3.9")])
def test_strict_reading_takes_all_but_the_misprint_too(name):
    assert read_set(name, tolerant=False)[1] == read_set(name)[1]


def test_h30_ipfwadm_minimum():
    rules, _ = read_set("3.5-ipfwadm-minimum-ppp0")
    assert [chain.policy for chain in rules.chains.values()] == ["ACCEPT", "DENY", "ACCEPT"]
    assert listed(rules, "input") == [
        "acc all ---- 0xFF 0x00 eth0 0.0.0.0 10.0.0.0/8 0.0.0.0/0 n/a",
        "acc all ---- 0xFF 0x00 ppp0 0.0.0.0 0.0.0.0/0 0.0.0.0/0 n/a",
    ]
    assert listed(rules, "forward") == ["acc/m all ---- 0xFF 0x00 ppp0 0.0.0.0 10.0.0.0/8 0.0.0.0/0 n/a"]
    assert listed(rules, "output") == [
        "acc all ---- 0xFF 0x00 eth0 0.0.0.0 0.0.0.0/0 10.0.0.0/8 n/a",
        "acc all ---- 0xFF 0x00 ppp0 0.0.0.0 0.0.0.0/0 0.0.0.0/0 n/a",
    ]


def test_h31_ipfwadm_tight():
    rules, _ = read_set("3.5-ipfwadm-tight-ppp0")
    assert [chain.policy for chain in rules.chains.values()] == ["DENY"] * 3
    assert listed(rules, "forward") == [
        "acc/m udp ---- 0xFF 0x00 ppp0 0.0.0.0 10.0.0.2 199.0.0.1 500 -> 500",
        "acc/m tcp ---- 0xFF 0x00 ppp0 0.0.0.0 10.0.0.2 199.0.0.1 * -> 1723",
        "deny tcp ---- 0xFF 0x00 ppp0 0.0.0.0 10.0.0.2 199.0.0.1 * -> *",
        "deny udp ---- 0xFF 0x00 ppp0 0.0.0.0 10.0.0.2 199.0.0.1 * -> *",
        "acc/m all ---- 0xFF 0x00 ppp0 0.0.0.0 10.0.0.2 199.0.0.1 n/a",
    ]
    assert [len(rules.chain(chain).rules) for chain in ("input", "output")] == [6, 6]
    assert listed(rules, "input")[2] == "acc tcp ---- 0xFF 0x00 ppp0 0.0.0.0 199.0.0.1 200.200.200.0/24 1723 -> *"


def test_h32_ipchains_tight():
    rules, _ = read_set("3.6-ipchains-tight-ppp0")
    shown = Shown(NAMES, numeric=False)
    assert ipchains_lines(rules.chain("forward"), 0, shown, verbose=False, exact=False, line_numbers=False) == [
        "Chain forward (policy DENY):",
        "target     prot opt     source                destination           ports",
        "MASQ       udp  ------  10.0.0.2             199.0.0.1             500 ->   500",
        "MASQ       esp  ------  10.0.0.2             199.0.0.1             n/a",
        "MASQ       tcp  ------  10.0.0.2             199.0.0.1             any ->   pptp",
        "MASQ       gre  ------  10.0.0.2             199.0.0.1             n/a",
    ]
    assert [len(rules.chain(chain).rules) for chain in ("input", "output")] == [5, 5]


def test_a7_the_lines_for_eth1_say_the_same_of_another_link():
    for tool in ("3.5-ipfwadm", "3.6-ipchains"):
        modem, _ = read_set(f"{tool}-minimum-ppp0")
        permanent, _ = read_set(f"{tool}-minimum-eth1-lines")
        here, there = (
            [(counted.rule.target, counted.rule.match.source) for counted in rules.chain("forward").rules]
            for rules in (modem, permanent)
        )
        assert here == there
        assert permanent.chain("forward").policy == "ACCEPT"  # the policies stand in the other file


def test_h43_a1_the_misprint_is_the_output_rule_it_was_meant_to_be():
    rules, prepared = read_set("3.9-ipfwadm-registered-server")
    assert listed(rules, "output")[4:] == [
        "acc all ---- 0xFF 0x00 eth1 200.200.200.200 222.0.0.2 199.0.0.2 n/a",
        "acc all ---- 0xFF 0x00 eth1 200.200.200.200 222.0.0.2 199.0.0.3 n/a",
    ]
    assert prepared.warnings[0].endswith(".rules:23: -0 (the digit) is no option; taken as -O, the output rules")


def test_h68_open_sets():
    ipfwadm, _ = read_set("5.2-ipfwadm-open")
    assert [chain.policy for chain in ipfwadm.chains.values()] == ["ACCEPT"] * 3
    assert listed(ipfwadm, "forward") == ["acc/m all ---- 0xFF 0x00 * 0.0.0.0 0.0.0.0/0 0.0.0.0/0 n/a"]
    ipchains, _ = read_set("5.2-ipchains-open")
    assert [chain.policy for chain in ipchains.chains.values()] == ["ACCEPT", "MASQ", "ACCEPT"]


# -- verdicts ----------------------------------------------------------------------------------------------------------

CLIENT, LAN_HOST, SERVER, STRANGER, PUBLIC = "10.0.0.2", "10.0.0.3", "199.0.0.1", "198.51.100.7", "200.200.200.200"

# protocol, source, port, destination, port
FORWARD_PROBES = {
    "isakmp": (UDP, CLIENT, 500, SERVER, 500),
    "isakmp from another port": (UDP, CLIENT, 1025, SERVER, 500),
    "pptp": (TCP, CLIENT, 1025, SERVER, 1723),
    "web": (TCP, CLIENT, 1025, SERVER, 80),
    "dns": (UDP, CLIENT, 1025, SERVER, 53),
    "esp": (ESP, CLIENT, 0, SERVER, 0),
    "ah": (AH, CLIENT, 0, SERVER, 0),
    "gre": (GRE, CLIENT, 0, SERVER, 0),
    "ping": (ICMP, CLIENT, 8, SERVER, 0),
    "pptp to a stranger": (TCP, CLIENT, 1025, STRANGER, 1723),
    "pptp of another host": (TCP, LAN_HOST, 1025, SERVER, 1723),
    "esp of another host": (ESP, LAN_HOST, 0, SERVER, 0),
    "inbound to the lan": (TCP, STRANGER, 1025, CLIENT, 80),
}
OUTPUT_PROBES = {
    "isakmp": (UDP, PUBLIC, 500, SERVER, 500),
    "pptp": (TCP, PUBLIC, 61000, SERVER, 1723),
    "web": (TCP, PUBLIC, 61000, SERVER, 80),
    "dns": (UDP, PUBLIC, 61000, SERVER, 53),
    "esp": (ESP, PUBLIC, 0, SERVER, 0),
    "gre": (GRE, PUBLIC, 0, SERVER, 0),
    "ping": (ICMP, PUBLIC, 8, SERVER, 0),
    "pptp to a stranger": (TCP, PUBLIC, 61000, STRANGER, 1723),
    "unmasqueraded": (TCP, CLIENT, 1025, SERVER, 1723),
}
INPUT_PROBES = {
    name: (protocol, there, there_port, here, here_port)
    for name, (protocol, here, here_port, there, there_port) in OUTPUT_PROBES.items()
}

IPFWADM_TIGHT_FORWARD = {"isakmp", "pptp", "esp", "ah", "gre", "ping"}
IPCHAINS_TIGHT_FORWARD = {"isakmp", "pptp", "esp", "gre"}
IPFWADM_TIGHT_OUTSIDE = {"isakmp", "pptp", "esp", "gre", "ping"}
IPCHAINS_TIGHT_OUTSIDE = {"isakmp", "pptp", "esp", "gre"}
EVERYTHING = set(FORWARD_PROBES)
ALL_OUTSIDE = set(OUTPUT_PROBES)

TABLE = [
    ("H-30", ("3.5-ipfwadm-minimum-ppp0",), "ppp0", EVERYTHING - {"inbound to the lan"}, ALL_OUTSIDE),
    ("H-32", ("3.6-ipchains-minimum-ppp0",), "ppp0", EVERYTHING - {"inbound to the lan"}, ALL_OUTSIDE),
    ("H-31", ("3.5-ipfwadm-tight-ppp0",), "ppp0", IPFWADM_TIGHT_FORWARD, IPFWADM_TIGHT_OUTSIDE),
    ("H-32", ("3.6-ipchains-tight-ppp0",), "ppp0", IPCHAINS_TIGHT_FORWARD, IPCHAINS_TIGHT_OUTSIDE),
    (
        *("H-31", ("3.5-ipfwadm-tight-ppp0", "3.5-ipfwadm-tight-eth1-lines"), "eth1"),
        *(IPFWADM_TIGHT_FORWARD, IPFWADM_TIGHT_OUTSIDE),
    ),
    (
        *("H-32", ("3.6-ipchains-tight-ppp0", "3.6-ipchains-tight-eth1-lines"), "eth1"),
        *(IPCHAINS_TIGHT_FORWARD, IPCHAINS_TIGHT_OUTSIDE),
    ),
    ("H-68", ("5.2-ipfwadm-open",), "eth1", EVERYTHING, ALL_OUTSIDE),
    ("H-68", ("5.2-ipchains-open",), "eth1", EVERYTHING, ALL_OUTSIDE),
]


def verdict(rules: RuleSet, chain: str, probe: tuple, interface: str, address: str = PUBLIC) -> str:
    """Return what a chain says about (protocol, source, port, destination, port) on a link with that address."""
    protocol, source, source_port, destination, destination_port = probe
    packet = Packet(
        source=net(source)[0],
        destination=net(destination)[0],
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
        interface=interface,
        interface_address=net(address)[0],
    )
    return evaluate(rules, chain, packet).verdict


@pytest.mark.parametrize(
    ("row", "sets", "link", "masqueraded", "passing"), TABLE, ids=[f"{t[0]} {t[1][-1]}" for t in TABLE]
)
def test_verdicts_of_the_masquerading_sets(row, sets, link, masqueraded, passing):
    rules, _ = read_set(*sets)
    forward = {name for name, probe in FORWARD_PROBES.items() if verdict(rules, "forward", probe, link) == "MASQ"}
    assert forward == masqueraded
    for chain, probes in (("output", OUTPUT_PROBES), ("input", INPUT_PROBES)):
        accepted = {name for name, probe in probes.items() if verdict(rules, chain, probe, link) == "ACCEPT"}
        assert accepted == passing, chain


@pytest.mark.parametrize("name", ["3.5-ipfwadm-tight-ppp0", "3.6-ipchains-tight-ppp0"])
def test_h31_h32_the_lan_reaches_the_gateway_and_a11_loopback_does_not(name):
    rules, _ = read_set(name)
    assert verdict(rules, "input", (TCP, LAN_HOST, 1025, "10.0.0.1", 22), "eth0") == "ACCEPT"
    assert verdict(rules, "output", (TCP, "10.0.0.1", 22, LAN_HOST, 1025), "eth0") == "ACCEPT"
    assert verdict(rules, "input", (TCP, "127.0.0.1", 1025, "127.0.0.1", 25), "lo") == "DENY"


REGISTERED = "222.0.0.2"
REGISTERED_PROBES = {
    "isakmp": (UDP, 500, 500),
    "isakmp from another port": (UDP, 1025, 500),
    "pptp": (TCP, 1025, 1723),
    "web": (TCP, 1025, 80),
    "esp": (ESP, 0, 0),
    "gre": (GRE, 0, 0),
    "ping": (ICMP, 8, 0),
}


@pytest.mark.parametrize("client", ["199.0.0.2", "199.0.0.3", STRANGER])
def test_h43_a_registered_server_takes_its_two_clients_only(client):
    rules, _ = read_set("3.9-ipfwadm-registered-server")
    accepted = {
        name
        for name, (protocol, client_port, server_port) in REGISTERED_PROBES.items()
        if verdict(rules, "input", (protocol, client, client_port, REGISTERED, server_port), "eth1") == "ACCEPT"
    }
    assert accepted == (set() if client == STRANGER else {"isakmp", "pptp", "esp", "gre", "ping"})


def test_h43_a3_both_the_link_and_its_address_must_be_right():
    rules, _ = read_set("3.9-ipfwadm-registered-server")
    stranger = (TCP, STRANGER, 1025, REGISTERED, 80)
    assert verdict(rules, "input", stranger, "eth1") == "DENY"
    assert verdict(rules, "input", stranger, "eth0") == "ACCEPT"
    assert verdict(rules, "input", stranger, "eth1", address="200.200.200.201") == "ACCEPT"


def test_a4_without_forward_rules_everything_is_routed():
    for name in ("3.9-ipfwadm-registered-server", "3.10-ipfwadm-registered-client"):
        rules, _ = read_set(name)
        assert not rules.default_forward
        assert verdict(rules, "forward", (TCP, REGISTERED, 1723, "199.0.0.2", 1025), "eth1") == "ACCEPT"


def test_h45_a_registered_client_reaches_its_server_only():
    rules, _ = read_set("3.10-ipfwadm-registered-client")
    answers = {
        "isakmp": ((UDP, SERVER, 500, REGISTERED, 500), "ACCEPT"),
        "pptp": ((TCP, SERVER, 1723, REGISTERED, 1025), "ACCEPT"),
        "web": ((TCP, SERVER, 80, REGISTERED, 1025), "DENY"),
        "esp": ((ESP, SERVER, 0, REGISTERED, 0), "ACCEPT"),
        "gre": ((GRE, SERVER, 0, REGISTERED, 0), "ACCEPT"),
        "esp from a stranger": ((ESP, STRANGER, 0, REGISTERED, 0), "DENY"),
        "ping from a stranger": ((ICMP, STRANGER, 8, REGISTERED, 0), "DENY"),
    }
    for name, (probe, expected) in answers.items():
        assert verdict(rules, "input", probe, "eth1") == expected, name
    assert verdict(rules, "output", (TCP, REGISTERED, 1025, STRANGER, 80), "eth1") == "ACCEPT"  # no denials there


def test_h46_the_same_with_protocol_numbers_in_ipchains():
    rules = chains_after(
        *("ipchains -P input DENY", "ipchains -A input -p 50 -s 199.0.0.2 -d 222.0.0.2 -i eth1 -j ACCEPT"),
        *("ipchains -A input -p 47 -s 199.0.0.2 -d 222.0.0.2 -i eth1 -j ACCEPT",),
    )
    assert [
        verdict(rules, "input", (protocol, "199.0.0.2", 8, REGISTERED, 0), "eth1") for protocol in (ESP, GRE, ICMP, AH)
    ] == ["ACCEPT", "ACCEPT", "DENY", "DENY"]


def test_checks_ask_about_the_same_packets():
    """What `-C` makes of a command line is the packet of the table."""
    rules, _ = read_set("3.6-ipchains-tight-ppp0")
    (rule,) = read("ipchains -C forward -p tcp -s 10.0.0.2 1025 -d 199.0.0.1 1723 -i ppp0").rules
    assert evaluate(rules, "forward", packet_of(rule)).verdict == "MASQ"
