"""What a TCP segment does to its session, in the specification: RFC 6146 section 3.5.2 as RFC 7857 section 2 asks.

States and their lives. A session opened by a SYN from inside is "syn-sent"; by a SYN+ACK (the answer to a SYN that came
in statelessly) "syn-received"; by anything else (the gateway was restarted in mid-stream) "resumed". What the outside
answers makes it "established": after a SYN only a SYN that acknowledges it does, otherwise anything believable. The
first FIN makes it "fin-out" or "fin-in", the second "closing", a believable reset "transitory". From "closing" and
"transitory" a SYN from inside starts over; in "transitory" any other believable segment brings "established" back.
"syn-received" waits for a sign that the outside has heard the answer: its SYN once more is none, and a reset only lets
the session die in its time.

Where the outside may begin, through a port forward, its first segment makes the session "unanswered", and nothing that
it sends changes that. The inside's SYN makes it "syn-received", anything else that is believable "established".

"established", "fin-out" and "fin-in" live for the established timeout, the others for the transitory one, "unanswered"
for a minute at most. Segments restart the timer in both directions, except: nothing does in "closing"; strangers do not
before "established"; a SYN in the middle of a connection, a segment that does not fit the window, and a reset that
changes nothing never do.

What is believed. Each end's highest sequence number, highest acknowledgment and the right edge of its window are noted.
A segment fits when it begins at or before the receiver's edge and ends not too far behind what it acknowledged; what it
acknowledges itself must be what the other end has sent, or a little more, and not too old. Numbers that are not known
yet count as fitting. A SYN from inside that answers another SYN than was noted makes the outside's numbers unknown. A
reset is exact when its sequence number is what the receiver acknowledged last, or what the sender sent last; an answer
to a SYN is exact when it acknowledges that SYN. Only exact resets change states; others inside the window pass for the
end host to challenge (RFC 5961); outside the window they are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.support.model.wire import ACK, FIN, RST, SYN, Refused, Segment

OUT, IN = "out", "in"  # directions: from the inside, from the outside
OTHER = {OUT: IN, IN: OUT}

SYN_SENT, SYN_RECEIVED, ESTABLISHED = "syn-sent", "syn-received", "established"
FIN_OUT, FIN_IN, CLOSING = "fin-out", "fin-in", "closing"
TRANSITORY, RESUMED, UNANSWERED = "transitory", "resumed", "unanswered"
OPENING = (SYN_SENT, SYN_RECEIVED, RESUMED, UNANSWERED)
HALF_OPEN = (SYN_RECEIVED, UNANSWERED)  # only one end has been heard
LONG_LIVED = (ESTABLISHED, FIN_OUT, FIN_IN)

LARGEST_SCALE = 14  # RFC 7323 section 2.3: what an end whose SYN was not seen may use
LARGEST_WINDOW = 2**30  # RFC 7323 section 2.3: octets in flight at the most
SLACK = (
    66000  # octets, before scaling: how far behind the acknowledgment a segment may end and still be honest; and how
)
# far an acknowledgment may be behind what the other end sent, or, unscaled, ahead of what has been seen of that


@dataclass(frozen=True)
class End:
    """What one end has said. None: not said yet."""

    end: int | None = None  # one past the highest sequence number it sent
    ack: int | None = None  # the highest acknowledgment it sent
    edge: int | None = None  # the highest acknowledgment + window it sent: nobody may send past it
    syn_seen: bool = False
    scale: int | None = None  # the shift count in its SYN


@dataclass(frozen=True)
class Connection:
    state: str
    ends: dict[str, End]  # by the direction in which the end sends


@dataclass(frozen=True)
class Step:
    """What a segment did: the connection after it, and whether the session's timer starts anew."""

    connection: Connection
    refreshed: bool


def opened(segment: Segment) -> Connection:
    """Return the connection that a first segment from inside opens. Raises Refused for a reset."""
    if segment.flags & RST:
        raise Refused("no_session")
    state = RESUMED
    if segment.flags & SYN:
        state = SYN_RECEIVED if segment.flags & ACK else SYN_SENT
    return Connection(state, {OUT: noted(End(), segment, window_shift(End(), End())), IN: End()})


def begun_outside(segment: Segment) -> Connection | None:
    """Return the connection that a first segment from outside opens, where it may; None: a reset or answer does not."""
    if segment.flags & RST or segment.flags & (SYN | ACK) == SYN | ACK:
        return None
    return Connection(UNANSWERED, {OUT: End(), IN: End()})


def stepped(connection: Connection, direction: str, segment: Segment) -> Step:
    """Return what a segment does to a connection. Raises Refused for a reset outside the window."""
    if segment.flags & RST:
        return reset(connection, direction, segment)
    if segment.flags & SYN:
        return synchronised(connection, direction, segment)
    if not fits(connection, direction, segment):
        return Step(connection, refreshed=False)
    connection = with_noted(connection, direction, segment)
    state, changed = after_data(connection.state, direction, bool(segment.flags & FIN))
    refreshed = state != CLOSING and not (state in OPENING and direction == IN)
    return Step(replace(connection, state=state), refreshed or changed)


