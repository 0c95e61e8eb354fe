"""The question of HOWTO 3.2, answered for networks of each kind (H-21)."""

from __future__ import annotations

import tomllib

import pytest

from fastmasq.advice.advise import Advice, Question, is_private
from fastmasq.advice.lint import lint
from fastmasq.errors import ConfigurationError
from fastmasq.policy.evaluate import Packet, evaluate
from tests.support.harness import address
from tests.support.scripts import rules_of


def packet(protocol: int, source_port: int = 0, destination_port: int = 0, **ends) -> Packet:
    """A packet from 10.0.0.2 to 199.0.0.1 by eth1, unless said otherwise."""
    source, destination = ends.pop("source", "10.0.0.2"), ends.pop("destination", "199.0.0.1")
    return Packet(
        source=address(source),
        destination=address(destination),
        protocol=protocol,
        source_port=source_port,
        destination_port=destination_port,
        interface="eth1",
        interface_address=address("200.200.200.200"),
        **ends,
    )


def rules_without_forwards(advice: Advice, tool: str, folder):
    return rules_of(advice.script(tool, forwards=False), folder)


def test_h21_private_and_registered():
    assert [is_private(text) for text in ("10.0.0.2", "172.31.0.1", "192.168.1.1", "222.0.0.2", "172.32.0.1")] == [
        *(True, True, True, False, False)
    ]


def test_h21_private_clients_need_masquerading_only():
    advice = Advice(Question(hosts=("10.0.0.2", "10.0.0.3")))
    table = tomllib.loads(advice.toml())
    assert table["interfaces"] == {"inside": ["eth0"], "outside": "eth1"}
    assert not {"forward", "redirect", "rules"} & set(table)
    assert table["vpn"] == {"pptp": True, "ipsec": True}


@pytest.mark.parametrize(
    ("vpn", "forwards", "redirects"),
    [
        ("pptp", [("tcp", "ppp0:1723", "10.0.0.2:1723")], []),
        ("ipsec", [("udp", "ppp0:500", "10.0.0.2:500")], [50]),
        ("both", [("tcp", "ppp0:1723", "10.0.0.2:1723"), ("udp", "ppp0:500", "10.0.0.2:500")], [50]),
    ],
)
def test_h21_h37_a_private_server_needs_forwards_and_redirects(vpn, forwards, redirects):
    table = tomllib.loads(Advice(Question(hosts=("10.0.0.2",), role="server", vpn=vpn, outside="ppp0")).toml())
    assert [tuple(forward.values()) for forward in table["forward"]] == forwards
    assert [redirect["protocol"] for redirect in table.get("redirect", [])] == redirects


def test_h36_a_static_address_is_named():
    advice = Advice(Question(hosts=("10.0.0.2",), role="server", vpn="pptp", public="200.200.200.200"))
    assert 'listen = "200.200.200.200:1723"' in advice.toml()
    script = advice.script("ipfwadm").splitlines()
    assert "/sbin/ipportfw -A -t 200.200.200.200/1723 -R 10.0.0.2/1723" in script
    assert not any("ipfwd" in line for line in script), "GRE is followed from the control connection"


def test_a14_the_table_of_forwards_is_cleared_once():
    for tool, clearing in (("ipfwadm", "/sbin/ipportfw -C"), ("ipchains", "ipmasqadm portfw -f")):
        script = Advice(Question(hosts=("10.0.0.2",), role="server")).script(tool).splitlines()
        assert script.count(clearing) == 1


@pytest.mark.parametrize("tool", ["ipfwadm", "ipchains"])
def test_h15_h21_registered_hosts_are_routed(tool, tmp_path):
    question = Question(hosts=("222.0.0.2",), role="both", public="200.200.200.200", peers=("199.0.0.1",))
    advice = Advice(question)
    assert not {"forward", "redirect", "vpn"} & set(tomllib.loads(advice.toml()))
    rules = rules_without_forwards(advice, tool, tmp_path)
    for protocol, ports in ((17, (500, 500)), (6, (40000, 1723)), (47, (0, 0)), (50, (0, 0))):
        coming = packet(protocol, *ports, source="199.0.0.1", destination="222.0.0.2")
        assert evaluate(rules, "input", coming).verdict == "ACCEPT"
        assert evaluate(rules, "forward", coming).verdict == "ACCEPT"
    answer = packet(6, 1723, 40000, source="199.0.0.1", destination="222.0.0.2", ack=True)
    assert evaluate(rules, "input", answer).verdict == "ACCEPT"
    assert evaluate(rules, "input", packet(6, 40000, 80, source="199.0.0.1", destination="222.0.0.2")).verdict == "DENY"


@pytest.mark.parametrize("tool", ["ipfwadm", "ipchains"])
@pytest.mark.parametrize("role", ["client", "server"])
def test_h31_h32_tight_rules_pass_the_vpn_and_nothing_else(tool, role, tmp_path):
    question = Question(hosts=("10.0.0.2",), role=role, tight=True, peers=("199.0.0.1",), public="200.200.200.200")
    rules = rules_without_forwards(Advice(question), tool, tmp_path)
    control = (1723, 40000) if role == "server" else (40000, 1723)
    for protocol, ports in ((17, (500, 500)), (6, control), (47, (0, 0)), (50, (0, 0))):
        assert evaluate(rules, "forward", packet(protocol, *ports)).verdict == "MASQ"
        left = packet(protocol, *ports, source="200.200.200.200")
        assert evaluate(rules, "output", left).verdict == "ACCEPT"
        back = packet(protocol, *reversed(ports), source="199.0.0.1", destination="200.200.200.200")
        assert evaluate(rules, "input", back).verdict == "ACCEPT"
    assert evaluate(rules, "forward", packet(6, 40000, 80)).verdict == "DENY"
    assert evaluate(rules, "forward", packet(47, destination="199.0.0.2")).verdict == "DENY"
    found = {finding.name for finding in lint(rules)}
    assert not {"vpn-half", "icmp-blocked", "loopback-blocked"} & found


def test_only_the_vpn_that_is_there_is_let_through(tmp_path):
    advice = Advice(Question(hosts=("10.0.0.2",), vpn="pptp", tight=True, peers=("199.0.0.1",)))
    rules = rules_without_forwards(advice, "ipchains", tmp_path)
    assert evaluate(rules, "forward", packet(47)).verdict == "MASQ"
    assert evaluate(rules, "forward", packet(50)).verdict == "DENY"


def test_networks_that_cannot_be_are_refused():
    for question in (
        Question(hosts=()),
        Question(hosts=("10.0.0.2", "222.0.0.2")),
        Question(hosts=("10.0.0.2", "10.0.0.3"), role="server"),
    ):
        with pytest.raises(ConfigurationError):
            Advice(question)


def test_h8_h21_sentences_say_why():
    said = "\n".join(Advice(Question(hosts=("10.0.0.2",), role="server", outside="ppp0")).sentences())
    for part in ("private address: masquerade", "tcp 1723 of ppp0", "redirect protocol 50", "AH cannot", "may change"):
        assert part in said
    assert "route, do not masquerade" in next(Advice(Question(hosts=("222.0.0.2",))).sentences())
