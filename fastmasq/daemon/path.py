"""The path over its table, of the sizes and with the habits that the settings want."""

from __future__ import annotations

from fastmasq.config.schema import Settings
from fastmasq.daemon.state import State
from fastmasq.kernel import local_link
from fastmasq.path.forwarder import Forwarder
from fastmasq.table.limits import Limits
from fastmasq.table.masq import MasqTable


def limits_of(settings: Settings) -> Limits:
    limits = settings.limits
    return Limits(limits.sessions_per_host, limits.ports_per_host, limits.new_sessions_per_host, limits.prefix)


def make_path(
    settings: Settings, now: int, state: State | None, key: bytes | None = None, *, observes: bool
) -> Forwarder:
    """Return the path over a new table, which lies in the file that is to outlive this process, if there is one.

    now is in nanoseconds; key: what external ports are given by (kernel/key.py), without it another each time. Raises
    CapacityError.
    """
    masquerade = settings.masquerade
    in_file = {} if state is None or state.buffer is None else {"buffer": state.buffer, "back": state.back}
    table = MasqTable(
        settings.limits.sessions,
        filtering=masquerade.filtering,
        limits=limits_of(settings),
        sequential=settings.sequential_ports,
        secret=key,
        now_ns=now,
        **in_file,
    )
    table.make_ready()
    forwarder = Forwarder(table, hairpin=masquerade.hairpin, observes=observes)
    forwarder.set_renumbering(settings.compat == "modern")
    forwarder.set_proxies(local_link.FIRST, local_link.COUNT)
    return forwarder
