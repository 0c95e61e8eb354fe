"""ipfwadm: the worked examples of original-systems 5.2, every mistake in the words of the program, and the repairs."""

from __future__ import annotations

import pytest

from fastmasq.legacy import ipfwadm
from fastmasq.legacy.requests import Check, List, ListSessions, SetTimeouts, Text, packet_of
from fastmasq.legacy.tokens import Misuse
from fastmasq.policy.chains import ANY_PORT, Match, Rule
from fastmasq.policy.evaluate import Packet
from tests.support.legacy import NAMES, chains_after, net, read, rules_of

EXAMPLE_2 = "ipfwadm -F -a accept -m -S 10.0.0.0/8 -D 0.0.0.0/0 -W ppp0"


def one_rule(line: str, *, tolerant: bool = False) -> Rule:
    """Return the only rule of a line."""
    ((change),) = read(line, tolerant=tolerant).changes
    return change.rule


# -- the worked examples -----------------------------------------------------------------------------------------------


def test_5_2_example_1():
    rules = chains_after("ipfwadm -F -p deny")
    assert rules.chain("forward").policy == "DENY"
    assert rules_of(rules, "forward") == []


def test_5_2_example_2():
    rules = chains_after(EXAMPLE_2)
    assert rules_of(rules, "forward") == [Rule(match=Match(source=net("10.0.0.0/8"), interface="ppp0"), target="MASQ")]


def test_5_2_example_3():
    rule = one_rule("ipfwadm -F -a accept -m -P udp -S 10.0.0.2/32 500 -D 199.0.0.1/32 500 -W ppp0")
    assert rule == Rule(
        match=Match(
            source=net("10.0.0.2"),
            destination=net("199.0.0.1"),
            protocol=17,
            source_ports=((500, 500),),
            destination_ports=((500, 500),),
            interface="ppp0",
        ),
        target="MASQ",
    )


def test_5_2_example_4():
    rule = one_rule("ipfwadm -I -a deny -W eth1 -V 200.200.200.200 -P tcp")
    match = Match(protocol=6, interface="eth1", interface_address=net("200.200.200.200")[0])
    assert rule == Rule(match=match, target="DENY")


def test_5_2_example_5_c20():
    assert read("ipfwadm -M -s 7200 0 0") == SetTimeouts(7200, 0, 0)


def test_5_2_example_6():
    rules = chains_after("ipfwadm -I -a accept", "ipfwadm -I -i rej -P tcp -S any/0 -D 10.0.0.1 113 20:21 -o")
    match = Match(destination=net("10.0.0.1"), protocol=6, destination_ports=((20, 21), (113, 113)))
    assert rules_of(rules, "input")[0] == Rule(match=match, target="REJECT", log=True)


def test_5_2_example_7():
    rules = chains_after("ipfwadm -I -p accept", "ipfwadm -O -p accept", "ipfwadm -F -a accept -m")
    assert rules_of(rules, "forward") == [Rule(target="MASQ")]
    assert [chain.policy for chain in rules.chains.values()] == ["ACCEPT"] * 3


def test_5_2_example_8():
    request = read("ipfwadm -I -c -P tcp -S 199.0.0.1 1723 -D 200.200.200.200 61000 -V 200.200.200.200 -W eth1")
    assert isinstance(request, Check)
    assert request.chain == "input"
    assert packet_of(request.rules[0]) == Packet(
        source=net("199.0.0.1")[0],
        destination=net("200.200.200.200")[0],
        protocol=6,
        source_port=1723,
        destination_port=61000,
        interface="eth1",
        interface_address=net("200.200.200.200")[0],
    )


def test_5_2_example_9_a1():
    with pytest.raises(Misuse) as caught:
        read("ipfwadm -0 -a accept -W eth1")
    assert str(caught.value) == "ipfwadm: invalid option -- 0\nTry `ipfwadm -h' for more information."
    assert caught.value.exit_status == 2


# -- grammar -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "target"), [("a", "ACCEPT"), ("d", "DENY"), ("rej", "REJECT"), ("deny", "DENY")])
def test_a32_policies_may_be_shortened(policy, target):
    assert one_rule(f"ipfwadm -I -a {policy}").target == target


