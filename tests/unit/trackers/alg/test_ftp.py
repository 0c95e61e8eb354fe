"""The follower of an FTP control connection: what it edits, what it refuses, and what it lets pass as it came."""

from __future__ import annotations

import pytest

from fastmasq.trackers.alg.follower import External
from fastmasq.trackers.alg.ftp import FtpFollower
from fastmasq.trackers.alg.lines import MOST_HELD, Change

HOST, MASQ = 0x0A000002, 0xC8C8C8C8
GREETING, USER = b"220 hello\r\n", b"USER me\r\n"


class Connection:
    """A follower that has been greeted, with what was opened; client inside unless it serves."""

    def __init__(self, *, serves: bool = False, begun: bool = True, answer: str = "") -> None:
        self.asked: list[int] = []
        self.answer = answer
        self.follower = FtpFollower(HOST, self._open, serves=serves)
        self.follower.room = 8
        self.directions = (
            {"client": "inbound", "server": "outbound"} if serves else {"client": "outbound", "server": "inbound"}
        )
        if begun:
            self.says("server", GREETING)
            self.says("client", USER)

    def _open(self, port: int) -> External | str:
        self.asked.append(port)
        return self.answer or External(MASQ, port ^ 1)

    def says(self, end: str, *pieces: bytes) -> bytes:
        """Have an end say octets, in these pieces; return what leaves."""
        leaves = b""
        for octets in pieces:
            at = 0
            for change in self.follower.read(self.directions[end], octets):
                leaves += octets[at : change.start] + change.text
                at = change.start + change.length
                assert change.text or change.last == leaves[-1:] or not leaves
            leaves += octets[at:]
        return leaves


@pytest.mark.parametrize(
    ("said", "leaves"),
    [
        (b"PORT 10,0,0,2,4,11\r\n", b"PORT 200,200,200,200,4,10\r\n"),
        (b"port   010,000,0,02,4,11 \n", b"port   200,200,200,200,4,10 \n"),
        (b"EPRT |1|10.0.0.2|1035|\r\n", b"EPRT |1|200.200.200.200|1034|\r\n"),
        (b"Eprt !1!010.0.0.002!01035!\r\n", b"Eprt !1!200.200.200.200!1034!\r\n"),
    ],
)
def test_rfc959_rfc2428_an_announcement_is_edited_in_any_spelling_and_any_pieces(said: bytes, leaves: bytes) -> None:
    assert Connection().says("client", said) == leaves
    for cut in range(1, len(said)):
        connection = Connection()
        assert connection.says("client", said[:cut], said[cut:]) == leaves
        assert connection.asked == [1035] and not connection.follower.refused
    assert Connection().says("client", *(said[at : at + 1] for at in range(len(said)))) == leaves


@pytest.mark.parametrize(
    ("asks", "said", "leaves"),
    [
        (b"PASV", b"227 Passive Mode (10,0,0,2,4,11).\r\n", b"227 Passive Mode (200,200,200,200,4,10).\r\n"),
        (b"PASV", b"227 =10,0,0,2,4,11\r\n", b"227 =200,200,200,200,4,10\r\n"),
        (b"epsv", b"229 Extended (|||1035|)\r\n", b"229 Extended (|||1034|)\r\n"),
    ],
)  # fmt: skip
def test_rfc959_rfc2428_a_passive_server_inside_is_edited(asks: bytes, said: bytes, leaves: bytes) -> None:
    for cut in range(1, len(said)):
        connection = Connection(serves=True)
        assert connection.says("client", asks + b"\r\n") == asks + b"\r\n"
        assert connection.says("server", said[:cut], said[cut:]) == leaves
        assert connection.says("server", said) == said, "nobody has asked again"
        assert connection.follower.refused == ["unasked"]


def test_several_commands_in_one_segment_are_edited() -> None:
    connection = Connection()
    said = b"TYPE I\r\nPORT 10,0,0,2,4,11\r\nSTOR x\r\nPORT 10,0,0,2,8,1\r\nRE"
    assert connection.says("client", said) == (
        b"TYPE I\r\nPORT 200,200,200,200,4,10\r\nSTOR x\r\nPORT 200,200,200,200,8,0\r\nRE"
    )


