"""Next hops: their link addresses, which the path asks for and the kernel finds out."""

from __future__ import annotations

from fastmasq.daemon.links import Links
from fastmasq.daemon.worker import Worker
from fastmasq.kernel.watch import Watch
from fastmasq.path.forwarder import Forwarder


class Hops:
    """Gives the path the link addresses that the kernel knows, and has the kernel ask for those that it does not."""

    def __init__(self, watch: Watch, links: Links, forwarder: Forwarder, worker: Worker) -> None:
        self._watch = watch
        self._links = links
        self._forwarder = forwarder
        self._worker = worker

    def follow(self) -> None:
        """Tell the path what has changed."""
        number_of = self._links.number_of()
        changed = False
        for ifindex, address, mac, state in self._watch.changed_neighbours():
            if ifindex not in number_of or (mac is None and state == "incomplete"):
                continue
            with self._forwarder.locked():
                changed |= self._forwarder.set_neighbour(number_of[ifindex], address, mac)
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

    def follow(self) -> None:
        self._watch.changed_neighbours()  # or they would pile up

    def resolve(self) -> None:
        pass

    def probe(self) -> None:
        pass
