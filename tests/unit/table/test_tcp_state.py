"""Every arrow of the TCP diagram, driven by segments through the path: states, timers, resets, windows, wrapping."""

from __future__ import annotations

import pytest

from tests.support.harness import Harness
from tests.support.packets import decode, tcp

CLIENT, SERVER, EXTERNAL = "10.0.0.2:40000", "199.0.0.1:80", "200.200.200.200:40000"
ESTABLISHED_S, TRANSITORY_S = 7440, 240
HIGH = 0xFFFFFF00  # a sequence number that wraps soon


class Connection:
    """One TCP connection through a Harness: segments out (from the client) and in (from the server), checked.

    `client` and `server` are the next sequence numbers of the two ends; each has acknowledged all of the other.
    """

    def __init__(self, client: int = 1000, server: int = 5000, window: int = 10_000) -> None:
        self.harness = Harness()
        self.client, self.server, self.window = client, server, window

    @property
    def state(self) -> str | None:
        """The state of the session, None when there is none."""
        sessions = self.harness.sessions()
        assert len(sessions) <= 1
        return sessions[0]["state"] if sessions else None

    def out(self, flags: str, **fields) -> bool:
        """Send a segment from inside; return whether it came out on the other side."""
        fields = {"seq": self.client, "ack": self.server if "A" in flags else 0, "window": self.window, **fields}
        return self._passes(
            "inside", tcp(CLIENT, SERVER, flags, **fields), tcp(EXTERNAL, SERVER, flags, ttl=63, **fields)
        )

    def come(self, flags: str, **fields) -> bool:
        """Send a segment from outside; return whether it reached the inside."""
        fields = {"seq": self.server, "ack": self.client if "A" in flags else 0, "window": self.window, **fields}
        return self._passes(
            "outside", tcp(SERVER, EXTERNAL, flags, **fields), tcp(SERVER, CLIENT, flags, ttl=63, **fields)
        )

    def _passes(self, link: str, segment: bytes, expected: bytes) -> bool:
        sent = self.harness.send(link, segment)
        if not sent:
            return False
        assert [out.packet for out in sent] == [expected]
        assert sent[0].link != link
        return True

    def open(self, client_scale: int | None = None, server_scale: int | None = None) -> Connection:
        """Shake hands; afterwards both ends have acknowledged each other."""
        assert self.out("S", scale=client_scale)
        assert self.state == "syn-sent"
        self.client = (self.client + 1) % 2**32
        assert self.come("SA", scale=server_scale)
        assert self.state == "established"
        self.server = (self.server + 1) % 2**32
        assert self.out("A")
        assert self.state == "established"
        return self

    def finish(self, *order: str) -> Connection:
        """Send the FINs of "out" and "in" in this order, each acknowledged."""
        for direction in order:
            if direction == "out":
                assert self.out("FA")
                self.client = (self.client + 1) % 2**32
                assert self.come("A")
            else:
                assert self.come("FA")
                self.server = (self.server + 1) % 2**32
                assert self.out("A")
        return self

    def reset(self, direction: str = "in") -> Connection:
        assert self.come("R") if direction == "in" else self.out("R")
        assert self.state == "transitory"
        return self

    def lives(self, seconds: float) -> bool:
        """Whether the session lasts, without traffic, for this long and no longer."""
        self.harness.advance(seconds - 0.001)
        if self.state is None:
            return False
        self.harness.advance(0.6)
        return self.state is None


def established(**numbers: int) -> Connection:
    return Connection(**numbers).open()


def resumed() -> Connection:
    connection = Connection()
    assert connection.out("A", payload=b"still here")
    assert connection.state == "resumed"
    connection.client += 10
    return connection


# --- opening -----------------------------------------------------------------------------------------------------


def test_syn_out_syn_in() -> None:
    established()


def test_rfc5382_req2_simultaneous_open() -> None:
    connection = Connection()
    connection.out("S")
    assert connection.come("S", seq=5000)
    assert connection.state == "syn-sent"
    assert connection.come("SA", seq=5000, ack=1001)
    assert connection.out("SA", seq=1000, ack=5001)
    assert connection.state == "established"


def test_syn_ack_out_then_anything_in() -> None:
    """The connection was opened from outside (its SYN came in through a mapping without a session)."""
    connection = Connection()
    connection.out("SA")
    assert connection.state == "syn-received"
    connection.client += 1
    assert connection.out("A")
    assert connection.state == "syn-received"
    assert connection.come("A")
    assert connection.state == "established"


