"""Keeps the autoforwards and the forwards by mark of the running forwarder as policy says.

Rows of `ipmasqadm autofw` with a fixed host are port forwards, which `Forwards` puts in force. The others, and marks,
go to the path as they are; where the turn of a mark stands is known there alone. The external ports all of them need
are kept from outbound mappings, and the guard keeps the host off them.

Control methods, with parameters and results in JSON:

    autofw
     -> [{"kind": "range", "protocol": "udp", "first": 6970, "last": 7170, "host": "", "hidden": 0,
          "control_protocol": "tcp", "control_port": 7070, "is_timed": true, "peer_only": true,
          "contact": "10.0.0.7", "peer": "199.0.0.1", "left_s": 12.5}, ...]
        the newest first; contact and peer are null while nobody has the range.

    triggers.change {"changes": [CHANGE, ...]}            policy.autofw.Change, all of them or none
     -> {"rows": 3}

    mfw
     -> [{"mark": 1, "address": "10.0.0.2", "port": 80, "preference": 10, "left": 7}, ...]
        those of a mark in order, beginning with the one whose turn it is.

    mfw.change {"changes": [CHANGE, ...]}               policy.markfw.Change, all of them or none
     -> {"targets": 2}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Any

import numpy as np

from fastmasq.clock import now_ns
from fastmasq.daemon.forwards import Forwards, read_changes
from fastmasq.errors import FastmasqError
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.triggers_and_marks import TriggerTable
from fastmasq.policy import marks, triggers
from fastmasq.policy.chains import RuleSet
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.triggers import AutoForward
from fastmasq.units import NS_PER_SECOND

_CLASSES = {"tcp": 0, "udp": 1}

Targets = Callable[[tuple[MarkTarget, ...]], tuple[MarkTarget, ...]]


class Demand:
    """The autoforwards and marks of one engine.

    renews: a trigger's time begins again with each session that it lets in (compat 2.0).
    react is called after a change of policy: it has the guard and the table follow (see `Engine`).
    `reserved` is bool[3][65536] by class: the ports that outbound mappings must not have. `ours` are those and what
    direct rows may keep: the guard must know them.
    """

    def __init__(
        self, forwarder: Forwarder, forwards: Forwards, react: Callable[[], None], *, renews: bool = False
    ) -> None:
        self.forwarder = forwarder
        self.forwards = forwards
        self.react = react
        self.table = TriggerTable(renews=renews)
        self.rows: tuple[AutoForward, ...] = ()
        self.rules = RuleSet()
        self.spare = np.zeros((3, 65536), bool)  # what the host does not use itself, by class
        self.reserved = np.zeros((3, 65536), bool)
        self.ours = np.zeros((3, 65536), bool)

    def load(self, rows: Iterable[AutoForward], targets: Iterable[MarkTarget], rules: RuleSet) -> None:
        """Take these to begin with; they have been checked. Raises CapacityError."""
        self.rules = rules
        self._put(tuple(rows), lambda _: tuple(targets))
        self.forwards.auto = triggers.port_forwards(self.rows)

    @property
    def keeps_ports(self) -> bool:
        """Whether a row has outbound sessions keep their source port, whatever it is."""
        return any(row.kind == "direct" for row in self.rows)

    def targets(self) -> tuple[MarkTarget, ...]:
        """Return the targets of all marks, as their turns stand."""
        with self.forwarder.locked():
            return marks.targets_of(self.table.marks())

    def may_lead_to(self, port_class: int, port: int, host: int, inside_port: int) -> bool:
        """Return whether some row may lead some packet to an external port to this inside endpoint."""
        if port == inside_port and any(
            row.is_trigger and _CLASSES[row.protocol] == port_class and row.first <= port <= row.last
            for row in self.rows
        ):
            return True
        return any(
            int(IPv4Address(one.address)) == host and inside_port == (one.port or port) for one in self.targets()
        )

    def follow_rules(self, rules: RuleSet) -> None:
        """Keep the ports that these rules mark packets to. Raises KernelError when the guard does not follow."""
        self.rules = rules
        before = self.ours.copy()
        self._count_ports()
        if not np.array_equal(self.ours, before):
            self.react()

    def follow_ports(self, spare: np.ndarray) -> bool:
        """Let direct rows keep these ports, bool[3][65536], which the host leaves; return whether that is news."""
        if np.array_equal(spare, self.spare):
            return False
        self.spare = spare
        self._count_ports()
        return True

    def _put(self, rows: tuple[AutoForward, ...], change: Targets) -> tuple[MarkTarget, ...]:
        """Have the path go by these rows, and what `change` makes of the present targets; return those.

        Raises FastmasqError; then nothing has changed.
        """
        trigger_rows, direct_rows = triggers.trigger_rows(rows), triggers.direct_rows(rows)
        with self.forwarder.locked():  # no session may be counted between reading and writing
            before = marks.targets_of(self.table.marks())
            targets = change(before)
            self.table.set_rows(trigger_rows, direct_rows, marks.rows_by_mark(targets))
            self.forwarder.set_triggers(self.table if trigger_rows or direct_rows or targets else None)
        self.rows = rows
        self._count_ports()
        return before

    def _count_ports(self) -> None:
        self.reserved = np.zeros((3, 65536), bool)
        with self.forwarder.locked():
            targeted = list(self.table.marks())
        self.reserved[:2] = marks.marked_ports(self.rules, targeted)
        for row in self.rows:
            if row.is_trigger:
                self.reserved[_CLASSES[row.protocol], row.first : row.last + 1] = True
        self.ours = self.reserved.copy()
        for row in self.rows:
            if row.kind == "direct":
                self.ours[_CLASSES[row.protocol]] |= self.spare[_CLASSES[row.protocol]]
        with self.forwarder.locked():
            self.table.set_ports(self.ours)

    # -- for the control socket --------------------------------------------------------------------------------------

    def handlers(self) -> dict[str, Callable[[dict], object]]:
        return {
            "autofw": lambda _: self.list_rows(),
            "autofw.change": self.change_rows,
            "mfw": lambda _: [_describe_target(one) for one in self.targets()],
            "mfw.change": self.change_targets,
        }

    def list_rows(self) -> list[dict[str, Any]]:
        with self.forwarder.locked():
            active = iter(self.table.active(now_ns()))
        found = []
        for row in self.rows:
            host, peer, left_ns = next(active) if row.is_trigger else (0, 0, 0)
            found.append(
                {
                    **{name: getattr(row, name) for name in row.__struct_fields__},
                    "contact": str(IPv4Address(host)) if host else None,
                    "peer": str(IPv4Address(peer)) if host else None,
                    "left_s": left_ns / NS_PER_SECOND,
                }
            )
        return found

    def change_rows(self, params: dict[str, Any]) -> dict[str, Any]:
        """Make all of the changes (triggers.Change) or none. Raises FastmasqError."""
        self.replace_rows(triggers.apply(self.rows, read_changes(params, triggers.Change)))
        return {"rows": len(self.rows)}

    def change_targets(self, params: dict[str, Any]) -> dict[str, Any]:
        """Make all of the changes (marks.Change) or none. Raises FastmasqError."""
        changes = read_changes(params, marks.Change)
        self.replace_targets(lambda targets: marks.apply(targets, changes))
        return {"targets": len(self.targets())}

    def replace_rows(self, rows: tuple[AutoForward, ...]) -> None:
        """Have these rows from now on, all or none; a range that stays is as open as it was. Raises FastmasqError."""
        if rows != self.rows:
            self._follow(rows, lambda targets: targets)

    def replace_targets(self, change: Targets) -> None:
        """Have what `change` makes of the present targets, all or none. Raises FastmasqError."""
        self._follow(self.rows, change)

    def _follow(self, rows: tuple[AutoForward, ...], change: Targets) -> None:
        rows_before = self.rows
        before = self._put(rows, change)
        try:
            self._react()
        except FastmasqError:
            self._put(rows_before, lambda _: before)
            self._react()
            raise

    def _react(self) -> None:
        """Have forwards, guard and table follow."""
        self.forwards.replace(self.forwards.forwards, self.forwards.redirects, triggers.port_forwards(self.rows))
        self.react()


def _describe_target(one: MarkTarget) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}
