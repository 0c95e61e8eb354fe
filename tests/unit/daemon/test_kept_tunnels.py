"""Calls and SAs outlive a kill wherever it strikes, and what is left of them is adopted whatever has become of it."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.config.schema import Vpn as VpnSettings
from fastmasq.daemon import kept_tunnels
from fastmasq.daemon.vpn import Vpn
from fastmasq.kernel.identity import network_namespace
from fastmasq.kernel.run_folder import RunFolder, file_of
from fastmasq.trackers.vpn import preload
from fastmasq.trackers.vpn.preload import Announcement
from fastmasq.units import NS_PER_SECOND
from fastmasq.wire.pptp import Type, message
from tests.support.harness import address
from tests.support.packets import tcp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE
from tests.support.vpn_gateway import (
    OTHER_REMOTE,
    REMOTE,
    RESPONDER,
    Control,
    Gateway,
    ends,
    esp,
    exchange,
    gre,
    id_of,
    isakmp,
    started,
)

NAME = file_of(network_namespace().inode, "tunnels")
QUICK_MODE = 32


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path) as made:
        yield made


def killed(gateway: Gateway, folder: RunFolder, *controls: Control, **options: Any) -> Gateway:
    """Return the gateway that goes on after this one was killed; control connections go on through it."""
    again = Gateway(folder=folder, after=gateway, **options)
    gateway.vpn.kept.close()
    for control in controls:
        control.gateway = again
    return again


def calls(gateway: Gateway) -> list[tuple]:
    rows = gateway.vpn.handlers()["vpn"]({})["calls"]
    names = ("inside", "remote", "call_id", "external_call_id", "remote_call_id", "state")
    return sorted(tuple(row[name] for name in names) for row in rows)


def sas(gateway: Gateway) -> list[tuple]:
    return sorted(
        (row.inside, row.remote, row.ospi, row.ispi, row.state) for row in gateway.vpn.ipsec.esp.rows.values()
    )


def content(folder: RunFolder) -> list[dict]:
    return [msgspec.json.decode(line) for line in (folder.path / NAME).read_bytes().splitlines()]


# -- calls -------------------------------------------------------------------------------------------------------------


def test_two_calls_with_one_call_id_go_on(folder: RunFolder) -> None:
    gateway = Gateway(folder=folder)
    first, second = Control(gateway, HOST), Control(gateway, OTHER_HOST)
    assert (first.call(0x4000, 0x11), second.call(0x4000, 0x12)) == (0x4000, 61000)
    was = calls(gateway)
    for _ in range(2):
        gateway = killed(gateway, folder, first, second)
        assert gateway.adopted == ({"call": 2, "control": 2}, {})
        assert calls(gateway) == was
        for inside, peer, external_id in ((HOST, 0x11, 0x4000), (OTHER_HOST, 0x12, 61000)):
            out = gateway.passes(INSIDE, gre(inside, REMOTE, peer))
            assert (ends(out), id_of(out)) == ((GATEWAY_OUT, REMOTE), peer)
            back = gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, external_id))
            assert (ends(back), id_of(back)) == ((REMOTE, inside), 0x4000)
        assert gateway.asked == 0, "the path moves the data of calls alone"
    assert second.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x4000) == (61000,)
    assert second.say(INSIDE, Type.OUTGOING_CALL_REQUEST, 0x4001) == (0x4001,)
    assert [row[-1] for row in calls(gateway)] == ["established", "closing", "asked"]


def test_what_another_version_says_besides_is_left(folder: RunFolder) -> None:
    gateway = full(folder)
    file = folder.path / NAME
    file.write_bytes(b"".join(msgspec.json.encode({**row, "newer": [1]}) + b"\n" for row in content(folder)))
    again = killed(gateway, folder)
    assert sum(again.adopted[0].values()) > 4 and again.adopted[1] == {}
    assert (calls(again), sas(again)) == (calls(gateway), sas(gateway))


class Conversation:
    """What both ends of a second connection say, during which the gateway is killed before one of the segments.

    With `again` it is killed when that one has been written down and has not left, so that its sender repeats it.
    """

    def __init__(self, folder: RunFolder, kill_at: int = -1, *, again: bool = False) -> None:
        self._folder, self._kill_at, self._again = folder, kill_at, again
        self.gateway = Gateway(folder=folder)
        Control(self.gateway, HOST).call(0x4000, 0x11)
        self._control = Control(self.gateway, OTHER_HOST, port=4001)
        self.arrived: list[bytes] = []
        request = message(Type.OUTGOING_CALL_REQUEST, struct.pack("!H", 0x4000))
        self._say(INSIDE, request, 5, 13, 28)
        external_id = b"".join(self.arrived)[12:14]
        reply = message(Type.OUTGOING_CALL_REPLY, b"\x00\x21" + external_id + b"\x01")
        self._say(OUTSIDE, reply, 13, 15, 16)
        self._say(INSIDE, message(Type.SET_LINK_INFO, b"\x00\x21") + message(Type.CALL_CLEAR_REQUEST, b"\x40\x00"))
        self._say(OUTSIDE, message(Type.CALL_DISCONNECT_NOTIFY, b"\x00\x21"))

    def _say(self, link: str, octets: bytes, *cuts: int) -> None:
        for first, last in itertools.pairwise((0, *cuts, len(octets))):
            piece, kills = octets[first:last], len(self.arrived) == self._kill_at
            if kills and not self._again:
                self._kill()
            self.arrived.append(self._control.segment(link, piece)[40:])
            if kills and self._again:
                self._kill()
                assert self._control.segment(link, piece, back=len(piece))[40:] == self.arrived[-1]

    def _kill(self) -> None:
        self.gateway = killed(self.gateway, self._folder, self._control)


def test_a_kill_anywhere_in_a_conversation_changes_nothing_of_it(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "whole") as folder:
        whole = Conversation(folder)
    assert b"".join(whole.arrived)[12:14] != b"\x40\x00", "the second client's id is translated"
    assert [row[-1] for row in calls(whole.gateway)] == ["established", "closing"]
    for kill_at, again in itertools.product(range(len(whole.arrived)), (False, True)):
        with RunFolder(tmp_path / f"{kill_at}-{again}") as folder:
            other = Conversation(folder, kill_at, again=again)
            assert other.arrived == whole.arrived, (kill_at, again)
            assert calls(other.gateway) == calls(whole.gateway), (kill_at, again)


def test_a_connection_of_which_more_has_passed_than_was_read_goes_on_unread(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(folder=folder)
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    gateway.vpn.kept.close()  # from now on nothing is written
    control.say(INSIDE, Type.SET_LINK_INFO, 0x11)
    again = killed(gateway, folder, control)
    assert again.adopted.rows == {"call": 1, "control": 1}
    assert "more of it has passed than was read; it is passed on untranslated from here" in caplog.text
    assert control.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x4000) == (0x4000,)
    assert again.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x4000)), "its call lives"


def test_a_call_whose_connection_has_no_session_lives_by_its_traffic(folder: RunFolder) -> None:
    gateway = Gateway(folder=folder)
    Control(gateway, HOST).call(0x4000, 0x11)
    gateway.harness.table.sessions["state"] = 0
    again = killed(gateway, folder)
    assert again.adopted == ({"call": 1}, {"no session": 1})
    again.passes(INSIDE, gre(HOST, REMOTE, 0x11))
    again.second(899)
    assert len(calls(again)) == 1
    again.second(2)
    assert calls(again) == []


def test_a_connection_that_ended_just_before_the_kill_ends_its_calls(folder: RunFolder) -> None:
    gateway = Gateway(folder=folder)
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    gateway.second()
    control.segment(INSIDE, b"", "FA")
    again = killed(gateway, folder, control)
    control.segment(OUTSIDE, b"", "FA")
    last = killed(again, folder, control)
    assert last.adopted.rows == {"call": 1, "control": 1}
    last.second()
    assert [row[-1] for row in calls(last)] == ["closing"]
    assert {"type": "gone", "kind": "control", "number": 1} in content(folder)


def test_gre_without_a_call_goes_on_and_times_are_written_now_and_then(folder: RunFolder) -> None:
    gateway = Gateway(folder=folder)
    gateway.passes(INSIDE, gre(HOST, REMOTE, 0x77))
    written = len(content(folder))
    for _ in range(60):
        gateway.passes(INSIDE, gre(HOST, REMOTE, 0x77))
        gateway.second()
    assert written + 3 <= len(content(folder)) <= written + 4, "once in 15 s"
    gateway.passes(OUTSIDE, gre(REMOTE, GATEWAY_OUT, 0x88))
    gateway.second()
    assert content(folder)[-1]["seen_in"], "the first of a direction is at once"
    gateway.second(800)
    gateway = killed(gateway, folder)
    assert gateway.adopted == ({"call": 1}, {})
    gateway.second(120)
    assert calls(gateway) == []
    gateway.harness.now_ns -= 1
    assert killed(gateway, folder).adopted == ({}, {})


def test_what_is_idle_for_too_long_is_not_adopted(folder: RunFolder) -> None:
    gateway = Gateway(folder=folder)
    gateway.passes(INSIDE, gre(HOST, REMOTE, 0x77))
    exchange(gateway, HOST, b"cookie")
    started(gateway, HOST, 0x1000, 0x2000)
    gateway.harness.now_ns += 1801 * NS_PER_SECOND
    again = killed(gateway, folder)
    assert again.adopted == ({"exchange": 1}, {"expired": 2})
    again.second()
    assert again.vpn.ipsec.exchanges.exchanges == {}


# -- SAs ---------------------------------------------------------------------------------------------------------------


def test_sas_go_on_and_so_does_what_tells_whose_the_next_is(folder: RunFolder) -> None:
    """Two hosts with one remote; after the kill the remote speaks first on a new SA, as after rekeying."""
    gateway = Gateway(folder=folder)
    for inside, ospi, ispi, cookie in ((HOST, 0x1000, 0x2000, b"first"), (OTHER_HOST, 0x1001, 0x2001, b"second")):
        exchange(gateway, inside, cookie)
        started(gateway, inside, ospi, ispi)
    cookie = b"second".ljust(8, b".")
    gateway.passes(INSIDE, isakmp(OTHER_HOST, REMOTE, cookie, RESPONDER, QUICK_MODE))
    gateway.passes(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, cookie, RESPONDER, QUICK_MODE))
    was, known = sas(gateway), gateway.vpn.ipsec.exchanges.evidence(address(REMOTE))
    again = killed(gateway, folder)
    assert again.adopted == ({"sa": 2, "exchange": 2}, {})
    assert sas(again) == was
    assert msgspec.json.encode(again.vpn.ipsec.exchanges.evidence(address(REMOTE))) == msgspec.json.encode(known)
    assert known.times and known.answers and known.negotiations
    for inside, ospi, ispi in ((HOST, 0x1000, 0x2000), (OTHER_HOST, 0x1001, 0x2001)):
        assert ends(again.passes(INSIDE, esp(inside, REMOTE, ospi))) == (GATEWAY_OUT, REMOTE)
        assert ends(again.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, ispi)))[1] == inside
    assert again.asked == 0, "the path moves what is established alone"
    assert ends(again.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x3000)))[1] == OTHER_HOST, "who has negotiated"
    for inside, name in ((HOST, b"first"), (OTHER_HOST, b"second")):
        told = again.passes(OUTSIDE, isakmp(REMOTE, GATEWAY_OUT, name.ljust(8, b"."), RESPONDER, 5))
        assert ends(told)[1] == inside, "cookies tell"


def test_a_start_that_waits_for_its_answer_gets_it(folder: RunFolder) -> None:
    gateway = Gateway(folder=folder)
    exchange(gateway, HOST, b"first")
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    again = killed(gateway, folder)
    assert ends(again.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x2000)))[1] == HOST
    assert [row[-1] for row in sas(again)] == ["established"]


def test_preloaded_sas_go_on(folder: RunFolder) -> None:
    gateway = Gateway(folder=folder)
    wanted = Announcement(
        inside=address(HOST), remote=address(REMOTE), masq=address(GATEWAY_OUT), inbound_spi=0x2000, lifetime=-1
    )
    preload.add(gateway.vpn.ipsec.esp, wanted, gateway.harness.now_ns, None)
    gateway.vpn.follow_rows()
    gateway.harness.now_ns += 10**15
    again = killed(gateway, folder)
    [row] = preload.listed(again.vpn.ipsec.esp, None)
    assert (row.ispi, row.lifetime) == (0x2000, -1)
    assert ends(again.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x2000)))[1] == HOST


def test_what_is_not_followed_any_more_is_not_adopted(folder: RunFolder) -> None:
    gateway = full(folder)
    again = killed(gateway, folder, vpn=VpnSettings(pptp=False))
    assert again.adopted == ({"exchange": 2, "sa": 2}, {"not followed": 5})


# -- the file ----------------------------------------------------------------------------------------------------------


def full(folder: RunFolder) -> Gateway:
    """Return a gateway with rows of each kind."""
    gateway = Gateway(folder=folder)
    Control(gateway, HOST).call(0x4000, 0x11)
    Control(gateway, OTHER_HOST).call(0x4000, 0x12)
    gateway.passes(INSIDE, gre(HOST, OTHER_REMOTE, 0x77))
    exchange(gateway, HOST, b"first")
    exchange(gateway, OTHER_HOST, b"second")
    started(gateway, HOST, 0x1000, 0x2000)
    gateway.passes(INSIDE, esp(OTHER_HOST, REMOTE, 0x1001))
    return gateway


def test_it_is_written_anew_when_most_of_it_no_longer_counts(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_tunnels, "SPARE", 5000)
    gateway = full(folder)
    sizes = []
    for _ in range(60):
        exchange(gateway, HOST, b"first")
        gateway.second()
        sizes.append((folder.path / NAME).stat().st_size)
    assert max(sizes) < 16_000 and min(sizes[-10:]) < 8_000
    assert killed(gateway, folder).adopted == ({"call": 3, "control": 2, "exchange": 2, "sa": 2}, {})


def test_where_it_cannot_be_written_anew_it_goes_on(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_tunnels, "SPARE", 500)
    gateway = full(folder)
    write = os.pwrite

    def refuse(descriptor: int, octets: bytes, at: int) -> int:
        return write(descriptor, octets, at) if at else 0

    with monkeypatch.context() as little_room:
        little_room.setattr(os, "pwrite", refuse)
        for _ in range(30):
            exchange(gateway, HOST, b"first")
            gateway.second()
        assert (folder.path / NAME).stat().st_size > 5000
        assert not (folder.path / f"{NAME}.new").exists()
    assert killed(gateway, folder).adopted == ({"call": 3, "control": 2, "exchange": 2, "sa": 2}, {})


def test_without_room_there_is_one_line_and_it_is_tried_again(
    folder: RunFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = Gateway(folder=folder)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as no_room:
        no_room.setattr(os, "pwrite", refuse)
        exchange(gateway, HOST, b"first")
        gateway.second()
        assert not (folder.path / NAME).exists(), "one that lacks a change would be believed"
        gateway.second()
    lines = [line for line in caplog.messages if "outlive" in line]
    assert lines == [f"{folder.path / NAME}: No space left on device: calls and SAs do not outlive this process"]
    gateway.second()
    assert killed(gateway, folder).adopted == ({"exchange": 1}, {})


@pytest.mark.parametrize(("octets", "words"), [
    (b"{}\n", "it is damaged"),
    (b'{"version":99,"namespace":1,"cookie":1,"boot":""}\n', "another version"),
    (b'{"version":1,"namespace":1,"cookie":1,"boot":""}\n{}\n', "a network namespace that is gone"),
])  # fmt: skip
def test_what_is_nothing_for_us_is_said(octets: bytes, words: str) -> None:
    assert words in kept_tunnels.FormerTunnels(octets).complaint


def test_a_line_that_was_being_written_does_not_count(folder: RunFolder) -> None:
    full(folder)
    file = folder.path / NAME
    octets = file.read_bytes()
    for cut in range(1, 40):
        file.write_bytes(octets[:-cut])
        assert kept_tunnels.read_former(folder).torn == 0


def _row(kind: str, rows: list[dict], **wanted: int) -> dict:
    """Return the last line about a row of a kind, with this number if it is said."""
    return next(row for row in reversed(rows) if row.items() >= {"type": kind, **wanted}.items())


@pytest.mark.parametrize(("kind", "changes", "reason"), [
    ("call", {"number": 99}, "twice"),
    ("call", {"number": 99, "remote": 0}, "torn"),
    ("call", {"number": 99, "external_id": 70000}, "torn"),
    ("call", {"number": 99, "external_id": None}, "torn"),
    ("call", {"number": 99, "since": 1 << 61}, "torn"),
    ("call", {"number": 99, "state": "closed"}, "torn"),
    ("call", {"number": 99, "external_id": 5, "remote": 5}, "torn"),  # than its control connection's
    ("sa", {"number": 99}, "twice"),
    ("sa", {"number": 99, "state": "squelched"}, "torn"),
    ("sa", {"number": 99, "ospi": 0, "ispi": 0}, "torn"),
    ("sa", {"number": 99, "sent": [1 << 61]}, "torn"),
    ("exchange", {"number": 99}, "twice"),
    ("exchange", {"number": 99, "initiator": "AAAA"}, "torn"),
    ("exchange", {"number": 99, "last": 1 << 61}, "torn"),
    ("exchange", {"number": 99, "messages": {"1": 4}}, "torn"),
    ("control", {"number": 99}, "twice"),
    ("control", {"number": 99, "key": [1, 2, 3, 4]}, "no session"),
    ("control", {"number": 99, "since": 1 << 61}, "torn"),
])  # fmt: skip
def test_a_row_is_judged_by_itself_and_beside_others(
    folder: RunFolder, kind: str, changes: dict[str, Any], reason: str
) -> None:
    gateway = full(folder)
    rows = content(folder)
    with (folder.path / NAME).open("ab") as file:
        file.write(msgspec.json.encode({**_row(kind, rows, number=1), **changes}) + b"\n")
    again = killed(gateway, folder)
    assert again.adopted == ({"call": 3, "control": 2, "exchange": 2, "sa": 2}, {reason: 1})


def test_there_are_no_more_rows_than_there_may_be(folder: RunFolder) -> None:
    gateway = full(folder)
    rows = content(folder)
    passing, association = _row("call", rows), _row("sa", rows)
    with (folder.path / NAME).open("ab") as file:
        for number in range(300):
            file.write(msgspec.json.encode({**passing, "number": 100 + number, "remote": 1000 + number}) + b"\n")
        for number in range(1100):
            file.write(msgspec.json.encode({**association, "number": 100 + number, "ospi": 9000 + number}) + b"\n")
    again = killed(gateway, folder)
    assert passing["inside"] == address(HOST) and association["inside"] == address(OTHER_HOST)
    assert again.adopted.rows == {"call": 257, "control": 2, "exchange": 2, "sa": 1025}
    assert set(again.adopted.dropped) == {"no room"}


@pytest.mark.parametrize("stream", [
    {"expected": 1, "head": "AAAA", "skip": 4},
    {"expected": 1, "head": "A" * 16},
    {"expected": 1, "upper": 3},
    {"head": "AAAA"},
    {"edits": [[1, 2]]},
])  # fmt: skip
def test_a_follower_that_cannot_have_been_there_reads_no_more(folder: RunFolder, stream: dict[str, Any]) -> None:
    """What follows would be read at the wrong place, and written to."""
    gateway = Gateway(folder=folder)
    control = Control(gateway, HOST)
    control.call(0x4000, 0x11)
    row = _row("control", content(folder))
    row["streams"]["outbound"] = stream
    with (folder.path / NAME).open("ab") as file:
        file.write(msgspec.json.encode(row) + b"\n")
    again = killed(gateway, folder, control)
    assert again.adopted == ({"call": 1, "control": 1}, {})
    assert control.say(INSIDE, Type.CALL_CLEAR_REQUEST, 0x1234) == (0x1234,)
    assert calls(again)[0][-1] == "established"


# -- whatever it has become --------------------------------------------------------------------------------------------


def assert_ends(vpn: Vpn, now: int) -> None:
    """All that is there can end, and then nothing is left that finds it."""
    calls, esp, exchanges = vpn.calls, vpn.ipsec.esp, vpn.ipsec.exchanges
    for connection in list(vpn.connections.values()):
        vpn._end(connection, now)
    for call in list(calls.calls.values()):
        calls._remove(call)
    for row in list(esp.rows.values()):
        esp.remove(row)
    for row in list(exchanges.exchanges.values()):
        exchanges._remove(row)
    vpn.follow_rows()
    left = [
        (name, value)
        for table in (calls, esp, exchanges)
        for name, value in vars(table).items()
        if isinstance(value, dict | Counter | set) and name not in ("_changes", "_forgotten", "waiting")
        if value
    ]
    assert left == []
    assert vpn.rows._row_of == {}


def exercised(gateway: Gateway) -> None:
    """Send packets of everything that there may be, and let time pass."""
    for packet in (gre(HOST, REMOTE, 0x11), gre(OTHER_HOST, REMOTE, 0x12), esp(HOST, REMOTE, 0x1000)):
        gateway.send(INSIDE, packet)
    for packet in (gre(REMOTE, GATEWAY_OUT, 0x4000), gre(REMOTE, GATEWAY_OUT, 61000), esp(REMOTE, GATEWAY_OUT, 0x2000)):
        gateway.send(OUTSIDE, packet)
    for row in gateway.harness.table.sessions[:2]:
        flow = row["flow"][0]
        port = int(flow["key1"]) >> 32 & 0xFFFF
        end = int(row["tcp"]["end"][0])
        clear = message(Type.CALL_CLEAR_REQUEST, b"\x40\x00")
        source = HOST if int(flow["key0"]) >> 32 == address(HOST) else OTHER_HOST
        for at in range(0, len(clear), 5):
            segment = tcp((source, port), (REMOTE, 1723), "PA", seq=end + at, ack=7001, payload=clear[at : at + 5])
            gateway.send(INSIDE, segment)
    gateway.passes(INSIDE, isakmp(HOST, OTHER_REMOTE, b"fresh"))
    gateway.second()
    gateway.second(40)
    assert "tracker_failed" not in gateway.harness.forwarder.drops()
    gateway.vpn.handlers()["vpn"]({})


def _places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*here, key)
        yield from _places(each, (*here, key))


VALUES = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 3, 7, 0x11, 0x4000, 61000, 1 << 16, (1 << 32) - 1, 1 << 32, 1 << 62, 1 << 64]),
    st.sampled_from([None, True, [], {}, "", "asked", "closing", "passthrough", "outstanding"]),
    st.sampled_from(["AAAAAAAAAAA=", "ABwAARorPE0ABwAA"]),  # a cookie, the start of a message
    st.sampled_from([address(one) for one in (HOST, OTHER_HOST, REMOTE, OTHER_REMOTE, GATEWAY_OUT)]),
)


def mutate_octets(octets: bytes, draw: Callable) -> bytes:
    changed = bytearray(octets)
    for _ in range(draw(st.integers(1, 6))):
        changed[draw(st.integers(120, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


def mutate_values(octets: bytes, draw: Callable) -> bytes:
    """Change values of rows, repeat rows with others, leave some out."""
    first, *lines = octets.splitlines()
    rows = [msgspec.json.decode(line) for line in lines]
    for _ in range(draw(st.integers(1, 6))):
        row = draw(st.sampled_from(rows))
        if draw(st.booleans()):
            row = msgspec.json.decode(msgspec.json.encode(row)) | {"number": draw(st.integers(1, 99))}
            rows.append(row)
        *way, last = draw(st.sampled_from(list(_places(row)) or [("type",)]))
        inner = row
        for key in way:
            inner = inner[key]
        inner[last] = draw(VALUES)
    kept = [row for row in rows if draw(st.integers(0, 9))]
    return b"\n".join([first, *(msgspec.json.encode(row) for row in kept), b""])


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gateway, bytes]:
    """Return a gateway that was killed, and its file."""
    with RunFolder(tmp_path_factory.mktemp("left")) as folder:
        gateway = full(folder)
        gateway.vpn.kept.close()
        return gateway, (folder.path / NAME).read_bytes()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), mutate=st.sampled_from([mutate_octets, mutate_values]))
def test_no_octet_of_it_is_trusted(
    data: st.DataObject, mutate: Callable, left: tuple[Gateway, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Octets changed, or whole values: what is adopted can be used, adopted again, and end; then nothing is left."""
    gateway, octets = left
    with RunFolder(tmp_path_factory.mktemp("mutated")) as folder:
        (folder.path / NAME).write_bytes(mutate(octets, data.draw))
        again = killed(gateway, folder)
        was = sum(again.adopted.rows.values())
        exercised(again)
        last = killed(again, folder)
        assert sum(last.adopted.rows.values()) <= was + 8
        assert not last.adopted.dropped.keys() & {"torn", "twice", "no room"}
        assert_ends(last.vpn, last.harness.now_ns)
        last.vpn.kept.close()
