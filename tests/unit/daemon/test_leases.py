"""Leases of a running gateway: which port an inside host gets, for how long, and what ends or outlives it.

RFC 6887 sections 8.5, 11.3 and 15, RFC 6886 sections 3.3 to 3.5, RFC 6888 REQ-4 and REQ-9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastmasq.config.schema import PortMapping
from fastmasq.config.values import Allowances, Duration
from fastmasq.daemon.leases import Refused, Why, Wish
from fastmasq.errors import KernelError
from fastmasq.kernel.identity import network_namespace
from fastmasq.kernel.run_folder import RunFolder, file_of
from fastmasq.policy import forwards
from fastmasq.units import NS_PER_SECOND
from tests.support.harness import address
from tests.support.packets import decode, dotted, tcp
from tests.support.path_network import HOST, INSIDE, OTHER_HOST, OUTSIDE, dropped, passes
from tests.support.policy_gateway import OUTSIDE_ADDRESS, Host, PolicyGateway

NAME = file_of(network_namespace().inode, "leases")
NEW_ADDRESS = "200.200.200.201"
CLIENT = ("199.0.0.2", 5000)
S = NS_PER_SECOND
KEY, OTHER_KEY = b"k" * 12, b"o" * 12
TCP, UDP = 0, 1  # rows of ports


def wish(port: int = 6000, external: int = 0, *, host: str = HOST, lifetime: int = 3600, **more: Any) -> Wish:
    found = {"by": "pcp", "protocol": "tcp", "key": KEY, **more}
    return Wish(host=address(host), port=port, external=external, lifetime_ns=lifetime * S, **found)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., PolicyGateway]]:
    """Start a gateway at a time in seconds, and kill the one before it."""
    running: list[PolicyGateway] = []

    def start(now: int = 0, *, host: Host | None = None, ports: str = "1-65535", **settings: Any) -> PolicyGateway:
        for one in running:
            one.close()
        mapping = PortMapping(pcp=True, **settings)
        made = PolicyGateway(
            folder=folder, port_mapping=mapping, now=now * S, host=host, ports=ports, local=(NEW_ADDRESS,)
        )  # fmt: skip
        running[:] = [made]
        return made

    with RunFolder(tmp_path) as folder:
        yield start
        running[0].close()


@pytest.fixture
def gateway(start: Callable[..., PolicyGateway]) -> PolicyGateway:
    return start()


def refusal(gateway: PolicyGateway, asked: Wish, now: int = 0) -> Why:
    with pytest.raises(Refused) as caught:
        gateway.leases.grant(asked, now * S)
    assert gateway.leases.describe(now * S)["refused"][-1]["reason"] == caught.value.why
    return caught.value.why


def leads_to(gateway: PolicyGateway, port: int, source: int = CLIENT[1], listen: str = OUTSIDE_ADDRESS) -> str:
    """Send a SYN from outside; return where it leads, as address:port, or why it was dropped."""
    packet = tcp((CLIENT[0], source), (listen, port), "S", seq=1)
    if gateway.gateway.forwards.target_of(address(listen), "tcp", port) is None:
        return dropped(gateway.harness, OUTSIDE, packet)
    arrived = decode(passes(gateway.harness, OUTSIDE, packet))
    return f"{dotted(arrived.destination)}:{arrived.destination_port}"


def test_a_lease_is_a_forward_with_an_owner_and_a_time(gateway: PolicyGateway) -> None:
    lease = gateway.leases.grant(wish(6000), 0)
    assert (lease.external, lease.left_s(0)) == (6000, 3600)
    assert leads_to(gateway, 6000) == f"{HOST}:6000"
    (listed,) = gateway.call("forwards")
    assert (listed["protocol"], listed["listen"], listed["first"], listed["state"]) == (
        "tcp", "outside", 6000, "in force"
    )  # fmt: skip
    assert (listed["from"], listed["owner"]) == ("pcp", HOST)
    gateway.leases.follow(3599 * S)
    assert leads_to(gateway, 6000, 5001) == f"{HOST}:6000"
    gateway.leases.follow(3600 * S)
    assert gateway.call("forwards") == []
    assert gateway.leases.granted == {"granted": 1, "ended": 1}


def test_the_port_that_is_suggested_goes_before_the_hosts_own_and_that_before_any(gateway: PolicyGateway) -> None:
    assert gateway.leases.grant(wish(6000, 7000), 0).external == 7000
    assert gateway.leases.grant(wish(7000, 7000, host=OTHER_HOST), 0).external not in (6000, 7000)
    assert gateway.leases.grant(wish(6001, 7000), 0).external == 6001


def test_asking_again_is_for_longer_and_the_same_port(gateway: PolicyGateway) -> None:
    first = gateway.leases.grant(wish(6000, 7000), 0)
    changes = gateway.gateway.changes
    again = gateway.leases.grant(wish(6000, 7001, lifetime=7200), 100 * S)
    assert (again.external, again.left_s(100 * S)) == (first.external, 7200)
    assert gateway.gateway.changes == changes  # the path has nothing to do with it
    gateway.leases.follow(3601 * S)
    assert leads_to(gateway, 7000) == f"{HOST}:6000"


def test_nobody_has_a_lease_for_longer_than_the_settings_say(start: Callable[..., PolicyGateway]) -> None:
    gateway = start(longest=Duration.read("10m"))
    assert gateway.leases.grant(wish(lifetime=86_400), 0).left_s(0) == 600


def test_only_who_knows_the_nonce_may_change_or_end_a_lease(gateway: PolicyGateway) -> None:
    gateway.leases.grant(wish(6000), 0)
    for by in ({"key": OTHER_KEY}, {"key": b"", "by": "nat-pmp"}):
        assert refusal(gateway, wish(6000, **by), 600) is Why.FOREIGN
        with pytest.raises(Refused) as caught:
            gateway.leases.delete(wish(6000, **by), 600 * S)
        assert (caught.value.why, caught.value.lasts_s) == (Why.FOREIGN, 3000)
    gateway.leases.delete(wish(6000, lifetime=0), 600 * S)
    assert leads_to(gateway, 6000) == "no_session"


def test_port_0_ends_all_that_the_key_is_for_and_no_others(gateway: PolicyGateway) -> None:
    for port, more in ((1, {}), (2, {}), (3, {"key": OTHER_KEY}), (4, {"host": OTHER_HOST}), (5, {"protocol": "udp"})):
        gateway.leases.grant(wish(6000 + port, **more), 0)
    gateway.leases.delete(wish(0), 0)
    assert sorted(lease.port for lease in gateway.leases) == [6003, 6004, 6005]
    gateway.leases.delete(wish(0, protocol=""), 0)
    assert sorted(lease.port for lease in gateway.leases) == [6003, 6004]
    gateway.leases.delete(wish(9), 0)  # there is none: all the better


def test_exactly_a_port_or_none(gateway: PolicyGateway) -> None:
    gateway.leases.grant(wish(6000, 7000), 0)
    assert refusal(gateway, wish(6001, 7000, exactly=True, host=OTHER_HOST)) is Why.TAKEN
    assert refusal(gateway, wish(6000, 7001, exactly=True)) is Why.TAKEN
    assert gateway.leases.grant(wish(6001, 7001, exactly=True), 0).external == 7001
    assert gateway.leases.grant(wish(6002, 0, exactly=True), 0).external == 6002


def test_without_an_allow_list_there_are_no_ports_under_1024(gateway: PolicyGateway) -> None:
    assert refusal(gateway, wish(22)) is Why.FORBIDDEN
    assert gateway.leases.grant(wish(6000, 22), 0).external == 6000
    assert refusal(gateway, wish(6001, 22, exactly=True)) is Why.TAKEN


def test_an_allow_list_has_hosts_and_their_ports(start: Callable[..., PolicyGateway]) -> None:
    gateway = start(allow=Allowances.read([f"{HOST}:80,8000-8001", "10.0.0.8/29:9000"]))
    assert gateway.leases.grant(wish(80, 8000), 0).external == 8000
    assert {gateway.leases.grant(wish(port, 9000), 0).external for port in (8000, 8001)} == {80, 8001}
    assert refusal(gateway, wish(8002)) is Why.FORBIDDEN
    assert refusal(gateway, wish(8000, host=OTHER_HOST)) is Why.FORBIDDEN
    assert gateway.leases.grant(wish(9000, 1, host="10.0.0.9"), 0).external == 9000
    assert refusal(gateway, wish(9000, host="10.0.0.10")) is Why.FULL


def test_rfc6888_req4_one_host_has_no_more_than_its_quota(start: Callable[..., PolicyGateway]) -> None:
    gateway = start(mappings_per_host=2)
    for port in (6000, 6001):
        gateway.leases.grant(wish(port), 0)
    assert refusal(gateway, wish(6002)) is Why.QUOTA
    assert gateway.leases.grant(wish(6001, lifetime=7200), 0).left_s(0) == 7200
    assert gateway.leases.grant(wish(6002, host=OTHER_HOST), 0).external == 6002
    gateway.leases.delete(wish(6000, lifetime=0), 0)
    assert gateway.leases.grant(wish(6002, 7000), 0).external == 7000


def test_a_port_that_somebody_has_is_not_given(start: Callable[..., PolicyGateway]) -> None:
    """Not the host's own, another forward's, another host's (of either protocol), or one with a session of another."""
    host = Host()
    host.used[TCP, 7001] = True
    gateway = start(host=host)
    gateway.call("forwards.change", changes=[_add("eth1:7002")])
    gateway.leases.grant(wish(6000, 7003, host=OTHER_HOST, protocol="udp"), 0)
    passes(gateway.harness, INSIDE, tcp((OTHER_HOST, 7004), CLIENT, "S", seq=1))
    for number, taken in enumerate((7001, 7002, 7003, 7004)):
        assert refusal(gateway, wish(6100 + number, taken, exactly=True)) is Why.TAKEN
        assert gateway.leases.grant(wish(6100 + number, taken), 0).external == 6100 + number


