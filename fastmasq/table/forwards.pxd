# Port forwards: what stands behind an external endpoint that is not given out but configured.
#
# A forward is a mapping of its own kind (rows.pxd) whose row number is the external endpoint, as that of any other; it
# has one target or several in a ring. Every new session goes to the target whose turn it is, and after as many sessions
# as the target's weight the turn passes on (ipmasqadm portfw's rotation). Each target's inside endpoint is also in the
# index of mappings, so that what it sends by itself leaves with the forwarded port (RFC 4787 REQ-1, rule PF-3).
#
# Strangers open sessions here, so those of which only one end has been heard are counted, and at a limit no more are
# opened: packets then pass translated but without a session, always to the same target for one remote endpoint. A flood
# of forged SYNs can so fill neither the table nor the share of the server, and honest clients are served all the same.
#
# A forward may be for some remote endpoints only (RFC 6887 section 13.3): then no others open sessions by it, nor pass without.

from libc.stdint cimport uint16_t, uint32_t

from fastmasq.table cimport rows

cdef enum:
    FORWARDS = 65536            # external endpoints with a forward; a range takes one for each port
    TARGETS = 65536             # of all forwards together
    REMOTES = 32768             # the same


cdef struct Target:
    uint32_t address
    uint32_t weight             # sessions in a row; 0: the turn never passes on by itself
    uint32_t left               # sessions until the turn passes on
    uint32_t next               # in the ring of the forward
    uint16_t port
    uint16_t reserved

cdef struct Remote:
    # whom a forward is for: a network, and a port of its hosts
    uint32_t address
    uint32_t mask
    uint32_t next               # of the same forward, as one more than its row; 0: this is the last
    uint16_t port               # 0: any
    uint16_t reserved

cdef struct Forward:
    uint32_t turn               # row of the target that gets the next session
    uint32_t targets
    uint32_t half_open          # sessions of which only one end has been heard
    uint32_t opened             # sessions in all
    uint32_t remotes            # row of the first whom it is for, and one more; 0: it is for all

cdef struct ForwardSet:
    Forward *rows               # [FORWARDS]
    Target *targets             # [TARGETS]
    Remote *remotes             # [REMOTES]
    uint32_t half_open_limit    # of each forward


cdef inline bint is_half_open(int state) noexcept nogil:
    return state == rows.TCP_UNANSWERED or state == rows.TCP_SYN_RECEIVED or state == rows.UDP_UNANSWERED


cdef inline bint is_crowded(const ForwardSet *f, uint32_t row) noexcept nogil:
    """Whether a forward has so many half-open sessions that it opens no further ones."""
    return f.rows[row].half_open >= f.half_open_limit


cdef inline bint is_for(const ForwardSet *f, uint32_t row, uint32_t address, uint16_t port) noexcept nogil:
    """Whether a remote endpoint without a session may send to a forward."""
    cdef const Remote *remote
    cdef uint32_t at = f.rows[row].remotes
    if at == 0:
        return True
    while at:
        remote = &f.remotes[at - 1]
        if (address & remote.mask) == remote.address and (remote.port == 0 or remote.port == port):
            return True
        at = remote.next
    return False


cdef inline bint is_target(const ForwardSet *f, uint32_t row, uint32_t address, uint16_t port) noexcept nogil:
    """Whether an inside endpoint is a target of a forward."""
    cdef uint32_t _i
    cdef uint32_t at = f.rows[row].turn
    for _i in range(f.rows[row].targets):
        if f.targets[at].address == address and f.targets[at].port == port:
            return True
        at = f.targets[at].next
    return False


cdef inline void pass_turn(ForwardSet *f, uint32_t row) noexcept nogil:
    """Count a new session of the target whose turn it is."""
    cdef Target *target = &f.targets[f.rows[row].turn]
    if target.weight == 0:
        return
    target.left -= 1
    if target.left == 0:
        target.left = target.weight
        f.rows[row].turn = target.next
