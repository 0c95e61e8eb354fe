"""What becomes of rules of iptables and nftables: forwards, chains, and a reason for each rule that does not fit."""

from __future__ import annotations

import os
import random
import subprocess
import tomllib
from ipaddress import IPv4Address

import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.migrate import iptables_save, nft_json, nft_text
from fastmasq.migrate.carry import carry
from fastmasq.migrate.files import Forward, Redirect, script, toml
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
{filter}
COMMIT
"""


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


def reasons(carried, kind: str = "left out") -> dict[int, str]:
    return {note.line: note.why for note in carried.notes if note.kind == kind}


# -- nftables ----------------------------------------------------------------------------------------------------------


def test_text_and_json_of_nft_say_the_same(printed):
    def plain(chains):
        fields = [name for name in nft_text.ForeignRule.__struct_fields__ if name not in ("line", "text", "unknown")]
        return {
            chain.name: (
                chain.kind,
                chain.hook,
                chain.policy,
                [[getattr(rule, name) for name in fields] for rule in chain.rules],
            )
            for chain in chains
        }

    assert plain(nft_text.read(printed["text"])) == plain(nft_json.read(printed["json"]))


@pytest.mark.parametrize("form", ["text", "json"])
def test_nft_becomes_forwards_redirects_and_chains(printed, form):
    reader = nft_text if form == "text" else nft_json
    carried = carry(reader.read(printed[form]), addresses=("200.200.200.200",))
    assert (carried.inside, carried.outside) == (["eth0"], "eth1")
    assert carried.forwards == [
        Forward("tcp", "eth1:8080", "10.0.0.2:80"),
        Forward("udp", "eth1:5000-5010", "10.0.0.5:5000"),
    ]
    assert carried.redirects == [Redirect(47, "10.0.0.3")]
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 443)) == "MASQ"
    assert verdict(carried, "forward", 17, "10.0.0.2", "8.8.8.8", (40000, 53)) == "MASQ"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (40000, 25)) == "REJECT"
    assert verdict(carried, "forward", 6, "192.168.0.1", "199.0.0.1", (40000, 80)) == "ACCEPT"  # never was masqueraded
    assert verdict(carried, "input", 6, "10.0.0.2", "199.0.0.1", (40000, 80), interface="eth0") == "REDIRECT"
    assert "INPUT is not asked as well about what it redirects" in reasons(carried, "changed").values()


def test_s51_t6_answers_of_forwarded_services_are_masqueraded(printed):
    carried = carry(nft_json.read(printed["json"]))
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", (80, 40000), ack=True) == "MASQ"
    assert verdict(carried, "forward", 17, "10.0.0.5", "199.0.0.1", (5010, 40000)) == "MASQ"
    assert verdict(carried, "forward", 47, "10.0.0.3", "199.0.0.1") == "MASQ"


def test_s51_t1_host_rules_are_for_the_host_alone(printed):
    carried = carry(nft_text.read(printed["text"]), addresses=("200.200.200.200",))
    assert verdict(carried, "input", 6, "199.0.0.1", "200.200.200.200", (40000, 22), syn=True) == "ACCEPT"
    assert verdict(carried, "input", 6, "10.0.0.9", "200.200.200.200", (40000, 22), syn=True) == "DENY"
    assert verdict(carried, "input", 6, "199.0.0.1", "200.200.200.200", (40000, 25), syn=True) == "DENY"
    assert verdict(carried, "input", 6, "199.0.0.1", "200.200.200.200", (80, 40000), ack=True) == "ACCEPT"
    assert verdict(carried, "input", 17, "199.0.0.1", "200.200.200.200", (500, 61000)) == "ACCEPT"
    assert verdict(carried, "input", 6, "199.0.0.1", "200.200.200.200", (40000, 8080), syn=True) == "ACCEPT"
    assert verdict(carried, "input", 6, "10.0.0.2", "199.0.0.1", (40000, 25), interface="eth0") == "ACCEPT"
    assert tomllib.loads(toml(carried))["masquerade"]["ports"] == "61000-65095"


def test_nft_rules_that_do_not_fit_are_listed(printed):
    carried = carry(nft_text.read(printed["text"]))
    lines = printed["text"].splitlines()
    left = {lines[line - 1].strip(): why for line, why in reasons(carried).items()}
    assert "more passes than before" in left["ip saddr @bad drop"]
    assert "nothing like limit" in left["limit rate 5/second accept"]
    assert "everybody" in left['iifname "eth1" ip saddr 199.0.0.9 tcp dport 22 dnat to 10.0.0.9']
    assert any("--address" in why for why in left.values())
    needless = {lines[line - 1].strip() for line in reasons(carried, "not needed")}
    assert "ct state established,related accept" in needless


# -- iptables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("printed_by", ["people", "iptables"])
def test_iptables_becomes_forwards_and_chains(printed, printed_by):
    text = IPTABLES if printed_by == "people" else printed["iptables"]
    carried = carry(iptables_save.read(text), addresses=("200.200.200.200",))
    assert carried.forwards == [Forward("tcp", "eth1:1723", "10.0.0.2:1723")]
    assert carried.redirects == [Redirect(47, "10.0.0.2")]
    assert verdict(carried, "forward", 50, "10.0.0.7", "199.0.0.1") == "MASQ"
    assert verdict(carried, "forward", 17, "10.0.0.7", "199.0.0.1", (500, 500)) == "MASQ"
    assert verdict(carried, "forward", 6, "10.0.0.7", "199.0.0.1", (40000, 25)) == "DENY"
    why = list(reasons(carried).values())
    assert any("TCPMSS" in note.text for note in carried.notes)
    assert any("limit" in reason for reason in why) and any("mac-source" in reason for reason in why)


def test_plain_masquerading_needs_no_rules():
    carried = of_iptables(policy="ACCEPT")
    assert not carried.needs_rules and carried.notes == []
    assert tomllib.loads(toml(carried)) == {"interfaces": {"inside": ["eth0"], "outside": "eth1"}}


def test_masquerading_for_some_needs_rules():
    carried = of_iptables(policy="ACCEPT", filter="-A FORWARD -s 10.0.0.66 -j DROP")
    assert carried.needs_rules
    assert verdict(carried, "forward", 6, "10.0.0.66", "199.0.0.1") == "DENY"
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1") == "MASQ"
    assert verdict(carried, "forward", 6, "10.0.0.2", "10.9.0.1", interface="eth0") == "ACCEPT"


def test_snat_is_masquerading_with_a_remark():
    carried = of_iptables(
        nat="-A POSTROUTING -s 10.0.0.0/8 -o eth1 -j SNAT --to-source 200.200.200.201", policy="ACCEPT"
    )
    assert list(reasons(carried, "changed")) == [5]


def test_segments_behind_the_first_are_let_through():
    carried = of_iptables(filter="-A FORWARD -o eth1 -p tcp --syn -j ACCEPT")
    assert verdict(carried, "forward", 6, "10.0.0.2", "199.0.0.1", ack=True) == "MASQ"
    assert "all segments" in reasons(carried, "changed")[10]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("-A FORWARD -i eth2 -o eth1 -j ACCEPT", "only the link a packet leaves by"),
        ("-A FORWARD -i eth0 -o eth0 -j ACCEPT", "cannot be told from others"),
        ("-A FORWARD -p udp -m state --state NEW -j DROP", "no states"),
        ("-A FORWARD -m owner --uid-owner 0 -j ACCEPT", "nothing like -m owner"),
        ("-A FORWARD -m multiport -p tcp ! --dports 80,443 -j DROP", "several ports"),
        ("-A FORWARD -j NOWHERE", "nothing like -j NOWHERE"),
    ],
)
def test_filter_rules_that_do_not_fit(rule, why):
    assert why in reasons(of_iptables(filter=rule))[10]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("-A PREROUTING -i eth1 -p tcp --dport 80 -s 199.0.0.1 -j DNAT --to-destination 10.0.0.2", "for everybody"),
        ("-A PREROUTING -i eth1 -j DNAT --to-destination 10.0.0.2", "TCP or UDP ports"),
        ("-A PREROUTING -i eth1 -p tcp -j DNAT --to-destination 10.0.0.2", "needs its ports"),
        ("-A PREROUTING -i eth1 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2-10.0.0.5", "not one address"),
        ("-A PREROUTING -i eth1 -p tcp --dport 80:90 -j DNAT --to-destination 10.0.0.2:80", "same ports"),
        ("-A POSTROUTING -d 192.168.0.0/16 -j ACCEPT", "exception before masquerading"),
        ("-A POSTROUTING -o eth2 -j MASQUERADE", "only eth1"),
    ],
)
def test_translations_that_do_not_fit(rule, why):
    carried = of_iptables(nat=rule)
    assert why in reasons(carried)[5]
    assert carried.forwards == []


def test_links_that_cannot_be_told_are_asked_for():
    with pytest.raises(ConfigurationError, match="--outside"):
        carry(iptables_save.read("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"))
    with pytest.raises(ConfigurationError, match="--inside"):
        of_iptables(inside=())


def test_returning_from_input_itself_meets_its_policy():
    text = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth1 -j MASQUERADE\nCOMMIT\n*filter\n:INPUT DROP [0:0]\n"
    text += ":sub - [0:0]\n-A INPUT -s 199.0.0.1 -j RETURN\n-A INPUT -j sub\n-A INPUT -j ACCEPT\n"
    text += "-A sub -s 199.0.0.2 -j RETURN\n"
    carried = carry(iptables_save.read(text), inside=("eth0",), addresses=("200.200.200.200",))
    for source, wanted in (("199.0.0.1", "DENY"), ("199.0.0.2", "ACCEPT"), ("199.0.0.3", "ACCEPT")):
        assert verdict(carried, "input", 6, source, "200.200.200.200", (40000, 22)) == wanted


def test_chains_that_are_not_looked_at_are_told_of_with_their_policy():
    text = "table inet second {\nchain a {\ntype filter hook forward priority 0; policy accept;\n}\n"
    text += 'chain b {\ntype filter hook forward priority 10; policy drop;\noifname "eth1" drop\n}\n}\n'
    why = reasons(carry(nft_text.read(text), inside=("eth0",), outside="eth1"))
    assert all("more passes than before" in why[line] for line in (5, 7))


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (iptables_save, "-A FORWARD -j ACCEPT\n"),
        (iptables_save, "*filter\n-A FORWARD -j ACCEPT\n"),
        (nft_json, "{}"),
        (nft_text, "flush ruleset\n"),
        (nft_text, "table ip nat {\n\tchain x {\n"),
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


def test_routing_alone_is_said_in_the_script():
    carried = carry(iptables_save.read("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n"), inside=("eth0",), outside="eth1")
    assert carried.needs_rules
    assert list(script(carried)) == ["ipchains -P forward DENY", "ipchains -P forward ACCEPT"]


def test_damaged_output_is_read_or_refused(printed):
    """Words left out, doubled or exchanged end in a policy with remarks, or in one clear line."""
    chance = random.Random(7)
    for form, reader in (("iptables", iptables_save), ("text", nft_text)):
        lines = printed[form].splitlines()
        for _ in range(400):
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
                carried = carry(reader.read("\n".join(damaged)), addresses=("200.200.200.200",))
            except ConfigurationError:
                continue
            assert toml(carried) and list(script(carried))
