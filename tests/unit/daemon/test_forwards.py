"""Forwards of a running gateway: what is in force follows the addresses, changes are made all or none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.policy import forwards, redirects
from tests.support.harness import address
from tests.support.packets import decode, dotted, tcp, udp
from tests.support.path_network import HOST, INSIDE, OTHER_HOST, OUTSIDE, SERVER, dropped, passes
from tests.support.policy_gateway import PolicyGateway

OLD, NEW, SECOND = "200.200.200.200", "200.200.200.201", "200.200.200.202"
CLIENT = ("199.0.0.2", 5000)


class Gateway(PolicyGateway):
    """A gateway that may have three addresses, whose forwards are changed."""

    def __init__(self) -> None:
        super().__init__(local=(NEW, SECOND))
        self.call("dynaddr", value=0)  # sessions of an address that has gone stay

    def change(self, *changes: forwards.Change) -> dict[str, Any]:
        return self.call("forwards.change", changes=changes)

    def connect(self, listen: str, port: int, client: tuple[str, int] = CLIENT) -> str:
        """Send a SYN; return where it leads, as address:port."""
        arrived = decode(passes(self.harness, OUTSIDE, tcp(client, (listen, port), "S", seq=1)))
        return f"{dotted(arrived.destination)}:{arrived.destination_port}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    yield made
    made.close()


def add(listen: str, *to: str, protocol: str = "tcp") -> forwards.Change:
    return forwards.Change(action="add", forward=forwards.read(protocol, listen, to))


def test_h37_a_forward_of_a_link_follows_its_address(gateway: Gateway):
    gateway.change(add("eth1:8080", "10.0.0.2:80"))
    assert gateway.connect(OLD, 8080) == "10.0.0.2:80"
    gateway.move(NEW)
    assert gateway.connect(NEW, 8080, (CLIENT[0], 6000)) == "10.0.0.2:80"
    assert gateway.call("forwards")[0]["address"] == NEW
    assert dropped(gateway.harness, OUTSIDE, tcp((CLIENT[0], 7000), (OLD, 8080), "S", seq=1)) == "no_session"


def test_a_forward_of_an_address_waits_for_it(gateway: Gateway):
    answer = gateway.change(add(f"{NEW}:8080", "10.0.0.2:80"))
    assert answer["warnings"] == [f"tcp {NEW}:8080: no such address now; it is in force as soon as there is"]
    assert gateway.call("forwards")[0]["state"] == "no address"
    gateway.move(NEW)
    assert gateway.connect(NEW, 8080) == "10.0.0.2:80"
    gateway.move(OLD)
    assert gateway.call("forwards")[0]["state"] == "no address"


def test_pf3_a_second_address_forwards_and_its_server_leaves_with_it(gateway: Gateway):
    gateway.move(OLD, SECOND)
    gateway.change(add(f"{SECOND}:80", "10.0.0.2:80"))
    assert gateway.connect(SECOND, 80) == "10.0.0.2:80"
    out = decode(passes(gateway.harness, INSIDE, tcp((HOST, 80), (SERVER, 25), "S", seq=1)))
    assert (out.source, out.source_port) == (address(SECOND), 80)
    out = decode(passes(gateway.harness, INSIDE, tcp((OTHER_HOST, 80), (SERVER, 25), "S", seq=1)))
    assert out.source == address(OLD)


def test_a_range_leads_port_by_port(gateway: Gateway):
    gateway.change(add("eth1:6000-6200", "10.0.0.2:7000"))
    assert gateway.connect(OLD, 6000) == "10.0.0.2:7000"
    assert gateway.connect(OLD, 6200) == "10.0.0.2:7200"
    gateway.change(forwards.Change(action="delete", forward=forwards.read("tcp", "eth1:6000-6200", ["10.0.0.2:7000"])))
    assert dropped(gateway.harness, OUTSIDE, tcp((CLIENT[0], 6000), (OLD, 6100), "S", seq=1)) == "no_session"


def test_pf10_changes_are_all_or_none(gateway: Gateway):
    gateway.change(add("eth1:8080", "10.0.0.2:80"))
    with pytest.raises(ConfigurationError, match="the same address and port as tcp eth1:8080"):
        gateway.change(add("eth1:8081", "10.0.0.2:81"), add(f"{OLD}:8080", "10.0.0.3:80"))
    assert [one["first"] for one in gateway.call("forwards")] == [8080]
    with pytest.raises(ConfigurationError, match="changes: "):
        gateway.call("forwards.change", changes=[{"action": "explode"}])


def test_pf10_a_port_in_use_is_waited_for(gateway: Gateway):
    passes(gateway.harness, INSIDE, udp((OTHER_HOST, 8080), (SERVER, 53), b"x"))
    answer = gateway.change(add("eth1:8080", "10.0.0.2:80", protocol="udp"))
    assert answer["warnings"] == [f"udp {OLD}:8080: sessions still use this port; the forward follows them"]
    assert gateway.call("forwards")[0]["state"] == "waiting"
    gateway.harness.advance(301)
    gateway.gateway.forwards.retry()
    assert gateway.call("forwards")[0]["state"] == "in force"


def test_pf9_a_change_that_changes_nothing_touches_nothing(gateway: Gateway):
    gateway.change(add("eth1:8080", "10.0.0.2:80", "10.0.0.3:80"))
    gateway.connect(OLD, 8080)
    before = gateway.call("forwards")
    assert before[0]["targets"][0]["left"] == 9
    gateway.move(OLD)
    assert gateway.call("forwards") == before


def test_redirects_change_and_are_told_to_the_path(gateway: Gateway):
    gre = redirects.Redirect(protocol=47, host="10.0.0.2")
    changes = [redirects.Change(action="set", redirect=gre)]
    assert gateway.call("redirects.change", changes=changes) == {"redirects": 1}
    assert gateway.host.protocols_kept == [47]
    assert gateway.call("redirects") == [{"protocol": 47, "host": "10.0.0.2", "source": "0.0.0.0/0"}]


def test_pf9_the_port_of_a_forward_that_has_gone_is_held_until_its_last_session_ends(gateway: Gateway):
    def held(text: str) -> list[int]:
        ports = gateway.gateway.forwards.held_ports().get(address(text))
        return [] if ports is None else [int(port) for port in ports[0].nonzero()[0]]

    gateway.move(OLD, SECOND)
    gateway.change(add(f"{SECOND}:80", "10.0.0.2:80"), add("eth1:8080", "10.0.0.2:8080"))
    gateway.connect(SECOND, 80)
    assert (held(OLD), held(SECOND), held(NEW)) == ([8080], [80], [])
    for gone in (f"{SECOND}:80", "eth1:8080"):
        gateway.change(forwards.Change(action="delete", forward=forwards.read("tcp", gone, ["10.0.0.2:80"])))
    assert (held(OLD), held(SECOND)) == ([], [80])
    gateway.harness.advance(8000)
    gateway.gateway.forwards.retry()
    assert held(SECOND) == []


def test_h82_forwards_that_are_set_moved_and_cleared_are_logged_on_demand(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("DEBUG", "fastmasq.forwards")
    gateway.change(add("eth1:8080", "10.0.0.2:80"))
    gateway.change(forwards.Change(action="set", forward=forwards.read("tcp", "eth1:8080", ["10.0.0.3:81"])))
    gateway.move(NEW)
    gateway.move(None)
    gateway.change(forwards.Change(action="clear"))
    assert [record.getMessage() for record in caplog.records if record.name == "fastmasq.forwards"] == [
        "tcp eth1:8080: set, to 10.0.0.2:80",
        "tcp eth1:8080: set, to 10.0.0.3:81 instead of 10.0.0.2:80",
        f"tcp eth1:8080: moved from {OLD} to {NEW}",
        f"tcp eth1:8080: moved from {NEW} to no address",
        "tcp eth1:8080: cleared",
    ]


def test_h82_forwards_are_not_logged_usually(gateway: Gateway, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "fastmasq.forwards")
    gateway.change(add("eth1:8080", "10.0.0.2:80"))
    assert caplog.messages == []