def test_a_port_that_sessions_still_have_is_given_to_their_own_host_alone(gateway: PolicyGateway) -> None:
    gateway.leases.grant(wish(6000), 0)
    leads_to(gateway, 6000)
    gateway.leases.delete(wish(6000, lifetime=0), 0)
    assert gateway.leases.grant(wish(6001, 6000, host=OTHER_HOST), 0).external != 6000
    assert gateway.leases.grant(wish(6000), 0).external == 6000
    assert leads_to(gateway, 6000, 5001) == f"{HOST}:6000"


def test_a_port_of_a_tracker_is_not_given(gateway: PolicyGateway) -> None:
    gateway.gateway.ports.track(UDP, 4500)
    assert refusal(gateway, wish(6000, 4500, protocol="udp", exactly=True)) is Why.TAKEN


def test_an_inside_endpoint_that_has_sessions_keeps_the_port_that_they_have(gateway: PolicyGateway) -> None:
    passes(gateway.harness, INSIDE, tcp((OTHER_HOST, 6000), CLIENT, "S", seq=1))
    left = decode(passes(gateway.harness, INSIDE, tcp((HOST, 6000), CLIENT, "S", seq=1)))
    assert refusal(gateway, wish(6000, 7000, exactly=True)) is Why.TAKEN
    assert gateway.leases.grant(wish(6000, 7000), 0).external == left.source_port != 6000
    assert leads_to(gateway, left.source_port, 5001) == f"{HOST}:6000"


