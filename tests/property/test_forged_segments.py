"""Forged segments among honest ones: what fits neither window nor acknowledgments changes nothing of a connection.

The specification says what fits. Where a segment does not, the session's row stays as it is, octet for octet, but for
the count of its packets; where it does, the state is the specification's.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import Harness
from tests.support.model import tcp as specification
from tests.support.model.wire import Refused, Segment
from tests.support.packets import FLAG_BITS, tcp

CLIENT, SERVER, EXTERNAL = "10.0.0.2:40000", "199.0.0.1:80", "200.200.200.200:40000"
STATES = {"fin-out", "fin-in", "closing", "established", "transitory", "syn-sent", "syn-received", "resumed"}

distances = st.sampled_from(
    [0, 0, 0, 1, -1, 100, -100, 65535, 66000, 66001, -66000, -66001, 2**20, -(2**20), 2**30, 2**31 - 1]
) | (st.integers(-(2**31), 2**31 - 1))
steps = st.tuples(
    st.sampled_from(["out", "in"]),
    st.sampled_from(["A", "A", "PA", "FA", "SA", "S", "R", "RA"]),
    distances,
    distances,
    st.sampled_from([0, 0, 1, 100, 1400]),
    st.sampled_from([0, 1000, 65535]),
)


class Watched:
    """A connection through the path, and the same in the specification."""

    def __init__(self, scale: int | None) -> None:
        self.harness = Harness()
        self.next = {"out": 1000, "in": 5000}
        self.connection: specification.Connection | None = None
        self.scale = scale

    def row(self) -> bytes:
        """Return all of the session but how many packets it has moved, and which links and hops those used."""
        row = self.harness.table.sessions[0].copy()
        row["flow"]["packets"] = row["flow"]["hop"] = row["known"] = 0
        return row.tobytes()

    def send(self, direction: str, flags: str, seq: int, ack: int, length: int, window: int) -> None:
        bits = sum(FLAG_BITS[letter] for letter in flags)
        scale = self.scale if "S" in flags else None
        fields = {"seq": seq % 2**32, "ack": ack % 2**32 if "A" in flags else 0, "window": window, "scale": scale}
        payload = bytes(length)
        if direction == "out":
            self.harness.send("inside", tcp(CLIENT, SERVER, flags, payload=payload, **fields))
        else:
            self.harness.send("outside", tcp(SERVER, EXTERNAL, flags, payload=payload, **fields))
        segment = Segment(bits, fields["seq"], fields["ack"], window, length, scale)
        if self.connection is None:
            self.connection = specification.opened(segment)
        else:
            try:
                self.connection = specification.stepped(self.connection, direction, segment).connection
            except Refused as refused:
                assert self.harness.drops() == {refused.reason: 1}

    def honest(self, direction: str, flags: str = "A", length: int = 0) -> None:
        other = "in" if direction == "out" else "out"
        self.send(direction, flags, self.next[direction], self.next[other], length, 65535)
        self.next[direction] += length + ("S" in flags) + ("F" in flags)

    @property
    def state(self) -> str:
        [session] = self.harness.sessions()
        return session["state"]


def fits(connection: specification.Connection, direction: str, seq: int, ack: int, flags: str, length: int) -> bool:
    bits = sum(FLAG_BITS[letter] for letter in flags)
    return specification.fits(connection, direction, Segment(bits, seq % 2**32, ack % 2**32, 0, length, None))


@given(forged=st.lists(steps, max_size=12), scale=st.sampled_from([None, 0, 7, 14]), data=st.sampled_from([0, 300]))
def test_rfc5961_section_5_what_does_not_fit_changes_nothing(forged: list, scale: int | None, data: int) -> None:
    """An honest connection opens, talks and closes; between any two of its segments somebody lies."""
    watched = Watched(scale)
    script = iter([("out", "S", 0), ("in", "SA", 0), ("out", "A", 0), *[("out", "PA", data), ("in", "PA", data)] * 4])
    for direction, flags, seq, ack, length, window in [*forged, ("end",) * 6]:
        step = next(script, None)
        if step:
            watched.honest(*step)
        if direction == "end":
            break
        other = "in" if direction == "out" else "out"
        numbers = (watched.next[direction] + seq, watched.next[other] + ack)
        fitting = fits(watched.connection, direction, *numbers, flags, length)
        believed = fitting or "R" in flags or "S" in flags
        before = watched.row()
        watched.harness.advance(0.3)
        watched.send(direction, flags, *numbers, length, window)
        if not believed:
            assert watched.row() == before
        assert watched.state == watched.connection.state


@given(lies=st.lists(st.tuples(st.sampled_from(["out", "in"]), distances, distances), max_size=20))
def test_rfc5961_section_5_2_an_absurd_acknowledgment_does_not_keep_a_session(lies: list) -> None:
    """Lies with a sequence number or an acknowledgment that cannot be; then both ends finish, and the session does."""
    watched = Watched(7)
    watched.honest("out", "S")
    watched.honest("in", "SA")
    watched.honest("out")
    for direction, seq, ack in lies:
        other = "in" if direction == "out" else "out"
        if not fits(watched.connection, direction, watched.next[direction] + seq, watched.next[other] + ack, "A", 0):
            watched.send(direction, "A", watched.next[direction] + seq, watched.next[other] + ack, 0, 65535)
    watched.honest("out", "FA")
    watched.honest("in", "FA")
    watched.honest("out")
    assert watched.state == "closing"