def test_a32_an_empty_word_was_the_first_of_its_kind():
    request = ipfwadm.parse(["-I", "-a", "", "-P", ""], NAMES)
    assert request.changes[0].rule == Rule(target="ACCEPT")
    with pytest.raises(Misuse, match='invalid policy "" specified'):
        ipfwadm.parse(["-I", "-a", ""], NAMES, tolerant=True)


@pytest.mark.parametrize("line", ["-F -a accept -m", "-F -a masquerade", "-a m -F", "-mFa accept"])
def test_masquerade_in_all_its_forms(line):
    assert one_rule(f"ipfwadm {line}") == Rule(target="MASQ")


@pytest.mark.parametrize(
    ("line", "said"), [("-F -aaccept", "multiple commands"), ("-F -am accept", "unknown arguments")]
)
def test_a_policy_is_a_word_of_its_own_behind_the_last_letter(line, said):
    with pytest.raises(Misuse, match=said):
        read(f"ipfwadm {line}")


@pytest.mark.parametrize(
    ("written", "direction"), [("-A", "both"), ("-A in", "in"), ("-A o", "out"), ("-A both", "both")]
)
def test_accounting_counts_by_direction(written, direction):
    ((change),) = read(f"ipfwadm {written} -a -P tcp").changes
    assert (change.chain, change.rule) == ("acct", Rule(match=Match(protocol=6, direction=direction)))


def test_flags_of_rules():
    rule = one_rule("ipfwadm -I -a accept -P tcp -b -k -y -o -t fe 10 -S 10.1.2.3/255.0.255.0 -r 3128")
    assert rule == Rule(
        match=Match(source=net("10.0.2.0/255.0.255.0"), protocol=6, syn=True, ack=True, swapped_too=True),
        target="REDIRECT",
        redirect_port=3128,
        log=True,
        tos=(0xFF, 0x10),
    )


def test_redirect_without_a_port_keeps_the_packets_own():
    assert one_rule("ipfwadm -I -a acc -P udp -r").redirect_port == 0
    assert one_rule("ipfwadm -I -a acc -r -P udp").target == "REDIRECT"
    assert one_rule("ipfwadm -I -a deny -P udp -r 53").target == "DENY"


def test_services_and_ranges():
    match = one_rule("ipfwadm -I -a acc -P tcp -S lan/8 www 1024:65535 auth").match
    assert match.source == net("10.0.0.0/8")
    assert match.source_ports == ((1024, 65535), (80, 80), (113, 113))
    assert one_rule("ipfwadm -I -a acc -P tcp -D any/0 0:65535").match.destination_ports == (ANY_PORT,)


def test_several_addresses_are_several_rules():
    changes = read("ipfwadm -I -a accept -S many -D many/24").changes
    ends = [(change.rule.match.source, change.rule.match.destination) for change in changes]
    assert ends == [
        (net(source), net(destination))
        for source in ("192.168.1.1", "192.168.1.2", "192.168.2.1")
        for destination in ("192.168.1.0/24", "192.168.2.0/24")
    ]


def test_the_mask_0_ignores_the_name():
    assert one_rule("ipfwadm -I -a accept -S nobody-knows/0") == Rule(target="ACCEPT")


def test_delete_takes_the_first_equal_rule():
    rules = chains_after(EXAMPLE_2, "ipfwadm -F -a deny", EXAMPLE_2, EXAMPLE_2.replace("-a", "-d"))
    assert [rule.target for rule in rules_of(rules, "forward")] == ["DENY", "MASQ"]


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("-F -l", List("forward")),
        ("-Il -n -e -x", List("input", numeric=True, extended=True, exact=True)),
        ("-A -z -l", List("acct", zero=True)),
        ("-O -lz", List("output", zero=True)),
        ("-M -l -n", ListSessions(numeric=True)),
        ("-Mle", ListSessions(extended=True)),
        ("-h", Text(ipfwadm.HELP)),
    ],
)
def test_lists(line, request_):
    assert read(f"ipfwadm {line}") == request_


