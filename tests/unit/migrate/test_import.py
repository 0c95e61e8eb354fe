"""What becomes of rules of iptables and nftables: forwards, chains, and a reason for each rule that does not fit."""

from __future__ import annotations

import os
import random
import subprocess
import tomllib
from ipaddress import IPv4Address

import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.migrate import iptables_save, nft_json, nft_load
from fastmasq.migrate.carry import carry
from fastmasq.migrate.files import Forward, Redirect, script, toml
from fastmasq.migrate.foreign import read_network
from fastmasq.migrate.links import Here
from fastmasq.policy.evaluate import Packet, evaluate
from tests.support.foreign_rules import IPTABLES, NFT
from tests.support.scripts import rules_of

MASQUERADE = """\
*nat
:POSTROUTING ACCEPT [0:0]
:PREROUTING ACCEPT [0:0]
-A POSTROUTING -o eth1 -j MASQUERADE
{nat}
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD {policy} [0:0]
:OUTPUT ACCEPT [0:0]
{filter}
COMMIT
"""
TEN, NINE, EIGHT = ((read_network(text),) for text in ("10.0.0.0/24", "10.9.0.0/24", "10.8.0.0/24"))
NAT_LINE, FILTER_LINE = "line 5", "line 11"
ANSWERS = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n"


@pytest.fixture(scope="module")
def printed():
    """The rules as nft and iptables print them, in a namespace of their own: nft's text and JSON, iptables-save's."""
    name = f"t{os.getpid()}-import"

    def run(*words: str, text: str = "") -> str:
        command = ["ip", "netns", "exec", name, *words]
        return subprocess.run(command, input=text, text=True, capture_output=True, check=True).stdout

    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        run("nft", "-f", "-", text=NFT)
        found = {"text": run("nft", "list", "ruleset"), "json": run("nft", "-j", "list", "ruleset")}
        run("nft", "flush", "ruleset")
        run("iptables-nft-restore", text=IPTABLES)
        found["iptables"] = run("iptables-nft-save")
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    return found


def of_iptables(nat: str = "", filter: str = "", policy: str = "DROP", **options):
    text = MASQUERADE.format(nat=nat, filter=filter, policy=policy)
    return carry(iptables_save.read(text), **{"inside": ("eth0",), **options})


def of_nft(text: str, **options):
    return carry(nft_json.read(*nft_load.load("-", text)), **options)


def verdict(carried, chain: str, protocol: int, source: str, destination: str, ports=(40000, 80), **fields) -> str:
    packet = Packet(
        source=int(IPv4Address(source)),
        destination=int(IPv4Address(destination)),
        protocol=protocol,
        source_port=ports[0],
        destination_port=ports[1],
        **{"interface": "eth1", **fields},
    )
    return evaluate(carried.rules, chain, packet).verdict


def reasons(carried, kind: str = "left out") -> dict[str, str]:
    return {note.place: note.why for note in carried.notes if note.kind == kind}


# -- nftables ----------------------------------------------------------------------------------------------------------


def test_nft_becomes_forwards_redirects_and_chains(printed):
    for chains in (nft_json.read(printed["json"]), nft_json.read(*nft_load.load("-", printed["text"]))):
        carried = carry(chains)
        assert (carried.inside, carried.outside) == (["eth0"], "eth1")
        assert carried.forwards == [
            Forward("tcp", "eth1:8080", "10.0.0.2:80"),
            Forward("udp", "eth1:5000-5010", "10.0.0.5:5000"),
            Forward("tcp", "eth1:22", "10.0.0.9:22"),
        ]
        assert carried.redirects == [Redirect(47, "10.0.0.3")]
        assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 443)) == "MASQ"
        assert verdict(carried, "forward", 17, "10.0.0.2", "8.8.8.8", (40000, 53)) == "MASQ"
        assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "DENY"
        assert verdict(carried, "input", 6, "10.0.0.2", "199.0.0.1", (40000, 80), interface="eth0") == "REDIRECT"


def test_a_forward_for_some_is_denied_to_others(printed):
    carried = carry(nft_json.read(printed["json"]))
    assert verdict(carried, "input", 6, "199.0.0.9", "200.200.200.200", (40000, 22)) == "ACCEPT"
    assert verdict(carried, "input", 6, "199.0.0.8", "200.200.200.200", (40000, 22)) == "DENY"


def test_s51_t6_answers_of_forwarded_services_are_masqueraded(printed):
    carried = carry(nft_json.read(printed["json"]))
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (80, 40000), ack=True) == "MASQ"
    assert verdict(carried, "forward", 17, "10.0.0.5", "199.0.0.1", (5010, 40000)) == "MASQ"
    assert verdict(carried, "forward", 47, "10.0.0.3", "199.0.0.1") == "MASQ"


HOST = """
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o eth1 -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT ! -s 10.0.0.9/32 -p tcp -m tcp --dport 22 --syn -j ACCEPT
{more}
COMMIT
"""


def test_s51_t1_host_rules_are_for_the_host_alone():
    carried = carry(iptables_save.read(HOST.format(more="")), inside=("eth0",), addresses=("200.200.200.200",))
    assert verdict(carried, "input", 6, "199.0.0.1", "200.200.200.200", (40000, 22), syn=True) == "ACCEPT"
    assert verdict(carried, "input", 6, "10.0.0.9", "200.200.200.200", (40000, 22), syn=True) == "DENY"
    assert verdict(carried, "input", 6, "199.0.0.1", "200.200.200.200", (40000, 25), syn=True) == "DENY"
    assert verdict(carried, "input", 6, "199.0.0.1", "200.200.200.200", (80, 40000), ack=True) == "ACCEPT"
    assert verdict(carried, "input", 17, "199.0.0.1", "200.200.200.200", (500, 61000)) == "ACCEPT"
    assert verdict(carried, "input", 6, "10.0.0.2", "199.0.0.1", (40000, 25), interface="eth0") == "ACCEPT"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "MASQ"
    assert tomllib.loads(toml(carried))["masquerade"]["ports"] == "61000-65095"
    assert "by UDP" in reasons(carried)["INPUT"]


GATEWAY = ("200.200.200.200", "10.0.0.1")


def test_what_an_input_policy_kept_from_the_host_is_not_opened():
    carried = carry(iptables_save.read(HOST.format(more="")), inside=("eth0",), addresses=GATEWAY)
    out, here = {"interface": "eth1", "syn": True}, {"interface": "eth0", "syn": True}
    for destination, ports, fields, wanted in (
        ("200.200.200.200", (40000, 61500), out, "DENY"),  # a port of masquerading's
        ("200.200.200.200", (40000, 61500), {"ack": True}, "ACCEPT"),
        ("200.200.200.201", (40000, 25), out, "DENY"),  # an address that was not named
        ("200.200.200.201", (40000, 22), out, "ACCEPT"),
        ("10.0.0.1", (40000, 25), out, "DENY"),
        ("10.0.0.1", (40000, 25), here, "DENY"),
        ("10.0.0.1", (40000, 22), here, "ACCEPT"),
        ("199.0.0.1", (40000, 25), here, "ACCEPT"),
        ("10.0.0.1", (40000, 25), {"interface": "eth7", "syn": True}, "DENY"),
        ("127.0.0.1", (40000, 25), {"interface": "lo", "syn": True}, "ACCEPT"),
    ):
        assert verdict(carried, "input", 6, "199.0.0.7", destination, ports, **fields) == wanted, destination
    for link in ("eth0", "eth1"):
        assert verdict(carried, "input", 17, "0.0.0.0", "255.255.255.255", (68, 67), interface=link) == "DENY"
        assert verdict(carried, "input", 17, "10.0.0.2", "224.0.0.251", (5353, 5353), interface=link) == "DENY"
    assert carried.rules.chains["input"].policy == "DENY"


