"""What lint finds in rule sets, one row of the HOWTO's tables at a time (original-systems 6 and 7)."""

from __future__ import annotations

import pytest

from fastmasq.advice.lint import FINDINGS, lint
from fastmasq.advice.lint_subject import Finding, ForwardedPort, Surroundings
from fastmasq.advice.templates import FOLDER, NAMES, text_of
from fastmasq.policy.chains import Match, Rule, RuleSet
from tests.support.harness import address
from tests.support.scripts import rules_of

OPEN_POLICIES = "ipchains -P forward DENY\n"
CLOSED = "ipchains -P input DENY\nipchains -P output DENY\nipchains -P forward DENY\n"


HOWTO = {"eth0": (address("10.0.0.1"),), "eth1": (address("200.200.200.200"),), "lo": (address("127.0.0.1"),)}


@pytest.fixture
def found(tmp_path):
    """Return what lint finds in a script: (name, chain, number)."""

    def found(text: str, **around) -> set[tuple[str, str, int]]:
        return {(one.name, one.chain, one.number) for one in lint(rules_of(text, tmp_path), Surroundings(**around))}

    return found


def names(found: set[tuple[str, str, int]]) -> set[str]:
    return {name for name, _, _ in found}


# -- VPNs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "data"), [("-p tcp -d 199.0.0.1 1723", "-p 47 -d 199.0.0.1"), ("-p udp -d 0/0 500", "-p 50")]
)
def test_h67_one_channel_of_a_vpn_is_half_a_vpn(found, control, data):
    first, second = (f"ipchains -A forward -j MASQ -s 10.0.0.2 {one} -i eth1\n" for one in (control, data))
    assert ("vpn-half", "forward", 1) in found(OPEN_POLICIES + first)
    assert ("vpn-half", "forward", 1) in found(OPEN_POLICIES + second)
    assert "vpn-half" not in names(found(OPEN_POLICIES + first + second))


def test_h67_a_data_channel_that_is_only_accepted_is_half_a_vpn(found):
    rules = "ipchains -A forward -j MASQ -s 10.0.0.2 -p tcp -d 0/0 1723 -i eth1\nipchains -A forward -j ACCEPT -p 47\n"
    assert ("vpn-half", "forward", 1) in found(OPEN_POLICIES + rules)


def test_h67_input_that_lets_in_half_a_vpn(found):
    rules = "ipchains -A input -j ACCEPT -p udp -s 199.0.0.1 500 -d 200.200.200.200 500 -i eth1\n"
    assert ("vpn-half", "input", 1) in found(CLOSED + rules)


def test_h67_a_channel_that_is_let_in_at_masqueraded_ports_alone_is_no_half(found):
    data = "ipchains -A input -j ACCEPT -i eth1 -p 47 -d 200.200.200.200\n"
    control = "ipchains -A input -j ACCEPT -i eth1 -p tcp ! -y -d 200.200.200.200 61000:65095\n"
    assert ("vpn-half", "input", 1) in found(CLOSED + data)
    assert "vpn-half" not in names(found(CLOSED + control + data))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("3.5", "3.6", "3.9", "3.10", "5.2"))])
def test_h67_the_howtos_own_sets_have_both_channels(found, name):
    assert "vpn-half" not in names(found(text_of(name)))


@pytest.mark.parametrize(("protocol", "port", "other"), [(17, 500, 50), (6, 1723, 47)])
def test_h67_a_server_inside_needs_a_forward_and_a_redirect(found, protocol, port, other):
    server = ForwardedPort(protocol, port - 1, port + 1, address("10.0.0.2"), port - 1)
    assert ("vpn-half", "", 0) in found("", forwards=(server,), outside="eth1")
    assert ("vpn-half", "", 0) in found("", redirects=(other,), outside="eth1")
    assert "vpn-half" not in names(found("", forwards=(server,), redirects=(other,), outside="eth1"))
    followed = found("", forwards=(server,), outside="eth1", pptp=True)
    assert ("vpn-half" in names(followed)) == (other == 50)
    another = ForwardedPort(protocol, port + 1, port + 2, address("10.0.0.2"), port)
    assert "vpn-half" not in names(found("", forwards=(another,), outside="eth1"))


