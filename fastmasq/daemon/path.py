"""The path over its table, of the sizes and with the habits that the settings want."""

from __future__ import annotations

from fastmasq.config.schema import Settings
from fastmasq.daemon.offload import capacity
from fastmasq.daemon.state import State
from fastmasq.kernel import local_link
from fastmasq.offload.arrays import Arrays
from fastmasq.path.forwarder import Forwarder
from fastmasq.table.limits import Limits
from fastmasq.table.masq import MasqTable


def limits_of(settings: Settings) -> Limits:
    limits = settings.limits
    return Limits(limits.sessions_per_host, limits.ports_per_host, limits.new_sessions_per_host, limits.prefix)


def make_path(
    settings: Settings, now: int, state: State | None, key: bytes | None = None, *, observes: bool,
    arrays: Arrays | None = None,
) -> Forwarder:  # fmt: skip
    """Return the path over a new table, which lies in the file that is to outlive this process, if there is one.

    now is in nanoseconds; key: what external ports are given by (kernel/key.py), without it another each time; arrays:
    where that lies by which the kernel carries sessions. Raises CapacityError.
    """
    masquerade = settings.masquerade
    in_file = {} if state is None or state.buffer is None else {"buffer": state.buffer, "back": state.back}
    table = MasqTable(
        capacity(settings, is_shared=arrays is not None),
        filtering=masquerade.filtering,
        limits=limits_of(settings),
        sequential=settings.sequential_ports,
        secret=key,
        now_ns=now,
        apart=arrays.of_table if arrays else None,
        **in_file,
    )
    table.make_ready()
    of_path = arrays.of_path if arrays else None
    forwarder = Forwarder(table, hairpin=masquerade.hairpin, observes=observes, apart=of_path)
    forwarder.set_renumbering(settings.compat == "modern")
    forwarder.set_proxies(local_link.FIRST, local_link.COUNT)
    return forwarder
