"""Port forwards as data: how they are written, what changes do, which of them conflict (PF-1, PF-8, PF-10)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.errors import ConfigurationError
from fastmasq.policy.forwards import ANY, Change, Forward, Target, apply, endpoints, read

WEB = read("tcp", "eth1:8080", ["10.0.0.2:80"])


def changed(forwards, *changes: Change):
    return apply(forwards, changes)


def add(forward: Forward) -> Change:
    return Change(action="add", forward=forward)


def prefer(target: Target, listen: str = "200.200.200.200", port: int = 80) -> Change:
    return Change(action="prefer", forward=one_port(listen, port, target))


def withdraw(listen: str, port: int, *targets: Target) -> Change:
    return Change(action="withdraw", forward=one_port(listen, port, *targets))


def one_port(listen: str, port: int, *targets: Target) -> Forward:
    return Forward(protocol="tcp", listen=listen, first=port, last=port, targets=targets)


def test_pf1_a_forward_is_written_with_a_link_or_an_address_and_one_port_or_a_range():
    assert (WEB.protocol, WEB.listen, WEB.first, WEB.last) == ("tcp", "eth1", 8080, 8080)
    assert WEB.targets == (Target("10.0.0.2", 80, 10),)
    ranged = read("udp", "200.200.200.200:6000-6010", ["10.0.0.2:7000"])
    assert (ranged.listen, ranged.first, ranged.last) == ("200.200.200.200", 6000, 6010)
    assert str(ranged) == "udp 200.200.200.200:6000-6010"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("icmp", "eth1:80", ["10.0.0.2:80"]), "only tcp and udp have ports"),
        (("tcp", "eth1", ["10.0.0.2:80"]), "is not address:port or link:port"),
        (("tcp", "300.1.1.1:80", ["10.0.0.2:80"]), "300.1.1.1 is not an IPv4 address"),
        (("tcp", "eth1:0", ["10.0.0.2:80"]), "ports run from 1 to 65535"),
        (("tcp", "eth1:90-80", ["10.0.0.2:80"]), "the smaller first"),
        (("tcp", "0.0.0.0:80", ["10.0.0.2:80"]), "name one address, or the link"),
        (("tcp", "eth1:80", ["10.0.0.2"]), "is not the endpoint of an inside host"),
        (("tcp", "eth1:80", ["224.0.0.1:80"]), "cannot be the address of an inside host"),
        (("tcp", "eth1:80-90", ["10.0.0.2:65530"]), "no room for 11 ports"),
        (("tcp", "eth1:80", []), "leads nowhere"),
        (("tcp", "eth1:80", ["10.0.0.2:80", "10.0.0.2:80"]), "names a target twice"),
        (("tcp", "eth1:80", ["10.0.0.2:80"], [1, 2]), "2 preferences for 1 targets"),
        (("tcp", "eth1:80", ["10.0.0.2:80"], [0]), "1 or more"),
    ],
)
def test_mistakes_are_named(arguments, said: str):
    with pytest.raises(ConfigurationError, match=said):
        read(*arguments)


def test_pf10_the_same_port_twice_is_refused_and_names_what_has_it():
    with pytest.raises(ConfigurationError, match=r"tcp eth1:8000-8100: forwarded already by tcp eth1:8080"):
        changed((), add(WEB), add(read("tcp", "eth1:8000-8100", ["10.0.0.3:8000"])))
    assert len(changed((), add(WEB), add(read("udp", "eth1:8080", ["10.0.0.3:80"])))) == 2


def test_changes_are_made_all_or_none():
    before = (WEB,)
    with pytest.raises(ConfigurationError):
        changed(before, Change(action="clear"), add(WEB), add(WEB))
    assert before == (WEB,)


def test_set_takes_the_place_of_the_same_ports():
    other = read("tcp", "eth1:8080", ["10.0.0.3:80"])
    assert changed((WEB,), Change(action="set", forward=other)) == (other,)


def test_delete_wants_the_forward_as_it_was_added():
    assert changed((WEB,), Change(action="delete", forward=read("tcp", "eth1:8080", ["192.0.2.1:1"]))) == ()
    with pytest.raises(ConfigurationError, match="no such forward; there is tcp eth1:8080"):
        changed((WEB,), Change(action="delete", forward=read("tcp", "eth1:8080-8081", ["192.0.2.1:1"])))


def test_clear_may_be_of_one_listener():
    other = read("tcp", "outside:81", ["10.0.0.2:80"])
    assert changed((WEB, other), Change(action="clear", listen="outside")) == (WEB,)
    assert changed((WEB, other), Change(action="clear")) == ()


def test_pf8_prefer_adds_targets_at_the_head_and_only_edits_those_there_are():
    first, second = Target("10.0.0.2", 80, 10), Target("10.0.0.3", 80, 5)
    forwards = changed((), prefer(first), prefer(second))
    assert [forward.targets for forward in forwards] == [(second, first)]
    edited = Target("10.0.0.2", 80, 3)
    assert changed(forwards, prefer(edited))[0].targets == (second, edited)


def test_withdraw_takes_zero_for_any():
    first, second = Target("10.0.0.2", 80), Target("10.0.0.3", 80)
    forwards = changed((), prefer(first), prefer(second), prefer(first, "200.200.200.201"))
    assert changed(forwards, withdraw(ANY, 80)) == ()
    assert changed(forwards, withdraw("200.200.200.200", 80, Target(ANY, 0)))[0].listen == "200.200.200.201"
    assert changed(forwards, withdraw("200.200.200.200", 80, second))[0].targets == (first,)
    with pytest.raises(ConfigurationError, match="no such forward"):
        changed(forwards, withdraw(ANY, 81))


def test_endpoints_follow_the_addresses_of_the_moment():
    ranged = read("udp", "eth1:6000-6001", ["10.0.0.2:7000", "10.0.0.3:7000"], [2, 1])
    assert [*endpoints([ranged], {})] == []
    found = {endpoint: placed.targets for endpoint, placed, _ in endpoints([ranged], {"eth1": 0xC8C8C8C8})}
    assert found == {
        (0xC8C8C8C8, 1, 6000): ((0x0A000002, 7000, 2), (0x0A000003, 7000, 1)),
        (0xC8C8C8C8, 1, 6001): ((0x0A000002, 7001, 2), (0x0A000003, 7001, 1)),
    }


PORTS = st.integers(1, 12)
FORWARDS = st.builds(
    lambda protocol, listen, first, last: read(
        protocol, f"{listen}:{min(first, last)}-{max(first, last)}", ["10.0.0.2:80"]
    ),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["eth1", "200.200.200.200"]),
    PORTS,
    PORTS,
)


@given(st.lists(FORWARDS, max_size=12))
def test_many_at_once_come_to_what_one_after_the_other_does(wanted: list[Forward]) -> None:
    """Each that has a port of one before it is refused, which is found without comparing it with all of them."""
    kept: list[Forward] = []
    for one in wanted:
        is_refused = any(
            (one.protocol, one.listen) == (other.protocol, other.listen)
            and one.first <= other.last
            and other.first <= one.last
            for other in kept
        )
        changes = [Change(action="add", forward=each) for each in (*kept, one)]
        if is_refused:
            with pytest.raises(ConfigurationError, match="forwarded already"):
                apply((), changes)
            with pytest.raises(ConfigurationError, match="forwarded already"):
                apply(kept, changes[-1:])
        else:
            kept.append(one)
            assert apply((), changes) == apply(kept[:-1], changes[-1:]) == tuple(kept)