def test_mid_stream_out_then_anything_in() -> None:
    """RFC 5382: after a restart of the gateway connections are picked up, not cut."""
    connection = resumed()
    assert connection.out("A")
    assert connection.state == "resumed"
    assert connection.come("PA", payload=b"hello")
    assert connection.state == "established"


@pytest.mark.parametrize("flags", ["FA", "PA", "A", "UA"])
def test_any_segment_but_a_reset_may_resume(flags: str) -> None:
    connection = Connection()
    assert connection.out(flags)
    assert connection.state == "resumed"


@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_reset_opens_nothing(flags: str) -> None:
    connection = Connection()
    assert not connection.out(flags)
    assert connection.state is None
    assert connection.harness.drops() == {"no_session": 1}


@pytest.mark.parametrize("flags", ["S", "SA", "A", "FA", "R", "RA"])
def test_nothing_from_outside_opens_anything(flags: str) -> None:
    connection = Connection()
    assert not connection.come(flags)
    assert connection.state is None


def test_a_challenge_ack_is_no_answer_to_a_syn() -> None:
    """RFC 5961 section 4: the server still has an old connection; its ACK passes and establishes nothing."""
    connection = Connection()
    connection.out("S")
    assert connection.come("A", seq=777, ack=333)
    assert connection.state == "syn-sent"


def test_retransmitted_syns_change_nothing() -> None:
    connection = Connection()
    for _ in range(3):
        connection.out("S")
        assert connection.state == "syn-sent"
    connection.client += 1
    for _ in range(3):
        assert connection.come("SA")
        assert connection.state == "established"


# --- closing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "half"), [(("out", "in"), "fin-out"), (("in", "out"), "fin-in")])
def test_fin_from_each_end(order: tuple[str, str], half: str) -> None:
    connection = established().finish(order[0])
    assert connection.state == half
    assert connection.out("PA", payload=b"x" * 10)
    assert connection.come("PA", payload=b"y" * 10)
    assert connection.state == half
    connection.client += 10
    connection.server += 10
    connection.finish(order[1])
    assert connection.state == "closing"


@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_retransmitted_fin_of_one_end_is_not_that_of_the_other(direction: str) -> None:
    connection = established()
    for _ in range(3):
        assert connection.out("FA") if direction == "out" else connection.come("FA")
        assert connection.state == f"fin-{direction}"


def test_both_fins_at_once() -> None:
    """Neither end has seen the other's FIN when it sends its own (RFC 9293 section 3.6, case 3)."""
    connection = established()
    assert connection.out("FA")
    assert connection.come("FA")
    assert connection.state == "closing"


def test_a_fin_with_data() -> None:
    connection = established()
    assert connection.out("FPA", payload=b"bye" * 100)
    assert connection.state == "fin-out"
    assert connection.come("FA", ack=connection.client + 301, payload=b"bye")
    assert connection.state == "closing"


@pytest.mark.parametrize("state", ["syn-sent", "syn-received", "resumed"])
def test_a_fin_before_the_connection_stands_closes_nothing(state: str) -> None:
    connection = Connection()
    connection.out({"syn-sent": "S", "syn-received": "SA", "resumed": "A"}[state])
    connection.client += state != "resumed"
    assert connection.out("FA")
    assert connection.state == state


# --- opening again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "state"), [("S", "syn-sent"), ("SA", "syn-received")])
@pytest.mark.parametrize("ended", ["closing", "transitory"])
def test_rfc6191_a_syn_from_inside_opens_a_closed_session_again(ended: str, flags: str, state: str) -> None:
    connection = established()
    connection.finish("out", "in") if ended == "closing" else connection.reset()
    assert connection.state == ended
    connection.client, connection.server = 900_000_000, 3_000_000_000
    assert connection.out(flags)
    assert connection.state == state
    connection.client += 1
    assert connection.come("SA")
    assert connection.state == "established"
    connection.server += 1
    assert connection.out("A") and connection.come("PA", payload=b"new life")
    assert not connection.come("R", seq=connection.server + 500_000)
    assert connection.reset().state == "transitory"


@pytest.mark.parametrize("ended", ["closing", "transitory"])
def test_a_syn_from_outside_opens_nothing_again_by_itself(ended: str) -> None:
    """It passes, for the inside to decide; the inside's SYN+ACK opens."""
    connection = established()
    connection.finish("out", "in") if ended == "closing" else connection.reset()
    connection.server = 3_000_000_000
    assert connection.come("S")
    assert connection.state == ended
    connection.server += 1
    connection.client = 900_000_000
    assert connection.out("SA")
    assert connection.state == "syn-received"
    connection.client += 1
    assert connection.come("A")
    assert connection.state == "established"


