"""Any words at all are read or refused in words; any rule ipchains can make survives being saved and read again."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.errors import ConfigurationError
from fastmasq.legacy import ipchains, ipfwadm, save
from fastmasq.legacy.requests import Changes
from fastmasq.policy.chains import ANY_PORT, Match, Rule
from tests.support.legacy import NAMES

OPTIONS = [f"-{letter}" for letter in "AFIMOadilzfspchPSDVWbekmnortvxyCDRLNXTZ0123"]
LONG = ["--append", "--icmp-type", "--sport", "--s", "--list=input", "--log=1", "--", "-", "–A", "—log"]
VALUES = [
    *("accept", "DENY", "MASQ", "REDIRECT", "vpn", "input", "forward", "in", "tcp", "udp", "icmp", "all", "47", "esp"),
    *("10.0.0.0/8", "any/0", "many", "gate", "nobody", "1.2.3.4/99", "/", "0", "80", "1:2", ":", "ping", "echo"),
    *("!", "", " ", "ff", "-1", "+3", "eth0", "ppp+", "+", "99999999999999999999", "x" * 20, "é"),
]
words = st.lists(st.sampled_from(OPTIONS + LONG + VALUES) | st.text(max_size=6), max_size=9)


@settings(deadline=None, max_examples=400)
@given(words, st.booleans())
def test_any_words_are_read_or_refused(words: list[str], tolerant: bool) -> None:
    for program in (ipfwadm, ipchains):
        with contextlib.suppress(ConfigurationError):
            request = program.parse(words, NAMES, tolerant=tolerant)
            if isinstance(request, Changes):
                assert request.changes


bits = st.integers(0, 32)
masks = bits.map(lambda count: 0xFFFFFFFF << (32 - count) & 0xFFFFFFFF) | st.just(0xFF00FF00)
ends = st.tuples(st.integers(0, 0xFFFFFFFF), masks).map(lambda end: (end[0] & end[1], end[1]))
port_ranges = st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)).filter(lambda ports: ports != ANY_PORT)
names_of_links = st.sampled_from(["", "eth0", "ppp+"])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from([0, 1, 6, 17, 50, 255]))
    not_protocol = draw(st.booleans()) if protocol else False
    has_ports = protocol in (1, 6, 17) and not not_protocol
    source_ports, destination_ports = (
        (draw(port_ranges),) if has_ports and draw(st.booleans()) else () for _ in range(2)
    )
    syn = draw(st.sampled_from([None, True, False])) if protocol == 6 and not not_protocol else None
    fragment = None if syn is not None or source_ports or destination_ports else draw(st.sampled_from([None, True]))
    interface = draw(names_of_links)
    targets = ["", "ACCEPT", "DENY", "REJECT", "RETURN", "vpn"]
    target = draw(st.sampled_from([*targets, "REDIRECT"] if protocol in (6, 17) and not not_protocol else targets))
    return Rule(
        match=Match(
            source=draw(ends),
            destination=draw(ends),
            protocol=protocol,
            source_ports=source_ports,
            destination_ports=destination_ports,
            interface=interface,
            syn=syn,
            fragment=fragment,
            not_source=draw(st.booleans()),
            not_destination=draw(st.booleans()),
            not_protocol=not_protocol,
            not_source_ports=draw(st.booleans()) if source_ports else False,
            not_destination_ports=draw(st.booleans()) if destination_ports else False,
            not_interface=draw(st.booleans()) if interface else False,
        ),
        target=target,
        redirect_port=draw(st.integers(0, 0xFFFF)) if target == "REDIRECT" else 0,
        log=draw(st.booleans()),
        mark=draw(st.none() | st.tuples(st.sampled_from(["set", "add"]), st.integers(1, 0xFFFFFFFF))),
        tos=draw(st.sampled_from([(0xFF, 0), (1, 0x10), (0xE1, 2)])),
        output=draw(st.sampled_from([0, 1, 0xFFFF])),
    )


@settings(deadline=None, max_examples=300)
@given(rules())
def test_saved_rules_are_read_as_they_were(rule: Rule) -> None:
    (change,) = ipchains.parse(save.rule_line("input", rule).split(), NAMES).changes
    assert change.rule == rule
