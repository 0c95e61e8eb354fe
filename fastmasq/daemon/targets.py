"""Whether what a policy forwards can come and go: by a link of ours, and to inside hosts, over an inside link."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from ipaddress import IPv4Address

from fastmasq.daemon.policy import Policy
from fastmasq.kernel.links import Link
from fastmasq.kernel.routes import UNICAST, Route
from fastmasq.kernel.watch import Snapshot
from fastmasq.policy.forwards import OUTSIDE, read_address


def outsiders(policy: Policy, snapshot: Snapshot, before: Policy | None = None) -> Iterator[str]:
    """Yield a sentence for each forward, redirect, trigger or mark of no inside host, but for those of `before`."""
    had = {each[1:] for each in _targets(before)} if before is not None else set()
    for owner, name, text in _targets(policy):
        reason = why_not_inside(snapshot, int(IPv4Address(text)))
        if reason and (name, text) not in had:
            yield policy.placed(owner, f"{name}: {text} is no inside host: {reason}")


def unlinked(policy: Policy, snapshot: Snapshot, before: Policy | None = None) -> Iterator[str]:
    """Yield a sentence for each forward that listens on a link which is none of ours, but for those of `before`."""
    names = [link.name for link in snapshot.links if link.role != "local"]
    had = {str(forward) for forward in before.forwards} if before is not None else set()
    for forward in policy.forwards:
        is_known = read_address(forward.listen) is not None or forward.listen in (OUTSIDE, *names)
        if not is_known and str(forward) not in had:
            said = f"{forward}: {forward.listen} is no link of [interfaces]; those are {', '.join(names)}"
            yield policy.placed(forward, said)


def why_not_inside(snapshot: Snapshot, address: int) -> str | None:
    """Return why an address is no inside host's, None if it is, or as long as an inside link is missing or has none."""
    links = {link.ifindex: link for link in snapshot.links}
    inside = [link for link in snapshot.links if link.role == "inside"]
    if not all(link.ifindex and link.addresses for link in inside):
        return None
    route = _route_towards(snapshot, address)
    if route.kind == UNICAST and route.ifindex in [link.ifindex for link in inside]:
        return None
    if route.kind != UNICAST:
        return "it is an address of this host" if route.kind == "local" else f"the way there is {_kind(route)}"
    name = links[route.ifindex].name if route.ifindex in links else "no link of ours"
    return f"the way there leads over {name}; inside are {', '.join(link.name for link in inside)}"


def link_towards(snapshot: Snapshot, address: int) -> Link | None:
    """Return the link of ours that the way to an address leads over, None if it leads over none."""
    route = _route_towards(snapshot, address)
    found = (link for link in snapshot.links if route.kind == UNICAST and link.ifindex == route.ifindex)
    return next(found, None)


def _route_towards(snapshot: Snapshot, address: int) -> Route:
    return snapshot.routes[bisect.bisect_right(snapshot.routes, address, key=lambda each: each.first) - 1]


def _kind(route: Route) -> str:
    return "none" if route.kind == "none" else f"a route of kind {route.kind}"


def _targets(policy: Policy) -> Iterator[tuple[object, str, str]]:
    """Yield what leads somewhere, how it is written, and the address that it leads to."""
    for forward in policy.forwards:
        yield from ((forward, str(forward), target.address) for target in forward.targets)
    yield from ((redirect, str(redirect), redirect.host) for redirect in policy.redirects)
    yield from ((row, f"trigger {row}", row.host) for row in policy.triggers if row.host)
    yield from ((mark, f"mark {mark.mark}", mark.address) for mark in policy.marks)
