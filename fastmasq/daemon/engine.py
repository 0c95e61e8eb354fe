"""Engine: builds the forwarder from its settings, keeps it in step with the kernel, puts everything back at the end.

Two threads. The worker moves packets and never waits for the other. The main thread sleeps in a selector and reacts: to
netlink (links, addresses, routes, neighbours), to the worker's wish for a next hop, to the control socket, to signals,
and once a second to time. What it changes in the path it changes under the path's lock, a little at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

import fastmasq
from fastmasq.clock import now_ns
from fastmasq.config.schema import Settings
from fastmasq.config.values import PortRanges
from fastmasq.control.inside import Endpoint, InsideServer
from fastmasq.control.keys import KeyFile
from fastmasq.control.server import Server
from fastmasq.daemon import listing, ports, programs, reload, resets, timeouts, vpn_sessions, world
from fastmasq.daemon.demand import Demand
from fastmasq.daemon.forwards import Forwards
from fastmasq.daemon.log_levels import LogLevels
from fastmasq.daemon.preload import Preload
from fastmasq.daemon.rates import Rates
from fastmasq.daemon.rules import Rules
from fastmasq.daemon.vpn import Vpn
from fastmasq.daemon.worker import Worker
from fastmasq.errors import ConfigurationError, FastmasqError, KernelError
from fastmasq.kernel import local_link, privileges, sysctl
from fastmasq.kernel.bpf import calls
from fastmasq.kernel.bpf.original_destination import Asked
from fastmasq.kernel.guard.specification import Guard, GuardSpec
from fastmasq.kernel.links import UNSUPPORTED, Link, interface_addresses
from fastmasq.kernel.ports import format_ports, host_protocols
from fastmasq.kernel.takeover import Takeover
from fastmasq.kernel.watch import World
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import LINKS, NO_LINK
from fastmasq.path.verdict import DROP_REASONS
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.compile import LinkView
from fastmasq.ring.packet_socket import open_sender, open_tap
from fastmasq.ring.ring import RxRing, TxBatch
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import CLASSES
from fastmasq.wire.tunnels import IKE_PORT

if TYPE_CHECKING:
    from fastmasq.config.load import Loaded

log = logging.getLogger("fastmasq.engine")

NS = 1_000_000_000
LOOK_EVERY = 2  # seconds between looks at the host's own sockets and settings
PROBE_EVERY = 15  # seconds between asking the kernel to confirm the next hops in use
PLAIN_QDISCS = ("", "noqueue", "pfifo_fast", "mq")
WORKER_NICENESS = -10  # packets before programs; more than -10 starves programs on the same processor
AUTOGROUP = Path("/proc/self/autogroup")  # the session's niceness among sessions, see sched(7)
RESERVED_PORTS = "net.ipv4.ip_local_reserved_ports"
UDP_CLASS = CLASSES.index("udp")
DYNADDR_ENABLED, DYNADDR_VERBOSE, DYNADDR_RESET = 1, 2, 4


def run_forever(
    settings: Settings, announce: Callable[[str], None], read_again: Callable[[], Loaded] | None = None
) -> None:
    """Forward until SIGTERM or SIGINT; `announce` is called with one line once it does.

    SIGHUP reloads what `read_again` returns; without that it ends us, too. Raises FastmasqError when it cannot start;
    then nothing on the host has changed.
    """
    engine = Engine(settings, read_again)
    try:
        engine.start()
        announce(engine.summary())
        engine.serve()
    finally:
        engine.stop()


class AttachedLink:
    """One link's ring and sender, and what they were opened on."""

    def __init__(self, link: Link, settings: Settings) -> None:
        wanted = settings.rings.vnet_header == "auto"
        tap = open_tap(link.name, settings.rings.mode, vnet_header=wanted, frames=settings.rings.frames, mtu=link.mtu)
        try:
            sender = open_sender(link.name, vnet_header=wanted, qdisc_bypass=link.qdisc in PLAIN_QDISCS)
        except FastmasqError:
            tap.close()
            raise
        self.ifindex = link.ifindex
        self.plain_qdisc = link.qdisc in PLAIN_QDISCS
        self.ring = RxRing(tap)
        self.sender = TxBatch(sender, link_header=link.header_length > 0)
        self.ring_drops = 0

    def count_drops(self) -> int:
        """Return how many packets the kernel found no room for, in all."""
        self.ring_drops += self.ring.tap.statistics()[1]
        return self.ring_drops

    def close(self) -> None:
        self.ring.close()
        self.sender.close()


