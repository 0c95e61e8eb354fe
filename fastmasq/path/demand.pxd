# Sessions from outside that policy opens on demand: ranges that a control connection triggers (autofw), packets by mark (mfw).
#
# A *trigger* is a range of external ports that leads to the inside host which last contacted the control port, for
# TRIGGER_TICKS after that contact and for packets of the contacted peer only, unless its row says otherwise. A *mark* is
# what the input chain has written on a packet; new sessions of its packets are shared out among its targets. Both open
# sessions on external endpoints that nobody owns (MAPPING_BY_SESSION). A *direct* row has outbound sessions towards its
# ports keep their source port; so do those of a triggered host from the triggered range.
#
# Without any row the path has no Demand, and asks one pointer.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.table.wheel cimport TICKS_PER_SECOND

cdef enum:
    TRIGGERS = 64
    DIRECTS = 64
    MARKS = 256
    MARK_TARGETS = 1024         # of all marks together
    TRIGGER_TICKS = 15 * TICKS_PER_SECOND
    PORT_WORDS = 1024           # 64 ports each


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

cdef struct MarkTarget:
    uint32_t address
    uint32_t weight             # sessions in a row; 0: the turn never passes on by itself
    uint32_t left               # sessions until the turn passes on
    uint16_t port               # 0: the packet's own
    uint16_t reserved

cdef struct Mark:
    uint32_t mark
    uint16_t first              # row of its first target; the others follow
    uint16_t count
    uint16_t turn               # which of them gets the next session
    uint16_t reserved

cdef struct Demand:
    Trigger triggers[64]
    Direct directs[64]
    Mark marks[256]
    MarkTarget targets[1024]
    int trigger_count
    int direct_count
    int mark_count
    uint32_t half_open_limit    # of each external endpoint
    bint renews                 # a trigger's time begins again with a session that it lets in, as in 2.0
    uint64_t ours[2][1024]      # by class: ports kept for triggers and marks, and all that a direct row may keep


cdef inline bint is_kept_port(const Demand *d, int port_class, uint16_t port) noexcept nogil:
    """Whether a port of this class, TCP or UDP, is one of ours for what is here, be it one for mappings or not."""
    return (d.ours[port_class][port >> 6] >> (port & 63)) & 1


cdef inline bint is_active(Trigger *trigger, uint32_t tick) noexcept nogil:
    if trigger.host and trigger.is_timed and tick - trigger.contact > TRIGGER_TICKS:
        trigger.host = trigger.peer = 0
    return trigger.host != 0


cdef inline void note_contact(Demand *d, uint8_t protocol, uint32_t host, uint32_t peer, uint16_t port,
                              uint32_t tick) noexcept nogil:
    """An inside host has sent a packet to a peer's port: that makes the triggers of this control port its own."""
    cdef Trigger *trigger
    cdef int i
    for i in range(d.trigger_count):
        trigger = &d.triggers[i]
        if trigger.control_port == port and trigger.control_protocol == protocol:
            trigger.host, trigger.peer, trigger.contact = host, peer, tick


cdef inline uint32_t triggered_host(Demand *d, uint8_t protocol, uint16_t port, uint32_t remote, uint32_t tick) noexcept nogil:
    """Return the inside host that a remote may reach at an external port by a trigger (section 5.5); 0 without one."""
    cdef Trigger *trigger
    cdef int i
    for i in range(d.trigger_count):
        trigger = &d.triggers[i]
        if (trigger.protocol == protocol and trigger.first <= port <= trigger.last and is_active(trigger, tick)
                and (not trigger.peer_only or trigger.peer == remote)):
            if d.renews:
                trigger.contact = tick
            return trigger.host
    return 0


cdef inline bint keeps_port(Demand *d, uint8_t protocol, int port_class, uint32_t host, uint16_t sid, uint16_t did,
                            uint32_t tick) noexcept nogil:
    """Whether a new mapping of an inside endpoint is to have the same external port, for this its first destination port."""
    cdef Trigger *trigger
    cdef int i
    if not is_kept_port(d, port_class, sid):
        return False
    for i in range(d.direct_count):
        if d.directs[i].protocol == protocol and d.directs[i].first <= did <= d.directs[i].last:
            return True
    for i in range(d.trigger_count):
        trigger = &d.triggers[i]
        if (trigger.protocol == protocol and trigger.first <= sid <= trigger.last and is_active(trigger, tick)
                and trigger.host == host):
            return True
    return False


cdef inline Mark *find_mark(Demand *d, uint32_t mark) noexcept nogil:
    """Return the row of a mark, or NULL."""
    cdef int i
    if mark:
        for i in range(d.mark_count):
            if d.marks[i].mark == mark:
                return &d.marks[i]
    return NULL


cdef inline void rotate(Demand *d, Mark *mark) noexcept nogil:
    """Pass the turn on now; a single target keeps it."""
    cdef MarkTarget *target = &d.targets[mark.first + mark.turn]
    if mark.count > 1:
        target.left = target.weight
        mark.turn = <uint16_t>((mark.turn + 1) % mark.count)


cdef inline void count_session(Demand *d, Mark *mark) noexcept nogil:
    """Count a new session of the target whose turn it is."""
    cdef MarkTarget *target = &d.targets[mark.first + mark.turn]
    if mark.count == 1 or target.weight == 0:
        return
    target.left -= 1
    if target.left == 0:
        rotate(d, mark)


cdef class DemandTable:
    cdef Demand demand
