"""Keeps the links of the path in step with the kernel's: their rings and senders, their rows, and routes over them."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from fastmasq.config.schema import Settings
from fastmasq.daemon import rows
from fastmasq.daemon.worker import Worker
from fastmasq.errors import FastmasqError
from fastmasq.kernel import features
from fastmasq.kernel.links import UNSUPPORTED, Link
from fastmasq.kernel.watch import Snapshot
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import MACVLANS, NO_LINK
from fastmasq.policy.compile import LinkView
from fastmasq.ring.packet_socket import open_sender, open_tap
from fastmasq.ring.ring import RxRing, TxBatch

log = logging.getLogger("fastmasq.engine")

PLAIN_QDISCS = ("", "noqueue", "pfifo_fast", "mq")


class AttachedLink:
    """One link's ring and sender, and what they were opened on."""

    def __init__(
        self, link: Link, settings: Settings, *, sends: bool, v2_may_stop: bool, behind: bool, deaf: bool
    ) -> None:
        wanted = settings.rings.vnet_header == "auto"
        tap = open_tap(
            link.name,
            settings.rings.mode,
            vnet_header=wanted,
            v2_may_stop=v2_may_stop,
            frames=settings.rings.frames,
            mtu=link.mtu,
            behind=_heard(link) if behind else (),
            deaf=deaf,
        )
        try:
            self.sender = _open_sender(link, wanted) if sends else TxBatch(vnet=tap.vnet_header, silent=True)
        except FastmasqError:
            tap.close()
            raise
        self.ifindex = link.ifindex
        self.is_behind = behind
        self.plain_qdisc = link.qdisc in PLAIN_QDISCS
        self.ring = RxRing(tap)
        self.ring_drops = 0
        self._lately = (0, 0)  # packets, and those of them dropped, since the last `has_stopped`

    @property
    def vnet_header(self) -> bool:
        """Whether large sends come and go whole."""
        return self.ring.tap.vnet_header and self.sender.vnet

    def refused(self) -> dict[str, str]:
        """Return what the kernel refused of tap and sender, by name, with the reason."""
        sender = self.sender.socket
        return self.ring.tap.refused | (sender.refused if sender is not None else {})

    def follow(self, link: Link) -> None:
        """Have a tap behind the guard hear what comes for macvlans over the link, whichever there are now."""
        tap = self.ring.tap
        if self.is_behind and tap.behind != _heard(link):
            tap.hear_of(_heard(link))

    def count_drops(self) -> int:
        """Return how many packets the kernel found no room for, or could not put into the virtio header, in all."""
        packets, drops = self.ring.tap.statistics()
        self._lately = (self._lately[0] + packets, self._lately[1] + drops)
        self.ring_drops += drops
        return self.ring_drops + self.ring.unreadable

    def has_stopped(self) -> bool:
        """Whether a ring v2 has dropped all that came since the last call, though it is empty, see `open_tap`."""
        self.count_drops()
        (packets, drops), self._lately = self._lately, (0, 0)
        return self.ring.tap.mode == "v2" and 0 < packets == drops and not self.ring.pending()

    def close(self) -> None:
        self.ring.close()
        self.sender.close()


def _heard(link: Link) -> tuple[int, ...]:
    """Return the numbers of the interfaces that a tap on a link hears; as many macvlans as the path knows."""
    return (link.ifindex, *link.macvlan_numbers[:MACVLANS])


def _open_sender(link: Link, vnet_header: bool) -> TxBatch:
    sender = open_sender(link.name, vnet_header=vnet_header, qdisc_bypass=link.qdisc in PLAIN_QDISCS)
    return TxBatch(sender, link_header=link.header_length > 0)


def _opened_on(link: Link) -> tuple[int, str]:
    """Return what tells whether something opened on a link is for this one."""
    return link.ifindex, link.qdisc