def test_a_host_that_a_forward_leads_to_already_is_told_so(gateway: PolicyGateway) -> None:
    gateway.call("forwards.change", changes=[_add("eth1:8080", f"{HOST}:80")])
    start_port = _add("eth1:8081", f"{HOST}:6000")
    gateway.call("forwards.change", changes=[start_port])
    assert gateway.leases.grant(wish(6000), 0).external == 8081
    assert list(gateway.leases) == []
    gateway.leases.delete(wish(6000), 0)
    assert leads_to(gateway, 8081) == f"{HOST}:6000"


def test_files_and_commands_go_before_leases(gateway: PolicyGateway) -> None:
    for port in (6000, 6001, 6002):
        gateway.leases.grant(wish(port), 0)
    gateway.call("forwards.change", changes=[_add("eth1:6000", f"{OTHER_HOST}:22")])
    assert leads_to(gateway, 6000) == f"{OTHER_HOST}:22"
    gateway.call("forwards.change", changes=[forwards.Change(action="delete", forward=_read("outside:6001"))])
    gateway.leases.follow(0)
    assert [lease.port for lease in gateway.leases] == [6002]
    gateway.call("forwards.change", changes=[forwards.Change(action="clear")])
    gateway.leases.follow(0)
    assert (gateway.call("forwards"), list(gateway.leases)) == ([], [])
    assert gateway.leases.granted["taken away"] == 3


def test_what_the_guard_refuses_is_no_lease(gateway: PolicyGateway) -> None:
    gateway.host.refuses.add("guard")
    assert refusal(gateway, wish(6000)) is Why.FAILED
    gateway.host.refuses.clear()
    assert leads_to(gateway, 6000) == "no_session"
    assert gateway.leases.grant(wish(6000), 0).external == 6000