def test_what_cannot_be_kept_from_the_host_is_said():
    def texts(*addresses, **options) -> str:
        carried = carry(iptables_save.read(HOST.format(more="")), inside=("eth0",), addresses=addresses, **options)
        return " / ".join(note.text for note in carried.missing)

    assert "the chain INPUT for UDP to the ports 61000 to 65095, UDP from port 500 to 500, GRE, ESP" in texts(*GATEWAY)
    assert "addresses" not in texts(*GATEWAY)
    assert "the chain INPUT for the addresses of its other links" in texts("200.200.200.200")
    own = {"lo": [0x7F000001], "eth0": [0x0A000001], "eth1": [0xC8C8C8C8, 0xC8C8C8C9]}
    assert "the chain INPUT for 10.0.0.1, 200.200.200.201" in texts("200.200.200.200", here=Here({}, own))
    assert "for 200.200.200.201" in texts(*GATEWAY, here=Here({}, own))


def test_host_rules_for_the_beginning_of_a_name_are_asked():
    text = HOST.format(more="-A INPUT -i ppp+ -p tcp --dport 2022 -j ACCEPT").replace("-o eth1", "-o ppp+")
    carried = carry(iptables_save.read(text), inside=("eth0",), outside="ppp0", addresses=GATEWAY)
    for link, port, wanted in (("ppp0", 2022, "ACCEPT"), ("ppp1", 2022, "ACCEPT"), ("eth0", 2022, "DENY")):
        fields = {"interface": link, "syn": True}
        assert verdict(carried, "input", 6, "199.0.0.1", "200.200.200.200", (40000, port), **fields) == wanted


def test_a_host_that_keeps_nothing_back_needs_no_rules():
    more = "-A INPUT -j ACCEPT\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -o lo -j ACCEPT"
    text = HOST.format(more=more).replace("-A INPUT ! -s", "-A INPUT -j ACCEPT\n-A INPUT ! -s")
    carried = carry(iptables_save.read(text), inside=("eth0",), addresses=GATEWAY)
    assert not carried.missing and not carried.needs_rules


def test_sessions_and_forwards_follow_an_address_that_changes():
    rules = [("8080", "10.0.0.2:80", ""), ("25", "10.0.0.3:25", "-d 200.200.200.200 ")]
    lines = [
        f"-A PREROUTING {where}-i eth1 -p tcp --dport {port} -j DNAT --to-destination {to}" for port, to, where in rules
    ]
    text = HOST.format(more="").replace("COMMIT", "\n".join([*lines, "COMMIT"]), 1)
    text = text.replace(":POSTROUTING", ":PREROUTING ACCEPT [0:0]\n:POSTROUTING")
    carried = carry(iptables_save.read(text), inside=("eth0",), addresses=GATEWAY, networks={"eth0": TEN})
    for address, port, wanted in (
        ("200.200.200.200", 8080, "ACCEPT"),
        ("200.200.200.200", 25, "ACCEPT"),
        ("200.200.200.77", 8080, "ACCEPT"),
        ("200.200.200.77", 25, "DENY"),
        ("10.0.0.1", 8080, "DENY"),
    ):
        assert verdict(carried, "input", 6, "199.0.0.1", address, (40000, port), syn=True) == wanted
    assert verdict(carried, "input", 17, "199.0.0.1", "200.200.200.77", (500, 61000)) == "ACCEPT"
    assert verdict(carried, "input", 17, "10.0.0.9", "200.200.200.200", (500, 61000), interface="eth0") == "ACCEPT"
    for port, wanted in ((500, "ACCEPT"), (501, "DENY")):  # of ISAKMP of inside hosts
        assert verdict(carried, "input", 17, "199.0.0.1", "200.200.200.200", (port, 500)) == wanted


def test_inside_addresses_have_no_sessions():
    carried = carry(
        iptables_save.read(HOST.format(more="")), inside=("eth0",), addresses=GATEWAY, networks={"eth0": TEN}
    )
    for destination, wanted in (("200.200.200.200", "ACCEPT"), ("10.0.0.1", "DENY")):
        assert verdict(carried, "input", 17, "199.0.0.1", destination, (500, 61000)) == wanted


def test_what_is_routed_through_passes_the_rules_of_the_host():
    text = HOST.replace("-A POSTROUTING", "-A POSTROUTING -d 192.168.0.0/16 -j ACCEPT\n-A POSTROUTING", 1)
    carried = carry(iptables_save.read(text.format(more="")), inside=("eth0",), addresses=GATEWAY)
    assert verdict(carried, "input", 6, "192.168.0.9", "10.0.0.2", (40000, 25), syn=True) == "ACCEPT"
    assert verdict(carried, "input", 6, "192.168.0.9", "10.0.0.1", (40000, 25), syn=True) == "DENY"
    assert verdict(carried, "input", 6, "199.0.0.9", "10.0.0.2", (40000, 25), syn=True) == "DENY"


def test_redirected_protocols_pass_the_rules_of_the_host():
    text = HOST.replace("COMMIT", "-A PREROUTING -i eth1 -p 41 -j DNAT --to-destination 10.0.0.2\nCOMMIT", 1)
    text = text.replace(":POSTROUTING", ":PREROUTING ACCEPT [0:0]\n:POSTROUTING")
    carried = carry(iptables_save.read(text.format(more="")), inside=("eth0",), addresses=GATEWAY)
    assert carried.redirects == [Redirect(41, "10.0.0.2")]
    assert verdict(carried, "input", 41, "199.0.0.9", "200.200.200.200") == "ACCEPT"


def test_host_rules_that_are_not_understood_stay_the_kernels():
    """A bare DENY in place of accepts that were left out would lock its author out."""
    more = "-A INPUT -p tcp -m set --match-set admins src -m tcp --dport 2022 -j ACCEPT"
    carried = carry(iptables_save.read(HOST.format(more=more)), inside=("eth0",), addresses=("200.200.200.200",))
    assert "host" not in carried.rules.chains and not carried.rules.chains["input"].rules
    assert "match-set" in reasons(carried)["line 12"]
    assert "stays the kernel's" in reasons(carried)["line 7"]


def test_host_rules_are_left_to_the_kernel_unless_it_has_addresses(printed):
    carried = carry(iptables_save.read(HOST.format(more="")), inside=("eth0",))
    assert not carried.missing and not carried.needs_rules
    assert "--address" in reasons(carried, "left to the kernel")["line 7"]


