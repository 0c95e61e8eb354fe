"""ipchains: the worked examples of original-systems 5.3, every mistake in the words of the program, and the repairs."""

from __future__ import annotations

import pytest

from fastmasq.legacy import ipchains
from fastmasq.legacy.requests import Check, List, ListSessions, SetTimeouts, Text, packet_of
from fastmasq.legacy.tokens import Misuse
from fastmasq.policy.chains import Match, Rule, RuleError
from fastmasq.policy.changes import Change
from fastmasq.policy.evaluate import Packet, evaluate
from tests.support.legacy import NAMES, chains_after, net, read, rules_of

EXAMPLE_2 = "ipchains -A forward -j MASQ -s 10.0.0.0/8 -d 0.0.0.0/0 -i ppp0"


def one_rule(line: str, *, tolerant: bool = False) -> Rule:
    """Return the only rule of a line."""
    ((change),) = read(line, tolerant=tolerant).changes
    return change.rule


# -- the worked examples -----------------------------------------------------------------------------------------------


def test_5_3_example_1():
    assert chains_after("ipchains -P forward DENY").chain("forward").policy == "DENY"


def test_5_3_example_2():
    rules = chains_after(EXAMPLE_2)
    assert rules_of(rules, "forward") == [Rule(match=Match(source=net("10.0.0.0/8"), interface="ppp0"), target="MASQ")]


def test_5_3_example_3():
    rule = one_rule("ipchains -A input -j ACCEPT -p 50 -s 199.0.0.1/32 -d 200.200.200.0/24 -i ppp0")
    match = Match(source=net("199.0.0.1"), destination=net("200.200.200.0/24"), protocol=50, interface="ppp0")
    assert rule == Rule(match=match, target="ACCEPT")


def test_5_3_example_4():
    rules = chains_after(
        "ipchains -P output DENY",
        "ipchains -A output -j ACCEPT -p tcp -s 200.200.200.200/32 -d 199.0.0.1/32 1723 -i eth1",
    )
    control = Packet(
        source=net("200.200.200.200")[0],
        destination=net("199.0.0.1")[0],
        protocol=6,
        source_port=61000,
        destination_port=1723,
        interface="eth1",
    )
    assert evaluate(rules, "output", control).verdict == "ACCEPT"
    inside = Packet(source=net("10.0.0.2")[0], destination=net("199.0.0.1")[0], protocol=6, destination_port=1723)
    assert evaluate(rules, "output", inside).verdict == "DENY"


def test_5_3_example_5():
    rules = chains_after("ipchains -P forward MASQ")
    packet = Packet(source=net("199.0.0.1")[0], destination=net("10.0.0.2")[0], protocol=6, interface="eth0")
    assert evaluate(rules, "forward", packet).verdict == "MASQ"  # also what comes in


@pytest.mark.parametrize("line", ["ipchains -M -S 7200 10 60", "ipchains -S 7200 10 60"])
def test_5_3_example_6_c20(line):
    assert read(line) == SetTimeouts(7200, 10, 60)


def test_5_3_example_7():
    rules = chains_after(
        "ipchains -N vpn",
        "ipchains -A vpn -p 47 -j MASQ",
        "ipchains -A forward -i eth1 -j vpn",
        "ipchains -P forward DENY",
    )
    for protocol, interface, verdict in ((47, "eth1", "MASQ"), (6, "eth1", "DENY"), (47, "eth2", "DENY")):
        packet = Packet(source=1, destination=2, protocol=protocol, interface=interface)
        assert evaluate(rules, "forward", packet).verdict == verdict


def test_5_3_example_8():
    rules = chains_after(
        "ipchains -P input DENY",
        "ipchains -A input -p tcp ! -y -s 199.0.0.1 1723 -d 200.200.200.200 61000:65095 -j ACCEPT",
    )
    check = "ipchains -C input -p tcp -s 199.0.0.1 1723 -d 200.200.200.200 61000 -i eth1"
    for line, verdict in ((check, "ACCEPT"), (f"{check} -y", "DENY"), (check.replace("61000", "60999"), "DENY")):
        ((rule),) = read(line).rules
        assert evaluate(rules, "input", packet_of(rule)).verdict == verdict