@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize("half", [None, "out", "in"])
def test_rfc5961_section_4_a_syn_on_a_live_connection_is_for_the_end_host(direction: str, half: str | None) -> None:
    """It passes, so that the end host can challenge it, and neither state nor window believes it."""
    connection = established()
    if half:
        connection.finish(half)
    before = connection.state
    assert connection.out("S", seq=77) if direction == "out" else connection.come("S", seq=77)
    assert connection.state == before
    assert not connection.come("R", seq=78)
    assert not connection.out("R", seq=78)
    connection.reset()


# --- resets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize("before", ["established", "fin-out", "fin-in"])
def test_rfc5961_section_3_an_exact_reset_is_believed(before: str, direction: str) -> None:
    connection = established()
    if before != "established":
        connection.finish(before.removeprefix("fin-"))
    assert connection.state == before
    connection.reset(direction)


def test_a_reset_after_lost_segments_is_exact_by_what_was_acknowledged() -> None:
    """The server sent data the client has not acknowledged; a reset at either number is that of the server."""
    for number in (5001, 5101):
        connection = established()
        assert connection.come("PA", payload=b"x" * 100)
        assert connection.come("R", seq=number)
        assert connection.state == "transitory"


@pytest.mark.parametrize("offset", [1, 5000, 9999, 10_000])
def test_rfc5961_section_3_a_reset_in_the_window_passes_and_is_not_believed(offset: int) -> None:
    connection = established()
    assert connection.come("R", seq=connection.server + offset)
    assert connection.state == "established"
    assert connection.out("R", seq=connection.client + offset)
    assert connection.state == "established"
    assert connection.harness.drops() == {}


@pytest.mark.parametrize("offset", [-1, -5000, -(2**31) + 1, 10_001, 65_536, 2**31 - 1])
def test_rfc5961_section_3_a_reset_outside_the_window_is_dropped(offset: int) -> None:
    connection = established()
    assert not connection.come("R", seq=connection.server + offset)
    assert not connection.out("R", seq=connection.client + offset)
    assert connection.state == "established"
    assert connection.harness.drops() == {"tcp_rst_out_of_window": 2}


def test_rfc9293_a_refused_connection() -> None:
    """Section 3.10.7.3: the reset that answers a SYN acknowledges it, and has sequence number 0."""
    connection = Connection()
    connection.out("S")
    assert connection.come("RA", seq=0, ack=1001)
    assert connection.state == "transitory"
    assert connection.lives(TRANSITORY_S)


@pytest.mark.parametrize(("flags", "ack"), [("RA", 1000), ("RA", 1002), ("RA", 0), ("R", 0), ("R", 1001)])
def test_rfc9293_a_reset_that_does_not_acknowledge_the_syn_is_dropped(flags: str, ack: int) -> None:
    connection = Connection()
    connection.out("S")
    assert not connection.come(flags, seq=0, ack=ack)
    assert connection.state == "syn-sent"
    assert connection.harness.drops() == {"tcp_rst_out_of_window": 1}


def test_the_inside_gives_up_its_syn() -> None:
    connection = Connection()
    connection.out("S")
    assert connection.out("R", seq=1001)
    assert connection.state == "transitory"


@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_live_connection_survives_a_reset_that_was_not_meant(direction: str) -> None:
    """RFC 7857 section 2.2: traffic after a reset establishes the session again."""
    connection = established().reset(direction)
    assert connection.out("A") if direction == "out" else connection.come("A")
    assert connection.state == "established"
    assert connection.lives(ESTABLISHED_S)


def test_a_reset_after_a_reset_or_both_fins_changes_nothing() -> None:
    connection = established().reset()
    assert connection.come("R")
    assert connection.state == "transitory"
    connection = established().finish("in", "out")
    assert connection.come("R") and connection.out("R")
    assert connection.state == "closing"


def test_a_reset_of_a_resumed_connection_is_checked_as_far_as_it_can_be() -> None:
    """Nobody knows the scale of its windows, so the largest is taken to be meant."""
    connection = resumed()
    assert not connection.come("R", seq=connection.server - 1)
    assert not connection.come("R", seq=connection.server + (connection.window << 14) + 1)
    assert connection.come("R", seq=connection.server + (connection.window << 14))
    assert connection.state == "resumed"
    assert connection.come("R")
    assert connection.state == "transitory"