@pytest.mark.parametrize(
    ("rules", "outs"),
    [
        ("iifname eth0 oifname eth1 accept", {80: "MASQ", 25: "MASQ"}),
        ("tcp dport vmap { 80 : accept, 25 : drop }", {80: "MASQ", 25: "DENY"}),
        ("meta l4proto vmap { tcp : goto web, udp : accept }", {80: "MASQ", 25: "DENY"}),
        ("tcp dport @web accept", {80: "MASQ", 25: "DENY"}),
        ("ip daddr . tcp dport { 199.0.0.1 . 80, 199.0.0.2 . 25 } accept", {80: "MASQ", 25: "DENY"}),
        ("tcp dport $MAIL reject; accept", {80: "MASQ", 25: "REJECT"}),
        ("jump web; tcp dport 25 accept", {80: "MASQ", 25: "MASQ"}),
        ("tcp dport vmap { 80 : continue, * : accept }; tcp dport 80 accept", {80: "DENY", 25: "DENY"}),
        ("tcp dport vmap { 80 : drop, * : accept }", {80: "DENY", 25: "MASQ"}),
        ("tcp dport < 80 drop; tcp dport != 443 accept", {80: "MASQ", 25: "DENY"}),
        ("tcp flags & (fin|syn|rst|ack) == syn tcp dport 80 accept", {80: "MASQ", 25: "DENY"}),
        ("tcp flags & (fin|syn) == (fin|syn) drop; tcp dport 80 accept", {80: "MASQ", 25: "DENY"}),
        ("tcp flags { syn, ack } tcp dport 25 drop; accept", {80: "MASQ", 25: "DENY"}),
        ("tcp flags != { ack, rst } tcp dport 25 drop; accept", {80: "MASQ", 25: "DENY"}),
        ("tcp flags & (syn|ack) == { syn, ack } tcp dport 25 drop; accept", {80: "MASQ", 25: "DENY"}),
        ("tcp flags ! ack tcp dport 25 drop; tcp flags ! syn drop; accept", {80: "MASQ", 25: "DENY"}),
        ("meta mark { 0, 7 } tcp dport 25 drop; meta mark != { 7, 9 } accept", {80: "MASQ", 25: "DENY"}),
    ],
)
def test_files_of_nft_mean_what_nft_says(rules, outs):
    text = f"""
        define MAIL = {{ 25, 587 }}
        flush ruleset
        table inet t {{
            set web {{ type inet_service; elements = {{ 80, 443 }}; }}
            chain web {{ tcp dport 80 accept; }}
            chain forward {{ type filter hook forward priority 0; policy drop
                ct state established,related accept
                {rules}
            }}
            chain out {{ type nat hook postrouting priority 100; oifname eth1 masquerade; }}
        }}
    """
    carried = of_nft(text, inside=("eth0",))
    assert bool(carried.missing) == ("continue" in rules)
    for port, wanted in outs.items():
        got = verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, port), syn=True)
        assert carried.needs_rules or "eth0" in rules
        assert (got if carried.needs_rules else "MASQ") == wanted


def test_all_chains_of_a_hook_are_asked_in_the_order_of_their_priorities():
    text = """
        table ip a {
            chain late { type filter hook forward priority 10; oifname "eth1" tcp dport 25 drop; }
            chain first { type nat hook postrouting priority 90; ip saddr 10.0.0.66 masquerade; }
            chain nat { type nat hook postrouting priority 100; oifname "eth1" ip saddr 10.0.0.0/24 masquerade; }
        }
        table ip b { chain early { type filter hook forward priority -5; ct state new accept; }; }
    """
    carried = of_nft(text, inside=("eth0",), outside="eth1")
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "DENY"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 80)) == "MASQ"


def test_tables_that_sleep_are_not_asked():
    text = """
        table ip a { chain nat { type nat hook postrouting priority 100; oifname "eth1" masquerade; }; }
        table ip b { flags dormant; chain forward { type filter hook forward priority 0; policy drop; }; }
    """
    assert not of_nft(text, inside=("eth0",)).needs_rules
    assert of_nft(text.replace("flags dormant;", ""), inside=("eth0",)).needs_rules


def test_what_is_stopped_before_nat_is_stopped():
    text = """
        table ip a {
            chain nat { type nat hook postrouting priority 100; oifname "eth1" masquerade; }
            chain raw { type filter hook prerouting priority -300; iifname "eth1" udp sport 53 drop;
                iifname "eth1" ip daddr 10.0.0.0/8 drop
            }
        }
    """
    carried = of_nft(text, inside=("eth0",))
    assert verdict(carried, "forward", 17, "10.0.0.2", "199.0.0.1", (40000, 53)) == "DENY"
    assert verdict(carried, "forward", 17, "10.0.0.2", "199.0.0.1", (40000, 54)) == "MASQ"


@pytest.mark.parametrize(
    ("chain", "is_missing"),
    [
        ("type filter hook postrouting priority 300; ip saddr 200.200.200.200 tcp dport 25 drop", True),
        ("type filter hook postrouting priority 300; tcp dport 25 tcp sport < 40000 drop", True),
        ("type filter hook postrouting priority 300; tcp dport 25 drop", False),
        ("type filter hook postrouting priority 50; ip saddr 10.0.0.0/24 tcp dport 25 drop", False),
    ],
)
def test_behind_nat_nobody_knows_the_source(chain, is_missing):
    carried = of_nft(f"""
        table ip a {{
            chain nat {{ type nat hook postrouting priority 100; oifname "eth1" masquerade; }}
            chain last {{ {chain}; }}
        }}
    """, inside=("eth0",))  # fmt: skip
    assert bool(carried.missing) == is_missing
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "DENY"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 80)) == "MASQ"


@pytest.mark.parametrize("family", ["inet", "netdev"])
def test_hooks_of_links_are_asked_first_and_last(family):
    text = f"""
        table ip a {{ chain nat {{ type nat hook postrouting priority 100; oifname "eth1" masquerade; }}; }}
        table {family} b {{
            chain in {{ type filter hook ingress device "eth0" priority 5; policy drop
                ip saddr 10.0.0.9 drop
                ip saddr 10.0.0.0/24 accept
                {"arp operation request accept" if family == "netdev" else ""}
            }}
            chain other {{ type filter hook ingress device "lo" priority 5; policy drop; }}
        }}
        table netdev c {{ chain out {{ type filter hook egress device "eth1" priority 5; tcp dport 25 drop; }}; }}
    """
    listed, _ = nft_load.load("-", text)
    carried = of_nft(text, inside=("eth0",))
    assert not carried.missing
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "DENY"
    assert {verdict(carried, "forward", 6, source, "199.0.0.1") for source in ("10.0.0.9", "10.1.0.2")} == {"DENY"}
    blind = carry(nft_json.read(listed), inside=("eth0",), outside="eth1")  # nft 1.0.6 does not say for which links
    assert '"dev"' in listed or "the links that it is for" in reasons(blind)[f"{family} b in"]
    assert verdict(blind, "forward", 6, "10.0.0.9", "199.0.0.1") == "DENY"


@pytest.mark.parametrize(
    "change", ["ip daddr set 10.0.0.66", "ip saddr set 10.0.0.66", "tcp dport set 81", "@th,16,16 set 81"]
)
def test_what_is_translated_without_nat_is_not_opened(change):
    carried = of_nft(f"""
        table ip a {{
            chain nat {{ type nat hook postrouting priority 100; oifname "eth1" masquerade; }}
            chain first {{ type filter hook prerouting priority -150; tcp dport 80 {change}; ip dscp set cs1; }}
        }}
    """, inside=("eth0",))  # fmt: skip
    assert {note.text.rpartition("set ")[2] for note in carried.missing} > {"cs1"}
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "DENY"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "MASQ"


def test_that_a_status_is_one_bit_and_no_other_never_holds():
    forward = 'iifname "eth1" tcp dport 80 dnat to 10.0.0.5'
    for status, is_open in (("dnat", True), ("== dnat", False), ("{ dnat, snat }", False)):
        carried = of_nft(f"""
            table ip a {{
                chain in {{ type nat hook prerouting priority -100; {forward}; }}
                chain nat {{ type nat hook postrouting priority 100; oifname "eth1" masquerade; }}
                chain forward {{ type filter hook forward priority 0; policy drop
                    ct state established,related accept
                    iifname "eth0" accept
                    ct status {status} accept
                }}
            }}
        """, inside=("eth0",))  # fmt: skip
        assert bool(carried.forwards) == is_open != bool(carried.missing)