def test_5_3_example_9():
    assert rules_of(chains_after(EXAMPLE_2, "ipchains -D forward 1"), "forward") == []
    with pytest.raises(Misuse, match="masquerading not allowed for input and output chains") as caught:
        read("ipchains -A input -j MASQ")
    assert caught.value.exit_status == 2


# -- grammar -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("-s ! 10.0.0.0/8", Match(source=net("10.0.0.0/8"), not_source=True)),
        ("! -s 10.0.0.0/8", Match(source=net("10.0.0.0/8"), not_source=True)),
        ("--src 10.0.0.1 -d lan/255.0.0.0", Match(source=net("10.0.0.1"), destination=net("10.0.0.0/8"))),
        ("-p ! tcp", Match(protocol=6, not_protocol=True)),
        ("--protocol=all", Match()),
        ("-ptcp", Match(protocol=6)),
        ("-p esp -i ! eth0", Match(protocol=50, interface="eth0", not_interface=True)),
        ("-i ppp+", Match(interface="ppp+")),
        ("-i +", Match()),
        (
            "-p udp -s 0/0 53 -d 0/0 1024:",
            Match(protocol=17, source_ports=((53, 53),), destination_ports=((1024, 65535),)),
        ),
        ("-p udp -s 0/0 ! 53", Match(protocol=17, source_ports=((53, 53),), not_source_ports=True)),
        ("-p udp --sport ! :53", Match(protocol=17, source_ports=((0, 53),), not_source_ports=True)),
        ("-p tcp --dport www", Match(protocol=6, destination_ports=((80, 80),))),
        ("-p tcp --dport :", Match(protocol=6)),
        ("-p tcp --destination-port 0:65535", Match(protocol=6)),
        ("-p tcp -d 10.0.0.1 ! -y", Match(protocol=6, destination=net("10.0.0.1"), syn=False)),
        ("-p tcp --syn", Match(protocol=6, syn=True)),
        ("-f", Match(fragment=True)),
        ("! -f", Match(fragment=False)),
        ("-p icmp -s 0/0 8", Match(protocol=1, source_ports=((8, 8),))),
        ("-p icmp -s 0/0 3 -d 0/0 4", Match(protocol=1, source_ports=((3, 3),), destination_ports=((4, 4),))),
        ("-p icmp --icmp-type PING", Match(protocol=1, source_ports=((8, 8),))),
        (
            "-p icmp --icmp-type frag",
            Match(protocol=1, source_ports=((3, 3),), destination_ports=((4, 4),)),
        ),
    ],
)
def test_what_rules_match(line, match):
    assert one_rule(f"ipchains -A input {line}") == Rule(match=match)


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("-j vpn", Rule(target="vpn")),
        ("-p tcp -j REDIRECT 3128", Rule(match=Match(protocol=6), target="REDIRECT", redirect_port=3128)),
        ("-p udp -j REDIRECT", Rule(match=Match(protocol=17), target="REDIRECT")),
        ("-l -m 7", Rule(log=True, mark=("set", 7))),
        ("-m 0x10", Rule(mark=("set", 16))),
        ("-m 010", Rule(mark=("set", 8))),
        ("-m +3", Rule(mark=("add", 3))),
        ("-m -1", Rule(mark=("add", 0xFFFFFFFF))),
        ("-m +0", Rule()),
        ("-o", Rule(output=65535)),
        ("-o 64 -j RETURN", Rule(output=64, target="RETURN")),
        ("-o -l", Rule(output=65535, log=True)),
        ("--TOS 01 10", Rule(tos=(1, 0x10))),
    ],
)
def test_what_rules_do(line, rule):
    assert one_rule(f"ipchains -A input {line}") == rule


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("-A input", Change(do="append", chain="input", rule=Rule())),
        ("--append input", Change(do="append", chain="input", rule=Rule())),
        ("-I input", Change(do="insert", chain="input", rule=Rule())),
        ("-I input 3 -l", Change(do="insert", chain="input", rule=Rule(log=True), number=3)),
        ("-R input 2", Change(do="replace", chain="input", rule=Rule(), number=2)),
        ("-D input -l", Change(do="delete_equal", chain="input", rule=Rule(log=True))),
        ("-D input 2 -v", Change(do="delete", chain="input", number=2)),
        ("-F", Change(do="flush")),
        ("-F vpn", Change(do="flush", chain="vpn")),
        ("--flush=vpn", Change(do="flush", chain="vpn")),
        ("-Z input", Change(do="zero", chain="input")),
        ("-N vpn", Change(do="new_chain", chain="vpn")),
        ("--new vpn", Change(do="new_chain", chain="vpn")),
        ("-X", Change(do="delete_chain")),
        ("-Xvpn", Change(do="delete_chain", chain="vpn")),
        ("-P forward MASQ", Change(do="policy", chain="forward", target="MASQ")),
    ],
)
def test_commands(line, change):
    assert read(f"ipchains {line}").changes == (change,)


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("-L", List()),
        ("-Lvpn", List("vpn")),
        ("-L input -n -v -x --line-numbers", List("input", True, True, True, True)),
        ("-nvL -Z", List(numeric=True, extended=True, zero=True)),
        ("-Z -L", List(zero=True)),
        ("-M -L -n", ListSessions(numeric=True)),
        ("-L -M -v", ListSessions(extended=True)),
        ("-V", Text("ipchains 1.3.9, 17-Mar-1999\n")),
        ("! -V", Text("Not ipchains 2.0\n")),
        ("--help", Text(ipchains.HELP)),
    ],
)
def test_lists(line, request_):
    assert read(f"ipchains {line}") == request_


