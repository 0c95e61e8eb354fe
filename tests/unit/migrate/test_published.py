"""What well-known programs write comes over: who gets out, who gets in, and what is said to be missing."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from fastmasq.migrate import iptables_save, nft_json, nft_load
from fastmasq.migrate.carry import carry
from fastmasq.migrate.files import Carried
from fastmasq.migrate.links import Here
from fastmasq.migrate.regions import EVERYTHING, SOURCE
from fastmasq.policy.evaluate import Packet, evaluate
from tests.support.published_rules import PUBLISHED, Published

MASQUERADED_BY_DEFAULT = "MASQ"


def imported(published: Published) -> Carried:
    if published.form == "nft":
        chains = nft_json.read(*nft_load.load("-", published.text))
    else:
        chains = iptables_save.read(published.text)
    return carry(
        chains,
        outside=published.outside,
        here=Here({published.lan: EVERYTHING[SOURCE]}) if published.by_route else None,
    )


def verdict(carried: Carried, source: str, destination: str, port: int, link: str = "eth1", protocol: int = 6) -> str:
    if not carried.needs_rules:
        return MASQUERADED_BY_DEFAULT if link == carried.outside else "DENY"
    packet = Packet(
        source=int(IPv4Address(source)),
        destination=int(IPv4Address(destination)),
        protocol=protocol,
        source_port=40000,
        destination_port=port,
        interface=link,
        syn=protocol == 6,
    )
    return evaluate(carried.rules, "forward", packet).verdict


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_rule_set(name: str) -> None:
    published = PUBLISHED[name]
    carried = imported(published)
    assert (carried.inside, carried.outside) == ([published.lan], "eth1")
    assert tuple(carried.forwards) == published.forwards
    for protocol, port in ((6, 443), (17, 53), (1, 0)):
        assert verdict(carried, published.host, "198.51.100.7", port, protocol=protocol) == "MASQ"
    for port in (22, 80):
        assert verdict(carried, "198.51.100.7", published.host, port, published.lan) in ("DENY", "REJECT")
    assert len(carried.missing) == len(published.missing), carried.missing
    for note, words in zip(carried.missing, published.missing, strict=True):
        assert words in note.why


def test_shorewall_refuses_mail() -> None:
    carried = imported(PUBLISHED["shorewall"])
    assert verdict(carried, "10.0.0.9", "198.51.100.7", 25) == "REJECT"
    assert verdict(carried, "10.0.0.9", "198.51.100.7", 25, protocol=17) == "MASQ"


def test_ufw_protects_the_host_whole_or_not_at_all() -> None:
    """Its RETURN for what is local comes before a DROP, and is always taken: what follows is reached."""
    published = PUBLISHED["ufw"]
    carried = carry(iptables_save.read(published.text), addresses=("203.0.113.5",))

    def judged(protocol: int, ports: tuple[int, int], **fields) -> str:
        packet = Packet(
            source=int(IPv4Address("198.51.100.7")),
            destination=int(IPv4Address("203.0.113.5")),
            protocol=protocol,
            source_port=ports[0],
            destination_port=ports[1],
            interface="eth1",
            **fields,
        )
        return evaluate(carried.rules, "input", packet).verdict

    assert judged(6, (40000, 22), syn=True) == "ACCEPT"
    assert judged(6, (40000, 23), syn=True) == "DENY"
    assert judged(6, (80, 33333), ack=True) == "ACCEPT"
    assert judged(1, (8, 0)) == "ACCEPT"
    assert judged(17, (67, 68)) == "ACCEPT"
    assert judged(17, (67, 69)) == "DENY"
    assert judged(6, (40000, 8080), syn=True) == "ACCEPT"