class Links:
    """The links of one gateway by number: all that the kernel told of, and those attached to the path.

    Where the path only observes, nothing is ever sent on them.
    """

    def __init__(
        self, settings: Settings, forwarder: Forwarder, worker: Worker, *, behind: bool, deaf: bool = False
    ) -> None:
        """behind: taps stand behind the guard. deaf: nothing comes in by any link before `hear`."""
        self.links: dict[int, Link] = {}
        self.attached: dict[int, AttachedLink] = {}
        self.has_begun = False  # until the worker runs, a link that cannot be opened is an error, and nothing is news
        self._stopped: set[str] = set()  # names of links whose ring v2 has stopped once
        self._refused: dict[str, str] = {}  # the line about it, by the name of a link that cannot be opened
        self._settings = settings
        self._forwarder = forwarder
        self._worker = worker
        self._behind = behind
        self._deaf = deaf
        self._coming: dict[tuple[int, str], Future[AttachedLink]] = {}  # by what they are opened on

    def prepare(self, snapshot: Snapshot) -> None:
        """Begin to open what there is, deaf, for `follow`: we can go on while the kernel takes its 10 ms for a ring."""
        present = [link for link in snapshot.links if link.ifindex and link.header_length != UNSUPPORTED]
        threads = ThreadPoolExecutor(max(1, len(present)), "opens")
        self._coming = {_opened_on(link): threads.submit(self._attach, link, deaf=True) for link in present}
        threads.shutdown(wait=False)

    def hear(self) -> None:
        """Let in what comes by the links from now on."""
        self._deaf = False
        for link in self.attached.values():
            link.ring.tap.hear()

    def close(self) -> None:
        """Close rings and senders; the worker must have ended."""
        self._forgo_coming()
        for link in self.attached.values():
            link.close()
        self.attached.clear()

    def follow(self, snapshot: Snapshot, *, by_next_hop: bool, behind: bool) -> None:
        """Bring the path's links and routes to what the kernel says. Raises FastmasqError, but only at the start.

        by_next_hop: what leaves outside gets the address that fits its route's next hop. behind: taps stand behind the
        guard from now on.
        """
        self.links = dict(enumerate(snapshot.links))
        self._behind = behind
        fresh = {number: self._open(link) for number, link in self.links.items() if self._is_outdated(number, link)}
        self._forgo_coming()
        usable = {number for number, attached in {**self.attached, **fresh}.items() if attached}
        link_of_ifindex = {link.ifindex: number for number, link in self.links.items() if number in usable}
        local = next((number for number in usable if self.links[number].role == "local"), NO_LINK)
        outside = snapshot.outside if by_next_hop else None
        first, routes = rows.route_rows(snapshot.routes, link_of_ifindex, local, outside)
        with self._forwarder.locked():  # in one go: no route may lead to a link without a sender
            for number, attached in fresh.items():
                self._hand_over(number, attached)
            for number, link in self.links.items():
                self._forwarder.set_link(number, rows.link_row(link))
            self._forwarder.set_routes(first, routes)
        for number, attached in fresh.items():
            self._replace(number, attached)
        for number, attached in self.attached.items():
            attached.follow(self.links[number])

    def every_second(self) -> None:
        """Open anew, and as one that cannot stop, a ring that a packet has stopped."""
        for number, attached in list(self.attached.items()):
            if attached.has_stopped():
                name = self.links[number].name
                log.warning(
                    "%s: a packet that the kernel cannot describe has stopped the ring; it is opened anew", name
                )
                self._stopped.add(name)
                fresh = self._open(self.links[number])
                with self._forwarder.locked():
                    self._hand_over(number, fresh)
                self._replace(number, fresh)

    def are_attached(self) -> bool:
        """Whether the path has each link that there is and that can be used."""
        return all(
            number in self.attached or not link.ifindex or link.header_length == UNSUPPORTED
            for number, link in self.links.items()
        )

    def views(self) -> list[LinkView]:
        """Return what rules may ask for, by number."""
        return [LinkView(link.name, tuple(each.address for each in link.addresses)) for link in self.links.values()]

    def number_of(self) -> dict[int, int]:
        """Return the numbers of the links that there are, by interface index."""
        return {link.ifindex: number for number, link in self.links.items() if link.ifindex}

    def refused(self) -> dict[str, dict[str, str]]:
        """Return what the kernel refused of each link's tap and sender, by name, with the reason."""
        return {self.links[number].name: attached.refused() for number, attached in self.attached.items()}

    def without_sizes(self) -> list[Link]:
        """Return the links whose taps do not tell how large the datagrams are that came as one packet."""
        all_of_them = features.UDP_BURSTS in features.told_by_version()
        return [
            self.links[number]
            for number, attached in self.attached.items()
            if all_of_them or not attached.ring.tap.vnet_header
        ]

    def describe(self) -> list[dict[str, Any]]:
        """Return what `fastmasq status` shows of each link but its traffic; the local one only while it is there."""
        return [
            self._describe(number, link) for number, link in self.links.items() if link.role != "local" or link.ifindex
        ]

    def _describe(self, number: int, link: Link) -> dict[str, Any]:
        attached = self.attached.get(number)
        return {
            "number": number,
            "name": link.name,
            "role": link.role,
            "state": "missing" if not link.ifindex else "up" if link.up else "down",
            "ifindex": link.ifindex,
            "mtu": link.mtu,
            "addresses": [str(address) for address in link.addresses],
            "ring": attached.ring.tap.mode if attached else None,
            "vnet_header": bool(attached and attached.vnet_header),
            "qdisc_bypass": bool(attached and attached.sender.bypass),
            "ring_drops": attached.count_drops() if attached else 0,
        }

    def _is_outdated(self, number: int, link: Link) -> bool:
        """Whether a link has come, gone or been re-created, or is queued or guarded otherwise, since it was opened."""
        present = self.attached.get(number)
        if present is None:
            return bool(link.ifindex)
        is_wanted = link.ifindex, link.qdisc in PLAIN_QDISCS, self._behind
        return (present.ifindex, present.plain_qdisc, present.is_behind) != is_wanted

    def _open(self, link: Link) -> AttachedLink | None:
        """Open ring and sender of a link; None when it is missing. Raises FastmasqError, but only before we forward."""
        if not link.ifindex:
            return None
        if link.header_length == UNSUPPORTED:
            kinds = "Ethernet-like, ppp and tun interfaces"
            self._refuse(link, f"{link.name}: fastmasq works on {kinds}; this one is left alone")
            return None
        try:
            opened = self._take_coming(link) or self._attach(link, deaf=self._deaf)
        except FastmasqError as error:
            if not self.has_begun:
                raise
            self._refuse(link, str(error))  # it is tried again each second, if it has not vanished again meanwhile
            return None
        self._refused.pop(link.name, None)
        return opened

    def _attach(self, link: Link, *, deaf: bool) -> AttachedLink:
        """Open ring and sender of a link that is there. Raises FastmasqError."""
        may_stop = link.name in self._stopped or features.UDP_BURSTS in features.told_by_version()
        sends = not self._forwarder.observes
        return AttachedLink(link, self._settings, sends=sends, v2_may_stop=may_stop, behind=self._behind, deaf=deaf)

    def _take_coming(self, link: Link) -> AttachedLink | None:
        """Return what `prepare` has opened of a link, if it is the same still. Raises FastmasqError."""
        coming = self._coming.pop(_opened_on(link), None)
        if coming is None:
            return None
        opened = coming.result()
        if not self._deaf:
            opened.ring.tap.hear()
        return opened

    def _forgo_coming(self) -> None:
        """Close what `prepare` has opened for links that are there no more."""
        while self._coming:
            _, coming = self._coming.popitem()
            with suppress(FastmasqError):
                coming.result().close()

    def _refuse(self, link: Link, line: str) -> None:
        """Say why a link is not opened, once for as long as it is so."""
        if self._refused.get(link.name) != line:
            self._refused[link.name] = line
            log.error("%s", line)

    def _hand_over(self, number: int, attached: AttachedLink | None) -> None:
        """Have the path use this ring and sender for a link from now on, or none; its lock is held."""
        self._forwarder.attach(number, attached.ring if attached else None, attached.sender if attached else None)

    def _replace(self, number: int, attached: AttachedLink | None) -> None:
        """Close what the path used for a link before; `attached` is what it uses now."""
        name = self.links[number].name
        present = self.attached.pop(number, None)
        if present is not None:
            present.close()
        if attached is not None:
            self.attached[number] = attached
            log.log(self.level(), "%s: attached, ring %s", name, attached.ring.tap.mode)
        elif present is not None:
            log.warning("%s: gone; waiting for it to come back", name)
        self._worker.wake()

    def level(self) -> int:
        """Return the level of news: a start says one line only, whether it succeeds or fails."""
        return logging.INFO if self.has_begun else logging.DEBUG
