"""TriggerTable: the rows of triggers, direct ports and marks that the path reads, and what it has made of them.

The daemon calls all of it under the path's lock. Addresses, ports and marks are integers in host order; protocols are
their numbers, 6 or 17.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from fastmasq.path.marks cimport MARKS, MARK_TARGETS, Mark, MarkTarget
from fastmasq.path.triggers cimport DIRECTS, Direct, TRIGGERS, TRIGGER_TICKS, Trigger, is_active
from fastmasq.table.wheel cimport TICK_MS

from fastmasq.errors import CapacityError

TICK_NS = TICK_MS * 1_000_000


cdef class TriggerTable:
    """What the path opens sessions by, besides forwards.

    half_open_limit: sessions of one external endpoint of which only one end has been heard; more are refused. renews: a
    trigger's time begins again with each session that it lets in, as in the kernels 2.0 (section 5.5).
    """

    def __init__(self, uint32_t half_open_limit=1024, *, bint renews=False):
        self.rows.half_open_limit = half_open_limit
        self.rows.triggers.renews = renews

    def set_ports(self, ours):
        """Say which ports, bool[2 or more][65536] by class, are ours for what is here; the guard must know them."""
        cdef const uint8_t[::1] packed = np.packbits(np.ascontiguousarray(ours[:2], bool), axis=1, bitorder="little").ravel()
        memcpy(self.rows.ours, &packed[0], sizeof(self.rows.ours))

    def set_rows(self, triggers, directs, marks):
        """Go by these from now on. Raises CapacityError, and nothing has changed then.

        triggers: (protocol, first, last, control protocol, control port, is_timed, peer_only) each; one that is there
        already, equal in all, stays as active as it is. directs: (protocol, first, last) each. marks: {mark: [(address,
        port, weight, left), ...]}, the first of each having the turn.
        """
        if len(triggers) > TRIGGERS:
            raise CapacityError(f"{len(triggers)} ranges wait for a control connection: at most {TRIGGERS}")
        if len(directs) > DIRECTS:
            raise CapacityError(f"{len(directs)} ranges keep source ports: at most {DIRECTS}")
        if len(marks) > MARKS:
            raise CapacityError(f"{len(marks)} marks are forwarded: at most {MARKS}")
        if sum(len(targets) for targets in marks.values()) > MARK_TARGETS:
            raise CapacityError(f"marks have more than {MARK_TARGETS} targets: use fewer")
        self._set_triggers(triggers)
        self.rows.triggers.direct_count = len(directs)
        for i, (protocol, first, last) in enumerate(directs):
            self.rows.triggers.directs[i] = Direct(first, last, protocol, 0)
        self._set_marks(marks)

    def _set_triggers(self, rows):
        cdef Triggers *t = &self.rows.triggers
        cdef Trigger *trigger
        cdef int i
        before = {row[:7]: row[7:] for row in self.triggers()}
        t.count = len(rows)
        for i, row in enumerate(rows):
            trigger = &t.rows[i]
            (trigger.protocol, trigger.first, trigger.last, trigger.control_protocol, trigger.control_port, trigger.is_timed,
             trigger.peer_only) = row
            trigger.host, trigger.peer, trigger.contact = before.get(tuple(row), (0, 0, 0))

    def _set_marks(self, marks):
        cdef Marks *m = &self.rows.marks
        cdef int i
        cdef int at = 0
        m.count = len(marks)
        for i, (mark, targets) in enumerate(marks.items()):
            m.rows[i] = Mark(mark, at, len(targets), 0, 0)
            for address, port, weight, left in targets:
                m.targets[at] = MarkTarget(address, weight, left, port, 0)
                at += 1

    def triggers(self):
        """Return the rows as they were set, each followed by host, peer and the tick of the last contact."""
        cdef Trigger *trigger
        cdef int i
        found = []
        for i in range(self.rows.triggers.count):
            trigger = &self.rows.triggers.rows[i]
            found.append((trigger.protocol, trigger.first, trigger.last, trigger.control_protocol, trigger.control_port,
                          bool(trigger.is_timed), bool(trigger.peer_only), trigger.host, trigger.peer, trigger.contact))
        return found

    def active(self, now_ns):
        """Return (host, peer, nanoseconds left) of every trigger; all 0 when it is idle, nothing left without a limit."""
        cdef uint32_t tick = (now_ns // TICK_NS) & 0xFFFFFFFF
        cdef Trigger *trigger
        cdef int i
        found = []
        for i in range(self.rows.triggers.count):
            trigger = &self.rows.triggers.rows[i]
            if not is_active(trigger, tick):
                found.append((0, 0, 0))
                continue
            left = (TRIGGER_TICKS - <uint32_t>(tick - trigger.contact)) * TICK_NS if trigger.is_timed else 0
            found.append((trigger.host, trigger.peer, left))
        return found

    def marks(self):
        """Return the marks as set_rows takes them: sessions are counted, and turns have passed on."""
        cdef Mark *mark
        cdef MarkTarget *target
        cdef int i, step
        found = {}
        for i in range(self.rows.marks.count):
            mark = &self.rows.marks.rows[i]
            targets = []
            for step in range(mark.count):
                target = &self.rows.marks.targets[mark.first + (mark.turn + step) % mark.count]
                targets.append((target.address, target.port, target.weight, target.left))
            found[mark.mark] = targets
        return found