def test_the_names_of_icmp_types():
    text = read("ipchains -h icmp").text
    assert text.startswith(
        "ipchains 1.3.9, 17-Mar-1999\n\nValid ICMP Types:\necho-reply (pong)\ndestination-unreachable\n"
    )
    assert "\n   TOS-host-unreachable\n" in text
    assert text.endswith("\naddress-mask-request\naddress-mask-reply\n")


def test_both_directions_are_two_rules():
    changes = read("ipchains -A input -p tcp -s 10.0.0.1 80 -d ! lan/8 ! 1:9 -b").changes
    match = changes[1].rule.match
    assert (match.source, match.not_source, match.source_ports, match.not_source_ports) == (
        *(net("10.0.0.0/8"), True),
        *(((1, 9),), True),
    )
    assert (match.destination, match.destination_ports, match.not_destination) == (net("10.0.0.1"), ((80, 80),), False)
    ping = read("ipchains -A input -p icmp -s 10.0.0.1 8 -d 10.0.0.2 0 -b").changes[1].rule.match
    assert (ping.source, ping.source_ports) == (net("10.0.0.2"), ((8, 8),))


def test_several_addresses_are_several_rules():
    assert len(read("ipchains -A input -s many -d many/24").changes) == 6


def test_checks_describe_a_packet():
    request = read("ipchains -C input -p icmp -s 1.1.1.1 ping -d 2.2.2.2 -i eth0")
    assert request == Check("input", request.rules)
    assert packet_of(request.rules[0]) == Packet(
        source=net("1.1.1.1")[0], destination=net("2.2.2.2")[0], protocol=1, source_port=8, interface="eth0"
    )
    ((fragment),) = read("ipchains -C input -p udp -f -s 1.1.1.1 -d 2.2.2.2 -i eth0").rules
    assert packet_of(fragment).fragment