# --- segments that cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [-70_000, -(2**30), 10_001, 2**30])
@pytest.mark.parametrize("flags", ["FA", "PA"])
def test_forged_segments_change_nothing(flags: str, offset: int) -> None:
    """A blind FIN or data segment passes (the end host judges it) without closing, and without moving the window."""
    connection = established()
    assert connection.come(flags, seq=connection.server + offset)
    assert connection.out(flags, seq=connection.client + offset)
    assert connection.state == "established"
    assert not connection.come("R", seq=connection.server + offset)
    assert not connection.out("R", seq=connection.client + offset)
    connection.reset()


def test_forged_segments_refresh_nothing() -> None:
    connection = established()
    for _ in range(4):
        connection.harness.advance(2000)
        if connection.state:
            assert connection.come("A", seq=connection.server + 2**30)
    assert connection.state is None


def test_old_segments_within_reason_are_honest() -> None:
    """A duplicate that lay around is no forgery: it refreshes the session."""
    connection = established()
    connection.harness.advance(7000)
    assert connection.come("A", seq=connection.server - 60_000)
    assert connection.lives(ESTABLISHED_S)


# --- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client_scale", "server_scale", "shift"),
    [
        (None, None, 0),
        (7, None, 0),
        (None, 7, 0),
        (0, 0, 0),
        (7, 7, 7),
        (2, 9, 2),
        (14, 14, 14),
        (200, 0, 14),
    ],
)
def test_rfc7323_window_scale(client_scale: int | None, server_scale: int | None, shift: int) -> None:
    """The client's window as the server's reset sees it; scaled only if both SYNs offered it, by 14 at the most."""
    connection = Connection().open(client_scale, server_scale)
    edge = connection.server + (connection.window << shift)
    assert not connection.come("R", seq=edge + 1)
    assert connection.come("R", seq=edge)
    assert connection.state == "established"


def test_rfc7323_the_window_of_a_syn_is_never_scaled() -> None:
    connection = Connection()
    connection.out("S", scale=7)
    connection.client += 1
    connection.come("SA", scale=7)
    assert not connection.out("R", seq=connection.client + connection.window + 1)
    assert connection.out("R", seq=connection.client + connection.window)


def test_rfc7323_scales_are_each_their_ends_own() -> None:
    connection = Connection().open(3, 5)
    assert connection.come("A")
    assert not connection.out("R", seq=connection.client + (connection.window << 5) + 1)
    assert connection.out("R", seq=connection.client + (connection.window << 5))
    assert not connection.come("R", seq=connection.server + (connection.window << 3) + 1)
    assert connection.come("R", seq=connection.server + (connection.window << 3))


def test_other_options_before_the_scale() -> None:
    """MSS, SACK permitted and a no-operation come first, as Linux sends them; a cut option ends the walk."""
    for options, shift in [
        (bytes.fromhex("020405b40402") + b"\1\3\3\5", 5),
        (b"\3\3\5\0", 5),
        (b"\0\3\3\5", 0),
        (b"\2\1\3\3\5\0\0\0", 0),
        (b"\1\1\1\3", 0),
        (b"\3\4\5\5", 0),
        (b"\2\0\3\3\5\1\1\1", 0),
    ]:
        connection = Connection()
        connection.out("S", tcp_options=options)
        connection.client += 1
        connection.come("SA", scale=9)
        connection.server += 1
        connection.out("A")
        assert not connection.come("R", seq=connection.server + (connection.window << shift) + 1), options.hex()
        assert connection.come("R", seq=connection.server + (connection.window << shift)), options.hex()


def test_a_window_grows_with_acknowledgments_and_never_shrinks() -> None:
    connection = established()
    assert connection.come("PA", payload=b"x" * 1000)
    connection.server += 1000
    assert connection.out("A")
    assert not connection.come("R", seq=connection.server - 1)
    assert connection.come("R", seq=connection.server + 10_000)
    assert connection.out("A", window=0)
    assert connection.come("R", seq=connection.server + 10_000)
    assert not connection.come("R", seq=connection.server + 10_001)


# --- wraparound --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [HIGH, 1000])
@pytest.mark.parametrize("server", [HIGH, 5000])
def test_sequence_numbers_that_wrap(client: int, server: int) -> None:
    """Data past 2^32 in both directions; afterwards resets, FINs and forgeries are told apart as ever."""
    connection = established(client=client, server=server)
    for _ in range(5):
        assert connection.out("PA", payload=b"x" * 100)
        connection.client = (connection.client + 100) % 2**32
        assert connection.come("PA", payload=b"y" * 100)
        connection.server = (connection.server + 100) % 2**32
        assert connection.out("A")
    for offset in (-1, -600, 10_001):
        assert not connection.come("R", seq=connection.server + offset)
    assert not connection.out("R", seq=connection.client - 1)
    assert connection.come("R", seq=connection.server + 10_000)
    assert connection.state == "established"
    connection.finish("out", "in")
    assert connection.state == "closing"