def test_a_file_that_nft_refuses_is_shown_with_its_line(tmp_path):
    path = tmp_path / "rules"
    path.write_text("table ip nat {\n\tchain x {\n\t\ttcp dprot 80 accept\n\t}\n}\n")
    with pytest.raises(ConfigurationError, match=f"{path}:3:7-11: Error: .*\n.*tcp dprot 80"):
        nft_load.load(str(path))


LINKED = """
    define wan = { eth1, ppp7 }
    table inet t {
        flowtable f { hook ingress priority 0; devices = { eth0, eth1 }; }
        chain nat { type nat hook postrouting priority 100; oif $wan masquerade; }
        chain forward { type filter hook forward priority 0; policy drop;
            ct state established,related flow add @f
            ct state established,related accept
            iif "eth0" oif eth1 accept
        }
    }
    table netdev n { chain in { type filter hook ingress device "eth9" priority 0; ip saddr 1.2.3.4 drop; }; }
"""


def test_nft_finds_the_links_that_a_file_names():
    carried = of_nft(LINKED, outside="eth1")
    assert (carried.inside, carried.outside) == (["eth0"], "eth1")
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"


def test_a_file_that_names_links_by_a_variable_of_another_file_needs_their_names(tmp_path):
    (tmp_path / "names").write_text("define lan = lan7\n")
    rules = tmp_path / "rules"
    rules.write_text(f'include "{tmp_path}/names"\ntable ip t {{ chain c {{ iif $lan accept; }}; }}\n')
    with pytest.raises(ConfigurationError, match=r"Interface does not exist(?s:.*)name that with --inside"):
        nft_load.load(str(rules))
    assert "lan7" in nft_load.load(str(rules), links=("lan7",))[0]


def test_rules_of_iptables_that_nft_lists_are_named():
    with pytest.raises(ConfigurationError, match="import what iptables-save prints"):
        nft_load.load("-", 'table ip t {\n chain c {\n  counter xt target "MASQUERADE"\n }\n}\n')


def test_what_is_left_out_is_said_in_nfts_words():
    text = """
        table ip a {
            chain nat { type nat hook postrouting priority 100; oifname "eth1" meta mark 0x7 masquerade; }
            chain forward { type filter hook forward priority 0; meta mark set numgen inc mod 9
                fib saddr . iif type local drop
                meta cpu . meta rtclassid { 1 . 2, 3 . 4 } drop; @th,0,16 7 drop
            }
        }
    """
    listed, written = nft_load.load("-", text)
    for carried in (
        carry(nft_json.read(listed, written), inside=("eth0",), outside="eth1"),
        carry(nft_json.read(*nft_load.load("-", listed)), inside=("eth0",), outside="eth1"),
    ):
        assert any("meta mark 0x00000007 masquerade" in note.text for note in carried.missing)
        assert not any(set("{}[]") & set(note.why) for note in carried.notes)
    blind = carry(nft_json.read(listed), inside=("eth0",), outside="eth1")
    assert any("the rule with handle" in note.text for note in blind.missing)
    assert not any(set("{}[]") & set(str(note)) for note in blind.notes)


def test_sets_that_change_at_run_time_are_not_known():
    text = """
        table ip a {
            set bad { type ipv4_addr; flags dynamic,timeout; timeout 1h; }
            chain forward { type filter hook forward priority 0; ip saddr @bad tcp dport 25 drop; }
            chain nat { type nat hook postrouting priority 100; oifname "eth1" masquerade; }
        }
    """
    carried = of_nft(text, inside=("eth0",))
    assert "come and go" in reasons(carried)["ip a forward"]
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "DENY"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 80)) == "MASQ"


# -- iptables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("printed_by", ["people", "iptables"])
def test_iptables_becomes_forwards_and_chains(printed, printed_by):
    text = IPTABLES if printed_by == "people" else printed["iptables"]
    carried = carry(iptables_save.read(text))
    assert carried.forwards == [Forward("tcp", "eth1:1723", "10.0.0.2:1723")]
    assert carried.redirects == []  # FORWARD does not let GRE to it
    assert verdict(carried, "forward", 50, "10.0.0.7", "199.0.0.1") == "MASQ"
    assert verdict(carried, "forward", 17, "10.0.0.7", "199.0.0.1", (500, 500)) == "MASQ"
    assert verdict(carried, "forward", 6, "10.0.0.7", "199.0.0.1", (40000, 25)) == "DENY"
    assert any("maximum segment" in why for why in reasons(carried).values())


def test_plain_masquerading_needs_no_rules():
    carried = of_iptables(policy="ACCEPT")
    assert not carried.needs_rules and carried.notes == []
    assert tomllib.loads(toml(carried)) == {"interfaces": {"inside": ["eth0"], "outside": "eth1"}}


def test_what_comes_back_by_its_own_link_is_not_opened():
    carried = of_iptables(filter=f"{ANSWERS}{OPEN}")
    assert list(script(carried)) == [
        "ipchains -P forward DENY",
        "ipchains -A forward -s 0.0.0.0/0.0.0.0 -d 0.0.0.0/0.0.0.0 -i eth1 -j MASQ",
    ]


def test_masquerading_for_some_needs_rules():
    carried = of_iptables(policy="ACCEPT", filter="-A FORWARD -s 10.0.0.66 -j DROP")
    assert verdict(carried, "forward", 6, "10.0.0.66", "199.0.0.1") == "DENY"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    assert list(script(carried)) == [
        "ipchains -P forward DENY",
        "ipchains -A forward -s 10.0.0.66/255.255.255.255 -d 0.0.0.0/0.0.0.0 -i eth1 -j DENY",
        "ipchains -A forward -s 0.0.0.0/0.0.0.0 -d 10.0.0.66/255.255.255.255 -i eth1 -j DENY",
        "ipchains -A forward -s 0.0.0.0/0.0.0.0 -d 0.0.0.0/0.0.0.0 -i eth1 -j MASQ",
    ]


def test_snat_is_masquerading_with_a_remark():
    text = MASQUERADE.replace("MASQUERADE", "SNAT --to-source 200.200.200.201").format(
        nat="", filter="", policy="ACCEPT"
    )
    carried = carry(iptables_save.read(text), inside=("eth0",))
    assert list(reasons(carried, "changed")) == ["line 4"] and not carried.missing


# what does not fit: nothing passes for which it would have to be asked

OPEN = "-A FORWARD -i eth0 -o eth1 -j ACCEPT"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("-A FORWARD -m owner --uid-owner 0 -j DROP", "-m owner"),
        ("-A FORWARD -j NOWHERE", "not known"),
        ("-A FORWARD -m set --match-set bad src -j DROP", "match-set"),
        ("-A FORWARD -m mark --mark 0x0 -g missing", "not known"),
        ("-A FORWARD -p tcp -m u32 --u32 1 -j REJECT", "u32"),
        ("-A FORWARD -j CT --notrack", "not known"),
        ("-A FORWARD -j NFQUEUE --queue-num 1", "not known"),
    ],
)
def test_what_is_not_understood_is_not_opened(rule, why):
    carried = of_iptables(filter=f"{rule}\n{ANSWERS}{OPEN}")
    assert why in reasons(carried)[FILTER_LINE]
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "DENY"


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD -m limit --limit 1/s -j LOG",
        "-A FORWARD -m set --match-set good src -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate INVALID -m recent --set -j DROP",
        "-A FORWARD -p tcp ! --syn -m conntrack --ctstate NEW -j DROP",
        "-A FORWARD -f -j DROP",
        "-A FORWARD -p tcp --dport 21 -j CT --helper ftp",
        "-A FORWARD -m mark ! --mark 0x0/0xff -j DROP",
    ],
)
def test_what_makes_no_difference_may_be_anything(rule):
    carried = of_iptables(filter=f"{rule}\n{ANSWERS}{OPEN}")
    assert not carried.missing
    assert not carried.needs_rules or verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"


