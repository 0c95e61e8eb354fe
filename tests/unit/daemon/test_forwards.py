"""Forwards of a running gateway: what is in force follows the addresses, changes are made all or none."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastmasq.config.schema import Settings
from fastmasq.daemon.policy import declare
from fastmasq.errors import ConfigurationError
from fastmasq.policy import forwards, marks, redirects, triggers
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
    assert gateway.call("redirects") == [{"protocol": 47, "host": "10.0.0.2", "source": "0.0.0.0/0", "steal": False}]


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


def test_of_two_forwards_that_come_to_one_port_only_the_first_is_in_force():
    """A link and its address: nobody knows that they are one until the link has it."""
    both = (forwards.read("tcp", "eth1:79-80", ["10.0.0.2:79"]), forwards.read("tcp", f"{OLD}:80", ["10.0.0.3:80"]))
    gateway = PolicyGateway(declared=dataclasses.replace(declare(Settings()), forwards=both))
    first, second = gateway.call("forwards")
    assert (first["state"], first["targets"][0]["address"]) == ("in force", "10.0.0.2")
    assert (second["state"], second["address"], second["targets"][0]["address"]) == ("taken", OLD, "10.0.0.3")
    gateway.close()


def test_a_change_warns_of_what_it_changes_alone(gateway: Gateway):
    [warning] = gateway.change(add(f"{NEW}:8080", "10.0.0.2:80"))["warnings"]
    assert warning.startswith(f"tcp {NEW}:8080: no such address now")
    assert gateway.change(add("eth1:8081", "10.0.0.2:80"))["warnings"] == []


def test_each_forward_says_where_it_comes_from():
    declared = dataclasses.replace(declare(Settings()), forwards=(forwards.read("tcp", "eth1:80", ["10.0.0.2:80"]),))
    gateway = PolicyGateway(declared=declared)
    gateway.call("forwards.change", changes=[add("eth1:81", "10.0.0.2:80")])
    assert [one["from"] for one in gateway.call("forwards")] == ["configuration", "command"]
    gateway.close()


OUTSIDERS = {
    "8.8.8.8": "the way there leads over eth1; inside are eth0",
    "10.0.0.1": "it is an address of this host",
    OLD: "it is an address of this host",
}


@pytest.mark.parametrize("to", OUTSIDERS)
def test_what_leads_to_no_inside_host_is_refused_with_the_reason(gateway: Gateway, to: str):
    forward = add("eth1:8080", f"{to}:80")
    redirect = redirects.Change(action="set", redirect=redirects.Redirect(protocol=47, host=to))
    trigger = triggers.Change(
        action="add", row=triggers.Trigger(kind="port", protocol="tcp", first=80, last=80, hidden=80, host=to)
    )
    mark = marks.Change(action="add", target=marks.MarkTarget(mark=1, address=to, port=80))
    wanted = {"forwards": forward, "redirects": redirect, "triggers": trigger, "marks": mark}
    for what, change in wanted.items():
        with pytest.raises(ConfigurationError, match=rf": {re.escape(to)} is no inside host: {OUTSIDERS[to]}$"):
            gateway.call(f"{what}.change", changes=[change])
        assert gateway.call(what) == []


def test_nothing_is_refused_while_the_inside_has_no_address(gateway: Gateway):
    """At boot the links may come up in any order."""
    snapshot = gateway.watch.snapshot()
    bare = dataclasses.replace(snapshot, links=(snapshot.links[0]._replace(addresses=()), snapshot.links[1]))
    gateway.watch.announced = dataclasses.replace(bare, generation=snapshot.generation + 1)
    gateway.gateway.read_kernel()
    gateway.change(add("eth1:8080", "10.0.0.2:80"))


def test_ah_is_not_redirected(gateway: Gateway):
    change = redirects.Change(action="set", redirect=redirects.Redirect(protocol=51, host="10.0.0.2"))
    with pytest.raises(ConfigurationError, match="AH signs the addresses, so no translator can carry it; use ESP"):
        gateway.call("redirects.change", changes=[change])


def test_a_link_that_is_none_of_ours_is_refused(gateway: Gateway):
    """Its address would never be known."""
    with pytest.raises(ConfigurationError) as refusal:
        gateway.change(add("eth9:80", "10.0.0.2:80"))
    assert str(refusal.value) == "tcp eth9:80: eth9 is no link of [interfaces]; those are eth0, eth1"
    gateway.change(add("outside:80", "10.0.0.2:80"), add("eth0:80", "10.0.0.2:80"))


def test_the_host_is_told_of_what_leads_inside_by_its_number(gateway: Gateway):
    gateway.change(add("eth1:22000-22001", "10.0.0.2:80"), add(f"{OLD}:22003", "10.0.0.2:80", protocol="udp"))
    assert np.flatnonzero(gateway.host.led).tolist() == [22000, 22001, 22003]
    gateway.change(forwards.Change(action="clear"))
    assert not gateway.host.led.any()