def test_h8_ah_cannot_be_masqueraded(found):
    assert ("ah-masqueraded", "forward", 1) in found(OPEN_POLICIES + "ipchains -A forward -j MASQ -p 51 -i eth1\n")
    assert "ah-masqueraded" not in names(found(OPEN_POLICIES + "ipchains -A forward -j ACCEPT -p 51 -i eth1\n"))


def test_a9_a10_all_protocols_behind_denied_tcp_and_udp(found):
    tight = found(text_of("3.5-ipfwadm-tight-ppp0"))
    assert {(chain, number) for name, chain, number in tight if name == "other-protocols"} == {
        ("input", 6),
        ("forward", 5),
        ("output", 6),
    }
    assert "other-protocols" not in names(found(text_of("3.6-ipchains-tight-ppp0")))


# -- the gateway itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["3.5-ipfwadm-tight-eth1", "3.6-ipchains-tight-eth1"])
def test_h32_a10_a11_a12_tight_sets_block_what_everybody_needs(found, name):
    assert {"icmp-blocked", "loopback-blocked", "own-dns-blocked", "dhcp-blocked"} <= names(found(text_of(name)))


@pytest.mark.parametrize("tool", ["3.5-ipfwadm", "3.6-ipchains"])
def test_h33_the_additions_mend_them(found, tool):
    program = tool.partition("-")[2]
    text = text_of(f"{tool}-tight-eth1") + text_of(f"gateway-{program}") + text_of(f"dns-{program}")
    assert not {"icmp-blocked", "loopback-blocked", "own-dns-blocked"} & names(found(text))


def test_a11_advice_can_be_followed(found, tmp_path):
    """Every command that the advice names makes its finding go away."""
    text = text_of("3.6-ipchains-tight-eth1")
    advice = [one.advice for one in lint(rules_of(text, tmp_path))]
    commands = [part[part.index("ipchains -") :] for part in advice if "ipchains -I" in part or "ipchains -A" in part]
    remaining = names(found(text + "\n".join(commands)))
    assert not {"icmp-blocked", "loopback-blocked", "dhcp-blocked"} & remaining


# -- the set as a whole ------------------------------------------------------------------------------------------------


def test_h68_open_sets(found):
    assert ("open-masquerade", "forward", 1) in found(text_of("5.2-ipfwadm-open"))
    assert ("open-masquerade", "forward", 0) in found(text_of("5.2-ipchains-open"))
    assert "open-masquerade" not in names(found(text_of("3.5-ipfwadm-minimum-ppp0")))


def test_a21_an_open_set_behind_other_rules(found):
    tight = text_of("3.5-ipfwadm-tight-ppp0")
    assert ("open-behind-rules", "forward", 6) in found(tight + text_of("5.2-ipfwadm-open"))
    assert ("open-behind-rules", "forward", 0) in found(tight + text_of("5.2-ipchains-open"))
    assert "open-behind-rules" not in names(found(text_of("5.2-ipfwadm-open")))


@pytest.mark.parametrize("tool", ["3.5-ipfwadm", "3.6-ipchains"])
def test_a7_the_second_block_alone_lacks_its_policies(found, tool):
    for kind in ("minimum", "tight"):
        assert ("forward-accepts", "forward", 0) in found(text_of(f"{tool}-{kind}-eth1-lines"))
        assert "forward-accepts" not in names(found(text_of(f"{tool}-{kind}-eth1")))


@pytest.mark.parametrize("tool", ["3.5-ipfwadm", "3.6-ipchains"])
def test_a8_accept_rules_under_an_accept_policy(found, tool):
    minimum = found(text_of(f"{tool}-minimum-ppp0"))
    assert {("accept-changes-nothing", "input", 0), ("accept-changes-nothing", "output", 0)} <= minimum
    assert "accept-changes-nothing" not in names(found(text_of(f"{tool}-tight-ppp0")))
    assert "accept-changes-nothing" not in names(found("ipchains -A input -l\n"))


