"""A real Gateway on the memory links of a Harness, and stand-ins for the kernel and the host that it asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from fastmasq.config.schema import Host as HostItself
from fastmasq.config.schema import Masquerade, PortMapping, Settings
from fastmasq.config.schema import Vpn as VpnSettings
from fastmasq.config.values import PortRanges
from fastmasq.daemon.confirmation import Confirmation
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.kept_policy import KeptPolicy
from fastmasq.daemon.leases import Leases
from fastmasq.daemon.methods import Methods
from fastmasq.daemon.policy import Declared, declare
from fastmasq.daemon.ports import no_ports
from fastmasq.daemon.proxies import redirects
from fastmasq.daemon.worker import Worker
from fastmasq.errors import KernelError
from fastmasq.kernel.addresses import InterfaceAddress
from fastmasq.kernel.links import Link
from fastmasq.kernel.ports import Waiting
from fastmasq.kernel.routes import LOCAL, UNICAST, KernelRoute, flatten
from fastmasq.kernel.rtnetlink import TABLE_LOCAL, TABLE_MAIN
from fastmasq.kernel.run_folder import RunFolder
from fastmasq.kernel.watch import Snapshot
from fastmasq.policy.chains import Rule, RuleSet
from fastmasq.policy.compile import LinkView
from tests.support.harness import HOWTO_ROUTES, Harness, address, plain

INSIDE_ADDRESS, OUTSIDE_ADDRESS = "10.0.0.1", "200.200.200.200"


class Watch:
    """What the kernel says: links eth0 and eth1 with their addresses, and further addresses of the host."""

    def __init__(self) -> None:
        self._snapshot = Snapshot(0, (), ())
        self.announced: Snapshot | None = None

    def announce(self, outside: str | None, *others: str) -> None:
        ours = [address(text) for text in (INSIDE_ADDRESS, outside, *others) if text]
        links = (_link("eth0", "inside", INSIDE_ADDRESS, 1), _link("eth1", "outside", outside, 2))
        routes = flatten(
            [
                KernelRoute(TABLE_MAIN, 0, 0, 0, UNICAST, 2, address("200.200.200.1")),
                KernelRoute(TABLE_MAIN, address("10.0.0.0"), 8, 0, UNICAST, 1),
                *(KernelRoute(TABLE_LOCAL, one, 32, 0, LOCAL) for one in ours),
            ]
        )
        self.announced = Snapshot(self._snapshot.generation + 1, links, routes)

    def read(self, now: int) -> None:
        if self.announced is not None:
            self._snapshot, self.announced = self.announced, None

    def snapshot(self) -> Snapshot:
        return self._snapshot


def _link(name: str, role: str, text: str | None, ifindex: int) -> Link:
    addresses = (InterfaceAddress(address(text), 24),) if text else ()
    return Link(name, ifindex, role, up=True, mtu=1500, mac=bytes(6), header_length=14, addresses=addresses, qdisc="")


class Links:
    """The links of the Harness, which are there always."""

    links: Mapping[int, Link] = {}

    def are_attached(self) -> bool:
        return True

    def follow(self, snapshot: Snapshot, *, by_next_hop: bool, behind: bool) -> None:
        pass

    def every_second(self) -> None:
        pass

    def without_sizes(self) -> list[Link]:
        return []

    def views(self) -> list[LinkView]:
        return [LinkView("eth0", (address(INSIDE_ADDRESS),)), LinkView("eth1", (address(OUTSIDE_ADDRESS),))]


class Host:
    """A host that uses no port but `used`; it remembers what it was told, and refuses what is in `refuses`.

    `waits` has the sockets of its programs by protocol, `has_tunnels` the names of its tunnels.
    """

    def __init__(self) -> None:
        self.used = no_ports()
        self.spare = no_ports()
        self.refuses: set[str] = set()
        self.kept: Mapping[int, np.ndarray] = {}
        self.protocols_kept: list[int] = []
        self.judged, self.itself = RuleSet(), HostItself()
        self.reserved: Masquerade | None = None
        self.reaches_proxies = False
        self.waits: dict[int, list[Waiting]] = {}
        self.has_tunnels: dict[int, list[str]] = {}
        self.goes_on = False
        self.were_reset: list[np.void] = []
        self.is_whole = True

    def _agree(self, name: str) -> None:
        if name in self.refuses:
            raise KernelError(f"the {name} refuses")

    def reserve(self, masquerade: Masquerade) -> None:
        self._agree("reservation")
        self.reserved = masquerade

    def free_ports(self, ranges: PortRanges) -> np.ndarray:
        if not ranges:
            return self.spare
        free = no_ports()
        for first, last in ranges:
            free[:, first : last + 1] = True
        return free & ~self.used

    def keep_off(self, led: np.ndarray) -> None:
        self.led = led

    def keep_datagrams_apart(self, links: Iterable[Link]) -> None:
        pass

    def protocols(self) -> set[int]:
        return set()

    def guard_marks(self) -> bool:
        return True

    def waiting(self, protocol: int) -> list[Waiting]:
        return self.waits.get(protocol, [])

    def tunnels(self, protocol: int) -> list[str]:
        return self.has_tunnels.get(protocol, [])

    def unfollowed(self) -> list[str]:
        return []

    def reset(self, sessions: Iterable[np.void]) -> int:
        self.were_reset.extend(sessions)
        return len(self.were_reset)

    def keep(self, local: list[int], external: Mapping[int, np.ndarray], protocols: Iterable[int]) -> None:
        self._agree("guard")
        self.kept, self.protocols_kept = dict(external), sorted(protocols)

    def judge(self, rule_set: RuleSet, itself: HostItself) -> None:
        self._agree("nft")
        self.judged, self.itself = rule_set, itself

    def count(self, rule_set: RuleSet) -> None:
        pass

    def reach_proxies(self, rule_set: RuleSet, forwarder: Any) -> bool:
        before = self.reaches_proxies
        self.reaches_proxies |= bool(redirects(rule_set))
        return self.reaches_proxies != before

    def leave_proxies(self, forwarder: Any) -> None:
        self.reaches_proxies = False

    def check(self, rule_set: RuleSet) -> None:
        pass

    def look_after(self, now_ns: int) -> None:
        self.is_whole = False
        self._agree("look")
        self.is_whole = True


class PolicyGateway:
    """A gateway whose policy is changed as over the control socket, and what it then does with packets."""

    def __init__(
        self, *, ports: str = "1-65535", local: Iterable[str] = (), declared: Declared | None = None,
        host: Host | None = None, folder: RunFolder | None = None, port_mapping: PortMapping | None = None,
        now: int = 0,
    ) -> None:  # fmt: skip
        """folder: where what is changed outlives it, and what another has left is taken up from; now: nanoseconds."""
        self.harness = Harness(routes=[*HOWTO_ROUTES, *((f"{text}/32", plain("local")) for text in local)])
        masquerade = msgspec.structs.replace(Settings().masquerade, ports=PortRanges.read(ports), other_protocols=False)
        settings = Settings(vpn=VpnSettings(pptp=False, ipsec=False), masquerade=masquerade)
        self.watch = Watch()
        self.watch.announce(OUTSIDE_ADDRESS)
        self.watch.read(0)
        self.host = host or Host()
        self.worker = Worker(self.harness.forwarder)
        self.gateway = Gateway(
            settings, declared or declare(settings), self.harness.forwarder, self.worker, self.watch, self.host,
            Links(),
        )  # fmt: skip
        self.confirmation = Confirmation(self.gateway)
        self.kept = KeptPolicy(folder, self.gateway, self.confirmation)
        self.kept.take_up()
        self.leases = Leases(folder, self.gateway, port_mapping or PortMapping(), now)
        self.leases.take_up(now, goes_on=True)
        self.gateway.begin()
        self.methods = Methods(self.gateway, self.confirmation, self.leases).handlers()

    def close(self) -> None:
        self.worker.close()

    def call(self, method: str, **params: Any) -> Any:
        """Do as a request of these parameters in JSON would."""
        result = self.methods[method](msgspec.json.decode(msgspec.json.encode(params)))
        self.kept.follow()
        return result

    def move(self, outside: str | None, *others: str) -> None:
        """Give the outside link another address, and the host further ones."""
        self.watch.announce(outside, *others)
        self.gateway.read_kernel()

    def use(self, *rules: Rule) -> None:
        """Have the input chain consist of these rules."""
        rule_set = RuleSet()
        for rule in rules:
            rule_set.append("input", rule)
        old = self.gateway.policy()
        self.gateway.apply(old, replace(old, rules=rule_set.succeeding(old.rules)))

    def led_inside(self, port_class: int) -> list[int]:
        """Return the ports of a class that lead inside by triggers, marks or forwards; the guard keeps all of them."""
        ports = self.gateway.ports.led_inside()[port_class].copy()
        for wanted in self.gateway.forwards.wanted_ports().values():
            ports |= wanted[port_class]
        assert not (ports & ~self.host.kept[address(OUTSIDE_ADDRESS)][port_class]).any()
        return np.flatnonzero(ports).tolist()
