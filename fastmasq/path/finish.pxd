# The end of every packet's way: its outcome is counted here, and its sender told; and the end of a batch, when all is sent.
#
# What waits is counted by the queue that it is in. So packets forwarded, delivered, dropped and waiting add up to those that
# came, fragments cut and copies for a tracker aside.

from libc.stdint cimport uint64_t

from fastmasq.path cimport observation, verdict
from fastmasq.path.gather cimport send_all_gathered
from fastmasq.path.packet cimport Packet
from fastmasq.path.reply cimport reply_error
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.ring cimport Sender, sender_flush


cdef inline void finish(Path *p, const Packet *packet, Outcome outcome) noexcept nogil:
    if outcome == verdict.FORWARDED:
        p.forwarded += 1
    elif outcome == verdict.DELIVERED:
        p.delivered += 1
    elif outcome != verdict.WAITING:
        p.drops[outcome] += 1
        if p.observation != NULL:
            observation.note_dropped(p.observation, &p.table.secret, packet, outcome)
        if packet.told.type == 0:
            return
        if reply_error(p, packet):
            p.replied += 1
        else:
            p.notes[verdict.NOTE_REPLIES_SUPPRESSED] += 1


cdef inline void lose(Path *p, int reason, uint64_t count) noexcept nogil:
    """Count packets that waited, and were lost where they did."""
    p.drops[reason] += count


cdef inline void take_over(Path *p, int reason, uint64_t *unsent) noexcept nogil:
    """Turn packets that were forwarded into drops: the kernel has refused them."""
    p.drops[reason] += unsent[0]
    p.unsent += unsent[0]
    unsent[0] = 0


cdef inline void take_over_notices(Path *p, uint64_t *unsent) noexcept nogil:
    """Take back replies that the kernel has refused: what they told of is counted as dropped already."""
    p.replied -= unsent[0]
    p.notes[verdict.NOTE_REPLIES_SUPPRESSED] += unsent[0]
    unsent[0] = 0


cdef inline void flush_all(Path *p) noexcept nogil:
    """Send what every link has queued."""
    cdef int i
    cdef Sender *sender
    send_all_gathered(p)
    for i in range(p.link_count):
        sender = p.senders[i]
        if sender == NULL or sender.count == 0:
            continue
        sender_flush(sender)
        p.notes[verdict.NOTE_TX_CALLS] += 1
        if sender.refused | sender.no_buffer | sender.down | sender.notices:
            take_over(p, verdict.TX_REFUSED, &sender.refused)
            take_over(p, verdict.TX_NO_BUFFER, &sender.no_buffer)
            take_over(p, verdict.LINK_DOWN, &sender.down)
            take_over_notices(p, &sender.notices)
