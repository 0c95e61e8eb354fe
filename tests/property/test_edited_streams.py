"""Through whatever cuts, losses and repetitions, what the other end reads is the edited stream, octet for octet.

A control connection of FTP between two simple hosts, whose commands and replies announce ports. The sender sends any
part again, cut anew, in pieces or as a large send; segments are lost on either side of us, or arrive early;
acknowledgments are lost. What is acknowledged to the sender has arrived, and in the end everything has.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastmasq.policy.forwards import Forward, Target
from tests.support.edited_stream import Talk, other
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OUTSIDE
from tests.support.vpn_gateway import REMOTE, Gateway

FTP = 21
GREETING = b"220 hello\r\n"
EXTERNAL = GATEWAY_OUT.replace(".", ",").encode()
INTERNAL = HOST.replace(".", ",").encode()
FORWARD = Forward(protocol="tcp", listen=GATEWAY_OUT, first=FTP, last=FTP, targets=(Target(HOST, FTP),))

ports = st.sampled_from([1024, 1035, 2560, 39999, 65535])
numbers = st.integers(0, 0xFFFFFFFF) | st.sampled_from([0xFFFFFFF0, 0xFFFFFF80])


@st.composite
def commands(draw) -> list[tuple[bytes, bytes]]:
    """Lines of a client, each with what it is to leave as."""
    lines = [(b"USER me\r\n", b"USER me\r\n")]
    for _ in range(draw(st.integers(1, 5))):
        port = draw(ports)
        pair = b"%d,%d" % divmod(port, 256)
        lines.append(
            draw(
                st.sampled_from(
                    [
                        (b"PORT %s,%s\r\n" % (INTERNAL, pair), b"PORT %s,%s\r\n" % (EXTERNAL, pair)),
                        (
                            b"eprt |1|%s|%d|\r\n" % (HOST.encode(), port),
                            b"eprt |1|%s|%d|\r\n" % (GATEWAY_OUT.encode(), port),
                        ),
                        (b"RETR %s\r\n" % (b"f" * draw(st.integers(0, 80))),) * 2,
                        (b"EPRT |2|::1|5|\r\n",) * 2,
                        (b"PORT 1,2,3\r\n",) * 2,
                    ]
                )
            )
        )
    return lines


@st.composite
def replies(draw) -> list[tuple[bytes, bytes]]:
    """Lines of a server, in answer to as many commands that ask for them."""
    lines = []
    for _ in range(draw(st.integers(1, 5))):
        port = draw(ports)
        pair = b"%d,%d" % divmod(port, 256)
        said, leaves = b"227 Entering (%s,%s).\r\n" % (INTERNAL, pair), b"227 Entering (%s,%s).\r\n" % (EXTERNAL, pair)
        lines.append((said, leaves))
        lines += [(b"150-%s\r\n" % (b"x" * draw(st.integers(0, 60))),) * 2] * draw(st.integers(0, 1))
    return lines


def exchange(data: st.DataObject, talk: Talk, end: str, octets: bytes, expected: bytes) -> None:
    """Have an end say octets through all that can happen to them; the other end must read what is expected."""
    begun = len(talk.said[end])
    read = len(talk.received[other(end)].octets)
    talk.said[end] += octets
    sent = stop = begun
    for _ in range(data.draw(st.integers(0, 25), label="steps")):
        acknowledged = talk.acknowledged[end]
        match data.draw(st.sampled_from(["on", "on", "again", "early", "acknowledge"]), label="step"):
            case "on":
                start, stop = sent, min(sent + data.draw(st.integers(1, 40)), len(talk.said[end]))
            case "again":
                start = data.draw(st.integers(max(begun, acknowledged - 20), sent))
                stop = data.draw(st.integers(start, sent))
            case "early":
                start = data.draw(st.integers(sent, len(talk.said[end])))
                stop = min(start + 10, len(talk.said[end]))
            case "acknowledge":
                talk.acknowledge(other(end), lost=data.draw(st.booleans()))
                continue
        if start == stop:
            continue
        fate = data.draw(st.sampled_from(["arrives", "arrives", "lost behind us", "lost before us"]))
        if fate == "lost before us":
            continue
        talk.send(end, start, stop, size=data.draw(st.sampled_from([0, 0, 7])), lost=fate == "lost behind us")
        if start <= sent:
            sent = max(sent, stop)
        everything = bytes(talk.received[other(end)].octets[read:])
        assert expected.startswith(everything)
    while talk.acknowledged[end] < len(talk.said[end]):
        at = talk.acknowledged[end]
        talk.send(end, at, min(at + data.draw(st.sampled_from([3, 50, 2000])), len(talk.said[end])))
        talk.acknowledge(other(end))
        assert talk.acknowledged[end] > at
    assert bytes(talk.received[other(end)].octets[read:]) == expected


@given(st.data())
def test_rfc959_commands_of_a_client_inside_are_edited(data: st.DataObject) -> None:
    first = data.draw(numbers, label="client"), data.draw(numbers, label="server")
    talk = Talk(Gateway(), (INSIDE, (HOST, 4000)), (OUTSIDE, (REMOTE, FTP)), first=first)
    talk.say("server", GREETING)
    lines = data.draw(commands())
    exchange(data, talk, "client", b"".join(said for said, _ in lines), b"".join(leaves for _, leaves in lines))
    assert talk.say("server", b"200 well\r\n") == GREETING + b"200 well\r\n"
    assert talk.say("client", b"QUIT\r\n").endswith(b"QUIT\r\n")


@given(st.data())
def test_rfc959_replies_of_a_server_inside_are_edited(data: st.DataObject) -> None:
    first = data.draw(numbers, label="client"), data.draw(numbers, label="server")
    gateway = Gateway(forwards=[FORWARD])
    talk = Talk(gateway, (OUTSIDE, (REMOTE, 4000)), (INSIDE, (HOST, FTP)), (GATEWAY_OUT, FTP), first=first)
    talk.say("server", GREETING)
    talk.say("client", b"USER me\r\n")
    for said, leaves in data.draw(replies()):
        if said.startswith(b"227"):
            talk.say("client", b"PASV\r\n")
        exchange(data, talk, "server", said, leaves)
    assert talk.say("client", b"QUIT\r\n").endswith(b"QUIT\r\n")
    assert talk.say("server", b"221 bye\r\n").endswith(b"221 bye\r\n")