@pytest.mark.parametrize("name", ["3.9-ipfwadm-registered-server", "3.10-ipfwadm-registered-client"])
def test_h44_a4_registered_hosts_need_forward_rules(found, name):
    denied = "ipfwadm -F -p deny\nipfwadm -F -a accept -m -S 10.0.0.0/8 -W eth1\n"
    accepting = "ipfwadm -F -a accept -S 0/0 -D 222.0.0.2\n"
    assert ("forward-denied", "input", 1) in found(denied + text_of(name), inside=("eth0",), outside="eth1")
    assert "forward-denied" not in names(found(denied + accepting + text_of(name), inside=("eth0",), outside="eth1"))
    assert "forward-denied" not in names(found("ipfwadm -F -p accept\n" + text_of(name)))


def test_h44_nothing_is_forwarded_at_all(found):
    assert ("forward-denied", "forward", 0) in found("ipchains -P forward DENY\n")
    assert ("forward-denied", "forward", 0) in found("ipchains -P forward REJECT\nipchains -A forward -j DENY -p 51\n")


def test_h44_masqueraded_sets_are_no_registered_ones(found):
    for name in ("3.5-ipfwadm-tight-eth1", "3.6-ipchains-tight-eth1"):
        assert "forward-denied" not in names(found(text_of(name), addresses=HOWTO, outside="eth1", inside=("eth0",)))


@pytest.mark.parametrize("name", ["3.9-ipfwadm-registered-server", "3.10-ipfwadm-registered-client"])
def test_h43_h45_a_set_that_only_routes_is_for_registered_addresses(found, name):
    around = {"inside": ("eth0",), "outside": "eth1"}
    assert ("private-source", "forward", 0) in found(text_of(name), addresses=HOWTO, **around)
    registered = {**HOWTO, "eth0": (address("222.0.0.1"),)}
    assert "private-source" not in names(found(text_of(name), addresses=registered, **around))
    assert "private-source" not in names(found(text_of(name), **around))  # nobody knows


@pytest.mark.parametrize("tool", ["3.5-ipfwadm", "3.6-ipchains"])
def test_h30_h31_h32_the_masquerading_sets_let_no_private_address_out(found, tool):
    around = {"inside": ("eth0",), "outside": "eth1", "addresses": HOWTO}
    for kind in ("minimum", "tight"):
        assert "private-source" not in names(found(text_of(f"{tool}-{kind}-eth1"), **around))
        assert "private-source" not in names(found(text_of(f"{tool}-{kind}-eth1-lines"), **around))  # A-7 says it


def test_a4_a_rule_that_accepts_private_addresses_is_named(found, tmp_path):
    around = {"inside": ("eth0",), "outside": "eth1", "addresses": HOWTO}
    text = "ipchains -P forward DENY\nipchains -N lan\nipchains -A lan -j ACCEPT\nipchains -A forward -i eth1 -j lan\n"
    assert ("private-source", "forward", 1) in found(text, **around)
    assert "private-source" not in names(found(text + "ipchains -A input -i eth0 -j DENY\n", **around))
    [one] = [one for one in lint(rules_of(text, tmp_path), Surroundings(**around)) if one.name == "private-source"]
    assert "private-source" not in names(found(text + one.advice.partition(": ")[2] + "\n", **around))
    assert not names(found("", **{**around, "inside": ()}))


# -- single rules ------------------------------------------------------------------------------------------------------


def test_a3_an_address_the_link_does_not_have(found):
    text = text_of("3.9-ipfwadm-registered-server")
    other = {**HOWTO, "eth1": (address("203.0.113.1"),)}
    assert ("interface-address", "input", 1) in found(text, addresses=other)
    assert "interface-address" not in names(found(text, addresses=HOWTO))
    assert "interface-address" not in names(found(text))


def test_a6_a_whole_network_for_one_address(found):
    dialled = {"ppp0": (address("200.200.200.7"),)}
    tight = found(text_of("3.6-ipchains-tight-ppp0"), addresses=dialled, outside="ppp0")
    assert {("whole-network", "input", 2), ("whole-network", "output", 2)} <= tight
    permanent = found(text_of("3.6-ipchains-tight-eth1"), addresses=HOWTO, outside="eth1")
    assert "whole-network" not in names(permanent)