def test_ports_of_protocols_that_have_none_here_are_not_written(tmp_path):
    by_nft = """
        table ip a {
            chain nat { type nat hook postrouting priority 100; oifname "eth1" masquerade; }
            chain forward { type filter hook forward priority 0; th dport 80 drop; }
        }
    """
    by_iptables = of_iptables(filter="-A FORWARD -p sctp -m sctp --dport 80 -j DROP", policy="ACCEPT")
    for carried in (of_nft(by_nft, inside=("eth0",)), by_iptables):
        assert all("ports of other protocols" in note.why for note in carried.missing)
        assert rules_of("\n".join(script(carried)), tmp_path).chains["forward"].rules
        assert verdict(carried, "forward", 132, "10.0.0.2", "199.0.0.1") == "DENY"
        assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "MASQ"
        assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == ("MASQ" if carried is by_iptables else "DENY")


@pytest.mark.parametrize(
    "rule",
    [
        "-A FORWARD -s 10.0.0.9 --jump DROP",
        "-A FORWARD -s10.0.0.9 -jDROP",
        "-A FORWARD --source=10.0.0.9 --ju=DROP",
        "-A FORWARD --src 10.0.0.9 --goto dropit",
        "-A FORWARD -m set --match-set bad src -s 10.0.0.9 --j DROP",
        "-A FORWARD -m set --match-set bad src -s 10.0.0.9 -gdropit",
    ],
)
def test_options_that_people_write_otherwise_are_no_others(rule):
    carried = of_iptables(filter=f":dropit - [0:0]\n-A dropit -j DROP\n{rule}\n{ANSWERS}{OPEN}")
    assert bool(carried.missing) == ("match-set" in rule)
    assert verdict(carried, "forward", 6, "10.0.0.9", "199.0.0.1") == "DENY"
    assert verdict(carried, "forward", 6, "10.0.0.8", "199.0.0.1") == "MASQ"


def test_goto_does_not_come_back():
    chains = ":dropit - [0:0]\n-A dropit -p tcp -j DROP\n"
    carried = of_iptables(filter=f"{chains}{ANSWERS}-A FORWARD -s 10.0.0.9 -g dropit\n{OPEN}")
    assert not carried.missing
    assert verdict(carried, "forward", 6, "10.0.0.9", "199.0.0.1") == "DENY"
    assert verdict(carried, "forward", 17, "10.0.0.9", "199.0.0.1") == "DENY"  # the policy
    assert verdict(carried, "forward", 17, "10.0.0.8", "199.0.0.1") == "MASQ"


def test_jumps_in_a_circle_are_refused():
    chains = ":one - [0:0]\n:two - [0:0]\n-A one -j two\n-A two -j one\n"
    with pytest.raises(ConfigurationError, match="circle"):
        of_iptables(filter=f"{chains}-A FORWARD -j one")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("-i eth1 -j DNAT --to-destination 10.0.0.2", "needs its ports"),
        ("-i eth1 -p icmp -j DNAT --to-destination 10.0.0.2", "one other protocol"),
        ("-i eth1 -p tcp -j DNAT --to-destination 10.0.0.2", "needs its ports"),
        ("-i eth1 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2-10.0.0.5", "not one endpoint"),
        ("-i eth1 -p tcp --dport 80:90 -j DNAT --to-destination 10.0.0.2:80", "same ports"),
        ("-i eth1 -p tcp -m set --match-set admins src --dport 2222 -j DNAT --to-destination 10.0.0.2:22", "match-set"),
        ("-i eth1 -p tcp --dport 80 -m time --timestart 8:00 -j DNAT --to-destination 10.0.0.2:80", "-m time"),
        (
            "-i eth1 -p tcp -d 200.200.200.0/24 --dport 80 -j DNAT --to-destination 10.0.0.2:80",
            "listens on one address",
        ),
        ("-i eth0 -p udp --dport 53 -j DNAT --to-destination 10.0.0.2", "comes in by eth1"),
        ("-i eth1 -p tcp --dport 80 -j REDIRECT --to-ports 8080", "only inside hosts"),
    ],
)
def test_translations_that_do_not_fit(rule, why):
    carried = of_iptables(nat=f"-A PREROUTING {rule}", policy="ACCEPT")
    assert why in reasons(carried)[NAT_LINE]
    assert carried.forwards == [] and carried.redirects == []


def test_dns_that_went_to_another_host_does_not_get_out():
    rule = "-A PREROUTING -i eth0 -p udp --dport 53 -j DNAT --to-destination 10.0.0.2"
    carried = of_iptables(nat=rule, policy="ACCEPT")
    assert verdict(carried, "forward", 17, "10.0.0.9", "199.0.0.1", (40000, 53)) == "DENY"
    assert verdict(carried, "forward", 17, "10.0.0.9", "199.0.0.1", (40000, 54)) == "MASQ"


def test_a_forward_is_for_what_the_rest_of_the_rules_lets_in():
    nat = "-A PREROUTING -i eth1 -p tcp -m multiport --dports 80,443 -j DNAT --to-destination 10.0.0.2"
    rule = "-A FORWARD -i eth1 -d 10.0.0.2 -p tcp --dport 443 -s 199.0.0.0/24 -j ACCEPT"
    carried = of_iptables(nat=nat, filter=f"{ANSWERS}{rule}\n{OPEN}")
    assert carried.forwards == [Forward("tcp", "eth1:443", "10.0.0.2:443")]
    assert verdict(carried, "input", 6, "199.0.0.7", "200.200.200.200", (40000, 443)) == "ACCEPT"
    assert verdict(carried, "input", 6, "199.0.1.7", "200.200.200.200", (40000, 443)) == "DENY"
    assert not carried.missing


def test_a_range_of_ports_is_forwarded_to_the_same():
    to = "-j DNAT --to-destination 10.0.0.2:8000-8010"
    nat = f"-A PREROUTING -i eth1 -p tcp --dport 8000:8005 {to}\n-A PREROUTING -i eth1 -p tcp --dport 9000 {to}"
    carried = of_iptables(nat=nat, policy="ACCEPT", filter="-A FORWARD -p tcp --tcp-option 64 -j DROP")
    assert carried.forwards == [Forward("tcp", "eth1:8000-8005", "10.0.0.2:8000")]
    assert "not one endpoint" in reasons(carried)["line 6"]
    assert len(carried.missing) == 1


def test_inside_hosts_reach_forwards_of_several_ports():
    rule = "-p tcp -m multiport --dports 25,110 -j DNAT --to-destination 10.0.0.3"
    carried = of_iptables(nat=f"-A PREROUTING -d 200.200.200.200/32 {rule}", policy="ACCEPT")
    assert [forward.to for forward in carried.forwards] == ["10.0.0.3:25", "10.0.0.3:110"]
    assert not carried.missing


