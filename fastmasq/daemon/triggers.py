"""Keeps the triggers of the path as policy says: ranges that lead inside once asked for, and ports that are kept.

A trigger with a fixed host is a port forward, which `daemon/forwards.py` puts in force. The others go to the path as
they are, into one table with the targets of marks (`daemon/marks.py`).

Control methods, with parameters and result:

    triggers
     -> [{"kind": "range", "protocol": "udp", "first": 6970, "last": 7170, "host": "", "hidden": 0,
          "control_protocol": "tcp", "control_port": 7070, "is_timed": true, "peer_only": true,
          "contact": "10.0.0.7", "peer": "199.0.0.1", "left_s": 12.5}, ...]
        the newest first; contact and peer are null while nobody has the range.

    triggers.change, see daemon/policy.py
     -> {"rows": 3}
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import numpy as np

from fastmasq.clock import now_ns
from fastmasq.daemon.ports import no_ports
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.triggers_and_marks import TriggerTable
from fastmasq.policy import triggers
from fastmasq.policy.triggers import Trigger
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.numbers import CLASSES

_CLASSES = {name: number for number, name in enumerate(CLASSES)}


class Triggers:
    """The triggers of one gateway; `table` has them for the path, and the targets of marks as well."""

    def __init__(self, forwarder: Forwarder, table: TriggerTable) -> None:
        self.forwarder = forwarder
        self.table = table
        self.triggers: tuple[Trigger, ...] = ()

    def put(self, wanted: tuple[Trigger, ...]) -> None:
        """Have these from now on; a range that stays is as open as it was.

        Raises CapacityError, and nothing has changed then.
        """
        with self.forwarder.locked():
            set_rows(self.forwarder, self.table, wanted, self.table.marks())
        self.triggers = wanted

    def ports(self) -> np.ndarray:
        """Return the ports that lead inside once asked for."""
        ports = no_ports()
        for one in self.triggers:
            if one.is_trigger:
                ports[_CLASSES[one.protocol], one.first : one.last + 1] = True
        return ports

    def keeping(self) -> np.ndarray:
        """Return the classes of which some outbound sessions keep their source port, bool[3][1]."""
        kept = np.zeros((len(CLASSES), 1), bool)
        for one in self.triggers:
            if one.kind == "direct":
                kept[_CLASSES[one.protocol]] = True
        return kept

    def may_lead_to(self, port_class: int, port: int, inside_port: int) -> bool:
        """Return whether some trigger may lead some packet to an external port to this port of an inside host."""
        return port == inside_port and any(
            one.is_trigger and _CLASSES[one.protocol] == port_class and one.first <= port <= one.last
            for one in self.triggers
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return every row as the control method does."""
        with self.forwarder.locked():
            active = iter(self.table.active(now_ns()))
        found = []
        for one in self.triggers:
            host, peer, left_ns = next(active) if one.is_trigger else (0, 0, 0)
            found.append(
                {
                    **{name: getattr(one, name) for name in one.__struct_fields__},
                    "contact": str(IPv4Address(host)) if host else None,
                    "peer": str(IPv4Address(peer)) if host else None,
                    "left_s": left_ns / NS_PER_SECOND,
                }
            )
        return found


def set_rows(
    forwarder: Forwarder,
    table: TriggerTable,
    wanted: tuple[Trigger, ...],
    marks: dict[int, list[tuple[int, int, int, int]]],
) -> None:
    """Have the path go by these triggers, and by rows of marks as the table has them; the path stands still.

    Raises CapacityError, and nothing has changed then.
    """
    ranges, directs = triggers.trigger_rows(wanted), triggers.direct_rows(wanted)
    table.set_rows(ranges, directs, marks)
    forwarder.set_triggers(table if ranges or directs or marks else None)
