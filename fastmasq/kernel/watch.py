"""What the kernel knows about our links, routes and neighbours, kept current from netlink events.

The event socket subscribes before the first dump, so that nothing falls between. For routes and addresses an event is
only a hint: whatever was announced, the tables are dumped again, once per `read` however many events had come. The
kernel removes routes without a word when an interface goes down or an address vanishes, and events alone do not tell
`replace`, `append` and `prepend` apart; a dump is always right. It is cheap, since a route that looks as in the last
dump is not decoded again (10 000 unchanged routes: 15 ms).

Interface and neighbour events carry the whole new state of one object and are applied one by one.
When the kernel had to drop events (ENOBUFS), everything is dumped again.
An interface that goes down is announced before its routes are removed: a moment later there is a second look.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass

from fastmasq.kernel import links, neighbours, netlink, routes, rtnetlink
from fastmasq.kernel.addresses import InterfaceAddress, address_request, read_addresses
from fastmasq.kernel.alarm import Alarm
from fastmasq.kernel.links import Interface, Link
from fastmasq.kernel.neighbours import Neighbour, NeighbourTable
from fastmasq.kernel.routes import KernelRoute, Route

RECEIVE_BUFFER = 8 << 20
SECOND_LOOK_NS = 100_000_000

_GROUPS = (
    netlink.GROUP_LINK
    | netlink.GROUP_NEIGHBOUR
    | netlink.GROUP_TC
    | netlink.GROUP_IPV4_ADDRESS
    | netlink.GROUP_IPV4_ROUTE
)
_EVENTS_AT_ONCE = 20_000
_ALARM_MARGIN_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The kernel's state at one moment; a new generation for every change of it.

    `links` are the inside links in the order they were named, then the outside one, then that to programs of the host,
    if one was named.
    """

    generation: int
    links: tuple[Link, ...]
    routes: tuple[Route, ...]

    @property
    def outside(self) -> Link:
        return next(link for link in self.links if link.role == "outside")