def test_a_forward_for_several_inside_links_need_not_be_treated_alike_but_let_pass():
    nat = "-A PREROUTING -i eth1 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2\n"
    nat += "-A POSTROUTING -o eth0 -d 10.0.0.2 -j MASQUERADE"
    carried = of_iptables(nat=nat, policy="ACCEPT", inside=("eth0", "eth2"))
    assert carried.forwards == [Forward("tcp", "eth1:80", "10.0.0.2:80")] and not carried.missing


def test_a_port_leads_to_one_endpoint():
    nat = "-A PREROUTING -i eth1 -p tcp -s 199.0.0.9 --dport 80 -j DNAT --to-destination 10.0.0.2:80\n"
    nat += "-A PREROUTING -i eth1 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.3:80"
    carried = of_iptables(nat=nat, policy="ACCEPT")
    assert carried.forwards == [Forward("tcp", "eth1:80", "10.0.0.2:80")]
    assert "forwarded already" in reasons(carried)["line 6"]
    assert verdict(carried, "input", 6, "199.0.0.7", "200.200.200.200") == "DENY"


def test_redirects_of_protocols_are_for_their_senders():
    nat = "-A PREROUTING -i eth1 -p gre -s 199.0.0.0/24 -j DNAT --to-destination 10.0.0.2"
    carried = of_iptables(nat=nat, policy="ACCEPT")
    assert carried.redirects == [Redirect(47, "10.0.0.2", "199.0.0.0/24")]
    assert tomllib.loads(toml(carried))["redirect"] == [{"protocol": 47, "to": "10.0.0.2", "from": "199.0.0.0/24"}]


def test_proxies_are_reached_if_input_lets_them_be():
    nat = "-A PREROUTING -i eth0 -d 10.9.0.0/16 -j RETURN\n"
    nat += "-A PREROUTING -i eth0 -p tcp --dport 80 -j REDIRECT --to-ports 3128\n"
    nat += "-A PREROUTING -i eth0 -p udp --dport 53 -j REDIRECT"
    carried = of_iptables(nat=nat, filter="-A INPUT -p udp -j DROP", policy="ACCEPT")
    for port, destination, wanted in (
        (80, "199.0.0.1", "REDIRECT"),
        (80, "10.9.0.1", "ACCEPT"),
        (81, "199.0.0.1", "ACCEPT"),
    ):
        assert verdict(carried, "input", 6, "10.0.0.2", destination, (40000, port), interface="eth0") == wanted
    assert verdict(carried, "input", 17, "10.0.0.2", "199.0.0.1", (40000, 53), interface="eth0") == "DENY"
    assert not carried.missing


def test_an_exception_before_masquerading_is_routed():
    text = MASQUERADE.replace("-A POSTROUTING", "-A POSTROUTING -d 192.168.0.0/16 -j ACCEPT\n-A POSTROUTING", 1)
    carried = carry(iptables_save.read(text.format(nat="", policy="DROP", filter=f"{ANSWERS}{OPEN}")), inside=("eth0",))
    assert verdict(carried, "forward", 6, "10.0.0.2", "192.168.0.1") == "ACCEPT"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    back = {"interface": "eth0", "ports": (80, 40000)}
    assert verdict(carried, "forward", 6, "192.168.0.1", "10.0.0.2", ack=True, **back) == "ACCEPT"
    assert verdict(carried, "forward", 6, "192.168.0.1", "10.0.0.2", syn=True, **back) == "DENY"
    assert verdict(carried, "forward", 17, "10.0.0.2", "192.168.0.1") == "DENY"
    assert any("cannot be told from new flows" in why for why in reasons(carried).values())


def test_what_is_masqueraded_by_its_source_is_all_that_is_inside():
    text = MASQUERADE.replace("-o eth1", "-s 10.0.0.0/24 -o eth1").format(nat="", filter="", policy="ACCEPT")
    carried = carry(iptables_save.read(text), inside=("eth0",))
    assert not carried.missing
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    assert verdict(carried, "forward", 6, "10.0.1.2", "199.0.0.1") == "DENY"
    assert any("10.0.0.0/24" in note.text for note in carried.notes if note.kind == "changed")


def test_what_comes_in_to_sources_that_are_not_let_out_is_closed():
    """Its answers would get stuck: what is masqueraded is taken for all that there is inside."""
    text = MASQUERADE.replace("-o eth1", "-s 10.0.0.0/24 -p icmp -o eth1").format(
        nat="", filter="-A FORWARD -p tcp --dport 80 -j ACCEPT\n-A FORWARD -p udp -j DROP", policy="ACCEPT"
    )
    carried = carry(iptables_save.read(text), inside=("eth0",))
    assert verdict(carried, "forward", 6, "199.0.0.1", "10.0.1.2", interface="eth0") == "DENY"


def test_flows_whose_answers_are_not_let_back_are_closed():
    carried = of_iptables(filter=OPEN)
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "DENY"
    assert any("not what follows" in why for why in reasons(carried, "changed").values()) and not carried.missing


# -- links -------------------------------------------------------------------------------------------------------------


def links_of(nat: str, filter: str = "", policy: str = "ACCEPT", **options):
    text = f"*nat\n:POSTROUTING ACCEPT [0:0]\n:PREROUTING ACCEPT [0:0]\n:wan - [0:0]\n{nat}\nCOMMIT\n"
    text += f"*filter\n:FORWARD {policy} [0:0]\n{filter}\nCOMMIT\n"
    carried = carry(iptables_save.read(text), **options)
    return carried.inside, carried.outside


def test_outside_is_where_something_is_masqueraded():
    nat = "-A POSTROUTING -o wg0 -j RETURN\n-A POSTROUTING -s 10.0.0.0/24 -o eth1 -j MASQUERADE"
    assert links_of(nat, "-A FORWARD -i eth0 -o eth1 -j ACCEPT") == (["eth0"], "eth1")
    assert links_of("-A POSTROUTING -o eth1 -j wan\n-A wan -j MASQUERADE", inside=("eth0",)) == (["eth0"], "eth1")
    assert links_of(nat, here=Here({"eth2": TEN, "eth3": NINE})) == (["eth2"], "eth1")
    with pytest.raises(ConfigurationError, match="--inside"):
        links_of(nat)


def test_masquerading_may_name_both_links():
    text = """
        table ip n {
            chain p { type nat hook postrouting priority 100
                iifname { "eth0", "eth2" } oifname "eth1" masquerade
            }
        }
    """
    carried = of_nft(text)
    assert (carried.inside, carried.outside) == (["eth0", "eth2"], "eth1")


@pytest.mark.parametrize(
    ("nat", "words"),
    [
        ("-A POSTROUTING -s 10.0.0.0/24 -j MASQUERADE", "do not name the link"),
        ("-A POSTROUTING ! -o docker0 -j MASQUERADE", "do not name the link"),
        ("-A POSTROUTING -o eth1 -j MASQUERADE\n-A POSTROUTING -o eth2 -j MASQUERADE", "eth1 and eth2"),
        ("-A POSTROUTING -o ppp+ -j MASQUERADE", "--outside"),
        ("", "--outside"),
    ],
)
def test_an_outside_link_that_cannot_be_told_is_asked_for(nat, words):
    with pytest.raises(ConfigurationError, match=words):
        links_of(nat, inside=("eth0",))


def test_masquerading_without_a_link_is_masquerading():
    text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.0.0.0/24 -j MASQUERADE\nCOMMIT\n"
    carried = carry(iptables_save.read(text), inside=("eth0",), outside="eth1")
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    assert not carried.missing


