# A packet of a session: its state moves on, its timer starts again, it is translated and sent.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from fastmasq.path cimport carrying, edited, filter, hops, leave, punts, route, trackers, triggers, verdict
from fastmasq.path.egress cimport send_packet
from fastmasq.path.packet cimport LEAST_SEGMENT, Packet
from fastmasq.path.plain cimport send_plain
from fastmasq.path.rewrite cimport rewrite_flow
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.ring cimport Frame
from fastmasq.table cimport keys, rows, sessions, streams
from fastmasq.table.keys cimport Ends
from fastmasq.table.order cimport show_in_order
from fastmasq.table.rows cimport Flow, Session
from fastmasq.table.sessions cimport Birth, make_birth
from fastmasq.table.tcp_state cimport Segment, TCP_CHANGED, TCP_OUT_OF_WINDOW, TCP_REFRESH, TcpVerdict, tcp_segment
from fastmasq.wire cimport icmp, numbers, tcp
from fastmasq.wire.branches cimport likely, rarely
from fastmasq.wire.octets cimport load16, load32

cdef enum:
    EVERY_LINK = 0x0F           # the bits of a link in what a session knows


# -- the state of a session ------------------------------------------------------------------------------------------

cdef inline int first_state(const Packet *packet) noexcept nogil:
    """Return the State of a session that this outbound packet may open, or -1 when it may open none."""
    cdef uint8_t flags
    if packet.protocol == numbers.UDP:
        return rows.UDP_ACTIVE
    if packet.protocol == numbers.ICMP:
        return rows.ICMP_ACTIVE if icmp.is_query(packet.transport[icmp.TYPE]) else -1
    flags = packet.transport[tcp.FLAGS]
    if flags & tcp.RST:
        return -1
    if flags & tcp.SYN:
        return rows.TCP_SYN_RECEIVED if flags & tcp.ACK else rows.TCP_SYN_SENT
    return rows.TCP_RESUMED


cdef inline int first_inbound_state(const Packet *packet) noexcept nogil:
    """Return the State of a session that this TCP or UDP packet from a remote may open, or -1 when it may open none."""
    cdef uint8_t flags
    if packet.protocol == numbers.UDP:
        return rows.UDP_UNANSWERED
    flags = packet.transport[tcp.FLAGS]
    return -1 if flags & tcp.RST or (flags & tcp.SYN and flags & tcp.ACK) else rows.TCP_UNANSWERED


cdef inline Birth birth_of(const Path *p, const Packet *packet, int state, uint8_t flags) noexcept nogil:
    """Return what a session that this packet opens begins with."""
    return make_birth(packet.protocol, <uint8_t>state, flags, p.tick, p.now_ms)


cdef inline TcpVerdict track_tcp(Path *p, Session *s, int direction, const Packet *packet, uint32_t stream) noexcept nogil:
    """Move a session on by a segment. Where streams are edited, all is tracked by the numbers that the inside knows."""
    cdef const uint8_t *at = packet.transport
    cdef uint32_t header = tcp.header_length(at)
    cdef Segment segment
    segment.flags = at[tcp.FLAGS]
    segment.seq = load32(at + tcp.SEQUENCE)
    segment.ack = load32(at + tcp.ACKNOWLEDGMENT)
    segment.window = load16(at + tcp.WINDOW)
    segment.last = segment.seq + packet.length - packet.header_length - header
    segment.last += (1 if segment.flags & tcp.SYN else 0) + (1 if segment.flags & tcp.FIN else 0)
    segment.scale = tcp.window_scale(at, header) if segment.flags & tcp.SYN else -1
    if rarely(stream != 0 and direction == rows.INBOUND):
        segment.seq = streams.leaves_as(&p.table.streams, stream, rows.INBOUND, segment.seq)
        segment.last = streams.leaves_as(&p.table.streams, stream, rows.INBOUND, segment.last)
        segment.ack = streams.stands_for(&p.table.streams, stream, rows.OUTBOUND, segment.ack)
    return tcp_segment(s, direction, &segment)


