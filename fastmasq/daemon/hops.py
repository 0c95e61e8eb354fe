"""Next hops: their link addresses, which the path asks for and the kernel finds out.

The kernel's table of neighbours is small, and all who use this host share it: so it is asked only so often for each
sender (`Forwarder.may_ask`), and does not keep what has not answered. What it forgets for want of room is known here
all the same, until it has been asked again.
"""

from __future__ import annotations

from fastmasq.daemon.links import Links
from fastmasq.daemon.worker import Worker
from fastmasq.kernel.neighbours import FAILED, GONE, INCOMPLETE
from fastmasq.kernel.watch import Watch
from fastmasq.path.forwarder import Forwarder


class Hops:
    """Gives the path the link addresses that the kernel knows, and has the kernel ask for those that it does not."""

    def __init__(self, watch: Watch, links: Links, forwarder: Forwarder, worker: Worker) -> None:
        self._watch = watch
        self._links = links
        self._forwarder = forwarder
        self._worker = worker

    def expect(self) -> None:
        """Tell the path of the neighbours that the kernel knows already: the first packets to them need not wait."""
        number_of = self._links.number_of()
        known = self._watch.known_neighbours()
        with self._forwarder.locked():
            for ifindex, address, mac in known:
                if ifindex in number_of:
                    self._forwarder.expect_neighbour(number_of[ifindex], address, mac)

    def follow(self) -> None:
        """Tell the path what has changed, and of those that the kernel has met, whose first packets need not wait."""
        number_of = self._links.number_of()
        changed = False
        for ifindex, address, mac, state in self._watch.changed_neighbours():
            if ifindex not in number_of or (mac is None and state == INCOMPLETE):
                continue
            if state == GONE:
                self._ask(number_of[ifindex], ifindex, address)
                continue
            with self._forwarder.locked():
                if self._forwarder.set_neighbour(number_of[ifindex], address, mac):
                    changed = True
                elif mac:
                    self._forwarder.expect_neighbour(number_of[ifindex], address, mac)
            if state == FAILED:
                self._watch.forget_neighbour(ifindex, address)
        if changed:
            self._worker.wake()

    def resolve(self) -> None:
        """Find the link address of next hops that packets wait for: known to the kernel, or asked for now."""
        with self._forwarder.locked():
            wanted = self._forwarder.wanted_hops()
        for number, address in wanted:
            ifindex = self._links.links[number].ifindex
            if not ifindex:
                continue
            neighbour = self._watch.neighbour(ifindex, address)
            if neighbour is not None and neighbour.mac:
                with self._forwarder.locked():
                    self._forwarder.set_neighbour(number, address, neighbour.mac)
                self._worker.wake()
            else:
                self._ask(number, ifindex, address)

    def _ask(self, number: int, ifindex: int, address: int) -> None:
        """Have the kernel find out a link address, unless it is asked too often for whoever wants it."""
        with self._forwarder.locked():
            may_ask = self._forwarder.may_ask(number, address)
        if may_ask:
            self._watch.resolve(ifindex, address)

    def probe(self) -> None:
        """Have the kernel confirm the next hops in use: it sees no packets of ours, and would not notice a dead one."""
        with self._forwarder.locked():
            used = self._forwarder.used_hops()
        for number, address in used:
            link = self._links.links[number]
            if link.ifindex and link.header_length:
                neighbour = self._watch.neighbour(link.ifindex, address)
                if neighbour is None or neighbour.state in ("stale", "failed"):
                    self._watch.resolve(link.ifindex, address)


class QuietHops(Hops):
    """Those of a path that only observes, and takes each for there: nobody is asked."""

    def expect(self) -> None:
        pass

    def follow(self) -> None:
        self._watch.changed_neighbours()  # or they would pile up

    def resolve(self) -> None:
        pass

    def probe(self) -> None:
        with self._forwarder.locked():
            self._forwarder.used_hops()  # which frees those that are used no more
