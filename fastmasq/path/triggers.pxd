# Triggers: ranges of external ports that lead inside once asked for (autofw), and direct rows, whose sessions keep their port.
#
# A *trigger* is a range of external ports that leads to the inside host which last contacted the control port, for
# TRIGGER_TICKS after that contact and for packets of the contacted peer only, unless its row says otherwise. A *direct* row
# has outbound sessions towards its ports keep their source port; so do those of a triggered host from the triggered range.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.table.keys cimport Ends
from fastmasq.table.wheel cimport TICKS_PER_SECOND

cdef enum:
    TRIGGERS = 64
    DIRECTS = 64
    TRIGGER_TICKS = 15 * TICKS_PER_SECOND


cdef struct Trigger:
    uint32_t host               # that contacted the control port last; 0 while idle
    uint32_t peer               # that it contacted
    uint32_t contact            # tick of that
    uint16_t first
    uint16_t last
    uint16_t control_port
    uint8_t protocol
    uint8_t control_protocol
    uint8_t is_timed            # ends TRIGGER_TICKS after the last contact
    uint8_t peer_only
    uint8_t reserved[2]

cdef struct Direct:
    uint16_t first
    uint16_t last
    uint8_t protocol
    uint8_t reserved

cdef struct Triggers:
    Trigger rows[TRIGGERS]
    Direct directs[DIRECTS]
    int count
    int direct_count
    bint renews                 # a trigger's time begins again with a session that it lets in, as in 2.0


cdef inline bint is_active(const Trigger *trigger, uint32_t tick) noexcept nogil:
    return trigger.host != 0 and not (trigger.is_timed and tick - trigger.contact > TRIGGER_TICKS)


cdef inline void note_contact(Triggers *t, uint8_t protocol, const Ends *ends, uint32_t tick) noexcept nogil:
    """An inside host has sent a packet to a peer's port: that makes the triggers of this control port its own."""
    cdef Trigger *trigger
    cdef int i
    for i in range(t.count):
        trigger = &t.rows[i]
        if trigger.control_port == ends.did and trigger.control_protocol == protocol:
            trigger.host, trigger.peer, trigger.contact = ends.saddr, ends.daddr, tick


cdef inline Trigger *find_trigger(Triggers *t, uint8_t protocol, const Ends *ends, uint32_t tick) noexcept nogil:
    """Return the trigger by which a remote source may reach an inside host at an external port (section 5.5), or NULL."""
    cdef Trigger *trigger
    cdef int i
    for i in range(t.count):
        trigger = &t.rows[i]
        if (trigger.protocol == protocol and trigger.first <= ends.did <= trigger.last and is_active(trigger, tick)
                and (not trigger.peer_only or trigger.peer == ends.saddr)):
            return trigger
    return NULL


cdef inline void note_session(const Triggers *t, Trigger *trigger, uint32_t tick) noexcept nogil:
    """A trigger has let a session in."""
    if t.renews:
        trigger.contact = tick


cdef inline bint keeps_port(const Triggers *t, uint8_t protocol, const Ends *ends, uint32_t tick) noexcept nogil:
    """Whether a new mapping is to have its source's port outside, if that may be kept; for these its first ends."""
    cdef const Trigger *trigger
    cdef int i
    for i in range(t.direct_count):
        if t.directs[i].protocol == protocol and t.directs[i].first <= ends.did <= t.directs[i].last:
            return True
    for i in range(t.count):
        trigger = &t.rows[i]
        if (trigger.protocol == protocol and trigger.first <= ends.sid <= trigger.last and is_active(trigger, tick)
                and trigger.host == ends.saddr):
            return True
    return False