cdef inline Outcome advance(Path *p, const Packet *packet, uint32_t row, int direction, uint32_t stream) noexcept nogil:
    """Move a session on by one packet and restart its timer where that is due; stream: of its edits, 0 without."""
    cdef Session *s = &p.table.sessions[row]
    cdef TcpVerdict change
    cdef int before = s.state
    if packet.protocol == numbers.TCP:
        change = track_tcp(p, s, direction, packet, stream)
        if change == TCP_OUT_OF_WINDOW:
            return verdict.TCP_RST_OUT_OF_WINDOW
        if change == TCP_REFRESH:
            sessions.refresh_session(p.table, s, p.tick)
        elif change == TCP_CHANGED:
            sessions.note_half_open(p.table, s.mapping, before, s.state)
            sessions.retime_session(p.table, row, p.tick)
    elif before == rows.UDP_UNANSWERED:
        if direction == rows.OUTBOUND:
            s.state = rows.UDP_ACTIVE
            sessions.note_half_open(p.table, s.mapping, before, rows.UDP_ACTIVE)
        sessions.refresh_session(p.table, s, p.tick)    # what nobody answers, such as log messages, keeps to one target
    elif direction == rows.OUTBOUND:
        sessions.refresh_session(p.table, s, p.tick)    # inbound packets hold nothing open (RFC 4787 REQ-6)
    else:
        s.flags |= rows.SESSION_REPLIED
    s.flow[direction].packets += 1
    return verdict.GOES_ON


# -- its way ---------------------------------------------------------------------------------------------------------

cdef inline uint32_t known_link(int direction, int link) noexcept nogil:
    """Return what a session knows of the link that packets of a flow come by."""
    return <uint32_t>link << (4 * direction)


cdef inline uint32_t link_of(const Session *s, int direction) noexcept nogil:
    """Return the link that packets of a flow are known to come by."""
    return s.known >> (4 * direction) & EVERY_LINK


cdef inline uint32_t known_by(const Path *p, int direction, int link, int other_link) noexcept nogil:
    """Return what a session knows once packets of the flow `direction` come by `link`, and the other's by `other_link`."""
    return (p.generation << 8) | known_link(direction, link) | known_link(1 - direction, other_link)


cdef inline Outcome judge_link(Path *p, const Packet *packet, uint32_t row, int direction) noexcept nogil:
    """Whether a packet may come by its link: asked when that is another one, or what the kernel knows has changed.

    Of what has changed all is looked up anew. Until the way of the flow's packets is, the link of the other flow is
    taken for this one, which is on another side: so none of its packets passes unasked.
    """
    cdef Session *s = &p.table.sessions[row]
    if route.is_martian_source(p, packet):
        return verdict.MARTIAN_SOURCE
    if p.carrier != NULL:
        carrying.forbid(p, row, direction)
    if s.known >> 8 != p.generation:
        s.flow[rows.OUTBOUND].hop = rows.NO_HOP
        s.flow[rows.INBOUND].hop = rows.NO_HOP
        show_in_order()
        s.known = known_by(p, direction, packet.link, packet.link)
    else:
        s.known = (s.known & ~known_link(direction, EVERY_LINK)) | known_link(direction, packet.link)
    return verdict.GOES_ON


cdef inline Outcome check_link(Path *p, const Packet *packet, uint32_t row, int direction) noexcept nogil:
    """Whether a packet of the flow `direction` comes by the link that leads to its source: mostly that is known."""
    cdef const Session *s = &p.table.sessions[row]
    if likely(s.known >> 8 == p.generation and link_of(s, direction) == packet.link):
        return verdict.GOES_ON
    return judge_link(p, packet, row, direction)


cdef inline Outcome choose_flow_hop(Path *p, Packet *packet, Session *s, int direction) noexcept nogil:
    """Choose the flow's next hop, which is looked up again when what the kernel knows has changed.

    The link that it is on is where the other flow's packets come from.
    """
    cdef Flow *flow = &s.flow[direction]
    cdef Outcome outcome
    if likely(flow.hop != rows.NO_HOP):
        packet.hop, packet.towards = &p.hops[flow.hop], flow.daddr
        return verdict.GOES_ON
    outcome = hops.choose_hop(p, packet, flow.daddr)
    if outcome == verdict.GOES_ON:
        flow.hop = hops.number_of(p, packet.hop)
        s.known = known_by(p, direction, packet.link, packet.hop.link)
    return outcome


cdef inline void mind_path_mtu(Packet *packet, uint16_t mtu) noexcept nogil:
    """Lower a guessed segment size to what the path is known to take."""
    cdef Frame *frame = packet.frame
    cdef uint32_t headers = packet.header_length + tcp.header_length(packet.transport)
    if mtu >= headers + LEAST_SEGMENT and headers + frame.vnet.gso_size > mtu:
        frame.vnet.gso_size = <uint16_t>(mtu - headers)


cdef inline bint is_own_mapping(const Path *p, const Session *s) noexcept nogil:
    """Whether a session is by its inside endpoint's own mapping: what answers strangers has another."""
    return s.mapping != rows.NONE and p.table.mappings[s.mapping].in_use == rows.MAPPING_OPEN


cdef inline Ends ends_after(const Flow *flow) noexcept nogil:
    """Return what a flow writes over its packets' ends."""
    cdef Ends ends
    ends.saddr, ends.sid = flow.saddr, flow.sid
    ends.daddr, ends.did = flow.daddr, flow.did
    return ends


