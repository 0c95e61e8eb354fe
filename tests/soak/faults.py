"""The faults of the soak: what administrators, cables and other programs do to a gateway, each begun and ended."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from tests.soak.place import Place

SPARE_DESCRIPTORS = 1
IDLE_CLIENTS = 8
BROKEN = ("sessions = " + "9" * 5000, "sessions = 'many'", "[[[[", "no_such_key = 1")

Fault = Callable[[Place, Random], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Lasting:
    """A fault and how long it is to last, in seconds."""

    fault: Fault
    seconds: float = 0.0


@contextlib.contextmanager
def inside_link_down(place: Place, random: Random) -> Iterator[None]:
    place.ip("lan", "link set gateway down")
    yield
    place.ip("lan", "link set gateway up")


@contextlib.contextmanager
def outside_link_down(place: Place, random: Random) -> Iterator[None]:
    place.ip("router", "link set eth0 down")
    yield
    place.ip("router", "link set eth0 up")


@contextlib.contextmanager
def link_replaced(place: Place, random: Random) -> Iterator[None]:
    place.make_second_link()
    yield


@contextlib.contextmanager
def no_default_route(place: Place, random: Random) -> Iterator[None]:
    place.ip("gateway", "route delete default")
    yield
    place.ip("gateway", "route add default via 200.200.200.1")


@contextlib.contextmanager
def neighbours_flushed(place: Place, random: Random) -> Iterator[None]:
    place.ip("gateway", "neighbour flush all")
    yield


@contextlib.contextmanager
def guard_taken_away(place: Place, random: Random) -> Iterator[None]:
    for link in random.sample(("eth0", "eth1", "eth2"), random.choice((1, 3))):
        with contextlib.suppress(Exception):  # it has been taken away before
            place.run("tc", "qdisc", "del", "dev", link, "clsact")
    yield


@contextlib.contextmanager
def tables_flushed(place: Place, random: Random) -> Iterator[None]:
    place.run("nft", "flush", "ruleset")
    yield


@contextlib.contextmanager
def forwarding_switched_on(place: Place, random: Random) -> Iterator[None]:
    place.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    yield


@contextlib.contextmanager
def reloaded(place: Place, random: Random) -> Iterator[None]:
    """The configuration is read again, with another limit; then the one of before."""
    with _limits(place, f"ports_per_host = {random.randrange(9000, 16384)}"):
        os.kill(place.pid, signal.SIGHUP)
        yield
    os.kill(place.pid, signal.SIGHUP)


@contextlib.contextmanager
def broken_configuration(place: Place, random: Random) -> Iterator[None]:
    with _limits(place, random.choice(BROKEN)):
        os.kill(place.pid, signal.SIGHUP)
        yield
    os.kill(place.pid, signal.SIGHUP)


@contextlib.contextmanager
def disk_full(place: Place, random: Random) -> Iterator[None]:
    """Nothing can be written beside the journal while the configuration is read again and a link comes anew."""
    filler = place.disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.kill(place.pid, signal.SIGHUP)
    place.make_second_link()
    yield
    filler.unlink()


@contextlib.contextmanager
def few_descriptors(place: Place, random: Random) -> Iterator[None]:
    """There are hardly any left, clients sit on the control socket, and a link comes anew."""
    before = resource.prlimit(place.pid, resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as clients:
        few = len(os.listdir(f"/proc/{place.pid}/fd")) + SPARE_DESCRIPTORS
        resource.prlimit(place.pid, resource.RLIMIT_NOFILE, (few, before[1]))
        clients.callback(resource.prlimit, place.pid, resource.RLIMIT_NOFILE, before)
        for _ in range(IDLE_CLIENTS):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(str(place.fastmasq.socket))
        place.make_second_link()
        yield


@contextlib.contextmanager
def _limits(place: Place, line: str) -> Iterator[None]:
    """Have another line among the limits of the configuration for a while."""
    file = place.fastmasq.configuration
    before = file.read_text()
    file.write_text(before.replace("[limits]", f"[limits]\n{line}", 1))
    try:
        yield
    finally:
        file.write_text(before)


FAULTS = {
    "inside link down": Lasting(inside_link_down, 0.7),
    "outside link down": Lasting(outside_link_down, 0.7),
    "second inside link replaced": Lasting(link_replaced),
    "no default route": Lasting(no_default_route, 1.0),
    "neighbours flushed": Lasting(neighbours_flushed),
    "guard taken away": Lasting(guard_taken_away),
    "tables flushed": Lasting(tables_flushed),
    "ip_forward switched on": Lasting(forwarding_switched_on),
    "reloaded": Lasting(reloaded, 0.5),
    "broken configuration": Lasting(broken_configuration, 0.5),
    "disk full": Lasting(disk_full, 3.0),
    "few descriptors": Lasting(few_descriptors, 5.0),
}
