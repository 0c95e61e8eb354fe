"""Keeps the inside hosts of marks in the path as policy says; where the turn of a mark stands is known there alone.

Control methods, with parameters and result:

    marks
     -> [{"mark": 1, "address": "10.0.0.2", "port": 80, "preference": 10, "left": 7, "steal": false}, ...]
        those of a mark in order, beginning with the one whose turn it is.

    marks.change, see daemon/policy.py
     -> {"targets": 2}
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import numpy as np
from msgspec.structs import replace

from fastmasq.daemon.ports import no_ports
from fastmasq.daemon.triggers import Triggers, set_rows
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.triggers_and_marks import TriggerTable
from fastmasq.policy import marking, marks
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.marks import MarkTarget


class Marks:
    """The hosts of marks of one gateway, in the table that they share with its triggers."""

    def __init__(self, forwarder: Forwarder, table: TriggerTable, triggers: Triggers) -> None:
        self.forwarder = forwarder
        self.table = table
        self._triggers = triggers
        self._stealing: frozenset[str] = frozenset()  # the spellings of those that may take ports of programs

    def targets(self) -> tuple[MarkTarget, ...]:
        """Return the targets of all marks, as their turns stand."""
        with self.forwarder.locked():
            found = marks.targets_of(self.table.marks())
        return tuple(replace(one, steal=str(one) in self._stealing) for one in found)

    def put(self, wanted: tuple[MarkTarget, ...], before: tuple[MarkTarget, ...]) -> None:
        """Have these from now on in place of those `before`; marks that are in both alike keep their turns.

        `before` is what `targets` returned: sessions have been counted since. Raises CapacityError; nothing has
        changed then.
        """
        rows, old = marks.rows_by_mark(wanted), marks.rows_by_mark(before)
        with self.forwarder.locked():
            present = self.table.marks()
            rows |= {mark: present[mark] for mark, one in rows.items() if mark in present and old.get(mark) == one}
            set_rows(self.forwarder, self.table, self._triggers.triggers, rows)
        self._stealing = frozenset(str(one) for one in wanted if one.steal)

    def ports(self, rules: RuleSet) -> np.ndarray:
        """Return the ports that packets must go to for these rules to mark them so that they lead inside."""
        with self.forwarder.locked():
            targeted = list(self.table.marks())
        ports = no_ports()
        ports[:2] = marking.marked_ports(rules, targeted)
        return ports

    def may_lead_to(self, port: int, host: int, inside_port: int) -> bool:
        """Return whether some mark may lead some packet to an external port to this inside endpoint."""
        return any(
            int(IPv4Address(one.address)) == host and inside_port == (one.port or port) for one in self.targets()
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return every target as the control method does."""
        return [{name: getattr(one, name) for name in one.__struct_fields__} for one in self.targets()]
