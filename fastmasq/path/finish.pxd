# The end of every packet's way: its outcome is counted here, and its sender told; and the end of a batch, when all is sent.
#
# What goes on is counted when it has been sent, or the kernel has refused it; what waits, by the queue that it is in. So packets
# forwarded, delivered, dropped and waiting add up to those that came, fragments cut and copies for a tracker aside.

from libc.stdint cimport uint64_t

from fastmasq.path cimport observation, verdict
from fastmasq.path.gather cimport send_all_gathered
from fastmasq.path.packet cimport Packet
from fastmasq.path.reply cimport reply_error
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.ring cimport Sender, Sent, sender_flush
from fastmasq.wire.branches cimport likely


cdef inline void finish(Path *p, const Packet *packet, Outcome outcome) noexcept nogil:
    if likely(outcome == verdict.FORWARDED):
        return
    if outcome == verdict.DELIVERED:
        p.delivered += 1
    elif outcome != verdict.WAITING:
        p.drops[outcome] += 1
        if p.observation != NULL:
            observation.note_dropped(p.observation, &p.table.secret, packet, outcome)
        if packet.told.type and not reply_error(p, packet):
            p.notes[verdict.NOTE_REPLIES_SUPPRESSED] += 1


cdef inline void lose(Path *p, int reason, uint64_t count) noexcept nogil:
    """Count packets that were lost where they waited: for somebody's answer, or to be sent."""
    p.drops[reason] += count


cdef inline void count_sent(Path *p, Sent came) noexcept nogil:
    """Count what became of packets that a sender has had. What a lost notice told of is counted as dropped already."""
    p.forwarded += came.packets
    p.replied += came.notices
    if came.refused | came.no_buffer | came.down | came.lost_notices:
        lose(p, verdict.TX_REFUSED, came.refused)
        lose(p, verdict.TX_NO_BUFFER, came.no_buffer)
        lose(p, verdict.LINK_DOWN, came.down)
        p.notes[verdict.NOTE_REPLIES_SUPPRESSED] += came.lost_notices


cdef inline void flush_all(Path *p) noexcept nogil:
    """Send what every link has queued."""
    cdef int i
    cdef Sender *sender
    send_all_gathered(p)
    for i in range(p.link_count):
        sender = p.senders[i]
        if sender == NULL or sender.count == 0:
            continue
        count_sent(p, sender_flush(sender))
        p.notes[verdict.NOTE_TX_CALLS] += 1
