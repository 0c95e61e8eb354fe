"""Gateway: the parts of one forwarder, kept in step with policy, with the kernel's addresses, and with the host.

Policy changes in one way alone, `apply`: each part that differs is brought to what is wanted, and has a way back; then
guard, table and path follow once. When a step is refused, those before it are undone: all of a change is made, or none.

    policy    --apply-->   rules, forwards, redirects, triggers, marks, settings
    kernel    --follow-->  links, routes, addresses                                  --settle-->  guard, table, path
    host      --look-->    the ports it uses
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np

from fastmasq.clock import now_ns
from fastmasq.config.schema import Settings
from fastmasq.config.values import PortRanges
from fastmasq.daemon import claims, departure, listing, rows, targets
from fastmasq.daemon.application_gateways import ApplicationGateways
from fastmasq.daemon.forwards import Forwards
from fastmasq.daemon.host import Host
from fastmasq.daemon.leads import Leads
from fastmasq.daemon.links import Links
from fastmasq.daemon.marks import Marks
from fastmasq.daemon.path import limits_of
from fastmasq.daemon.policy import Policy
from fastmasq.daemon.ports import Ports, no_ports
from fastmasq.daemon.punts import Punts
from fastmasq.daemon.redirects import Redirects
from fastmasq.daemon.rules import Rules
from fastmasq.daemon.triggers import Triggers
from fastmasq.daemon.untranslated import Untranslated
from fastmasq.daemon.vpn import Vpn
from fastmasq.daemon.worker import Worker
from fastmasq.errors import ConfigurationError, FastmasqError
from fastmasq.kernel.ports import format_ports
from fastmasq.kernel.programs import program_of
from fastmasq.kernel.watch import Watch
from fastmasq.mishaps import Mishaps
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.triggers_and_marks import TriggerTable
from fastmasq.policy import forwards, triggers
from fastmasq.wire.numbers import CLASS_TCP, CLASS_UDP, CLASSES, ISAKMP_PORT, PPTP_PORT, TCP, UDP

log = logging.getLogger("fastmasq.engine")

MOST_NAMED = 100  # characters of ports in a line of the log
_PORT_CLASSES = {TCP: CLASS_TCP, UDP: CLASS_UDP}  # by protocol


class Gateway:
    """The parts of one forwarder; `settings` are those it is built on, which never change.

    The path does what `declared` says at once; the host is told by `begin`.
    """

    def __init__(
        self, settings: Settings, declared: Policy, forwarder: Forwarder, worker: Worker, watch: Watch, host: Host,
        links: Links,
    ) -> None:  # fmt: skip
        self.table = forwarder.table
        self.forwarder = forwarder
        self.worker = worker
        self.watch = watch
        self.host = host
        self.links = links
        self.rules = Rules(forwarder, self.table.counts()["capacity"], settings.compat)
        self.forwards = Forwards(self.table, forwarder)
        self.redirects = Redirects(forwarder)
        leading = TriggerTable(renews=settings.compat == "2.0")
        self.triggers = Triggers(forwarder, leading)
        self.marks = Marks(forwarder, leading, self.triggers)
        self.ports = Ports(self._mapped)
        self.untranslated = Untranslated(forwarder, str(settings.interfaces.outside))
        self.vpn = self._make_vpn(settings)
        followed = [PPTP_PORT] if settings.vpn.pptp else []
        self.application_gateways = ApplicationGateways(self.table, forwarder, followed)
        self.punts = Punts(forwarder, self.vpn, self.application_gateways, self._external_for)
        if self.follows_ipsec():
            self.ports.track(CLASS_UDP, ISAKMP_PORT)
        self.by_address: frozenset[int] = frozenset()
        self._mishaps = Mishaps(log)
        self._leading = leading
        self._local: list[int] = []  # the host's addresses
        self._pool: tuple[int, ...] = ()  # addresses that inside hosts are dealt out to
        self._missing: list[str] = []  # addresses of the settings, as was said last
        self._is_in_step = False  # with what the kernel says, and policy
        self.declared = declared  # what the files said last
        self.changes = 0  # of policy, so far
        self._put(declared)

    def _make_vpn(self, settings: Settings) -> Vpn | None:
        if not (settings.vpn.pptp or settings.vpn.ipsec):
            self.forwarder.follow(pptp=False, ipsec=False)
            return None
        leads = Leads(self.forwards, self.redirects)
        return Vpn(settings, self.table, self.forwarder, leads, self._external_for)

    def follows_ipsec(self) -> bool:
        return self.vpn is not None and self.vpn.settings.ipsec

    def go_on(self, externals: tuple[int, ...]) -> None:
        """Have the sessions that the table has adopted be ours as if there had been one run all along; before `begin`.

        externals: the addresses that masqueraded packets left with, the usual one first.
        """
        mapped = no_ports()
        for address in externals:
            mapped |= self.table.mapped_ports(address)
        self.ports.go_on(externals, mapped)
        self.forwards.left |= self.table.orphans()

    def take_up(self, policy: Policy) -> None:
        """Have the path go by a policy other than the one declared, which a run before has come to; before `begin`.

        Raises whatever is wrong with it, and the path goes by the one declared then.
        """
        try:
            self.forwards.resolve(self._addresses_by_name())
            self.forwards.check((*policy.forwards, *triggers.port_forwards(policy.triggers)))
            self._put(policy)
        except Exception:
            self._put(self.declared)
            raise

    def open_links(self) -> None:
        """Have the path know the kernel's links and routes, and open what is there; `begin` then has less to do.

        Raises FastmasqError.
        """
        by_next_hop = not self.settings.masquerade.addresses
        self.links.follow(self.watch.snapshot(), by_next_hop=by_next_hop, behind=self.host.guard_marks())

    def begin(self) -> None:
        """Take the host over for the policy declared, and have the path know the kernel's links and routes.

        Raises FastmasqError. Ends that cannot be are refused, unless a run before has had them.
        """
        try:
            self._check_ends(self._policy, None)
        except ConfigurationError as error:
            if not self.host.goes_on:
                raise
            for line in str(error).splitlines():
                log.warning("%s", line)
        self.host.reserve(self.settings.masquerade)
        self._look_at_ports()
        if self.host.reach_proxies(self.rules.rule_set, self.forwarder):
            self.watch.read(now_ns())
        if not self._external_addresses():
            self._say_no_address()
        for rule in self.host.unfollowed():
            log.warning("ip rule %s: not followed; packets go by the tables local, main and default", rule)
        self.follow()

    # -- policy ----------------------------------------------------------------------------------------------------

    def policy(self) -> Policy:
        """Return the policy in force, with the turns of marks as they stand now."""
        return replace(self._policy, rules=self.rules.rule_set, marks=self.marks.targets(), places={})

    @property
    def settings(self) -> Settings:
        """The settings in force: those of `policy`."""
        return self._policy.settings

    def apply(self, old: Policy, new: Policy) -> None:
        """Have a new policy, made of the `old` one that `policy` returned, from now on: all of it, or none.

        Raises FastmasqError, and all is as it was before then. Sessions live on.
        """
        self._check(old, new)
        with ExitStack() as undo:
            undo.callback(self._settle_again)
            moves = new.settings.masquerade.addresses != old.settings.masquerade.addresses
            if moves:
                undo.callback(self.follow)
            self._change_rules(old, new, undo)
            self._change_forwards(old, new, undo)
            if new.redirects != old.redirects:
                self.redirects.put(new.redirects)
                undo.callback(self.redirects.put, old.redirects)
            if new.marks != old.marks:
                self.marks.put(new.marks, old.marks)
                undo.callback(lambda: self.marks.put(old.marks, self.marks.targets()))
            self._change_ports(old, new, undo)
            undo.callback(self._go_by, old, new)
            self._go_by(new, old)
            if moves:
                self.follow()
            elif self._is_unsettling(old, new):
                self._settle()
            undo.pop_all()
        self.changes += 1
        self.worker.wake()

    def _put(self, policy: Policy) -> None:
        """Have the path go by a policy from the start."""
        self.rules.put(policy.rules)
        self.forwards.put(policy.forwards, triggers.port_forwards(policy.triggers), policy.leased)
        self.redirects.put(policy.redirects)
        self.triggers.put(policy.triggers)
        self.marks.put(policy.marks, ())
        self._go_by(policy)

    def _is_unsettling(self, old: Policy, new: Policy) -> bool:
        """Whether guard, table and path have to follow: not other times, nor rules that mark the same ports."""
        kept = replace(new, rules=old.rules, timeouts=old.timeouts, dynaddr=old.dynaddr)
        return kept != old or not np.array_equal(self.marks.ports(old.rules), self.marks.ports(new.rules))

    def _check(self, old: Policy, new: Policy) -> None:
        """Raise FastmasqError for what can be seen to be impossible before anything is changed."""
        if new.rules is not old.rules:
            self.rules.check(new.rules)
        if (new.forwards, new.triggers) != (old.forwards, old.triggers):
            self.forwards.check((*new.forwards, *triggers.port_forwards(new.triggers)))
        led, before = ((one.forwards, one.triggers, one.redirects, one.marks) for one in (new, old))
        if led != before or (new.marks and new.rules is not old.rules):
            self._check_ends(new, old)

    def _check_ends(self, new: Policy, old: Policy | None) -> None:
        """Raise ConfigurationError for what the old policy has not: what programs have, links and targets not ours."""
        found = list(claims.claims(new, self._addresses_by_name(), self.host.waiting, self.host.tunnels, old))
        found += targets.unlinked(new, self.watch.snapshot(), old)
        found += targets.outsiders(new, self.watch.snapshot(), old)
        if found:
            raise ConfigurationError("\n".join(found))

    def _change_rules(self, old: Policy, new: Policy, undo: ExitStack) -> None:
        if new.rules is not old.rules and self.host.reach_proxies(new.rules, self.forwarder):
            undo.callback(self._leave_proxies)
            self.read_kernel()
        itself, before = new.settings.host, old.settings.host
        if new.rules is not old.rules or itself != before:
            self.host.judge(new.rules, itself)
            undo.callback(self.host.judge, old.rules, before)
        if new.rules is old.rules:
            return
        self.rules.put(new.rules)
        undo.callback(lambda: self.rules.put(old.rules.succeeding(self.rules.rule_set)))

    def _leave_proxies(self) -> None:
        self.host.leave_proxies(self.forwarder)
        with suppress(FastmasqError):  # `_settle_again` comes after it, and says so
            self.read_kernel()

    def _change_forwards(self, old: Policy, new: Policy, undo: ExitStack) -> None:
        """Change forwards, and triggers, as some of them are forwards."""
        if (new.forwards, new.triggers, new.leased) == (old.forwards, old.triggers, old.leased):
            return
        undo.callback(self.forwards.put, self.forwards.forwards, self.forwards.of_triggers, self.forwards.leased)
        self.forwards.put(new.forwards, triggers.port_forwards(new.triggers), new.leased)
        self.triggers.put(new.triggers)
        undo.callback(self.triggers.put, old.triggers)

    def _change_ports(self, old: Policy, new: Policy, undo: ExitStack) -> None:
        before, after = old.settings.masquerade, new.settings.masquerade
        if (after.ports, after.host_ports) == (before.ports, before.host_ports):
            return
        undo.callback(self.host.reserve, before)
        self.host.reserve(after)
        undo.callback(self.ports.leave, self.ports.free)
        self.ports.leave(self.host.free_ports(after.ports))

    def _go_by(self, policy: Policy, before: Policy | None = None) -> None:
        """Take a policy for the one in force, and have the table go by what of it cannot be refused.

        Other timeouts mean a look at every session, with the path standing still: not where they are those of before.
        """
        self._policy = policy
        masquerade = policy.settings.masquerade
        with self.forwarder.locked():
            if before is None or policy.timeouts != before.timeouts:
                self.table.set_timeouts(policy.timeouts)
            self.table.set_filtering(masquerade.filtering)
            self.table.set_limits(limits_of(policy.settings))
            self.forwarder.set_hairpin(masquerade.hairpin)
            self.forwarder.set_mss(masquerade.mss.limit)
        self.application_gateways.go_by(policy.settings.gateways)

    # -- in step ---------------------------------------------------------------------------------------------------

    def read_kernel(self) -> None:
        """Take in what the kernel has announced, and follow it if links, addresses or routes are others now."""
        before = self.watch.snapshot().generation
        self.watch.read(now_ns())
        if self.watch.snapshot().generation != before:
            self._say_address(next(iter(self._external_addresses()), None))
            self.follow()

    def follow(self) -> None:
        """Bring everything to what the kernel says of links, addresses and routes. Raises FastmasqError."""
        self._is_in_step = False
        snapshot = self.watch.snapshot()
        marks = self.host.guard_marks()
        self.open_links()
        self.host.keep_datagrams_apart(self.links.without_sizes())
        self.rules.follow_links(self.links.views())
        self.forwards.resolve(self._addresses_by_name())
        self._local = rows.local_addresses(snapshot.routes)
        self._settle()
        if self.host.guard_marks() != marks:
            self.open_links()
        self.host.judge(self.rules.rule_set, self.settings.host)  # a rule may ask for the address of an interface
        self._say_missing()
        self._is_in_step = True

    def _external_addresses(self) -> list[int]:
        """Return the addresses that inside hosts leave with, as the kernel and the settings say now."""
        wanted = self.settings.masquerade.addresses
        return rows.external_addresses(self.watch.snapshot(), wanted, self.ports.external)

    def _addresses_by_name(self) -> dict[str, int]:
        external = next(iter(self._external_addresses()), None)
        return rows.addresses_by_name(self.watch.snapshot(), external)

    def _external_for(self, host: int | None = None) -> int | None:
        """Return the address that an inside host leaves with, or the usual one; None while there is none."""
        return self.ports.external if host is None else self.table.external_for(host)

    def _say_address(self, address: int | None) -> None:
        if address is None and self.ports.external is not None:
            self._say_no_address()
        elif address != self.ports.external:
            log.warning("external address is now %s", IPv4Address(address))

    def _say_no_address(self) -> None:
        which = "address of [masquerade] addresses" if self.settings.masquerade.addresses else "address"
        log.warning("%s has no %s: no new sessions until it has", self.settings.interfaces.outside, which)

    def missing_addresses(self) -> list[str]:
        """Return the addresses of the settings that the outside link has not just now."""
        return rows.missing_addresses(self.watch.snapshot(), self.settings.masquerade.addresses)

    def _say_missing(self) -> None:
        before, self._missing = self._missing, self.missing_addresses()
        for address in self._missing:
            if address not in before:
                outside = self.settings.interfaces.outside
                log.warning("[masquerade] addresses: %s has no %s, so nobody leaves with it", outside, address)

    def _settle(self) -> None:
        """Have guard, path and table follow: what is ours no longer goes first, then the guard, then what is new comes.

        The guard is before the table, or the host would reset the first sessions on an address it thinks its own.
        """
        was_in_step, self._is_in_step = self._is_in_step, False
        before = self.ports.led_inside()
        self.ports.move(*self._external_addresses())
        self.ports.reserve(self.triggers.ports() | self.marks.ports(self.rules.rule_set), self.triggers.keeping())
        self.ports.forward(self.forwards.wanted_ports())
        self.host.keep_off(self.ports.led_by_number())
        self._look_at_spare_ports()
        after = self.ports.led_inside()
        self._lead_inside(before & after)
        self._carry_by_address()
        self._keep()
        self._lead_inside(after)
        self._map()
        self._is_in_step = was_in_step
        self._give_back()

    def _give_back(self) -> None:
        """Give a port that a forward, trigger or mark has left to the program of the host that waits there.

        Sessions by it would keep strangers from the program for as long as they live: they end.
        """
        left = self.forwards.left | self.ports.left()
        found = dict(claims.heard(left, self.host.waiting)) if left else {}
        if not found:
            return
        closed = departure.end(self.table, self.forwarder, self.host, found)
        self.forwards.retry()
        self._keep()
        for endpoint, each in found.items():
            log.warning("%s: given back to %s", forwards.write_endpoint(endpoint), program_of(each))
        if closed:
            log.warning("%d sessions by what led there before have ended with that", closed)

    def _settle_again(self) -> None:
        """Settle after a change was undone; what is refused even so is tried again each second."""
        try:
            self._settle()
        except FastmasqError as error:
            log.error("%s", error)

    def _keep(self) -> np.ndarray:
        """Have the guard keep from the host what is ours; return the ports that were lost, see `Ports.take_lost`."""
        lost = self.ports.take_lost()
        protocols = {*self.by_address, *self.redirects.protocols(), *(self.vpn.protocols() if self.vpn else ())}
        self.host.keep(self._local, self.ports.guarded(self.forwards.held_ports(), self._local), protocols)
        return lost

    def _lead_inside(self, ports: np.ndarray) -> None:
        with self.forwarder.locked():
            self._leading.set_ports(ports)

    def _carry_by_address(self) -> None:
        """Have the path carry by address what the settings say, but for what this host uses itself just now."""
        wanted = self.settings.by_address
        wanted = wanted and wanted - self.host.protocols()
        if wanted != self.by_address:
            self.by_address = wanted
            with self.forwarder.locked():
                self.forwarder.carry_by_address(wanted)

    def _map(self) -> None:
        """Have the table make new mappings on the external address, and forwards listen where they are wanted."""
        address = self.ports.external
        self.forwards.withdraw()
        stale = self._allow()
        self.forwards.place()
        if address is None:
            return
        used = {*stale, *(self.vpn.addresses() if self.vpn else ())} - {*self.ports.externals}
        for old in sorted(used - self.forwards.listening()):  # what a forward that has gone leaves lives on (PF-9)
            if old in self.ports.former or old not in self._local:
                departure.leave(self.table, self.forwarder, self.vpn, self.host, self._policy.dynaddr, old, address)

    def _allow(self) -> list[int]:
        """Have the table know our addresses, and which ports it may give; return those that sessions are left on."""
        address, beside = self.ports.external, {*self.ports.externals[1:], *self.forwards.listening()}
        pool = self.ports.externals if len(self.settings.masquerade.addresses) > 1 else ()
        with self.forwarder.locked():
            if self._pool != pool:
                self.table.set_pool(())  # its rows may be other addresses' now
            stale = self.table.set_external(address, self.ports.for_mappings(address), beside)
        for each in sorted(beside - {address}):
            with self.forwarder.locked():
                self.table.hold_external(each, self.ports.for_mappings(each), beside)
        with self.forwarder.locked():
            self.table.set_pool(pool)
        self._pool = pool
        return stale

    def _mapped(self, address: int, ports: np.ndarray) -> np.ndarray:
        """Return which of these ports have mappings on an address."""
        mapped = no_ports()
        found = np.argwhere(ports)
        for at in range(0, len(found), listing.CHUNK):
            with self.forwarder.locked():
                for port_class, port in found[at : at + listing.CHUNK]:
                    mapped[port_class, port] = self.table.is_mapped(address, port_class, port)
        return mapped

    # -- once in a while -------------------------------------------------------------------------------------------

    def every_second(self) -> Iterator[Callable[[], object]]:
        """Yield what time asks for, a step after the other: each may fail by itself."""
        yield self.table.make_ready
        yield self.links.every_second
        yield self.retry
        yield self.rules.print_log
        yield lambda: self.untranslated.every_second(now_ns())
        yield self.forwards.retry
        yield self._give_back
        yield self.punts.every_second
        yield self.application_gateways.every_second
        if self.vpn is not None:
            yield lambda: self.vpn.every_second(now_ns())

    def retry(self) -> None:
        """Do what could not be done before: open a link, have the guard follow, put back what somebody has changed.

        Raises FastmasqError.
        """
        if not self._is_in_step or not self.links.are_attached():
            self.follow()
        if not self.host.is_whole:
            self.look_after_host()

    def look_after_host(self) -> None:
        """Put back what somebody has changed of the host. Raises KernelError for what cannot be."""
        self.host.look_after(now_ns())

    def check_host(self) -> None:
        """Say what on the host is not as it should be."""
        self.host.check(self.rules.rule_set)

    def look(self) -> None:
        """Give up ports that the host uses meanwhile, and take back those it has left."""
        self._carry_by_address()
        spare = self.host.free_ports(PortRanges()) if self.ports.keeps_sources() else self.ports.spare
        self._leave(self.host.free_ports(self.settings.masquerade.ports), spare)

    def give_up(self, bound: Iterable[tuple[int, int]]) -> None:
        """Give up ports that programs of the host have just bound: protocol and port of each."""
        free, spare = self.ports.free.copy(), self.ports.spare.copy()
        for protocol, port in bound:
            if protocol in _PORT_CLASSES:
                free[_PORT_CLASSES[protocol], port] = spare[_PORT_CLASSES[protocol], port] = False
        if not (np.array_equal(free, self.ports.free) and np.array_equal(spare, self.ports.spare)):
            self._leave(free, spare)

    def _leave(self, free: np.ndarray, spare: np.ndarray) -> None:
        """Use what the host leaves to us from now on: what sessions may have, and may keep as their source."""
        if self.ports.leave(free):
            self._allow()
        keeping = self.ports.keeps_sources()
        before = self.ports.led_inside() if keeping else None
        if keeping:
            self.ports.leave_spare(spare)
            self._lead_inside(before & self.ports.led_inside())  # what the host has bound goes first, as in `_settle`
        lost = self._keep()
        for protocol, ports in zip(CLASSES, lost, strict=True) if lost.any() else ():
            if ports.any():
                sentence = f"{protocol} port {_some(ports)}: the host's now, which gets it when its sessions end"
                self._mishaps.warn(sentence, now_ns())  # any user may bind ports, one after the other
        if keeping:
            self._lead_inside(self.ports.led_inside())

    def _look_at_ports(self) -> bool:
        """Find out which ports the host leaves to us; return whether they are others than before."""
        return self.ports.leave(self.host.free_ports(self.settings.masquerade.ports))

    def _look_at_spare_ports(self) -> None:
        """Find out which ports sessions may keep as their source, if any may."""
        if self.ports.keeps_sources():
            self.ports.leave_spare(self.host.free_ports(PortRanges()))

    def count(self) -> None:
        """Bring the counters of rules and policies up to date. Raises KernelError."""
        self.rules.count()
        self.host.count(self.rules.rule_set)


def _some(ports: np.ndarray) -> str:
    """Name ports, as far as they are few."""
    named = format_ports(ports)
    return named if len(named) <= MOST_NAMED else f"{named[:MOST_NAMED].rpartition(',')[0]} and more"