@pytest.mark.parametrize(("letter", "do"), [("z", "zero"), ("f", "flush")])
def test_commands_about_all_rules(letter, do):
    ((change),) = read(f"ipfwadm -O -{letter}").changes
    assert (change.do, change.chain) == (do, "output")


@pytest.mark.parametrize(
    ("line", "chain", "policy"),
    [
        ("-F -p accept", "forward", "ACCEPT"),
        ("-F -p masquerade", "forward", "MASQ"),
        ("-F -m -p acc", "forward", "MASQ"),
        ("-I -p reject", "input", "REJECT"),
        ("-O -p deny", "output", "DENY"),
    ],
)
def test_policies(line, chain, policy):
    assert chains_after(f"ipfwadm {line}").chain(chain).policy == policy


# -- mistakes ----------------------------------------------------------------------------------------------------------

CHECK = "-I -c -V 1.2.3.4 -W eth0 -S 1.1.1.1"
MISTAKES = [
    ("-F -I -l", "multiple categories specified"),
    ("-F -l -f", "multiple commands specified"),
    ("-F -z -z", "multiple commands specified"),
    ("-l", "missing -A, -F, -I, -O, or -M flag"),
    ("-F", "no command specified"),
    ("-F -l more", "unknown arguments found on commandline"),
    ("more -F -l", "unknown arguments found on commandline"),
    ("-F -l -- -x", "unknown arguments found on commandline"),
    ("-F -a -m", "policy required for firewall entries"),
    ("-A -a accept", "no policy allowed with non-firewall entries"),
    ("-M -f", "-M only allowed in combination with -s or -l command"),
    ("-F -s 1 2 3", "setting masquerading timeouts requires -M flag"),
    ("-M -s 1 2", "-s requires 3 timeout values"),
    ("-M -s 1 -2 3", "-s requires 3 timeout values"),
    ("-I -a acc -t ff", "-t requires 2 hexbyte arguments"),
    ("-A -c", "specify either -F, -I, or -O for checking a packet"),
    ("-M -p deny", "specify either -F, -I, or -O for changing the policy"),
    ("-F -l -P tcp", "no protocol (-P) allowed with this command"),
    ("-I -c", "protocol (-P) required for this command"),
    (f"{CHECK} -P all", "specific protocol required for check command"),
    ("-F -f -V 1.2.3.4", "no interface address (-V) allowed with this command"),
    ("-I -c -P tcp", "interface address (-V) required for this command"),
    ("-F -z -W eth0", "no interface name (-W) allowed with this command"),
    ("-I -c -P tcp -V 1.2.3.4", "interface name (-W) required for this command"),
    ("-I -p deny -S 1.1.1.1", "no source address (-S) allowed with this command"),
    ("-I -l -D 1.1.1.1", "no destination address (-D) allowed with this command"),
    (f"{CHECK} 80 -P tcp", "one port required with source/destination address"),
    (f"{CHECK} 80:81 -P tcp -D 2.2.2.2 80", "one port required with source/destination address"),
    (f"{CHECK} -P icmp -D 2.2.2.2", "ICMP type required after source address"),
    (f"{CHECK} 8 -P icmp", "destination address (-D) required for this command"),
    ("-I -a acc -P icmp -D 1.1.1.1 8", "ICMP types only allowed with -S, not with -D"),
    ("-I -a acc -S 1.1.1.1 80", "no ports allowed without specific protocol"),
    ("-F -a acc -r 80 -P tcp", "redirecting only allowed in combination with -I"),
    ("-I -a acc -r -P icmp", "redirecting not allowed with protocol ICMP"),
    ("-I -a acc -m", "masquerading only allowed in combination with -F"),
    ("-F -a acc -m -P icmp", "masquerading not allowed with protocol ICMP"),
    ("-F -a deny -m", "masquerading only allowed with policy accept"),
    ("-F -p deny -m", "masquerading only allowed with policy accept"),
    ("-F -a masq -m", "multiple -m flags not allowed"),
    ("-I -l -b", "bidirectional flag (-b) only allowed with insert/append/delete"),
    ("-I -l -o", "kernel print flag (-o) only allowed with insert/append/delete"),
    ("-I -l -r", "port redirection (-r) only allowed with insert/append/delete"),
    ("-I -l -t 1 1", "tos values (-t) only allowed with insert/append/delete"),
    ("-F -a yes", 'invalid policy "yes" specified'),
    ("-F -a acc -P 47", 'invalid protocol "47" specified'),
    ("-F -a acc -P gre", 'invalid protocol "gre" specified'),
    ("-A up -a", 'invalid direction "up" specified'),
    ("-F -a acc -S 10.0.0.0/33", 'invalid mask "33" specified'),
    ("-F -a acc -P tcp -S any/0 gopher", 'invalid port/service "gopher" specified'),
    ("-F -a acc -P tcp -S any/0 65536", 'invalid port/service "65536" specified'),
    ("-F -a acc -P icmp -S any/0 echo", 'invalid ICMP type "echo" specified'),
    ("-F -a acc -t 100 0", 'invalid hexbyte "100" specified'),
    ("-F -a acc -t ff xx", 'invalid hexbyte "xx" specified'),
    ("-M -s 1 x 3", 'invalid timeout value "x" specified'),
    ("-F -a acc -S nobody", 'host/network "nobody" not found'),
    ("-F -a acc -S 10.0.0", 'host/network "10.0.0" not found'),
    ("-F -a acc -V nobody", 'host "nobody" not found'),
    ("-F -a acc -V many", 'hostname "many" does not specify a unique address'),
    ("-F -a acc -P tcp -S any/0 9:8", "invalid range of ports (9 > 8)"),
    ("-F -a acc -P tcp -S any/0 1:2 3:4", "multiple ranges not allowed"),
    ("-F -a acc -P tcp -S any/0 1 2 3 4 5 6 -D any/0 1 2 3 4 5", "too many ports specified (maximum 10)"),
    (
        "-I -a acc -P tcp -r 80 -S any/0 1 2 3 4 5 -D any/0 1 2 3 4 5",
        "too many ports specified (maximum 9 when using -r option)",
    ),
    ("-F -l -n -n", "multiple -n flags not allowed"),
    ("-F -l -q", "invalid option -- q"),
    ("--list", "invalid option -- -"),
    ("-F -p", "option requires an argument -- p"),
    ("-I -a acc -W ppp+", 'interface name "ppp+" ends in "+", a wildcard of ipchains; name one interface'),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes_in_the_words_of_the_program(line, said):
    with pytest.raises(Misuse) as caught:
        read(f"ipfwadm {line}")
    assert str(caught.value) == f"ipfwadm: {said}\nTry `ipfwadm -h' for more information."
    assert caught.value.exit_status == 2


# -- repairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "repaired", "warning"),
    [
        ("-0 -a accept", "-O -a accept", "-0 (the digit) is no option; taken as -O, the output rules"),
        ("-F –a accept", "-F -a accept", "'–a' begins with a typographic dash; taken as '-a'"),
        ("-F -a accept -W ppp+", None, "-W ppp+: ipfwadm had no wildcards; taken as all interfaces that begin so"),
    ],
)
def test_a1_a29_tolerant_repairs(line, repaired, warning):
    request = read(f"ipfwadm {line}", tolerant=True)
    assert request.warnings == (warning,)
    if repaired:
        assert request.changes == read(f"ipfwadm {repaired}").changes


@pytest.mark.parametrize(("protocol", "number"), [("47", 47), ("gre", 47), ("50", 50)])
def test_a33_other_protocols_when_tolerant(protocol, number):
    request = read(f"ipfwadm -I -a accept -P {protocol}", tolerant=True)
    assert request.changes[0].rule.match == Match(protocol=number)
    assert len(request.warnings) == 1


@pytest.mark.parametrize("line", [line for line, _ in MISTAKES if "-P 47" not in line and "gre" not in line])
def test_tolerance_does_not_take_what_makes_no_sense(line):
    if "ppp+" not in line:
        with pytest.raises(Misuse):
            read(f"ipfwadm {line}", tolerant=True)