class Watch:
    """A netlink watcher in the network namespace it was made in."""

    def __init__(
        self, inside: Sequence[str], outside: str, local: str = "", receive_buffer: int = RECEIVE_BUFFER
    ) -> None:
        """Subscribe and look once. Links are followed by name; `receive_buffer` is in bytes."""
        self._roles = [(name, "inside") for name in inside] + [(outside, "outside")]
        self._roles += [(local, "local")] if local else []
        self._events = netlink.EventSocket(_GROUPS, receive_buffer)
        self._requests = netlink.RequestSocket()
        self._alarm = Alarm()
        self._wakeup = select.epoll()
        self._wakeup.register(self._events, select.EPOLLIN)
        self._wakeup.register(self._alarm, select.EPOLLIN)

        self._interfaces: dict[int, Interface] = {}
        self._ours: set[int] = set()  # ifindexes of our links
        self._routed_over: set[int] = set()  # those when routes were flattened last
        self._addresses: dict[int, list[InterfaceAddress]] = {}
        self._kernel_routes: dict[bytes, KernelRoute] = {}  # by the message's body, in the kernel's order
        self._neighbours = NeighbourTable()
        self._second_look_ns: int | None = None
        self._links_stale = self._addresses_stale = self._routes_stale = True
        self._snapshot = Snapshot(0, (), ())
        self._update(everything=True)

    def close(self) -> None:
        for part in (self._wakeup, self._alarm, self._requests, self._events):
            part.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `read` has something to do."""
        return self._wakeup.fileno()

    def read(self, now_ns: int) -> bool:
        """Take in what has happened, and return whether the snapshot or a neighbour changed. Never waits for events."""
        messages, lost = self._events.read(_EVENTS_AT_ONCE)
        while lost and messages:  # older than the dump that follows
            messages, _ = self._events.read(_EVENTS_AT_ONCE)
        removals = sum(self._apply(message) for message in messages)
        if self._second_look_ns is not None and now_ns >= self._second_look_ns:
            self._second_look_ns = None
            self._alarm.set(0)
            self._links_stale = self._addresses_stale = self._routes_stale = True
        changed = self._update(everything=lost)
        if removals or lost or not self._settled:
            self._second_look_ns = now_ns + SECOND_LOOK_NS
            self._alarm.set(SECOND_LOOK_NS + _ALARM_MARGIN_NS)
        return changed or self._neighbours.has_changes

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def interfaces(self) -> list[Interface]:
        """Return all interfaces of the namespace, ours or not."""
        return list(self._interfaces.values())

    def macvlans(self, name: str) -> list[Interface]:
        """Return the macvlans over a link of ours, as VRRP has, that are up and no links of ours themselves."""
        interface = self._named(name)
        return links.macvlans(interface, self.interfaces(), [name for name, _ in self._roles]) if interface else []

    def complaints(self) -> list[str]:
        """Return one line for each link that cannot be used: a missing inside link, or any of a wrong kind."""
        found = []
        for name, role in self._roles:
            complaint = links.complaint(name, role, self._named(name), self.interfaces())
            if complaint:
                found.append(complaint)
        return found

    def neighbour(self, ifindex: int, address: int) -> Neighbour | None:
        return self._neighbours.find(ifindex, address)

    def known_neighbours(self) -> list[tuple[int, int, bytes]]:
        """Return (ifindex, address, MAC) of all whose MAC address the kernel knows."""
        return self._neighbours.known()

    def changed_neighbours(self) -> list[tuple[int, int, bytes | None, str]]:
        """Return (ifindex, address, MAC or None, state) for every change since the last call; "gone" if deleted."""
        return self._neighbours.take_changes()

    def resolve(self, ifindex: int, address: int) -> None:
        """Have the kernel resolve or re-probe a neighbour; the outcome comes as a changed neighbour."""
        self._requests.tell(netlink.RTM_NEWNEIGH, netlink.NLM_F_CREATE, neighbours.resolve_request(ifindex, address))

    def forget_neighbour(self, ifindex: int, address: int) -> None:
        """Have the kernel forget a neighbour: those that do not answer would fill its table."""
        self._requests.tell(netlink.RTM_DELNEIGH, 0, neighbours.forget_request(ifindex, address))

    def _named(self, name: str) -> Interface | None:
        return next((each for each in self._interfaces.values() if each.name == name), None)

    def _apply(self, message: bytes) -> bool:
        """Take in one event, or note what it makes stale; return whether routes may go for it without a word."""
        kind = netlink.message_type(message)
        if kind in (netlink.RTM_NEWLINK, netlink.RTM_DELLINK):
            return self._apply_link(message, kind)
        if kind in (netlink.RTM_NEWADDR, netlink.RTM_DELADDR):
            self._addresses_stale = self._routes_stale = True
            return kind == netlink.RTM_DELADDR
        if kind in (netlink.RTM_NEWROUTE, netlink.RTM_DELROUTE):
            self._routes_stale = self._routes_stale or routes.concerns_us(message)
        elif kind in (netlink.RTM_NEWNEIGH, netlink.RTM_DELNEIGH):
            if neighbours.concerns_us(message, self._ours):
                self._neighbours.update(message)
        elif kind in (netlink.RTM_NEWQDISC, netlink.RTM_DELQDISC):
            ifindex = rtnetlink.TCMSG.read(message)[1]
            self._links_stale = self._links_stale or ifindex in self._ours
        return False

    def _apply_link(self, message: bytes, kind: int) -> bool:
        family, _, ifindex, _, _ = rtnetlink.IFINFOMSG.read(message)
        if family:  # about a bridge port, not about the interface
            return False
        before = self._interfaces.get(ifindex)
        if kind == netlink.RTM_DELLINK:
            self._interfaces.pop(ifindex, None)
            after = None
        else:
            after = next(links.read_interfaces([message]), None)
            if after is None:
                return False
            self._interfaces[ifindex] = after
        was_up = before is not None and before.flags & links.IFF_UP
        is_up = after is not None and after.flags & links.IFF_UP
        if bool(was_up) != bool(is_up):
            self._routes_stale = True
        self._note_ours()
        return bool(was_up and not is_up)

    def _note_ours(self) -> None:
        """Find our links among the interfaces; what belongs to a link that is new to us has yet to be looked up."""
        names = {name for name, _ in self._roles}
        ours = {ifindex for ifindex, each in self._interfaces.items() if each.name in names}
        if ours == self._ours:
            return
        new = ours - self._ours
        self._ours = ours
        self._routes_stale = True  # one of several next hops may be ours now, or no longer
        self._neighbours.keep_only(ours)
        self._addresses_stale = True
        if new:
            self._dump_neighbours()

    def _update(self, everything: bool) -> bool:
        """Dump what is stale and make a new snapshot if it differs, or in any case after a loss of events."""
        self._settled = True
        if self._links_stale or everything:
            self._dump_links()
        if self._addresses_stale or everything:
            self._dump_addresses()
        if everything:
            self._dump_neighbours()
        flattened = self._snapshot.routes
        if self._routes_stale or everything:
            flattened = self._dump_routes()
        our_links = tuple(self._link(name, role) for name, role in self._roles)
        old = self._snapshot
        if not everything and (our_links, flattened) == (old.links, old.routes):
            return False
        self._snapshot = Snapshot(old.generation + 1, our_links, flattened)
        return True

    def _link(self, name: str, role: str) -> Link:
        interface = self._named(name)
        addresses = self._addresses.get(interface.ifindex, ()) if interface else ()
        return links.make_link(name, role, interface, addresses, self.macvlans(name))

    def _dump(self, kind: int, body: bytes) -> list[bytes]:
        messages, consistent = self._requests.dump(kind, body)
        self._settled = self._settled and consistent
        return messages

    def _dump_links(self) -> None:
        messages = self._dump(netlink.RTM_GETLINK, links.dump_request())
        self._interfaces = {each.ifindex: each for each in links.read_interfaces(messages)}
        self._links_stale = False
        self._note_ours()

    def _dump_addresses(self) -> None:
        self._addresses = {}
        for ifindex, address in read_addresses(self._dump(netlink.RTM_GETADDR, address_request())):
            if ifindex in self._ours:
                self._addresses.setdefault(ifindex, []).append(address)
        self._addresses_stale = False

    def _dump_neighbours(self) -> None:
        messages = self._dump(netlink.RTM_GETNEIGH, neighbours.dump_request())
        self._neighbours.replace(each for each in messages if neighbours.concerns_us(each, self._ours))

    def _dump_routes(self) -> tuple[Route, ...]:
        """Dump the routing tables and return them flattened; only routes not seen in the last dump are decoded."""
        known = self._kernel_routes
        current: dict[bytes, KernelRoute] = {}
        for message in self._dump(netlink.RTM_GETROUTE, routes.dump_request()):
            if routes.concerns_us(message):
                body = message[netlink.HEADER.size :]
                current[body] = known.get(body) or routes.read_route(message)
        self._routes_stale = False
        self._kernel_routes = current
        if (list(current), self._ours) == (list(known), self._routed_over) and self._snapshot.routes:
            return self._snapshot.routes
        self._routed_over = self._ours
        networks = [(each.address, each.prefix) for addresses in self._addresses.values() for each in addresses]
        return routes.flatten(list(current.values()), self._ours, networks)