@pytest.mark.parametrize(
    "filter",
    [
        "-A FORWARD -i eth2 -j DROP\n-A FORWARD -i eth0 -o eth1 -j ACCEPT",
        "-A FORWARD -i eth2 -m state --state ESTABLISHED -j ACCEPT\n-A FORWARD -i eth0 -o eth1 -j ACCEPT",
        "-A FORWARD -i eth1 -o eth0 -j ACCEPT\n-A FORWARD -i eth0 -o eth1 -j ACCEPT",
        "-A FORWARD -i eth2 -p icmp -j ACCEPT\n-A FORWARD -i eth0 -o eth1 -j ACCEPT",
        "-A FORWARD -i eth2 -p tcp -d 198.51.100.0/24 -j ACCEPT\n-A FORWARD -i eth0 -o eth1 -j ACCEPT",
    ],
)
def test_inside_is_what_is_let_out(filter):
    assert links_of("-A POSTROUTING -o eth1 -j MASQUERADE", filter) == (["eth0"], "eth1")


def test_two_inside_links_reach_each_other_by_default():
    carried = of_iptables(policy="ACCEPT", inside=("eth0", "eth2"))
    assert not carried.needs_rules


LANS = """
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 10.0.0.0/24 -o eth1 -j MASQUERADE
-A POSTROUTING -s 10.2.0.0/24 -o eth1 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i eth0 -o eth1 -j ACCEPT
-A FORWARD -i eth2 -o eth1 -p tcp -j ACCEPT
-A FORWARD -i eth0 -o eth2 -p tcp --dport 80 -j ACCEPT
COMMIT
"""


def test_inside_links_are_told_apart_by_their_networks():
    carried = carry(
        iptables_save.read(
            LANS.replace("-i eth2", "-i eth2 -s 10.2.0.0/24").replace(
                "-i eth0 -o eth1", "-i eth0 -s 10.0.0.0/24 -o eth1"
            )
        )
    )
    assert carried.inside == ["eth0", "eth2"] and not carried.missing
    for source, protocol, wanted in (("10.0.0.9", 17, "MASQ"), ("10.2.0.9", 17, "DENY"), ("10.2.0.9", 6, "MASQ")):
        assert verdict(carried, "forward", protocol, source, "199.0.0.1") == wanted
    web = {"ports": (40000, 80), "interface": "eth2"}
    assert verdict(carried, "forward", 6, "10.0.0.9", "10.2.0.9", **web) == "ACCEPT"
    assert verdict(carried, "forward", 6, "199.0.0.1", "10.2.0.9", **web) == "DENY"
    back = {"ports": (80, 40000), "interface": "eth0"}
    assert verdict(carried, "forward", 6, "10.2.0.9", "10.0.0.9", ack=True, **back) == "ACCEPT"
    assert verdict(carried, "forward", 6, "10.2.0.9", "10.0.0.9", syn=True, **back) == "DENY"


def test_what_depends_on_the_arriving_link_alone_is_closed():
    rule = "-A FORWARD -i eth2 -o eth1 -p udp -j DROP"
    carried = of_iptables(filter=rule, policy="ACCEPT", inside=("eth0", "eth2"))
    assert verdict(carried, "forward", 17, "10.0.0.2", "199.0.0.1") == "DENY"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    assert "only the link a packet leaves by" in reasons(carried)["to eth1"]


VPN = f"{ANSWERS}{{rules}}\n-A FORWARD -i eth0 -o eth1 -j ACCEPT\n-A FORWARD -i wg0 -o eth0 -p tcp -j ACCEPT"


@pytest.mark.parametrize(
    ("rules", "link"),
    [
        ("", "wg0"),
        ("-A FORWARD -i eth0 -o tun+ -j ACCEPT", "tun+"),
        ("-A FORWARD -i docker0 -o eth0 -p tcp -j ACCEPT", "docker0"),
    ],
)
def test_a_link_that_is_not_carried_over_is_missed(rules, link):
    carried = of_iptables(filter=VPN.format(rules=rules), inside=())
    assert carried.inside == ["eth0"]
    assert "--inside" in reasons(carried)[link]


def test_a_link_that_is_let_nowhere_is_not_missed():
    carried = of_iptables(
        filter=f"{ANSWERS}-A FORWARD -i eth7 -j DROP\n-A FORWARD -i eth0 -o eth1 -j ACCEPT", inside=()
    )
    assert carried.inside == ["eth0"] and not carried.missing


@pytest.mark.parametrize("told_by", ["user", "routes", "both"])
def test_inside_links_are_told_apart_by_what_is_behind_them(told_by):
    behind = {"eth0": TEN, "wg0": EIGHT}
    options = {
        "user": {"networks": behind},
        "routes": {"here": Here(behind, dict.fromkeys(("eth0", "wg0", "eth1"), ()))},
        "both": {"networks": {"wg0": EIGHT}, "here": Here({"eth0": TEN}, dict.fromkeys(("eth0", "wg0", "eth1"), ()))},
    }[told_by]
    carried = of_iptables(filter=VPN.format(rules=""), inside=("eth0", "wg0"), **options)
    assert not carried.missing
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    assert verdict(carried, "forward", 6, "10.8.0.2", "199.0.0.1") == "DENY"
    assert verdict(carried, "forward", 6, "10.8.0.2", "10.0.0.2", interface="eth0") == "ACCEPT"
    assert "told apart by their sources" in reasons(carried, "changed")["forward"]


def test_a_tunnel_within_the_network_of_the_lan_is_told_apart():
    behind = {"eth0": (read_network("10.0.0.0/8"),), "wg0": EIGHT}
    carried = of_iptables(filter=VPN.format(rules=""), inside=("eth0", "wg0"), networks=behind)
    for source, wanted in (("10.0.0.2", "MASQ"), ("10.8.0.2", "DENY"), ("10.8.1.2", "MASQ")):
        assert verdict(carried, "forward", 6, source, "199.0.0.1") == wanted
    assert not carried.missing
    overlapping = {**behind, "wg0": (*EIGHT, read_network("192.168.0.0/24"))}
    assert of_iptables(filter=VPN.format(rules=""), inside=("eth0", "wg0"), networks=overlapping).missing
    assert Here(behind).towards(EIGHT) == ["wg0"]


def test_masquerading_that_is_lost_is_said():
    carried = of_iptables(filter=VPN.format(rules=""), inside=("eth0", "wg0"))
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "DENY"
    assert "nothing is masqueraded" in next(note.why for note in carried.missing if note.text == "masquerading")
    assert any("--inside LINK=NETWORK" in note.why for note in carried.missing)


def by_mark(marking: str, mark: str = "1"):
    text = f"*mangle\n:PREROUTING ACCEPT [0:0]\n{marking}\nCOMMIT\n"
    text += MASQUERADE.replace("-o eth1", f"-m mark --mark {mark}").format(nat="", filter="", policy="ACCEPT")
    return carry(iptables_save.read(text), inside=("eth0",), outside="eth1")