class Engine:
    """Everything that one running fastmasq consists of."""

    def __init__(self, settings: Settings, read_again: Callable[[], Loaded] | None = None) -> None:
        self.settings = settings
        self.read_again = read_again
        interfaces = settings.interfaces
        self.names = (*map(str, interfaces.inside), str(interfaces.outside), local_link.OUR_END)
        self.attached: dict[int, AttachedLink] = {}
        self.links: dict[int, Link] = {}
        self.guard: Guard | None = None
        self.external: int | None = None
        self.takeover: Takeover | None = None
        self.server: Server | None = None
        self.world: World | None = None
        self.thread: threading.Thread | None = None
        self.worker: Worker | None = None
        self.vpn: Vpn | None = None
        self.asked: Asked | None = None
        self.inside_server: InsideServer | None = None
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._on_mistake)
        self.rates = Rates()
        self.log_levels = LogLevels()
        self.rules = Rules(settings.compat)
        self._seconds = 0
        self._old_handlers: dict[int, Any] = {}
        self._guarded: tuple | None = None
        self.by_address: frozenset[int] = frozenset()
        self._former: set[int] = set()  # addresses that were the external one
        self._still_used = np.zeros((3, 65536), bool)  # ports of the host's that sessions have not left yet, by class
        self._demanded = np.zeros((3, 65536), bool)  # ports that lead inside on demand, by class
        self._drifted: list[str] = []
        self._not_enforced: list[str] = []

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take over and begin to forward. Raises FastmasqError; `stop` then undoes what was done."""
        privileges.require()
        self._declare()
        if len(self.names) > LINKS:
            raise KernelError(f"{len(self.names) - 1} links: at most {LINKS - 1} ([interfaces])")
        self._catch_signals()
        self.world = World(self.settings.interfaces.inside, self.settings.interfaces.outside, local_link.OUR_END)
        complaints = self.world.complaints()
        if complaints:
            raise KernelError(complaints[0])
        self.started_ns = now_ns()
        self._build()
        self.server = Server(self.settings.control.socket, self._handlers(), self.loop)
        self.inside_server = self._make_inside_server()
        self.takeover = Takeover(self.settings.control.journal)
        if self.takeover.adopted:
            log.warning("the last run ended without restoring: its journal is adopted")
        self.rules.checks += [self._reach_programs, self._judge_host, self.demand.follow_rules]
        self.rules.countings.append(self.takeover.host_rules.collect)
        self._claim_ports()
        self.takeover.stop_forwarding()
        self._reach_programs(self.rules.rule_set)
        self._follow_world()
        self._watch()
        self.thread = threading.Thread(target=self._work, name="worker", daemon=True)
        self.thread.start()

    def _build(self) -> None:
        masquerade, limits = self.settings.masquerade, self.settings.limits
        self.table = MasqTable(
            limits.sessions,
            timeouts=self.timeouts,
            filtering=masquerade.filtering,
            sessions_per_host=limits.sessions_per_host,
            ports_per_host=limits.ports_per_host,
            rate_per_host=limits.new_sessions_per_host,
            sequential=self.settings.sequential_ports,
            now_ns=self.started_ns,
        )
        self.table.make_ready()
        self.forwarder = Forwarder(self.table, hairpin=masquerade.hairpin)
        self.forwarder.set_programs(local_link.FIRST, local_link.COUNT)
        self.rules.attach(self.forwarder, limits.sessions)
        self.forwards = Forwards(self.table, self.forwarder, self._follow_policy)
        self.forwards.load(self.declared.forwards, self.declared.redirects)
        renews = self.settings.compat == "2.0"
        self.demand = Demand(self.forwarder, self.forwards, self._follow_policy, renews=renews)
        self.demand.load(self.declared.auto_forwards, self.declared.mark_targets, self.rules.rule_set)
        self.vpn = self._make_vpn()
        busy_poll_ns = self.settings.rings.busy_poll if (os.cpu_count() or 1) > 1 else 0
        self.worker = Worker(self.forwarder, busy_poll_ns)

    def _make_vpn(self) -> Vpn | None:
        """Return the trackers that the settings ask for, None if none. A host with an IKE daemon keeps IPsec itself."""
        wanted = self.settings.vpn
        if wanted.ipsec and ports.is_bound(socket.IPPROTO_UDP, IKE_PORT):
            log.warning("a program of this host has UDP port 500, so IPsec of inside hosts is not followed")
            wanted = replace(wanted, ipsec=False)
        if not (wanted.pptp or wanted.ipsec):
            return None
        settings = replace(self.settings, vpn=wanted)
        return Vpn(settings, self.table, self.forwarder, self.forwards, lambda: self.external)

    def _make_inside_server(self) -> InsideServer | None:
        """Return what inside hosts announce their SPIs to, None if that is off. Raises ConfigurationError."""
        wanted = self.settings.vpn
        if not wanted.preload:
            return None
        if not self._follows_ipsec():
            log.warning("IPsec is not followed, so nobody is listened to on [vpn] preload = %s", wanted.preload)
            return None
        handlers = Preload(self.vpn).inside_handlers()
        return InsideServer(wanted.preload, KeyFile(wanted.preload_keys), handlers, self.loop)

    def _declare(self) -> None:
        """Take in what the settings and their rule files ask for. Raises FastmasqError."""
        self.declared = reload.declare(self.settings)
        for warning in self.declared.warnings:
            log.warning("%s", warning)
        self.rules.replace(self.declared.rules)
        self.timeouts, self.dynaddr = self.declared.timeouts, self.declared.dynaddr

    def _claim_ports(self) -> None:
        self._reserve_ports(self.settings)
        self.allowed = self.guarded_ports = ports.allowed_ports(self.settings.masquerade.ports)
        self.demand.follow_ports(self._spare_ports())

    def _reserve_ports(self, settings: Settings) -> None:
        """Keep the host's programs off our ports, and only off those."""
        given = self.takeover.original(RESERVED_PORTS)
        value = ports.reservation(settings.masquerade.ports, given)
        if value is not None or sysctl.read(RESERVED_PORTS) != given:
            self.takeover.set_sysctl(RESERVED_PORTS, given if value is None else value)

    def _work(self) -> None:
        """Run the worker before other programs; niceness alone does not count against those of other sessions."""
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
            if os.getsid(0) == os.getpid():  # else the session is somebody's shell
                AUTOGROUP.write_text(f"{WORKER_NICENESS}\n")
        except OSError as error:
            log.info("the worker has no more than usual priority: %s", error.strerror)
        self.worker.run()

    def _catch_signals(self) -> None:
        actions = {
            signal.SIGTERM: self.loop.stop,
            signal.SIGINT: self.loop.stop,
            signal.SIGHUP: self._hang_up if self.read_again else self.loop.stop,
        }
        for number, action in actions.items():
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                continue  # nohup: the terminal may go, we stay
            self.loop.add_signal_handler(number, action)
            self._old_handlers[number] = before

    def _hang_up(self) -> None:
        with contextlib.suppress(FastmasqError):  # it is in the log
            self._reload(to_enforce=False)

    def _watch(self) -> None:
        self.loop.add_reader(self.world.fileno(), self._attempt, self._read_world)
        self.loop.add_reader(self.worker.notify, self._attempt, self._answer_path)

    def serve(self) -> None:
        """React to events until stopped."""
        self.loop.call_later(1, self._pass_second)
        self.loop.run_forever()

    def _pass_second(self) -> None:
        self.loop.call_later(1, self._pass_second)
        self._seconds += 1
        self._attempt(self._every_second, self._seconds)

    def _attempt(self, action: Callable[..., object], *arguments: object) -> None:
        """React, and go on forwarding when the kernel refuses something meanwhile: the next look tries it again."""
        try:
            action(*arguments)
        except FastmasqError as error:
            log.error("%s", error)
            self._guarded = None
        except Exception:  # a mistake of ours: established traffic goes on all the same
            log.exception("what was to be done has not been")
            self._guarded = None

    def _on_mistake(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.error("%s", context["message"], exc_info=context.get("exception"))

    def stop(self) -> None:
        """End the worker and put everything back, whatever `start` came to. A second call does nothing."""
        level = self._level()
        if self.worker is not None and self.thread is not None:
            self.worker.stop()
            self.thread.join()
            self.thread = None
        for link in self.attached.values():
            link.close()
        self.attached.clear()
        try:
            if self.takeover is not None:
                for line in self.takeover.restore():
                    log.log(level, "%s", line)
        finally:
            self._close()

    def _close(self) -> None:
        if self.asked is not None:
            self.asked.close()
        if self.inside_server is not None:
            self.inside_server.close()
        if self.server is not None:
            self.server.close()
        if self.world is not None:
            self.loop.remove_reader(self.world.fileno())
            self.world.close()
        if self.worker is not None:
            self.loop.remove_reader(self.worker.notify)
            self.worker.close()
        if not self.loop.is_closed():
            for number, handler in self._old_handlers.items():
                self.loop.remove_signal_handler(number)
                signal.signal(number, handler)
            self.loop.run_until_complete(asyncio.sleep(0))  # connections that have been dropped are closed
            self.loop.close()
        self.server = self.inside_server = self.world = self.worker = self.takeover = None

    # -- in step with the kernel -----------------------------------------------------------------------------------

    def _read_world(self) -> None:
        before = self.world.snapshot().generation
        self.world.read(now_ns())
        if self.world.snapshot().generation != before:
            self._follow_world()
        self._follow_neighbours()

    def _follow_world(self) -> None:
        """Bring links, routes, external address and guard to what the kernel's snapshot says."""
        snapshot = self.world.snapshot()
        self.links = dict(enumerate(snapshot.links))
        fresh = {number: self._open(link) for number, link in self.links.items() if self._is_outdated(number, link)}
        usable = {number for number, attached in {**self.attached, **fresh}.items() if attached}
        link_of_ifindex = {link.ifindex: number for number, link in self.links.items() if number in usable}
        local = next((number for number in usable if self.links[number].role == "local"), NO_LINK)
        first, rows = world.route_rows(snapshot.routes, link_of_ifindex, local)
        with self.forwarder.locked():  # in one go: no route may lead to a link without a sender
            for number, attached in fresh.items():
                self.forwarder.attach(
                    number, attached.ring if attached else None, attached.sender if attached else None
                )
            for number, link in self.links.items():
                self.forwarder.set_link(number, world.link_row(link))
            self.forwarder.set_routes(first, rows)
        self.rules.follow_links(
            [
                LinkView(self.names[number], tuple(each.address for each in link.addresses))
                for number, link in self.links.items()
            ]
        )
        for number, attached in fresh.items():
            self._replace(number, attached)
        self.forwards.resolve(world.addresses_by_name(snapshot))
        self.follow_guard()  # first: the host would reset the first sessions on an address it thinks its own alone
        self._follow_external(snapshot.external_address)
        self._judge_host(self.rules.rule_set)  # a rule may ask for the address of an interface
        if self.inside_server is not None:
            self.inside_server.follow(
                Endpoint(link.name, link.ifindex, each.address)
                for link in snapshot.links
                if link.role == "inside" and link.ifindex
                for each in link.addresses
            )

    def _is_outdated(self, number: int, link: Link) -> bool:
        """Whether a link has appeared, gone or been re-created, or its queueing has changed, since it was opened."""
        present = self.attached.get(number)
        if present is None:
            return bool(link.ifindex)
        return (present.ifindex, present.plain_qdisc) != (link.ifindex, link.qdisc in PLAIN_QDISCS)

    def _open(self, link: Link) -> AttachedLink | None:
        """Open ring and sender of a link; None when it is missing. Raises FastmasqError, but only before we forward."""
        if not link.ifindex:
            return None
        if link.header_length == UNSUPPORTED:
            log.error("%s: fastmasq works on Ethernet-like, ppp and tun interfaces; this one is left alone", link.name)
            return None
        try:
            return AttachedLink(link, self.settings)
        except FastmasqError as error:
            if self.thread is None:
                raise
            log.error("%s", error)  # it vanished again meanwhile; its next event brings us back here
            return None

    def _replace(self, number: int, attached: AttachedLink | None) -> None:
        """Close what the path used for a link before; `attached` is what it uses now."""
        name = self.names[number]
        present = self.attached.pop(number, None)
        if present is not None:
            present.close()
        if attached is not None:
            self.attached[number] = attached
            log.log(self._level(), "%s: attached, ring %s", name, attached.ring.tap.mode)
        elif present is not None:
            log.warning("%s: gone; waiting for it to come back", name)
        if self.thread is not None:
            self.worker.wake()

    def _level(self) -> int:
        """Return the level of news: a start says one line only, whether it succeeds or fails."""
        return logging.DEBUG if self.thread is None else logging.INFO

    def _follow_external(self, address: int | None) -> None:
        if address != self.external or self.thread is None:
            if address is None:
                log.warning("%s has no address: no new sessions until it has", self.settings.interfaces.outside)
            elif self.thread is not None:
                log.warning("external address is now %s", ipaddress.IPv4Address(address))
        if self.external is not None:
            self._former.add(self.external)
        self._former.discard(address)
        self.forwards.withdraw()
        with self.forwarder.locked():
            stale = self.table.set_external(address, self._for_mappings(address))
        self.forwards.place(self._mappable_ports())
        if address is not None:
            local = world.local_addresses(self.world.snapshot().routes)
            used = {*stale, *(self.vpn.addresses() if self.vpn is not None else ())} - {address}
            for old in sorted(used):  # what a forward that has gone leaves lives on where it listened (PF-9)
                if old not in self.forwards.listening() and (old in self._former or old not in local):
                    self._leave_external(old, address)
        self.external = address

    def _for_mappings(self, address: int | None) -> np.ndarray:
        """Return the ports that outbound mappings may use on an address: never those of its forwards."""
        return self._mappable_ports() & ~self.forwards.ports(address)

    def _mappable_ports(self) -> np.ndarray:
        """Return the ports that outbound mappings may use on any address, but for its forwards."""
        mappable = self.allowed & ~self.demand.reserved
        if self._follows_ipsec():
            mappable[UDP_CLASS, IKE_PORT] = False
        return mappable

    def _spare_ports(self) -> np.ndarray:
        """Return the ports that the host leaves to us, for mappings or not, if a row of autofw asks for them."""
        if not self.demand.keeps_ports:
            return np.zeros((3, 65536), bool)
        spare = ports.allowed_ports(PortRanges())
        if self._follows_ipsec():
            spare[UDP_CLASS, IKE_PORT] = False
        return spare

    def _follows_ipsec(self) -> bool:
        return self.vpn is not None and self.vpn.settings.ipsec

    def _follow_policy(self) -> None:
        """Forwards, redirects, or what opens sessions on demand have changed."""
        self.demand.follow_ports(self._spare_ports())
        self.follow_guard()
        self._follow_external(self.external)
        if self.thread is not None:
            self.worker.wake()

    def _leave_external(self, old: int, new: int) -> None:
        """The external address has changed: tunnels follow (P-28, E-10), sessions of the old close (C-60 to C-62)."""
        if self.vpn is not None and self.dynaddr & (DYNADDR_ENABLED | DYNADDR_VERBOSE):
            self.vpn.move(old, new)
        if not self.dynaddr:
            return
        only_without_reply = not self.dynaddr & DYNADDR_RESET
        row, closed_total, reset_total = 0, 0, 0
        while row < self.table.fresh:
            with self.forwarder.locked():
                rows = self.table.sessions[row : row + listing.CHUNK].copy()
                closed, row = self.table.close_external(old, row, listing.CHUNK, only_without_reply)
            closed_total += closed
            if closed and not only_without_reply:
                rows = listing.select(rows, str(ipaddress.IPv4Address(old)), "tcp", None)
                reset_total += resets.send_resets(rows[rows["flow"][:, 0]["saddr"] == old])
        if closed_total and self.dynaddr & DYNADDR_VERBOSE:
            log.warning(
                "%d sessions of %s closed, %d inside ends reset", closed_total, ipaddress.IPv4Address(old), reset_total
            )

    def follow_guard(self) -> None:
        """Put the guard in force as the world is now, if that differs from what it was told last."""
        snapshot = self.world.snapshot()
        local = world.local_addresses(snapshot.routes)
        self._follow_demand()
        self._follow_protocols()
        ours = self._our_ports(snapshot.external_address, local)
        spec = GuardSpec(
            inside=self.settings.interfaces.inside,
            outside=[self.settings.interfaces.outside],
            local_addresses=local,
            external={address: (ports[0], ports[1]) for address, ports in ours.items()},
            protocols=sorted(
                {*self.by_address, *self.forwards.protocols(), *(self.vpn.protocols() if self.vpn else ())}
            ),
            local=[link.name for link in snapshot.links if link.role == "local" and link.ifindex],
        )
        state = (
            tuple(local),
            tuple((address, ports[:2].tobytes()) for address, ports in ours.items()),
            tuple(spec.protocols),
            tuple(link.ifindex for link in self.links.values()),
        )
        if state == self._guarded:
            return
        if self.guard is None:
            self.guard = self.takeover.guard(self.settings.takeover.guard, spec)
            if self.guard.backend == "none":
                log.warning("%s", self.guard.describe())
        else:
            self.guard.update(spec)
        self._guarded = state

    def _follow_protocols(self) -> None:
        """Have the path carry by address what the settings say, but for what this host uses itself just now."""
        wanted = self.settings.by_address
        wanted = wanted and wanted - host_protocols(self.world.interfaces())
        if wanted != self.by_address:
            self.by_address = wanted
            with self.forwarder.locked():
                self.forwarder.carry_by_address(wanted)

    def _our_ports(self, external: int | None, local: Iterable[int]) -> dict[int, np.ndarray]:
        """Return the external addresses, and of each bool[3][65536] by class: the ports that the host must leave alone.

        Sessions of a former external address live on while a forward listens there.
        """
        ours = {address: ports for address, ports in self.forwards.held_ports().items() if address in local}
        masqueraded = self.guarded_ports | self._demanded
        masqueraded[UDP_CLASS, IKE_PORT] |= self._follows_ipsec()
        for address in ours.keys() & self._former:
            ours[address] |= masqueraded
        if external is not None:
            ours[external] = ours.get(external, False) | masqueraded
        return dict(sorted(ours.items()))

    def _follow_neighbours(self) -> None:
        number_of = {link.ifindex: number for number, link in self.links.items() if link.ifindex}
        changed = False
        for ifindex, address, mac, state in self.world.changed_neighbours():
            if ifindex not in number_of or (mac is None and state == "incomplete"):
                continue
            with self.forwarder.locked():
                changed |= self.forwarder.set_neighbour(number_of[ifindex], address, mac)
        if changed and self.thread is not None:
            self.worker.wake()

    def _answer_path(self) -> None:
        """Do what the path waits for: a tracker's word on a packet, then the next hops it asks for."""
        os.eventfd_read(self.worker.notify)
        if self.vpn is not None and self.vpn.answer_waiting(now_ns()):
            os.eventfd_write(self.worker.notify, 1)
        self._resolve_hops()

    def _resolve_hops(self) -> None:
        """Find the link address of next hops that packets wait for: known to the kernel, or asked for now."""
        with self.forwarder.locked():
            wanted = self.forwarder.wanted_hops()
        for number, address in wanted:
            link = self.links[number]
            if not link.ifindex:
                continue
            neighbour = self.world.neighbour(link.ifindex, address)
            if neighbour is not None and neighbour.mac:
                with self.forwarder.locked():
                    self.forwarder.set_neighbour(number, address, neighbour.mac)
                self.worker.wake()
            else:
                self.world.resolve(link.ifindex, address)

    def _reach_programs(self, rule_set: RuleSet) -> None:
        """Have a link to programs of the host if a rule redirects to them. Raises KernelError."""
        mtus = (link.mtu for link in self.world.snapshot().links if link.role == "inside")
        if not programs.redirects(rule_set) or not self.takeover.make_local_link(max(mtus)):
            return
        self._read_world()
        try:
            self.asked = Asked()
        except KernelError as error:
            log.warning("%s", error)
            return
        with self.forwarder.locked():
            self.forwarder.tell_programs(self.asked.map, self.asked.cookie, calls.system_call())

    def _judge_host(self, rule_set: RuleSet) -> None:
        """Have the kernel judge the host's own packets by the rules, and say once what of them it cannot."""
        not_enforced = self.takeover.set_host_rules(rule_set, interface_addresses())
        for line in not_enforced:
            if line not in self._not_enforced:
                log.warning("%s", line)
        self._not_enforced = not_enforced

    # -- once in a while ---------------------------------------------------------------------------------------------

    def _every_second(self, seconds: int) -> None:
        self.rates.add(now_ns(), self._counters())
        self.log_levels.every_second(now_ns())
        self.table.make_ready()
        self.rules.print_log()
        self.forwards.retry()
        if self.vpn is not None:
            self.vpn.every_second(now_ns())
        if self.inside_server is not None:
            self.inside_server.every_second(now_ns())
        if seconds % LOOK_EVERY == 0:
            self._follow_ports()
            self._check_settings()
        if seconds % PROBE_EVERY == 0:
            self._probe_hops()

    def use_ports_of(self, settings: Settings) -> None:
        """Use the external ports that these settings name; sessions on others keep theirs. Raises KernelError."""
        try:
            self._reserve_ports(settings)
            self._allow_ports(ports.allowed_ports(settings.masquerade.ports))
        except FastmasqError:
            self._reserve_ports(self.settings)
            self._allow_ports(ports.allowed_ports(self.settings.masquerade.ports))
            raise

    def _follow_ports(self) -> None:
        """Give up ports that a program of the host has bound meanwhile, and take back those it has left."""
        for port_class, port in np.argwhere(self._allow_ports(ports.allowed_ports(self.settings.masquerade.ports))):
            protocol = CLASSES[port_class]
            log.warning("%s port %d: bound by the host, which gets it when its sessions end", protocol, port)
        if self.demand.follow_ports(self._spare_ports()):
            self.follow_guard()

    def _allow_ports(self, allowed: np.ndarray) -> np.ndarray:
        """Let masquerading use these ports; return those, by class, that it has just lost but sessions still use."""
        if not np.array_equal(allowed, self.allowed):
            self.allowed = allowed
            with self.forwarder.locked():
                self.table.set_external(self.external, self._for_mappings(self.external))
        still_used = self._still_mapped(self.guarded_ports & ~allowed)
        lost = still_used & ~self._still_used
        self._still_used = still_used
        self.guarded_ports = allowed | still_used
        self.follow_guard()
        return lost

    def _follow_demand(self) -> None:
        """Guard the ports that lead inside on demand; those that no longer do, until their sessions end."""
        still_used = self._still_mapped(self._demanded & ~self.demand.ours & ~self.guarded_ports)
        self._still_used |= still_used
        self.guarded_ports = self.guarded_ports | still_used
        self._demanded = self.demand.ours

    def _still_mapped(self, lost: np.ndarray) -> np.ndarray:
        """Return which of the ports that are no longer allowed have sessions still: the host would reset them."""
        mapped = np.zeros_like(lost)
        if self.external is not None:
            found = np.argwhere(lost)
            for at in range(0, len(found), listing.CHUNK):
                with self.forwarder.locked():
                    for port_class, port in found[at : at + listing.CHUNK]:
                        mapped[port_class, port] = self.table.is_mapped(self.external, port_class, port)
        return mapped

    def _check_settings(self) -> None:
        """Say it, once, when what we depend on is not as it should be: settings of the kernel, programs of the host."""
        drifted = self.takeover.drifted() + programs.out_of_reach(self.rules.rule_set)
        for sentence in drifted:
            if sentence not in self._drifted:
                log.warning("%s", sentence)
        self._drifted = drifted

    def _probe_hops(self) -> None:
        """Have the kernel confirm the next hops in use: it sees no packets of ours, and would not notice a dead one."""
        with self.forwarder.locked():
            used = self.forwarder.used_hops()
        for number, address in used:
            if self.links[number].ifindex and self.links[number].header_length:
                neighbour = self.world.neighbour(self.links[number].ifindex, address)
                if neighbour is None or neighbour.state in ("stale", "failed"):
                    self.world.resolve(self.links[number].ifindex, address)

    def _counters(self) -> dict[str, int]:
        counters = {f"drop.{name}": count for name, count in self.forwarder.drops().items()}
        counters["opened"] = self.table.counts()["opened_total"]
        for number in self.links:
            for name, count in self.forwarder.traffic(number).items():
                counters[f"{number}.{name}"] = count
        for link in self.attached.values():
            link.count_drops()
        return counters

    # -- for the control socket ----------------------------------------------------------------------------------------

    def _handlers(self) -> dict[str, Callable[[dict], object]]:
        return {
            "status": self.status,
            "sessions": self.sessions,
            "timeouts": self.change_timeouts,
            "dynaddr": self.change_dynaddr,
            "reload": self.reload,
            "ping": lambda _: "pong",
            **self.log_levels.handlers(),
            **self.rules.handlers(),
            **self.forwards.handlers(),
            **(self.vpn.handlers() if self.vpn is not None else {}),
            **self.demand.handlers(),
            **Preload(self.vpn).handlers(),
        }

    def summary(self) -> str:
        """Return the one line that says what we are doing."""
        inside = ", ".join(self.settings.interfaces.inside)
        outside = self.settings.interfaces.outside
        address = ipaddress.IPv4Address(self.external) if self.external is not None else "no address yet"
        rings = ", ".join(sorted({link.ring.tap.mode for link in self.attached.values()}))
        return (
            f"fastmasq {fastmasq.__version__} is forwarding: {inside} -> {outside} ({address}),"
            f" ring {rings}, guard {self.guard.backend}"
        )

    def status(self, _: dict) -> dict[str, Any]:
        counts = self.table.counts()
        return {
            "version": fastmasq.__version__,
            "pid": os.getpid(),
            "uptime_s": round((now_ns() - self.started_ns) / NS, 1),
            "compat": self.settings.compat,
            "links": [
                self._describe_link(number)
                for number, link in self.links.items()
                if link.role != "local" or link.ifindex
            ],
            "guard": {"backend": self.guard.backend, "detail": self.guard.describe()},
            "external": {
                "address": None if self.external is None else str(ipaddress.IPv4Address(self.external)),
                "ports": format_ports(self.allowed[0] & self.allowed[1]),
            },
            "sessions": {
                **{name: counts[name] for name in ("active", "capacity", "tcp", "udp", "icmp", "mappings", "hosts")},
                "opened_total": counts["opened_total"],
                "opened_per_s": round(self.rates.rate("opened"), 1),
            },
            "verdicts": self.forwarder.verdicts(),
            "drops": self._describe_drops(),
        }

    def change_timeouts(self, params: dict) -> dict[str, int]:
        """Use other timeouts from each session's next packet on; see daemon/timeouts.py."""
        self.timeouts = timeouts.changed(self.timeouts, params)
        with self.forwarder.locked():
            self.table.set_timeouts(self.timeouts)
        return timeouts.describe(self.timeouts)

    def change_dynaddr(self, params: dict) -> dict[str, int]:
        """Set what happens when the outside address changes: {"value": 0 to 7}, see [masquerade] dynaddr."""
        value = params.get("value")
        if value not in range(8):
            raise ConfigurationError(f"dynaddr: {value!r} is not a number from 0 to 7")
        self.dynaddr = value
        return {"value": value}

    def reload(self, params: dict) -> dict[str, Any]:
        """Read the configuration again and make the difference, see daemon/reload.py. Raises FastmasqError."""
        return self._reload(to_enforce=params.get("enforce") is True)

    def _reload(self, *, to_enforce: bool) -> dict[str, Any]:
        if self.read_again is None:
            raise KernelError("started without a configuration, so there is nothing to reload; use `run -c FILE`")
        try:
            result = reload.reload(self, self.read_again(), to_enforce=to_enforce)
        except FastmasqError as error:
            for line in str(error).splitlines():
                log.error("not reloaded: %s", line)
            self._guarded = None
            raise
        for warning in result["warnings"]:
            log.warning("%s", warning)
        log.info("%s", reload.report(result))
        return result

    def _describe_link(self, number: int) -> dict[str, Any]:
        link, attached = self.links[number], self.attached.get(number)
        traffic = self.forwarder.traffic(number)
        rates = {name: self.rates.rate(f"{number}.{name}") for name in traffic}
        return {
            "name": self.names[number],
            "role": link.role,
            "state": "missing" if not link.ifindex else "up" if link.up else "down",
            "ifindex": link.ifindex,
            "mtu": link.mtu,
            "addresses": [str(address) for address in link.addresses],
            "ring": attached.ring.tap.mode if attached else None,
            "vnet_header": bool(attached and attached.ring.tap.vnet_header and attached.sender.socket.vnet_header),
            "qdisc_bypass": bool(attached and attached.sender.bypass),
            **traffic,
            "ring_drops": attached.count_drops() if attached else 0,
            "rx_pps": round(rates["rx_packets"], 1),
            "tx_pps": round(rates["tx_packets"], 1),
            "rx_bps": round(rates["rx_bytes"] * 8, 1),
            "tx_bps": round(rates["tx_bytes"] * 8, 1),
        }

    def _describe_drops(self) -> list[dict[str, Any]]:
        counts = self.forwarder.drops()
        return [
            {
                "reason": name,
                "packets": counts[name],
                "per_s": round(self.rates.rate(f"drop.{name}"), 1),
                "sentence": sentence,
            }
            for name, sentence in DROP_REASONS
            if name in counts
        ]

    def sessions(self, params: dict) -> dict[str, Any]:
        """Return the sessions that match `host`, `protocol` and `state`, at most `limit` of them, and how many do.

        With `masqueraded`, as the kernels of 1999 listed them, sessions of the host's own programs are left out. With
        `tunnels` calls, SAs and ISAKMP exchanges follow.
        """
        limit = params.get("limit") or 1000
        now = now_ns()
        total, found = 0, []
        for rows in listing.copies(self.table, self.forwarder):
            chosen = listing.select(rows, params.get("host"), params.get("protocol"), params.get("state"))
            if params.get("masqueraded"):
                chosen = listing.masqueraded(chosen)
            total += len(chosen)
            found += [listing.describe(row, self.table, now) for row in chosen[: limit - len(found)]]
        if params.get("tunnels") and self.vpn is not None:
            tunnels = list(vpn_sessions.sessions(self.vpn, now))
            total += len(tunnels)
            found += tunnels[: limit - len(found)]
        return {"total": total, "sessions": found}
