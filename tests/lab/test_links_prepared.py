"""What is opened of links while a start still has else to do: taken over, or closed if they are others by then."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from fastmasq.clock import now_ns
from fastmasq.config.schema import Interfaces, Settings, defaults
from fastmasq.config.values import InterfaceNames
from fastmasq.daemon.links import Links
from fastmasq.daemon.worker import Worker
from fastmasq.errors import KernelError
from fastmasq.kernel.watch import Watch
from fastmasq.lab import hosts
from fastmasq.path.forwarder import Forwarder
from fastmasq.ring.packet_socket import Tap, open_tap
from fastmasq.table.masq import MasqTable
from tests.support.namespaces import Gateway


@pytest.fixture
def between() -> Iterator[Gateway]:
    gateway = Gateway()
    with gateway.host.entered():
        yield gateway
    gateway.remove()


def settings(ring: str = "auto") -> Settings:
    made = replace(defaults(), interfaces=Interfaces(inside=InterfaceNames({"eth0": None}), outside="eth1"))
    return replace(made, rings=replace(made.rings, mode=ring, frames=64))


@pytest.fixture
def watch(between: Gateway) -> Iterator[Watch]:
    made = Watch(["eth0"], "eth1")
    yield made
    made.close()


@pytest.fixture
def links() -> Iterator[Links]:
    forwarder = Forwarder(MasqTable(100))
    worker = Worker(forwarder)
    made = Links(settings(), forwarder, worker, behind=False)
    yield made
    made.close()
    worker.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def has_heard(between: Gateway, links: Links) -> bool:
    between.inside.sh("ping -c 1 -W 1 10.0.0.1")
    return bool(links.attached[0].ring.pending())


def test_what_was_prepared_hears_once_it_is_followed(between: Gateway, watch: Watch, links: Links, monkeypatch) -> None:
    opened: list[Tap] = []

    def note(*given: object, **more: object) -> Tap:
        opened.append(open_tap(*given, **more))
        return opened[-1]

    monkeypatch.setattr("fastmasq.daemon.links.open_tap", note)
    links.prepare(watch.snapshot())
    hosts.wait_until(lambda: len(opened) == 2, 10)
    between.inside.sh("ping -c 1 -W 1 10.0.0.1")
    links.follow(watch.snapshot(), by_next_hop=True, behind=False)
    assert {id(link.ring.tap) for link in links.attached.values()} == {id(tap) for tap in opened}
    assert links.attached[0].ring.tap.statistics() == (0, 0)
    assert has_heard(between, links)


def test_a_link_made_anew_meanwhile_is_opened_anew(between: Gateway, watch: Watch, links: Links) -> None:
    before = watch.snapshot().outside.ifindex
    links.prepare(watch.snapshot())
    between.host.ip("link del eth1")
    between.host.ip("link add eth1 type veth peer name eth2")
    between.host.ip("link set eth1 up")
    watch.read(now_ns())
    links.follow(watch.snapshot(), by_next_hop=True, behind=False)
    assert links.attached[1].ifindex == watch.snapshot().outside.ifindex != before
    assert has_heard(between, links)


def test_what_cannot_be_opened_is_said_when_it_is_followed(watch: Watch, links: Links, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KernelError("eth0: no packet socket to be had")

    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr("fastmasq.daemon.links.open_tap", refuse)
        links.prepare(watch.snapshot())
        with pytest.raises(KernelError, match="no packet socket"):
            links.follow(watch.snapshot(), by_next_hop=True, behind=False)
    links.close()
    assert descriptors() == before


def test_what_nobody_follows_is_closed(watch: Watch, links: Links) -> None:
    before = descriptors()
    links.prepare(watch.snapshot())
    links.close()
    assert descriptors() == before
