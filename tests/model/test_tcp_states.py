"""The TCP states of the specification, path by path; directions are o (from inside) and i (from outside)."""

from __future__ import annotations

import pytest

from tests.support.model import tcp
from tests.support.model.tcp import IN, OUT, Connection
from tests.support.model.wire import ACK, FIN, RST, SYN, Refused, Segment

BITS = {"S": SYN, "A": ACK, "F": FIN, "R": RST}
DIRECTIONS = {"o": OUT, "i": IN}


def segment(letters: str, seq: int, ack: int, length: int) -> Segment:
    return Segment(sum(BITS[letter] for letter in letters), seq, ack, 65535, length, scale=7)


class Conversation:
    """Two ends that keep count of their numbers; `say` sends one segment with the right ones."""

    def __init__(self) -> None:
        self.next = {OUT: 2**32 - 10, IN: 2**31 - 10}  # both pass an edge soon
        self.connection: Connection | None = None
        self.refreshed = False

    def say(self, word: str) -> None:
        direction, letters = DIRECTIONS[word[0]], word[1:].upper()
        length = 0 if "S" in letters else 4
        said = segment(letters, self.next[direction], self.next[tcp.OTHER[direction]], length)
        if "R" not in letters:
            self.next[direction] = tcp.last_number(said)
        if self.connection is None:
            self.connection = tcp.opened(said)
            return
        step = tcp.stepped(self.connection, direction, said)
        self.connection, self.refreshed = step.connection, step.refreshed


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("os", tcp.SYN_SENT),
        ("os os", tcp.SYN_SENT),
        ("os ia", tcp.SYN_SENT),
        ("os isa", tcp.ESTABLISHED),
        ("os is", tcp.SYN_SENT),
        ("os is osa isa", tcp.ESTABLISHED),
        ("osa", tcp.SYN_RECEIVED),
        ("osa ia", tcp.ESTABLISHED),
        ("oa", tcp.RESUMED),
        ("oa oa oa", tcp.RESUMED),
        ("oa ia", tcp.ESTABLISHED),
        ("ofa", tcp.RESUMED),
        ("os isa oa ofa", tcp.FIN_OUT),
        ("os isa oa ofa ia ia", tcp.FIN_OUT),
        ("os isa oa ifa", tcp.FIN_IN),
        ("os isa oa ifa oa", tcp.FIN_IN),
        ("os isa oa ofa ifa", tcp.CLOSING),
        ("os isa oa ifa ofa ia", tcp.CLOSING),
        ("os isa oa ofa ifa os", tcp.SYN_SENT),
        ("os isa oa ofa ifa is", tcp.CLOSING),
        ("os isa oa ofa ifa is osa", tcp.SYN_RECEIVED),
        ("os isa oa or", tcp.TRANSITORY),
        ("os isa oa ir", tcp.TRANSITORY),
        ("os isa oa ir ia", tcp.ESTABLISHED),
        ("os isa oa ir os", tcp.SYN_SENT),
        ("os isa oa ir is", tcp.TRANSITORY),
        ("os isa oa ofa ir", tcp.TRANSITORY),
        ("os isa oa ofa ifa ir", tcp.CLOSING),
        ("os or", tcp.TRANSITORY),
        ("os ira", tcp.TRANSITORY),
        ("os isa oa os", tcp.ESTABLISHED),
        ("os isa oa is", tcp.ESTABLISHED),
    ],
)
def test_paths(words: str, state: str) -> None:
    conversation = Conversation()
    for word in words.split():
        conversation.say(word)
    assert conversation.connection.state == state


@pytest.mark.parametrize(
    ("words", "refreshed"),
    [
        ("os os", True),
        ("os ia", False),
        ("os isa", True),
        ("os isa oa", True),
        ("os isa oa ia", True),
        ("os isa oa os", False),
        ("os isa oa ofa ia", True),
        ("os isa oa ofa ifa", True),
        ("os isa oa ofa ifa oa", False),
        ("os isa oa ofa ifa ifa", False),
        ("os isa oa ir", True),
        ("os isa oa ir ir", False),
        ("oa oa", True),
    ],
)
def test_what_restarts_the_timer(words: str, refreshed: bool) -> None:
    conversation = Conversation()
    for word in words.split():
        conversation.say(word)
    assert conversation.refreshed == refreshed


def test_a_reset_opens_nothing() -> None:
    with pytest.raises(Refused, match="no_session"):
        tcp.opened(segment("R", 1, 0, length=0))


@pytest.mark.parametrize(("a", "b", "by"), [(1, 0, 1), (0, 2**32 - 1, 1), (0, 0, 0), (0, 1, -1), (2**31, 0, -(2**31))])
def test_numbers_wrap(a: int, b: int, by: int) -> None:
    assert tcp.ahead(a, b) == by
