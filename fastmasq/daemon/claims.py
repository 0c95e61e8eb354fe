"""What a policy would take from programs of this host: ports of forwards, triggers and marks, and protocols redirected.

A program that waits at such a port, or for such a protocol, would hear nothing any more. Nobody wants that by mistake:
so it is refused, unless what takes it is to `steal`. What a policy in force has already is its own. The ports of a mark
are those that the rules name which set it; a rule that names none takes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fastmasq.daemon.policy import Policy
from fastmasq.kernel.ports import Waiting
from fastmasq.kernel.programs import program_of
from fastmasq.policy import forwards, marking, triggers
from fastmasq.policy.forwards import OUTSIDE, Endpoint
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.triggers import NUMBERS

Ask = Callable[[int], Sequence[Waiting]]  # for an IP protocol, see kernel.ports.waiting
Owner = forwards.Forward | triggers.Trigger | MarkTarget


def claims(
    policy: Policy, addresses: Mapping[str, int], waiting: Ask, tunnels: Callable[[int], Sequence[str]],
    before: Policy | None = None,
) -> Iterator[str]:  # fmt: skip
    """Yield a sentence for each that takes what a program or a tunnel of this host has, but for what `before` had.

    addresses: those of the host and of its links by their spelling; tunnels returns the names of those with a protocol.
    """
    had = set(_endpoints(before, addresses)) if before is not None else set()
    new = {endpoint: owner for endpoint, owner in _endpoints(policy, addresses).items() if endpoint not in had}
    said: set[Owner] = set()
    for endpoint, each in heard(new, waiting):
        owner = new[endpoint]
        if owner.steal or owner in said:
            continue
        said.add(owner)
        where = f"waits at {forwards.PROTOCOLS[endpoint[1]]} {each.endpoint()}, and would hear nothing more"
        yield policy.placed(owner, f"{_name(owner)}: {program_of(each)} {where}; {_instead(owner)}")
    had_protocols = {one.protocol for one in before.redirects} if before is not None else set()
    wanted = {one.protocol: one for one in policy.redirects if not one.steal}
    for protocol in sorted(wanted.keys() - had_protocols):
        users = [f"the tunnel {name}" for name in tunnels(protocol)]
        users += [str(program_of(each)) for each in waiting(protocol)]
        if users:
            text = (
                f"protocol {protocol}: {users[0]} of this host uses it, and would hear nothing more; end that, or "
                "take it with --force (steal = true in the configuration)"
            )
            yield policy.placed(wanted[protocol], text)


def heard(endpoints: Mapping[Endpoint, object] | set[Endpoint], waiting: Ask) -> Iterator[tuple[Endpoint, Waiting]]:
    """Yield the endpoints at which a program of this host waits, each with its socket."""
    by_port: dict[tuple[int, int], list[Endpoint]] = {}
    for endpoint in endpoints:
        by_port.setdefault(endpoint[1:], []).append(endpoint)
    for port_class in sorted({port_class for port_class, _ in by_port}):
        for each in waiting(NUMBERS[forwards.PROTOCOLS[port_class]]):
            for endpoint in by_port.get((port_class, each.port), ()):
                if each.hears(endpoint[0]):
                    yield endpoint, each


def _endpoints(policy: Policy, addresses: Mapping[str, int]) -> dict[Endpoint, Owner]:
    """Return the external endpoints that lead inside, each with what leads there.

    One whose address the host has not got just now has 0: whoever waits at all addresses waits there.
    """
    known = {one.listen: 0 for one in policy.forwards} | {OUTSIDE: 0} | dict(addresses)
    found: dict[Endpoint, Owner] = {}
    for endpoint, _, forward in forwards.endpoints(policy.forwards, known):
        found.setdefault(endpoint, forward)
    for row in policy.triggers:
        if row.kind != "direct":
            port_class = forwards.PROTOCOLS.index(row.protocol)
            for port in range(row.first, row.last + 1):
                found.setdefault((known[OUTSIDE], port_class, port), row)
    for (port_class, port), target in marking.owners(policy.rules, policy.marks).items():
        found.setdefault((known[OUTSIDE], port_class, port), target)
    return found


def _name(owner: Owner) -> str:
    if isinstance(owner, MarkTarget):
        return f"mark {owner.mark}"
    return str(owner) if isinstance(owner, forwards.Forward) else f"trigger {owner}"


def _instead(owner: Owner) -> str:
    if isinstance(owner, forwards.Forward):
        return "stop it, use another port, or take this one with --force (steal = true in the configuration)"
    what = "use other ports" if isinstance(owner, triggers.Trigger) else "have no rule mark this port"
    return f"stop it, {what}, or take these with ipmasqadm --force (steal = true under [rules])"