def after_data(state: str, direction: str, fin: bool) -> tuple[str, bool]:
    """Return the state after a believable segment without SYN and RST, and whether it changed."""
    if state == UNANSWERED and direction == OUT:
        return (FIN_OUT if fin else ESTABLISHED), True
    if state == ESTABLISHED and fin:
        return (FIN_OUT if direction == OUT else FIN_IN), True
    if fin and (state, direction) in ((FIN_OUT, IN), (FIN_IN, OUT)):
        return CLOSING, True
    if state == TRANSITORY:
        return ESTABLISHED, True
    if state in (SYN_RECEIVED, RESUMED) and direction == IN:
        return ESTABLISHED, True
    return state, False


def synchronised(connection: Connection, direction: str, segment: Segment) -> Step:
    state = connection.state
    if state in (TRANSITORY, CLOSING) and direction == OUT:
        return Step(opened(segment), refreshed=True)
    if state not in OPENING:
        return Step(connection, refreshed=False)
    if direction == OUT:
        if not acknowledges(connection, direction, segment):
            connection = replace(connection, ends={**connection.ends, IN: forgotten(connection.ends[IN])})
        connection = with_noted(connection, direction, segment)
        return Step(replace(connection, state=SYN_RECEIVED if state == UNANSWERED else state), refreshed=True)
    if state == UNANSWERED:
        return Step(with_noted(connection, direction, segment), refreshed=False)
    if segment.flags & ACK and fits(connection, direction, segment):
        return Step(replace(with_noted(connection, direction, segment), state=ESTABLISHED), refreshed=True)
    return Step(connection, refreshed=False)  # a SYN alone proves nothing


def reset(connection: Connection, direction: str, segment: Segment) -> Step:
    state, sender, receiver = connection.state, connection.ends[direction], connection.ends[OTHER[direction]]
    if state == SYN_SENT and direction == IN:
        if not (segment.flags & ACK and segment.ack == receiver.end):
            raise Refused("tcp_rst_out_of_window")
        return Step(replace(connection, state=TRANSITORY), refreshed=True)
    if segment.seq in (sender.end, receiver.ack):
        if state in (TRANSITORY, CLOSING, SYN_RECEIVED, UNANSWERED):
            return Step(connection, refreshed=False)
        return Step(replace(connection, state=TRANSITORY), refreshed=True)
    if receiver.ack is not None and not ahead(segment.seq, receiver.ack) >= 0 >= ahead(segment.seq, receiver.edge):
        raise Refused("tcp_rst_out_of_window")
    return Step(connection, refreshed=False)


# --- sequence numbers --------------------------------------------------------------------------------------------


def ahead(a: int, b: int) -> int:
    """Return how far sequence number a is ahead of b, from -2^31 on; numbers wrap at 2^32 (RFC 9293 section 3.4)."""
    return (a - b + 2**31) % 2**32 - 2**31


def later(a: int, b: int | None) -> int:
    return a if b is None or ahead(a, b) > 0 else b


def last_number(segment: Segment) -> int:
    """Return one past the segment's last sequence number; SYN and FIN take one each."""
    taken = segment.length + bool(segment.flags & SYN) + bool(segment.flags & FIN)
    return (segment.seq + taken) % 2**32


def window_shift(own: End, other: End) -> int:
    """Return the scale of the windows an end offers: in force only when both SYNs carry the option (RFC 7323)."""
    if (own.syn_seen and own.scale is None) or (other.syn_seen and other.scale is None):
        return 0
    return own.scale if own.syn_seen else LARGEST_SCALE


def noted(end: End, segment: Segment, shift: int) -> End:
    """Return what is known of an end after it sent a segment; a SYN starts its numbers anew and is never scaled."""
    if segment.flags & SYN:
        end, shift = End(syn_seen=True, scale=segment.scale), 0
    end = replace(end, end=later(last_number(segment), end.end))
    if segment.flags & ACK:
        edge = (segment.ack + (segment.window << shift)) % 2**32
        end = replace(end, ack=later(segment.ack, end.ack), edge=later(edge, end.edge))
    return end


def forgotten(end: End) -> End:
    """Return an end whose numbers are not known any more; what its SYN offered stays."""
    return replace(end, end=None, ack=None, edge=None)


def with_noted(connection: Connection, direction: str, segment: Segment) -> Connection:
    own, other = connection.ends[direction], connection.ends[OTHER[direction]]
    return replace(connection, ends={**connection.ends, direction: noted(own, segment, window_shift(own, other))})


def fits(connection: Connection, direction: str, segment: Segment) -> bool:
    return fits_window(connection, direction, segment) and acknowledges(connection, direction, segment)


def fits_window(connection: Connection, direction: str, segment: Segment) -> bool:
    sender, receiver = connection.ends[direction], connection.ends[OTHER[direction]]
    if receiver.ack is None:
        return True
    slack = SLACK << window_shift(receiver, sender)
    return ahead(segment.seq, receiver.edge) <= 0 and ahead(last_number(segment), receiver.ack) >= -slack


def acknowledges(connection: Connection, direction: str, segment: Segment) -> bool:
    """Return whether a segment acknowledges nothing, or what the other end may have sent lately."""
    own, other = connection.ends[direction], connection.ends[OTHER[direction]]
    if not segment.flags & ACK or other.end is None:
        return True
    distance = ahead(segment.ack, other.end)
    if segment.flags & SYN:
        return -SLACK <= distance <= 0
    return -(SLACK << window_shift(own, other)) <= distance <= SLACK