PORT = b"PORT 10,0,0,2,4,11\r\n"
REFUSED = [
    ("no_greeting", [("server", b"SSH-2.0-x\r\n"), ("client", USER + PORT)]),
    ("no_greeting", [("server", b"x" * 2000), ("client", PORT)]),
    ("client_first", [("client", USER + PORT), ("server", GREETING), ("client", PORT)]),
    ("not_the_protocol", [("server", GREETING), ("client", b"GET / HTTP/1.1\r\n" + USER + PORT)]),
    ("not_the_protocol", [("server", GREETING), ("client", b"POST / HTTP/1.0\r\n\r\n" + USER + PORT)]),
    ("not_the_protocol", [("server", GREETING), ("client", b"XYZ\r\n" + USER + PORT)]),
    ("not_the_protocol", [("server", GREETING), ("client", USER + b"Content-Length: 5\r\n" + PORT)]),
    ("not_the_protocol", [("server", GREETING), ("client", USER + b"\r\n" + PORT)]),
    ("line_too_long", [("server", GREETING), ("client", b"USER " + b"x" * 600 + b"\r\n" + PORT)]),
    ("not_logged_in", [("server", GREETING), ("client", PORT + USER + PORT)]),
    ("other_address", [("server", GREETING), ("client", USER + b"PORT 10,0,0,3,4,11\r\n" + PORT)]),
    ("other_address", [("server", GREETING), ("client", USER + b"EPRT |1|10.0.0.3|1035|\r\n" + PORT)]),
    ("low_port", [("server", GREETING), ("client", USER + b"PORT 10,0,0,2,3,255\r\n" + PORT)]),
]


@pytest.mark.parametrize(("name", "said"), REFUSED)
def test_rfc2577_what_is_suspicious_passes_as_it_came_and_opens_nothing(
    name: str, said: list[tuple[str, bytes]]
) -> None:
    connection = Connection(begun=False)
    for end, octets in said:
        assert connection.says(end, octets) == octets
    assert connection.follower.refused == [name] and connection.follower.is_done and not connection.asked


@pytest.mark.parametrize(
    "argument", [b"10,0,0,2,4", b"10,0,0,2,4,256", b"10,0,0,2,4,11,5", b"x", b"10,0,0,2,4,11 x", b"1" * 60]
)
def test_what_cannot_be_read_passes_and_the_next_is_edited(argument: bytes) -> None:
    said = b"PORT " + argument + b"\r\n"
    for pieces in ([said], [said[:8], said[8:]], [said[at : at + 1] for at in range(len(said))]):
        connection = Connection()
        assert connection.says("client", *pieces) == said
        assert connection.says("client", PORT) != PORT
        assert connection.asked == [1035] and set(connection.follower.refused) <= {"bad_argument"}


def test_commands_of_others_are_theirs() -> None:
    outside = Connection(serves=True)
    assert outside.says("client", b"PORT 199,0,0,1,4,11\r\n") == b"PORT 199,0,0,1,4,11\r\n"
    inside = Connection()
    assert inside.says("client", b"PASV\r\nEPRT |2|::1|1035|\r\n") == b"PASV\r\nEPRT |2|::1|1035|\r\n"
    assert inside.says("server", b"227 Ok (199,0,0,1,4,11)\r\n") == b"227 Ok (199,0,0,1,4,11)\r\n"
    assert not outside.asked and not inside.asked and not outside.follower.refused and not inside.follower.refused


def test_rfc4217_tls_ends_the_following_without_a_word() -> None:
    connection = Connection()
    connection.says("client", b"AUTH TLS\r\n")
    assert not connection.follower.is_done
    connection.says("server", b"234 go\r\n")
    assert connection.follower.is_done and not connection.follower.refused
    assert connection.says("client", PORT) == PORT


def test_what_is_held_leaves_when_the_following_ends_meanwhile() -> None:
    connection = Connection()
    connection.says("client", b"AUTH TLS\r\n")
    assert connection.says("client", b"PORT 10,0") == b"PORT "
    connection.says("server", b"234 go\r\n")
    assert not connection.follower.is_done
    assert connection.says("client", b",0,2,4,11\r\n") == b"10,0,0,2,4,11\r\n"
    assert connection.follower.is_done


@pytest.mark.parametrize("why", ["too_many_openings", "no_room"])
def test_an_opening_that_cannot_be_leaves_the_command_as_it_is(why: str) -> None:
    connection = Connection(answer=why)
    assert connection.says("client", PORT[:12], PORT[12:]) == PORT
    assert connection.follower.refused == [why] and not connection.follower.is_done


def test_rfc959_4_1_3_a_command_may_come_behind_telnet_signals() -> None:
    connection = Connection()
    assert connection.says("client", b"\xff\xf4\xff\xf2ABOR\r\n") == b"\xff\xf4\xff\xf2ABOR\r\n"
    assert connection.says("client", PORT) != PORT and not connection.follower.refused


def test_no_edit_is_longer_than_the_table_has_room_for() -> None:
    for argument in (b"1" * MOST_HELD, b"10,0,0,2,4,11" + b" " * (MOST_HELD - 13), b"|1|10.0.0.2|1035|" + b" " * 15):
        said = b"EPRT " + argument if b"|" in argument else b"PORT " + argument
        connection = Connection()
        changes: list[Change] = connection.follower.read("outbound", said)
        changes += connection.follower.read("outbound", b"\r\n")
        assert max(len(change.text) for change in changes) <= 48