def test_a_change_that_goes_back_takes_no_lease_with_it(gateway: PolicyGateway) -> None:
    gateway.leases.grant(wish(6000), 0)
    line = {"place": "f:1", "method": "forwards.change", "params": {"changes": [_add("eth1:22")]}}
    gateway.call("policy.change", lines=[line], confirm_s=60)
    gateway.leases.delete(wish(6000, lifetime=0), 0)
    gateway.leases.grant(wish(6001), 0)
    gateway.call("confirm", undo=True)
    gateway.leases.follow(0)
    assert [lease.port for lease in gateway.leases] == [6001]
    assert [one["first"] for one in gateway.call("forwards")] == [6001]


def test_without_an_address_outside_there_is_none(gateway: PolicyGateway) -> None:
    gateway.leases.grant(wish(6000), 0)
    gateway.move(None)
    assert refusal(gateway, wish(6001)) is Why.NO_ADDRESS


def test_another_address_is_another_epoch_and_leases_follow_it(gateway: PolicyGateway) -> None:
    gateway.leases.grant(wish(6000), 100 * S)
    assert gateway.leases.epoch_s(100 * S) == 100
    gateway.move(NEW_ADDRESS)
    gateway.leases.follow(200 * S)
    assert gateway.leases.epoch_s(230 * S) == 30
    assert leads_to(gateway, 6000, listen=NEW_ADDRESS) == f"{HOST}:6000"


# -- what outlives a process -------------------------------------------------------------------------------------------


def test_leases_and_their_epoch_outlive_a_kill(start: Callable[..., PolicyGateway]) -> None:
    gateway = start(100)
    gateway.leases.grant(wish(6000, 7000), 150 * S)
    gateway.leases.grant(wish(6001, lifetime=60), 150 * S)
    gateway = start(1000)
    assert leads_to(gateway, 7000) == f"{HOST}:6000"
    assert [lease.left_s(1000 * S) for lease in gateway.leases] == [2750]
    assert gateway.leases.epoch_s(1000 * S) == 900
    assert refusal(gateway, wish(6000, key=OTHER_KEY), 1000) is Why.FOREIGN
    gateway.leases.follow(3750 * S)
    assert leads_to(gateway, 7000, 5001) == "no_session"


def test_what_the_settings_no_longer_allow_ends_and_with_it_the_epoch(start: Callable[..., PolicyGateway]) -> None:
    gateway = start()
    gateway.leases.grant(wish(6000), 0)
    gateway = start(100, allow=Allowances.read([f"{OTHER_HOST}:1024-65535"]))
    assert (list(gateway.leases), gateway.leases.epoch_s(130 * S)) == ([], 30)
    assert leads_to(gateway, 6000) == "no_session"


@pytest.mark.parametrize("content", [b"", b"\0", b"{}", b"[" * 2000, b'{"origin": 1}'])
def test_a_file_that_is_damaged_is_another_epoch(
    start: Callable[..., PolicyGateway], tmp_path: Path, content: bytes
) -> None:
    start().leases.grant(wish(6000), 0)
    (tmp_path / NAME).write_bytes(content)
    gateway = start(100)
    assert (list(gateway.leases), gateway.leases.epoch_s(100 * S)) == ([], 0)
    assert (tmp_path / f"{NAME}.old").read_bytes() == content


def test_after_a_reboot_the_epoch_begins_anew(start: Callable[..., PolicyGateway], tmp_path: Path) -> None:
    start(500).leases.grant(wish(6000), 500 * S)
    image = msgspec.json.decode((tmp_path / NAME).read_bytes())
    image["origin"]["boot"] = "another"
    (tmp_path / NAME).write_bytes(msgspec.json.encode(image))
    gateway = start(10)
    assert (list(gateway.leases), gateway.leases.epoch_s(10 * S)) == ([], 0)


def test_a_folder_that_is_full_costs_the_next_run_its_epoch_and_nobody_a_lease(
    start: Callable[..., PolicyGateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start()
    gateway.leases.grant(wish(6000), 0)

    def full(*_: object) -> None:
        raise KernelError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", full)
        assert gateway.leases.grant(wish(6001), 0).external == 6001
    assert not (tmp_path / NAME).exists()
    gateway = start(100)
    assert (list(gateway.leases), gateway.leases.epoch_s(100 * S)) == ([], 0)


def _read(listen: str, to: str = f"{HOST}:1") -> forwards.Forward:
    return forwards.read("tcp", listen, [to])


def _add(listen: str, to: str = f"{OTHER_HOST}:80") -> forwards.Change:
    return forwards.Change(action="add", forward=_read(listen, to))