@pytest.mark.parametrize(
    ("marking", "mark"),
    [
        ("-j MARK --set-mark 1", "1"),
        ("-j MARK --set-xmark 0x1/0xffffffff", "0x1"),
        ("-j MARK --set-xmark 0x40000/0xff0000", "0x40000/0xff0000"),
        ("-j MARK --or-mark 0x6\n-A PREROUTING -j MARK --and-mark 0x3", "2"),
        ("-j MARK --set-mark 5/7\n-A PREROUTING -j MARK --xor-mark 1", "0x4"),
        ("-j CONNMARK --set-mark 9\n-A PREROUTING -j CONNMARK --restore-mark", "9"),
        ("-m mark --mark 0 -j MARK --set-mark 3", "3"),
        ("-j MARK --set-mark 1\n-A PREROUTING -m mark --mark 1 -j ACCEPT\n-A PREROUTING -j MARK --set-mark 2", "1"),
    ],
)
def test_masquerading_by_mark_is_followed(marking, mark):
    carried = by_mark(f"-A PREROUTING -i eth0 {marking}", mark)
    assert not carried.missing and not carried.needs_rules
    some = by_mark(f"-A PREROUTING -i eth0 -s 10.0.0.9 {marking}", mark)
    assert verdict(some, "forward", 6, "10.0.0.9", "199.0.0.1") == "MASQ"


@pytest.mark.parametrize(
    "marking",
    ["-m set --match-set some src -j MARK --set-mark 1", "-j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x1"],
)
def test_masquerading_by_a_mark_that_is_not_known_is_said_to_be_lost(marking):
    carried = by_mark(f"-A PREROUTING -i eth0 {marking}")
    assert "there is nothing like --mark 1" in carried.missing[0].why
    assert "nothing is masqueraded" in carried.missing[-1].why


def test_marks_are_followed_behind_dnat():
    text = """
        table ip a {
            chain into { type nat hook prerouting priority -100; iifname "eth1" tcp dport 8080 jump port; }
            chain port { ip saddr 10.0.0.0/8 meta mark set 0x2000; ip saddr 199.0.0.0/24 meta mark set 0x4000
                tcp dport 8080 dnat to 10.0.0.2:80
            }
            chain forward { type filter hook forward priority 0; meta mark 0x4000 drop; }
            chain nat { type nat hook postrouting priority 100; meta mark 0x2000 masquerade
                oifname "eth1" masquerade
            }
        }
    """
    carried = of_nft(text, inside=("eth0",), outside="eth1")
    assert carried.forwards == [Forward("tcp", "eth1:8080", "10.0.0.2:80")] and not carried.missing
    assert verdict(carried, "input", 6, "199.0.1.9", "200.200.200.200", (40000, 8080)) == "ACCEPT"
    assert verdict(carried, "input", 6, "199.0.0.9", "200.200.200.200", (40000, 8080)) == "DENY"


def test_many_marks_are_not_followed():
    rules = [f"-A PREROUTING -s 10.0.{number}.0/24 -j MARK --or-mark {1 << number % 32}" for number in range(24)]
    rules += [f"-A PREROUTING -p tcp --dport {number}:60000 -j MARK --or-mark {1 << number}" for number in range(24)]
    carried = by_mark("\n".join(["-A PREROUTING -i eth0 -j MARK --set-mark 1", *rules]))
    assert "nothing is masqueraded" in carried.missing[-1].why


def test_marks_of_nft_are_followed():
    text = """
        table ip a {
            chain marks { type filter hook prerouting priority mangle;
                iifname "eth0" meta mark set meta mark and 0xffffff0f or 0x10 tcp dport 25 drop
                ct mark set meta mark
            }
            chain forward { type filter hook forward priority 0; meta mark set ct mark xor 0x1; }
            chain nat { type nat hook postrouting priority 100; oifname "eth1" meta mark & 0xff == 0x11 masquerade; }
        }
    """
    carried = of_nft(text, inside=("eth0",), outside="eth1")
    assert not carried.missing
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "DENY"


def test_what_turns_round_on_its_link_is_asked_where_a_rule_is_about_it():
    rules = "-A FORWARD -i eth0 -o eth0 -j ACCEPT\n-A FORWARD -o eth0 -j REJECT\n-A FORWARD -p tcp --dport 25 -j DROP"
    filter = f"-A FORWARD -o eth0 -m conntrack --ctstate ESTABLISHED -j ACCEPT\n{rules}"
    carried = of_iptables(filter=filter, policy="ACCEPT", networks={"eth0": TEN})
    assert verdict(carried, "forward", 6, "10.0.0.2", "10.0.0.9", interface="eth0") == "ACCEPT"
    assert verdict(carried, "forward", 6, "199.0.0.1", "10.0.0.9", interface="eth0") == "REJECT"
    assert not carried.missing
    assert "--inside LINK=NETWORK" in reasons(of_iptables(filter=filter, policy="ACCEPT"))["to eth0"]


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (iptables_save, "-A FORWARD -j ACCEPT\n"),
        (iptables_save, "*filter\n-A FORWARD -j ACCEPT\nCOMMIT\n"),
        (iptables_save, "*filter\n:FORWARD ACCEPT [0:0]\n"),
        (iptables_save, "*nat\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"),
        (iptables_save, "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"),
        (iptables_save, "# Generated by ip6tables-save v1.8.9\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"),
        (iptables_save, ""),
        (nft_json, "{}"),
        (nft_json, '{"nftables": []}'),
        (nft_json, '{"nftables": [{"rule": 1}]}'),
    ],
)
def test_what_is_not_such_output_is_refused(reader, text):
    with pytest.raises(ConfigurationError):
        list(reader.read(text))


def test_the_script_makes_the_same_chains(printed, tmp_path):
    for chains in (nft_json.read(printed["json"]), iptables_save.read(printed["iptables"])):
        carried = carry(chains, addresses=("200.200.200.200", "10.0.0.1"))
        read_back = rules_of("\n".join(script(carried)) + "\n", tmp_path)
        assert {name: (chain.policy, chain.rules) for name, chain in read_back.chains.items()} == {
            name: (chain.policy, chain.rules) for name, chain in carried.rules.chains.items()
        }


def test_the_files_begin_with_what_is_missing():
    carried = of_iptables(filter=f"-A FORWARD -m set --match-set bad src -j DROP\n{ANSWERS}{OPEN}")
    for lines in (toml(carried).splitlines(), list(script(carried))):
        assert lines[0].startswith("# Not carried over")
        assert lines[1].startswith(f"#   {FILTER_LINE}: left out: -A FORWARD -m set")


def test_routing_alone_is_said_in_the_script():
    text = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"
    carried = carry(iptables_save.read(text), inside=("eth0",), outside="eth1")
    assert carried.needs_rules
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "ACCEPT"
    assert verdict(carried, "forward", 6, "199.0.0.1", "10.0.0.2", interface="eth0") == "ACCEPT"


def test_a_script_that_nobody_needs_takes_no_masquerading_away():
    text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth1 -j MASQUERADE\nCOMMIT\n"
    carried = carry(iptables_save.read(text), inside=("eth0",))
    assert not carried.needs_rules
    assert all(line.startswith("#") for line in script(carried))


def test_damaged_output_is_read_or_refused(printed):
    """Words left out, doubled or exchanged end in a policy with remarks, or in one clear line."""
    chance = random.Random(7)
    for form, reader in (("iptables", iptables_save), ("json", nft_json)):
        lines = printed[form].splitlines() if form == "iptables" else printed[form].split(", ")
        for _ in range(200):
            damaged = list(lines)
            place = chance.randrange(len(lines))
            words = damaged[place].split(" ")
            one, other = chance.randrange(len(words)), chance.randrange(len(words))
            match chance.randrange(3):
                case 0:
                    del words[one]
                case 1:
                    words.insert(one, words[other])
                case 2:
                    words[one], words[other] = words[other], words[one]
            damaged[place] = " ".join(words)
            try:
                carried = carry(reader.read(("\n" if form == "iptables" else ", ").join(damaged)))
            except ConfigurationError:
                continue
            assert toml(carried) and list(script(carried))