cdef inline Outcome ask_follower(Path *p, const Packet *packet, uint32_t ref) noexcept nogil:
    """What the follower of a connection says of a segment, if it wants to see it."""
    cdef uint32_t row = rows.row_of(ref)
    cdef uint8_t state = p.table.sessions[row].state
    if (packet.transport[tcp.FLAGS] & tcp.SYN and rows.direction_of(ref) == rows.OUTBOUND
            and (state == rows.TCP_TRANSITORY or state == rows.TCP_FIN_BOTH)):
        streams.begin_anew(&p.table.streams, row)      # as tcp_state does
    if not trackers.is_control(p, row, packet):
        return verdict.GOES_ON
    return trackers.ask_tracker(p, packet, punts.PUNT_CONTROL, ref)


cdef inline Outcome translate(Path *p, Packet *packet, uint32_t ref, uint32_t stream) noexcept nogil:
    """Translate and send a packet of the flow `ref`; stream: of its session's edits, 0 without."""
    cdef uint32_t row = rows.row_of(ref)
    cdef int direction = rows.direction_of(ref)
    cdef Session *s = &p.table.sessions[row]
    cdef Flow *flow = &s.flow[direction]
    cdef Outcome outcome
    cdef Ends ends
    outcome = advance(p, packet, row, direction, stream)
    if outcome != verdict.GOES_ON:
        return outcome
    if p.chains != NULL:
        ends = ends_after(flow)
        outcome = filter.sent_translated(p, packet, &ends)
        if outcome != verdict.GOES_ON:
            return outcome
    if p.triggers_and_marks != NULL and direction == rows.OUTBOUND and is_own_mapping(p, s):
        triggers.note_contact(&p.triggers_and_marks.triggers, packet.protocol, &packet.ends, p.tick)
    if rarely(p.carrier != NULL):
        carrying.offer(p, packet, ref)
    if rarely(stream != 0):
        return edited.send(p, packet, row, stream, direction, flow)
    rewrite_flow(p, packet, flow)
    return send_packet(p, packet)


cdef inline Outcome translate_followed(Path *p, Packet *packet, uint32_t ref) noexcept nogil:
    """The same for a packet of a connection that is followed, if its follower lets it pass."""
    cdef Outcome outcome = ask_follower(p, packet, ref)
    if outcome != verdict.GOES_ON:
        return outcome
    return translate(p, packet, ref, streams.stream_of(&p.table.streams, rows.row_of(ref)))


cdef inline Outcome go_on(Path *p, Packet *packet, uint32_t ref) noexcept nogil:
    """Translate and send a packet of the flow `ref`, which may leave by its hop."""
    if rarely(trackers.is_followed(p, rows.row_of(ref), packet)):
        return translate_followed(p, packet, ref)
    return translate(p, packet, ref, 0)


cdef inline Outcome forward(Path *p, Packet *packet, uint32_t ref) noexcept nogil:
    """A packet that the table has the flow `ref` for."""
    cdef int direction = rows.direction_of(ref)
    cdef Session *s = &p.table.sessions[rows.row_of(ref)]
    cdef Outcome outcome = check_link(p, packet, rows.row_of(ref), direction)
    if outcome == verdict.GOES_ON:
        outcome = choose_flow_hop(p, packet, s, direction)
    if outcome != verdict.GOES_ON:
        return leave.tell_no_hop(p, packet, s.flow[direction].daddr, outcome)
    if rarely(packet.guessed) and s.flow[direction].path_mtu:
        mind_path_mtu(packet, s.flow[direction].path_mtu)
    if rarely(not leave.has_clear_way(p, packet)):
        outcome = leave.may_leave(p, packet)
        if outcome != verdict.GOES_ON:
            return outcome
    if p.chains != NULL and direction == rows.OUTBOUND and packet.side != keys.LOCAL and not p.chains.default_forward:
        outcome = filter.ask_forward(p, packet)
        if outcome != verdict.GOES_ON:
            return outcome
        if not filter.is_translated(packet):
            return send_plain(p, packet)        # 2.6
    return go_on(p, packet, ref)


cdef inline Outcome forward_opened(Path *p, Packet *packet, int64_t row, int direction) noexcept nogil:
    """The packet that has opened a session goes on by it; its next hop has let it pass already."""
    cdef Session *s = &p.table.sessions[row]
    s.known = known_by(p, direction, packet.link, packet.hop.link)
    s.flow[direction].hop = hops.number_of(p, packet.hop)
    return go_on(p, packet, rows.ref_of(<uint32_t>row, direction))
