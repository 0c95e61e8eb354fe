"""What a set-up lacks on this host, found without changing anything: the second half of `fastmasq check`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address
from typing import NamedTuple

import numpy as np

from fastmasq.config.schema import Settings
from fastmasq.control.keys import read_keys
from fastmasq.daemon import hooks, offload, ports
from fastmasq.daemon.claims import claims
from fastmasq.daemon.policy import Declared
from fastmasq.daemon.rows import addresses_by_name, external_addresses, missing_addresses
from fastmasq.daemon.targets import outsiders, unlinked
from fastmasq.errors import ConfigurationError, FastmasqError
from fastmasq.kernel import ip_rules, privileges
from fastmasq.kernel.conflicts import conflicts
from fastmasq.kernel.guard.backends import candidates, make_guard
from fastmasq.kernel.host_rules.ruleset import HostRules
from fastmasq.kernel.links import Link
from fastmasq.kernel.ports import (
    PORT_RANGE,
    ephemeral_range,
    format_ports,
    reserved_ports,
    tunnels,
    waiting,
    why_no_settings,
)
from fastmasq.kernel.routes import UNICAST
from fastmasq.kernel.takeover import left_behind
from fastmasq.kernel.watch import Watch
from fastmasq.path.rows import MACVLANS
from fastmasq.policy.forwards import overlaps, read_address
from fastmasq.policy.triggers import port_forwards
from fastmasq.ring.packet_socket import MODES, open_tap
from fastmasq.units import format_count

FEW_PORTS = 4096  # the range of 1999
MOST_ADDRESSES = 1 << 31  # a default route may be two halves
BYTES_PER_SESSION = 260  # when the table is full; see the manual
PRIVATE = ((0x0A000000, 0x0AFFFFFF), (0xAC100000, 0xAC1FFFFF), (0xC0A80000, 0xC0A8FFFF))  # RFC 1918


class Finding(NamedTuple):
    """One thing to know, by severity.

    "error": it will not run; "problem": it will, but packets do not go where they should; "warning": it will, but;
    "note".
    """

    severity: str
    text: str


def findings(declared: Declared) -> list[Finding]:
    """Look at privileges, links, rings, guard, ports, memory and conflicts, and return what is worth saying."""
    settings = declared.settings
    lacking = privileges.missing()
    if lacking:
        return [Finding("error", f"{' and '.join(lacking)} missing: run as root; nothing else could be looked at")]
    left = left_behind()
    found = [Finding("warning", left)] if left else []
    watch = Watch(settings.interfaces.inside, settings.interfaces.outside)
    try:
        complaints = watch.complaints()
        found += [Finding("error", complaint) for complaint in complaints]
        links = watch.snapshot().links
        external = external_addresses(watch.snapshot(), settings.masquerade.addresses, None)
        found += _links(links, external)
        found += _forwards(declared, watch, external)
        found += _addresses(settings, watch)
        found += _macvlans(links)
        found += _routing(watch)
        if not complaints:
            found += _rings(settings, links)
    finally:
        watch.close()
    found += [Finding("note", f"without {name}: {privileges.WANTED[name]}") for name in privileges.wanting()]
    found += _guard(settings)
    found += _host(settings)
    found += [Finding("warning", complaint) for complaint in hooks.complaints(settings.hooks)]
    found += _offload(settings)
    found += _ports(settings)
    found += _memory(settings)
    found += _preload(settings)
    interfaces = settings.interfaces
    found += [Finding("warning", sentence) for sentence in conflicts(interfaces.inside, interfaces.outside)]
    return found


def _links(links: tuple[Link, ...], external: list[int]) -> Iterator[Finding]:
    for link in links:
        if not link.ifindex:
            if link.role == "outside":
                yield Finding("warning", f"{link.name} (outside) does not exist yet; forwarding starts when it appears")
            continue
        if not link.up:
            yield Finding("warning", f"{link.name} ({link.role}) is down")
        if not link.addresses:
            yield Finding("warning", f"{link.name} ({link.role}) has no IPv4 address")
        elif link.role == "outside" and external and any(low <= external[0] <= high for low, high in PRIVATE):
            yield Finding("note", f"{link.name} (outside) has a private address: another NAT is before the internet")


def _addresses(settings: Settings, watch: Watch) -> Iterator[Finding]:
    """Look for addresses to leave with that the outside link has not."""
    outside = watch.snapshot().outside
    own = ", ".join(str(IPv4Address(each.address)) for each in outside.addresses)
    for address in missing_addresses(watch.snapshot(), settings.masquerade.addresses):
        said = f"[masquerade] addresses: {outside.name} has no {address}, so nobody leaves with it (it has {own})"
        yield Finding("warning", said)


def _macvlans(links: tuple[Link, ...]) -> Iterator[Finding]:
    """Look for more link addresses than the path knows of a link."""
    for link in links:
        if len(link.macvlans) > MACVLANS:
            said = f"{link.name} has {len(link.macvlans)} macvlans over it: nothing is forwarded for the last of them"
            yield Finding("warning", f"{said}, as {MACVLANS} are known; let virtual routers share one")


def _routing(watch: Watch) -> Iterator[Finding]:
    """Look for a way to the internet, and for routing that we do not follow."""
    links, routes = watch.snapshot().links, watch.snapshot().routes
    for link in links:
        over = (route for route in routes if route.kind == UNICAST and route.ifindex == link.ifindex)
        leads = sum(route.last - route.first + 1 for route in over)
        if link.role == "outside" and link.ifindex and leads < MOST_ADDRESSES:
            yield Finding("problem", f"no default route leads over {link.name} (outside): see `ip route`")
    for rule in ip_rules.concerning(watch.snapshot()):
        yield Finding("problem", f"ip rule {rule}: not followed; packets go by the tables local, main and default")


def _rings(settings: Settings, links: tuple[Link, ...]) -> Iterator[Finding]:
    """Open each ring mode once on the first link, as `run` would."""
    link = next((link for link in links if link.ifindex), None)
    if link is None:
        return
    modes = MODES if settings.rings.mode == "auto" else (settings.rings.mode,)
    for mode in modes:
        try:
            tap = open_tap(link.name, mode, vnet_header=settings.rings.vnet_header == "auto", frames=64)
        except FastmasqError as error:
            severity = "warning" if settings.rings.mode == "auto" else "error"
            yield Finding(severity, f"ring mode {mode}: {error}")
            continue
        if tap.refused:
            refused = ", ".join(f"{what} ({reason})" for what, reason in tap.refused.items())
            yield Finding("note", f"ring mode {mode}: the kernel refuses {refused}")
        tap.close()
    if settings.rings.vnet_header == "off":
        yield Finding("warning", "[rings] vnet_header is off: large sends are cut up in user space, which is slow")


def _guard(settings: Settings) -> Iterator[Finding]:
    wanted = settings.takeover.guard
    if wanted == "none":
        yield Finding("warning", make_guard("none").describe())
        return
    works = []
    for backend in candidates(wanted):
        if backend == "none":
            continue
        try:
            make_guard(backend).check()
            works.append(backend)
        except FastmasqError as error:
            yield Finding("error" if wanted != "auto" else "note", f"guard {backend}: {error}")
    if wanted == "auto" and not works:
        hint = "" if shutil.which("nft") else " (install the package nftables, or iptables for a kernel without it)"
        yield Finding("warning", f"no guard works here{hint}; {make_guard('none').describe()}")


def _host(settings: Settings) -> Iterator[Finding]:
    """Look for what keeps the host from being silent to strangers, and for who could not come in any more."""
    if settings.host.unsolicited != "drop":
        return
    try:
        HostRules().check(gated=True)
    except FastmasqError as error:
        yield Finding("error", f'[host] unsolicited = "drop" needs nftables: {error}')
    if settings.host.is_shut:
        outside = settings.interfaces.outside
        yield Finding("warning", f"[host] open names nothing: nobody can log in to this host over {outside}")


def _offload(settings: Settings) -> Iterator[Finding]:
    if complaint := offload.complaint(settings):
        yield Finding("warning", f"[offload] the kernel will carry no sessions: {complaint}")


def _ports(settings: Settings) -> Iterator[Finding]:
    ranges, reserved = settings.masquerade.ports, reserved_ports()
    host = ports.host_range(settings.masquerade, ephemeral_range(), reserved)
    try:
        ports.reservation(ranges, reserved & ~ports.named_ports(ranges), host)
    except ConfigurationError as error:
        yield Finding("error", str(error))
        return
    yield from _host_range(host)
    allowed = ports.allowed_ports(ranges, host[:2])
    for row, name in enumerate(("tcp", "udp")):
        taken = ports.wanted_ports(ranges) & ~allowed[row]
        if ranges and taken.any():
            used = f"{name} {format_ports(taken)}"
            yield Finding("warning", f"the host uses {used} of [masquerade] ports; they stay with it")
        count = int(np.count_nonzero(allowed[row]))
        if not count:
            yield Finding("error", f"no {name} port is left for masquerading: the host uses all of [masquerade] ports")
        elif count < FEW_PORTS and not ranges:
            yield Finding("warning", f"only {count} {name} ports are left beside the host's own")


def _host_range(host: ports.HostRange) -> Iterator[Finding]:
    if why_no_settings() or host.is_decided:
        return
    if not host.reason:
        yield Finding(
            "note", f"while fastmasq runs, programs of this host connect from the ports {host} ({PORT_RANGE})"
        )
        return
    first, last = ports.HOST_PORTS
    said = f"programs of this host connect from {host}, so inside hosts keep none of these ports: {host.reason}"
    yield Finding("note", f'{said}; [masquerade] host_ports = "{first}-{last}" moves them, "keep" is silent')


def _forwards(declared: Declared, watch: Watch, external: list[int]) -> Iterator[Finding]:
    """Look for what listens where nothing is, or another does; for what programs would lose, and targets outside."""
    snapshot = watch.snapshot()
    addresses = addresses_by_name(snapshot, next(iter(external), None))
    for sentence in claims(declared, addresses, waiting, partial(tunnels, watch.interfaces())):
        yield Finding("error", sentence)
    for sentence in (*unlinked(declared, snapshot), *outsiders(declared, snapshot)):
        yield Finding("error", sentence)
    for forward in declared.forwards:
        if read_address(forward.listen) is not None and forward.listen not in addresses:
            said = f"{forward}: the host has no address {forward.listen} now"
            yield Finding("warning", declared.placed(forward, said))
    for forward, other in overlaps((*declared.forwards, *port_forwards(declared.triggers)), addresses):
        said = f"{forward}: the same address and port as {other}, which goes first; delete one of them"
        yield Finding("warning", declared.placed(forward, said))


def _preload(settings: Settings) -> Iterator[Finding]:
    """Look for the keys of inside hosts that announce SPIs."""
    vpn = settings.vpn
    if not vpn.preload:
        return
    if not vpn.ipsec:
        yield Finding("warning", "[vpn] preload does nothing while ipsec is off")
    try:
        if not read_keys(vpn.preload_keys):
            yield Finding("warning", f"{vpn.preload_keys} has no keys: [vpn] preload is of no use to anybody")
    except FastmasqError as error:
        yield Finding("error", f"[vpn] preload_keys: {error}")


def _memory(settings: Settings) -> Iterator[Finding]:
    needed = settings.limits.sessions * BYTES_PER_SESSION
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        yield Finding(
            "warning",
            f"{settings.limits.sessions} sessions would need {format_count(needed)}B when all are in use;"
            f" {format_count(available)}B are free",
        )
