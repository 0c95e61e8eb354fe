"""Inside hosts over real TCP: who is let in, what is refused, and what rude ones cost (section 4.8)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import socket
import threading

import pytest

from fastmasq.control import inside
from fastmasq.control.endpoints import Endpoint
from fastmasq.control.inside import LARGEST_LINE, LINES_PER_SECOND, MOST_OF_HOST, InsideServer
from fastmasq.control.keys import KeyFile
from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.trackers.vpn.preload import PreloadError

HERE = Endpoint("lo", 1, 0x7F000001)
HOST, OTHER_HOST, STRANGER = "127.0.0.2", "127.0.0.3", "127.0.0.9"
KEYS = {HOST: "the-key-of-the-first", OTHER_HOST: "the-key-of-the-other"}
PING = '{"method": "ping"}'


def ping(caller, params):
    return [caller, params]


def refuse(caller, params):
    raise PreloadError("EEXIST", "no")


class Gateway:
    """A server with a loop in a thread, as the forwarder has one."""

    def __init__(self, folder):
        self.file = folder / "keys"
        self.write_keys("".join(f"{host} {key}\n" for host, key in KEYS.items()))
        self.loop = asyncio.new_event_loop()
        handlers = {"ping": ping, "refuse": refuse, "bug": lambda caller, params: 1 / 0}
        self.port = free_port()
        self.server = InsideServer(self.port, KeyFile(str(self.file)), handlers, self.loop)
        self.server.follow([HERE])
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def write_keys(self, text, mode=0o600):
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.chmod(mode)
        os.replace(new, self.file)

    def second(self, now):
        """Have a second pass, after which it is `now`."""
        self.loop.call_soon_threadsafe(self.server.every_second, now)

    def connect(self, host=HOST):
        return socket.create_connection(("127.0.0.1", self.port), 5, source_address=(host, 0))

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.server.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        assert not self.server.clients
        self.loop.close()


class Asking:
    """A connection of a host, and the challenge that it got."""

    def __init__(self, gateway, host=HOST):
        self.connection = gateway.connect(host)
        self.stream = self.connection.makefile("rb")
        self.first = json.loads(self.stream.readline())

    def sign(self, request=PING, key=KEYS[HOST]):
        """Return the line for a request; by the description of the protocol, and not by the code."""
        text = f"fastmasq-spi 1\n{self.first['challenge']}\n{request}"
        mac = hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
        return json.dumps({"request": request, "mac": mac}).encode() + b"\n"

    def send(self, line):
        self.connection.sendall(line)
        return self.answer()

    def answer(self):
        line = self.stream.readline()
        return json.loads(line) if line else None

    def is_closed(self):
        return self.stream.readline() == b""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def gateway(tmp_path):
    gateway = Gateway(tmp_path)
    yield gateway
    gateway.stop()


@pytest.fixture
def ask(gateway):
    with contextlib.ExitStack() as opened:

        def ask(host=HOST):
            asking = Asking(gateway, host)
            opened.callback(asking.connection.close)
            return asking

        yield ask


def refused(answer, reason):
    assert answer["error"]["reason"] == reason
    return answer["error"]["message"]


# who is let in


def test_a_host_with_its_key_is_answered_as_itself(ask):
    asking = ask()
    assert asking.send(asking.sign('{"method": "ping", "params": {"x": 1}}')) == {"result": [0x7F000002, {"x": 1}]}
    assert asking.is_closed()
    other = ask(OTHER_HOST)
    assert other.send(other.sign(key=KEYS[OTHER_HOST]))["result"][0] == 0x7F000003


def test_a_wrong_key_is_refused(ask, caplog):
    asking = ask()
    assert "not that of 127.0.0.2" in refused(asking.send(asking.sign(key=KEYS[OTHER_HOST])), "EPERM")
    assert "127.0.0.2" in caplog.text and not any(key in caplog.text for key in KEYS.values())


def test_a_host_without_a_key_is_refused_at_once(ask, caplog):
    asking = ask(STRANGER)
    assert "127.0.0.9 has no key" in refused(asking.first, "EPERM")
    assert asking.is_closed()


def test_what_was_overheard_cannot_be_used_again(ask):
    first = ask()
    line = first.sign()
    assert "result" in first.send(line)
    assert first.is_closed()
    second = ask()
    assert second.first["challenge"] != first.first["challenge"]
    refused(second.send(line), "EPERM")


def test_a_changed_request_is_refused(ask):
    asking = ask()
    refused(asking.send(asking.sign().replace(b"ping", b"pong")), "EPERM")


def test_keys_are_read_again_when_they_change(gateway, ask, caplog):
    gateway.write_keys(f"# all new\n{STRANGER}\tanother-key-0123456789 # theirs\n")
    asking = ask(STRANGER)
    assert "result" in asking.send(asking.sign(key="another-key-0123456789"))
    refused(ask().first, "EPERM")
    gateway.write_keys(f"{HOST} short\n")
    asking = ask(STRANGER)
    assert "result" in asking.send(asking.sign(key="another-key-0123456789"))
    assert caplog.text.count("the keys as they were before stay in force") == 1


# what is refused


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"hello\n", "not a signed request"),
        (b"\xff\xfe\x00\n", "not a signed request"),
        (b'{"request": 1, "mac": "x"}\n', "not a signed request"),
        (b'{"request": "\\ud800", "mac": "\\ud800"}\n', None),
        (b"[" * 2000 + b"\n", "not a signed request"),
        (b"x" * (LARGEST_LINE + 1), f"at most {LARGEST_LINE} bytes"),
        (b"x" * LARGEST_LINE * 20, f"at most {LARGEST_LINE} bytes"),
    ],
)
def test_bad_input_costs_one_line(ask, line, text):
    asking = ask()
    answer = asking.send(line)
    if text:
        assert text in refused(answer, "EINVAL")
    assert asking.is_closed()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ("hello", "EINVAL"),
        ('{"method": "status"}', "EINVAL"),
        ('{"method": "refuse"}', "EEXIST"),
        ('{"method": "ping", "params": []}', "EINVAL"),
    ],
)
def test_bad_requests(ask, request_, reason):
    asking = ask()
    refused(asking.send(asking.sign(request_)), reason)


def test_a_bug_in_a_handler_ends_nothing(ask):
    asking = ask()
    assert (
        asking.send(asking.sign('{"method": "bug"}'))["error"]["message"] == "bug: internal error; see fastmasq's log"
    )
    again = ask()
    assert "result" in again.send(again.sign())


def test_one_request_for_each_connection(ask):
    asking = ask()
    assert "result" in asking.send(asking.sign() * 2)
    assert asking.is_closed()


# rude hosts


def test_a_slow_host_is_told_and_closed(gateway, ask):
    asking = ask()
    gateway.second(1 << 62)
    refused(asking.answer(), "ETIME")
    assert asking.is_closed()


def test_a_host_that_takes_no_notice_of_its_answer_is_closed(gateway, ask):
    asking = ask()
    assert "result" in asking.send(asking.sign())
    asking.connection.sendall(b"more")
    gateway.second(1 << 62)
    assert asking.is_closed()


def test_many_connections_of_a_host_are_at_its_own_cost(ask):
    other = ask(OTHER_HOST)
    crowd = [ask() for _ in range(MOST_OF_HOST + 1)]
    assert crowd[0].is_closed()
    assert "result" in crowd[1].send(crowd[1].sign())
    assert "result" in other.send(other.sign(key=KEYS[OTHER_HOST]))


def test_the_oldest_goes_when_there_are_too_many(ask, monkeypatch):
    monkeypatch.setattr(inside, "MOST_CLIENTS", 2)
    crowd = [ask(), ask(OTHER_HOST), ask()]
    assert crowd[0].is_closed()
    assert "result" in crowd[2].send(crowd[2].sign())


def test_the_log_is_not_flooded(gateway, ask, caplog):
    for _ in range(LINES_PER_SECOND + 3):
        ask(STRANGER)
    gateway.second(0)
    asking = ask()
    assert "result" in asking.send(asking.sign())
    assert caplog.text.count("has no key") == LINES_PER_SECOND
    assert "3 more lines about inside hosts were suppressed" in caplog.text


# listeners


def test_listeners_follow_the_addresses(gateway, ask):
    gateway.server.follow([])
    with pytest.raises(ConnectionRefusedError):
        gateway.connect()
    gateway.server.follow([HERE, Endpoint("lo", 1, 0x7F000001 + 7), Endpoint("nosuchlink", 99, 0x7F000001 + 8)])
    asking = ask()
    assert "result" in asking.send(asking.sign())


def test_a_port_that_is_taken(tmp_path):
    (tmp_path / "keys").touch(0o600)
    with socket.socket() as taken, contextlib.closing(asyncio.new_event_loop()) as loop:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = InsideServer(port, KeyFile(str(tmp_path / "keys")), {}, loop)
        with pytest.raises(KernelError, match=rf"preload: 127.0.0.1:{port}: Address already in use; choose another"):
            server.follow([HERE])


# the file of keys


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("10.0.0.2\n", ":1: not ADDRESS KEY"),
        ("# x\n\n10.0.0.2 a-long-secret-key extra\n", ":3: not ADDRESS KEY"),
        ("host a-long-secret-key\n", ":1: does not begin with an IPv4 address"),
        ("10.0.0.2 secret\n", ":1: a key of less than 16"),
        ("10.0.0.2 a-long-secret-key\n10.0.0.2 a-long-secret-key\n", ":2: 10.0.0.2 has a key already"),
        ("x" * 1_100_000, ": it has more than"),
    ],
)
def test_mistakes_in_the_key_file(tmp_path, text, wrong):
    path = tmp_path / "keys"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        KeyFile(str(path))
    assert str(caught.value).startswith(f"{path}{wrong}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_key_file_that_others_can_read(tmp_path, mode):
    path = tmp_path / "keys"
    path.touch()
    path.chmod(mode)
    with pytest.raises(
        ConfigurationError, match=r"others than its owner may read it; `chmod 600|everybody may write to"
    ):
        KeyFile(str(path))


def test_no_key_file(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file or directory; write a line ADDRESS KEY"):
        KeyFile(str(tmp_path / "keys"))
