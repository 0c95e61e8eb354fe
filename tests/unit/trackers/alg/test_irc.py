"""The follower of an IRC connection: offers of DCC are edited, both ways, and only where the protocol has begun."""

from __future__ import annotations

import pytest

from fastmasq.trackers.alg.follower import External
from fastmasq.trackers.alg.irc import IrcFollower

HOST, MASQ = 0x0A000002, 0xC8C8C8C8
BEGINS = b"NICK me\r\nUSER me 0 * :me\r\n"
WELCOME = b":irc.net 001 me :Welcome\r\n"
SEND = b"PRIVMSG you :\x01DCC SEND file.txt 167772162 1035 1000\x01\r\n"
SEND_OUTSIDE = b"PRIVMSG you :\x01DCC SEND file.txt 3368601800 1034 1000\x01\r\n"


class Connection:
    def __init__(self, *, begun: bool = True) -> None:
        self.asked: list[int] = []
        self.follower = IrcFollower(HOST, self._open, serves=False)
        self.follower.room = 8
        if begun:
            self.says("outbound", BEGINS)
            self.says("inbound", WELCOME)

    def _open(self, port: int) -> External:
        self.asked.append(port)
        return External(MASQ, port ^ 1)

    def says(self, direction: str, *pieces: bytes) -> bytes:
        leaves = b""
        for octets in pieces:
            at = 0
            for change in self.follower.read(direction, octets):
                leaves += octets[at : change.start] + change.text
                at = change.start + change.length
            leaves += octets[at:]
        return leaves


@pytest.mark.parametrize(
    ("said", "leaves"),
    [
        (SEND, SEND_OUTSIDE),
        (b"privmsg a :\x01dcc chat chat 167772162 1035\x01\n", b"privmsg a :\x01dcc chat chat 3368601800 1034\x01\n"),
        (
            b'PRIVMSG you :\x01DCC SEND "two words" 167772162 1035 9\x01\r\n',
            b'PRIVMSG you :\x01DCC SEND "two words" 3368601800 1034 9\x01\r\n',
        ),
        (b"@+x PRIVMSG a :\x01DCC MOVE f 167772162 1035\x01\n", b"@+x PRIVMSG a :\x01DCC MOVE f 3368601800 1034\x01\n"),
    ],
)  # fmt: skip
def test_an_offer_is_edited_in_any_pieces(said: bytes, leaves: bytes) -> None:
    for cut in range(1, len(said)):
        connection = Connection()
        assert connection.says("outbound", said[:cut], said[cut:]) == leaves
        assert connection.asked == [1035] and not connection.follower.refused


def test_resume_comes_in_for_the_own_port_and_accept_leaves_for_the_external_one() -> None:
    connection = Connection()
    connection.says("outbound", SEND)
    heard = b":you!u@h PRIVMSG me :\x01DCC RESUME file.txt %d 500\x01\r\n"
    own = b"PRIVMSG you :\x01DCC ACCEPT file.txt %d 500\x01\r\n"
    for cut in range(1, 40):
        assert connection.says("inbound", (heard % 1034)[:cut], (heard % 1034)[cut:]) == heard % 1035
        assert connection.says("outbound", (own % 1035)[:cut], (own % 1035)[cut:]) == own % 1034
    assert connection.says("inbound", heard % 2000) == heard % 2000
    assert connection.asked == [1035]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("not_the_protocol", [("outbound", b"POST / HTTP/1.1\r\n" + BEGINS + SEND)]),
        ("not_the_protocol", [("outbound", SEND)]),
        ("not_logged_in", [("outbound", BEGINS + SEND)]),
        ("other_address", [("outbound", BEGINS), ("inbound", WELCOME), ("outbound", SEND.replace(b"162 ", b"163 "))]),
        ("low_port", [("outbound", BEGINS), ("inbound", WELCOME), ("outbound", SEND.replace(b"1035", b"1023"))]),
        ("line_too_long", [("outbound", BEGINS), ("inbound", WELCOME), ("outbound", b"x" * 5000 + b"\r\n" + SEND)]),
    ],
)
def test_what_is_suspicious_passes_as_it_came_and_opens_nothing(name: str, said: list[tuple[str, bytes]]) -> None:
    connection = Connection(begun=False)
    for direction, octets in said:
        assert connection.says(direction, octets) == octets
    assert connection.says("outbound", SEND) == SEND
    assert connection.follower.refused == [name] and not connection.asked


@pytest.mark.parametrize(
    "said",
    [
        b"PRIVMSG you :\x01DCC SEND file 167772162 0 1000 17\x01\r\n",  # the other one is to open a port
        b"PRIVMSG you :look at DCC SEND file 167772162 1035\r\n",
        b"NOTICE you :\x01DCC REJECT SEND file\x01\r\n",
        b"PRIVMSG you :\x01DCC SEND file fe80::1 1035\x01\r\n",
    ],
)
def test_what_is_no_offer_passes(said: bytes) -> None:
    connection = Connection()
    assert connection.says("outbound", said) == said
    assert not connection.asked and not connection.follower.refused
    assert connection.says("outbound", SEND) == SEND_OUTSIDE