def test_tos_that_may_set_two_bits_is_warned_of():
    request = read("ipchains -A output -t ff 04")
    assert request.warnings[0] == "TOS manipulation may set multiple TOS bits for Maximize Throughput TOS (0x08)"
    assert read("ipchains -A output -t ff 04 --no-warnings").warnings == ()


# -- mistakes ----------------------------------------------------------------------------------------------------------

CHECK = "-C input -s 1.1.1.1 -d 2.2.2.2 -i eth0"
MISTAKES = [
    ("-n", "no command specified"),
    ("-L input more", "unknown arguments found on commandline"),
    ("-L -- x", "unknown arguments found on commandline"),
    ("-A input -F", "Can't use -F with -A"),
    ("-D input 1 -L", "Can't use -L with -D"),
    ("-L input -Z", "-L with -Z does not allow chain to be specified"),
    ("-R input", "-R requires a rule number"),
    ("-I input 0", "Invalid rule number `0'"),
    ("-P input", "-P requires a chain and a policy"),
    ("-P input MASQ", "`-P MASQ' only valid for `forward' chain."),
    ("-P vpn DENY", "Can only set policy in built-in chains."),
    ("-P input accept", "Invalid policy `accept' for -P"),
    ("-M -S 1 2", "-S requires 3 timeout values"),
    ("-M -S 1 two 3", "invalid timeout value `two' specified"),
    ("-M", "-M/--masquerading requires -L/--list or -S/--set"),
    ("! -A input", "unexpected ! flag"),
    ("-A input ! !", "multiple consecutive ! not allowed"),
    ("-A input ! -s ! 1.1.1.1", "Multiple `!' flags not allowed"),
    ("-A input ! -j ACCEPT", "cannot have ! before -j"),
    ("-A input !", "nothing appropriate following !"),
    ("-L ! --line-numbers", "cannot have ! before --line-numbers"),
    ("-L ! --no-warnings", "cannot have ! before --no-warnings"),
    ("-A input -p tcp -p udp", "multiple -p flags not allowed"),
    ("-A input -p tcp -s 0/0 80 --sport 81", "multiple -s flags not allowed"),
    ("-A input -p xyz", "unknown protocol `xyz' specified"),
    ("-A input -p ! all", "rule would never match protocol"),
    ("-A input -s 1.1.1.1/40", "invalid mask `40' specified"),
    ("-A input -s nobody", "host/network `nobody' not found"),
    ("-A input -s 0/0 80", "can only specify ports for icmp, tcp or udp"),
    ("-A input -s 0/0 :", "no ports allowed without specific protocol"),
    ("-A input -p 47 --dport 1", "can only specify ports for icmp, tcp or udp"),
    ("-A input -p ! tcp --dport 1", "no ports allowed without specific protocol"),
    ("-A input -p tcp --dport gopher", "invalid port/service `gopher' specified"),
    ("-A input -p icmp --icmp-type nonsense", "invalid ICMP type `nonsense' specified"),
    ("-A input -p icmp --icmp-type echo", "Ambiguous ICMP `echo' : `echo-reply' or `echo-request'?"),
    ("-A input -p icmp --icmp-type ping -d 0/0 1", "Can't use ICMP name and destination port together"),
    ("-A input -p icmp --icmp-type ! ping", "Can't invert named ICMP types"),
    ("-A input -p udp -y", "-y only allowed with TCP protocol"),
    ("-A input -p tcp --dport 80 -f", "no ports allowed with -f"),
    ("-A input -p tcp -y -f", "-y not allowed with -f"),
    ("-A input -j", "option requires an argument -- j"),
    ("-A input -j ninechars", "Invalid target name `ninechars' (8 chars max)"),
    ("-A output -p tcp -j REDIRECT 80", "redirect not allowed for output and forward chains"),
    ("-A input -p icmp -j REDIRECT", "redirecting only allowed with TCP or UDP"),
    ("-A output -j MASQ", "masquerading not allowed for input and output chains"),
    ("-N ninechars", "chain name `ninechars' too long (must be under 8 chars)"),
    ("-A input -s many -b", "-b not allowed with multiple source or destination IP addresses"),
    ("-A input -s ! many", "! not allowed with multiple source or destination IP addresses"),
    ("-R input 1 -s many", "Replacement rule does not specify a unique address"),
    ("-A input -i abcdefghijklmnopq", "interface name `abcdefghijklmnopq' must be shorter than IFNAMSIZ (16)"),
    ("-A input -m x", "Bad value `x' for -m."),
    ("-A input -m 4294967296", "Bad value `4294967296' for -m."),
    ("-A input -o 65536", "-o argument must be 0-65535, not `65536'"),
    ("-A input -t 01", "-t requires 2 hexbyte arguments"),
    ("-A input -t 01 100", "invalid hexbyte `100' specified"),
    ("-A input -t 00 00", "TOS manipulation cannot alter bit 0 (RFC1349)"),
    ("-A input -t 01 0c", "TOS manipulation cannot set multiple TOS bits (RFC1349)"),
    ("-L -p tcp", "Illegal option `-p' with this command"),
    ("-A input -n", "Illegal option `-n' with this command"),
    ("-R input 1 -b", "Illegal option `-b' with this command"),
    ("-D input 1 -p tcp", "Illegal option `-p' with this command"),
    ("-F -n", "Illegal option `-n' with this command"),
    (f"{CHECK} -p tcp -l -s", "option requires an argument -- s"),
    ("-C input -s 1.1.1.1 -d 2.2.2.2 -p 47", "You need to supply the `-i' option for this command"),
    (f"{CHECK} -p tcp", "one port required with source/destination address for -C"),
    (f"{CHECK} -p tcp --sport 1 --dport 1:2", "one port required with source/destination address for -C"),
    (f"{CHECK} ! -p 47", "! not allowed with -C"),
    (f"{CHECK} -p icmp --icmp-type redirect", "Must specify exact ICMP type for testing"),
    (f"{CHECK} -p 47 -l", "Illegal option `-l' with this command"),
    ("-q", "invalid option -- q"),
    ("--nonsense", "unrecognized option `--nonsense'"),
    ("--de", "option `--de' is ambiguous"),
    ("-L --numeric=1", "option `--numeric' doesn't allow an argument"),
    ("-A input --jump", "option `--jump' requires an argument"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes_in_the_words_of_the_program(line, said):
    with pytest.raises(Misuse) as caught:
        read(f"ipchains {line}")
    hint = "Try `ipchains -h' or 'ipchains --help' for more information."
    assert str(caught.value) == f"ipchains: {said}\n{hint}"
    assert caught.value.exit_status == 2


def test_the_accounting_chain_of_ipfwadm_is_none_of_ipchains():
    with pytest.raises(RuleError) as caught:
        read("ipchains -A acct -j ACCEPT")
    assert caught.value.reason == "no chain"


# -- repairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "repaired"),
    [
        ("-A input -j accept", "-A input -j ACCEPT"),
        ("-A input -p tcp -j Redirect 80", "-A input -p tcp -j REDIRECT 80"),
        ("-P input deny", "-P input DENY"),
        ("–A input —log", "-A input --log"),
    ],
)
def test_a29_a31_tolerant_repairs(line, repaired):
    request = read(f"ipchains {line}", tolerant=True)
    assert request.changes == read(f"ipchains {repaired}").changes
    assert len(request.warnings) in (1, 2)


def test_a31_a_user_chain_goes_before_a_misspelt_target():
    request = ipchains.parse(["-A", "input", "-j", "accept"], NAMES, tolerant=True, chains=("accept",))
    assert request.changes[0].rule.target == "accept"
    assert request.warnings == ()


def test_a31_strictly_targets_are_case_sensitive():
    with pytest.raises(RuleError) as caught:
        chains_after("ipchains -A input -j accept")
    assert caught.value.reason == "no target"