def test_an_initial_sequence_number_of_all_ones() -> None:
    connection = established(client=0xFFFFFFFF, server=0xFFFFFFFF)
    assert (connection.client, connection.server) == (0, 0)
    assert not connection.come("R", seq=0xFFFFFFFF)
    connection.reset()


# --- timers ------------------------------------------------------------------------------------------------------


def reach(state: str) -> Connection:
    if state in ("syn-sent", "syn-received"):
        connection = Connection()
        connection.out("S" if state == "syn-sent" else "SA")
        connection.client += 1
    elif state == "resumed":
        connection = resumed()
    else:
        connection = established()
        if state.startswith("fin-"):
            connection.finish(state.removeprefix("fin-"))
        elif state == "closing":
            connection.finish("out", "in")
        elif state == "transitory":
            connection.reset()
    assert connection.state == state
    return connection


LONG = ("established", "fin-out", "fin-in")
SHORT = ("syn-sent", "syn-received", "resumed", "closing", "transitory")


@pytest.mark.parametrize("state", [*LONG, *SHORT])
def test_rfc5382_req5_how_long_each_state_lives(state: str) -> None:
    assert reach(state).lives(ESTABLISHED_S if state in LONG else TRANSITORY_S)


@pytest.mark.parametrize("direction", ["out", "in"])
@pytest.mark.parametrize("state", LONG)
def test_both_ends_refresh_a_live_connection(state: str, direction: str) -> None:
    connection = reach(state)
    connection.harness.advance(ESTABLISHED_S - 1)
    assert connection.out("A") if direction == "out" else connection.come("A")
    assert connection.lives(ESTABLISHED_S)


@pytest.mark.parametrize(("state", "flags"), [("syn-sent", "S"), ("syn-received", "SA"), ("resumed", "A")])
def test_only_the_inside_refreshes_what_has_not_been_answered(state: str, flags: str) -> None:
    connection = reach(state)
    connection.harness.advance(TRANSITORY_S - 1)
    assert connection.out(flags)
    assert connection.lives(TRANSITORY_S)


def test_strangers_hold_no_syn_open() -> None:
    connection = reach("syn-sent")
    connection.harness.advance(TRANSITORY_S - 1)
    assert connection.come("A", seq=9, ack=9)
    assert connection.lives(1)


@pytest.mark.parametrize("direction", ["out", "in"])
def test_rfc7857_section_2_1_nothing_refreshes_a_closing_connection(direction: str) -> None:
    connection = reach("closing")
    connection.harness.advance(TRANSITORY_S - 1)
    assert connection.out("A") if direction == "out" else connection.come("A")
    assert connection.lives(1)


def test_a_reset_does_not_refresh() -> None:
    connection = reach("established")
    connection.harness.advance(ESTABLISHED_S - 1)
    assert connection.come("R", seq=connection.server + 1)
    assert connection.lives(1)


# --- what is counted ---------------------------------------------------------------------------------------------


def test_packets_of_both_directions_are_counted_and_dropped_ones_are_not() -> None:
    connection = established()
    connection.come("R", seq=1)
    [session] = connection.harness.sessions()
    assert (session["packets_out"], session["packets_in"]) == (2, 1)
    verdicts = connection.harness.forwarder.verdicts()
    assert (verdicts["forward"], verdicts["drop"]) == (3, 1)


def test_segments_are_passed_on_unchanged_but_for_addresses() -> None:
    """Sequence numbers, window, urgent pointer, options and flags are the end hosts' own."""
    connection = established()
    segment = tcp(
        CLIENT,
        SERVER,
        "PAUEC",
        seq=connection.client,
        ack=connection.server,
        window=77,
        urgent=9,
        tcp_options=bytes.fromhex("0101080a0001020304050607"),
        payload=b"odd",
        tos=0x28,
        identification=0x1234,
    )
    [out] = connection.harness.send("inside", segment)
    before, after = decode(segment), decode(out.packet)
    assert after.body[4:16] == before.body[4:16]
    assert after.body[18:] == before.body[18:]
    assert (after.tos, after.identification) == (0x28, 0x1234)