def test_a35_rules_behind_a_wider_one_are_never_reached(found, tmp_path):
    text = "ipchains -A input -j DENY -i eth1\nipchains -A input -j ACCEPT -p tcp -d 0/0 80 -i eth1\n"
    assert ("never-reached", "input", 2) in found(text)
    repeated = rules_of("ipchains -A input -j DENY\nipchains -A input -j DENY -p tcp\n", tmp_path)
    assert [one.severity for one in lint(repeated) if one.name == "never-reached"] == ["note"]
    assert "never-reached" not in names(found("ipchains -A input -l\nipchains -A input -j DENY -p tcp\n"))


def test_too_many_rules_are_not_compared_and_lint_says_so():
    rules = RuleSet()
    for port in range(2001):
        rules.append("input", Rule(match=Match(protocol=6, destination_ports=((port, port),)), target="DENY"))
    assert [(one.chain, one.number) for one in lint(rules) if one.name == "never-reached"] == [("input", 0)]


def test_s53_loops_and_idle_chains(found):
    text = "".join(f"ipchains -N {name}\n" for name in ("one", "two", "idle"))
    text += "ipchains -A one -j two\nipchains -A two -j one\nipchains -A input -j one\n"
    assert {("loop", "one", 1), ("loop", "two", 1), ("unused-chain", "idle", 0)} <= found(text)


def test_s53_targets_that_mean_something_else(found):
    text = "ipchains -N mine\nipchains -A mine -j MASQ -p 47\nipchains -A mine -p tcp -j REDIRECT 3128\n"
    assert ("other-meaning", "mine", 1) in found(text + "ipchains -A input -j mine\n")
    assert ("other-meaning", "mine", 2) in found(text + "ipchains -A forward -j mine\n")


# -- port forwards -----------------------------------------------------------------------------------------------------


def test_s51_t6_answers_of_a_forwarded_service_need_masquerading(found):
    web = ForwardedPort(6, 8080, 8080, address("10.0.0.2"), 80)
    around = {"forwards": (web,), "outside": "eth1", "inside": ("eth0",), "addresses": HOWTO}
    assert lint(RuleSet(), Surroundings(**around)) == []
    assert ("forward-without-masquerade", "forward", 0) in found("ipchains -P forward DENY\n", **around)
    assert ("forward-without-masquerade", "forward", 0) in found("ipchains -P forward ACCEPT\n", **around)
    masquerading = "ipchains -P forward DENY\nipchains -A forward -s 10.0.0.2 -i eth1 -j MASQ\n"
    assert "forward-without-masquerade" not in names(found(masquerading, **around))


def test_s51_t6_requests_to_a_forwarded_service_pass_input_first(found):
    web = ForwardedPort(6, 8080, 8080, address("10.0.0.2"), 80)
    around = {"forwards": (web,), "outside": "eth1", "addresses": HOWTO}
    assert ("forward-without-input", "input", 0) in found("ipchains -P input DENY\n", **around)
    accepting = "ipchains -P input DENY\nipchains -A input -p tcp -d 200.200.200.200 8080 -j ACCEPT\n"
    assert "forward-without-input" not in names(found(accepting, **around))


# -- findings ----------------------------------------------------------------------------------------------------------


def test_an_untouched_rule_set_has_no_findings():
    assert lint(RuleSet()) == []


def test_findings_are_in_the_manual_and_say_where():
    manual = (FOLDER.parent / "manual" / "rules.md").read_text()
    assert [name for name in FINDINGS if f"`{name}`" not in manual] == []
    shown = Finding(name="loop", severity="warning", chain="one", number=2, what="what", advice="advice")
    assert str(shown) == "one rule 2: what; advice [loop]"
    assert str(Finding(name="loop", severity="warning", chain="one", number=0, what="a", advice="b")).startswith(
        "chain one:"
    )
