"""The path's chains say about any packet what the slow evaluator says, and match the same rules on the way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastmasq.path.rules import BASES, SHOWS, RuleTable, Shown
from fastmasq.policy.chains import Match, Rule, RuleSet
from fastmasq.policy.compile import LinkView, compile_chains
from fastmasq.policy.evaluate import Packet, evaluate

LINKS = [LinkView("eth0", (1,)), LinkView("eth1", (2, 3)), LinkView("ppp0")]
USER_CHAINS = ("one", "two", "three")
ADDRESSES = st.sampled_from([0x0A000002, 0x0A000003, 0xC7000001])
NETWORKS = st.sampled_from([(0, 0), (0x0A000000, 0xFF000000), (0x0A000002, 0xFFFFFFFF), (0xC7000001, 0xFFFFFFFF)])
PORTS = st.lists(st.sampled_from([(0, 0xFFFF), (0, 7), (8, 8), (53, 80), (80, 80), (1024, 0xFFFF)]), max_size=2).map(
    tuple
)
PORT = st.sampled_from([0, 8, 53, 80, 1024])
PROTOCOLS = st.sampled_from([1, 6, 17, 47])

matches = st.builds(
    Match,
    source=NETWORKS,
    destination=NETWORKS,
    protocol=st.sampled_from([0, 1, 6, 17, 47, 300]),
    source_ports=PORTS,
    destination_ports=PORTS,
    interface=st.sampled_from(["", "eth0", "eth+", "ppp+", "+", "eth2"]),
    interface_address=st.sampled_from([0, 0, 1, 3, 9]),
    syn=st.sampled_from([None, None, True, False]),
    ack=st.booleans(),
    fragment=st.sampled_from([None, None, True, False]),
    swapped_too=st.booleans(),
    not_source=st.booleans(),
    not_destination=st.booleans(),
    not_protocol=st.booleans(),
    not_source_ports=st.booleans(),
    not_destination_ports=st.booleans(),
    not_interface=st.booleans(),
    direction=st.sampled_from(["both", "both", "in", "out"]),
)
marks = st.none() | st.tuples(st.sampled_from(["set", "add"]), st.sampled_from([1, 7, 0xFFFFFFFF]))
targets = st.sampled_from(
    ["", "", "ACCEPT", "DENY", "REJECT", "MASQ", "REDIRECT", "RETURN", *USER_CHAINS, *USER_CHAINS]
)
octet = st.integers(0, 255)
entries = st.builds(
    Rule, match=st.just(Match()) | matches, target=targets, mark=marks, tos=st.just((0xFF, 0)) | st.tuples(octet, octet)
)
chains = st.lists(entries, max_size=4)


@st.composite
def rule_sets(draw) -> RuleSet:
    result = RuleSet()
    for name in USER_CHAINS:
        result.new_chain(name)
    for name in ("forward", "input", "output", *USER_CHAINS):
        for rule in draw(chains):
            if rule.target == "REDIRECT" and rule.match.protocol not in (6, 17):
                continue
            if rule.target != "MASQ" or name not in ("input", "output"):
                result.append(name, rule)
        if name == "forward":
            result.set_policy(name, draw(st.sampled_from(["ACCEPT", "DENY", "REJECT", "MASQ"])))
        elif name in ("input", "output"):
            result.set_policy(name, draw(st.sampled_from(["ACCEPT", "DENY", "REJECT"])))
    return result


@st.composite
def packets(draw) -> tuple[Packet, int]:
    """Return a packet, and the number of the link it is on."""
    protocol, link = draw(PROTOCOLS), draw(st.integers(0, len(LINKS) - 1))
    fragment = draw(st.booleans()) and draw(st.booleans())
    flags = draw(st.sampled_from(["", "syn", "ack"])) if protocol == 6 and not fragment else ""
    shows_ports = protocol in (1, 6, 17) and not fragment
    return Packet(
        source=draw(ADDRESSES),
        destination=draw(ADDRESSES),
        protocol=protocol,
        source_port=draw(PORT) if shows_ports else 0,
        destination_port=draw(PORT) if shows_ports else 0,
        syn=flags == "syn",
        ack=flags == "ack",
        fragment=fragment,
        interface=LINKS[link].name,
        interface_address=draw(st.sampled_from(LINKS[link].addresses or (0,))),
        tos=draw(octet),
        mark=draw(st.sampled_from([0, 5])),
        direction=draw(st.sampled_from(["in", "out"])),
    ), link


def shown(packet: Packet) -> int:
    has_ports = packet.protocol in (1, 6, 17) and not packet.fragment
    return (
        SHOWS["ports"] * has_ports
        | SHOWS["syn"] * packet.syn
        | SHOWS["ack"] * packet.ack
        | SHOWS["fragment"] * packet.fragment
        | SHOWS["out"] * (packet.direction == "out")
    )


@given(rule_sets(), st.sampled_from(["input", "forward", "output"]), st.lists(packets(), min_size=1, max_size=3))
def test_the_path_and_the_model_agree(rule_set, chain, probes):
    compiled = compile_chains(rule_set, LINKS)
    table = RuleTable(1)
    table.load(compiled)
    for packet, link in probes:
        # an interface has one address in the model, any of its addresses in the path
        model = evaluate(rule_set, chain, packet)
        if len(LINKS[link].addresses) > 1:
            others = [evaluate(rule_set, chain, _at(packet, each)) for each in LINKS[link].addresses]
            if any(other != model for other in others):
                continue
        seen = Shown(
            saddr=packet.source,
            daddr=packet.destination,
            protocol=packet.protocol,
            sport=packet.source_port,
            dport=packet.destination_port,
            shows=shown(packet),
            link=link,
            mark=packet.mark,
            octets=100,
        )
        verdict, mark, (keep, change), rows = table.evaluate(BASES.index(chain), seen)
        assert verdict == model.verdict
        assert mark == model.mark
        assert packet.tos & keep ^ change == model.tos
        places = [(step.chain, step.number) for step in model.steps]
        assert [compiled.places[row] for row in rows] == places[: len(rows)]
        counts = table.collect()
        assert int(counts["packets"].sum()) == len(places)
        assert int(counts["octets"].sum()) == 100 * len(places)


def _at(packet: Packet, address: int) -> Packet:
    from msgspec.structs import replace

    return replace(packet, interface_address=address)
