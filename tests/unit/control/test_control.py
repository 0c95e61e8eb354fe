"""Server and client over real unix sockets: answers, refusals, slow and rude clients, and the socket's own life."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import select
import selectors
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import pytest

from fastmasq.control import client as control_client
from fastmasq.control import lines as control_lines
from fastmasq.control import server as control_server
from fastmasq.control.client import call, find_running, is_served
from fastmasq.control.protocol import LARGEST_REQUEST
from fastmasq.control.server import MOST_CLIENTS, Server, StatusServer
from fastmasq.errors import ConfigurationError, FastmasqError, KernelError
from fastmasq.policy.chains import RuleError
from tests.support.lab_network import eventually

NOBODY = 65534


class CountingSelector(selectors.DefaultSelector):
    """What a loop waits with; `turns` counts its rounds."""

    turns = 0

    def select(self, timeout=None):
        ready = super().select(timeout)
        self.turns += 1
        return ready


class Daemon:
    """A server with a loop in a thread, as the forwarder has one; `turns` counts the rounds of the loop."""

    def __init__(self, path, handlers):
        self.selector = CountingSelector()
        self.loop = asyncio.SelectorEventLoop(self.selector)
        self.server = Server(path, handlers, self.loop)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    @property
    def turns(self):
        return self.selector.turns

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        assert not self.thread.is_alive()
        self.server.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        assert len(self.selector.get_map()) == 1  # what wakes the loop
        self.loop.close()


def refuse(error):
    raise error


HANDLERS = {
    "ping": lambda params: "pong",
    "echo": lambda params: params,
    "null": lambda params: None,
    "large": lambda params: ["x" * 1000] * params["thousands"],
    "wrong": lambda params: refuse(ConfigurationError("host: not an address; write 10.0.0.2")),
    "rules": lambda params: refuse(RuleError("no chain", "no chain 'x'")),
    "failed": lambda params: refuse(KernelError("eth0: gone; plug it in")),
    "bug": lambda params: 1 / 0,
    "unspeakable": lambda params: {"x": object()},
}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "fm.sock")


@pytest.fixture
def daemon(path):
    daemon = Daemon(path, HANDLERS)
    yield daemon
    daemon.stop()


@pytest.fixture
def loop():
    """A loop that nobody runs."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@contextlib.contextmanager
def connection(path):
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(5)
        connected.connect(path)
        yield connected


def lines(connected, count):
    """Return the next `count` replies."""
    with connected.makefile("rb") as stream:
        return [msgspec.json.decode(stream.readline()) for _ in range(count)]


# what is answered


def test_a_call(path, daemon):
    assert call(path, "ping") == "pong"
    assert call(path, "echo", host="10.0.0.2", limit=5, state=None) == {"host": "10.0.0.2", "limit": 5, "state": None}
    assert call(path, "null") is None


def test_parameters_may_have_any_name(path, daemon):
    assert call(path, "echo", socket_path=1, method=2) == {"socket_path": 1, "method": 2}


def test_a_refusal_keeps_its_text_and_status(path, daemon):
    with pytest.raises(ConfigurationError, match=r"^host: not an address; write 10.0.0.2$"):
        call(path, "wrong")
    with pytest.raises(RuleError, match=r"^no chain 'x'$") as caught:
        call(path, "rules")
    assert caught.value.reason == "no chain"
    with pytest.raises(KernelError, match=r"^eth0: gone; plug it in$"):
        call(path, "failed")


def test_an_unknown_method_lists_the_known(path, daemon):
    with pytest.raises(ConfigurationError, match=r"no method 'statsu' .* there are bug, echo, failed, .*ping"):
        call(path, "statsu")


@pytest.mark.parametrize("method", ["bug", "unspeakable"])
def test_a_bug_in_a_handler_does_not_end_the_server(path, daemon, method, caplog):
    with pytest.raises(KernelError, match="internal error; see fastmasq's log"):
        call(path, method)
    assert "Traceback" in caplog.text
    assert call(path, "ping") == "pong"


def test_a_large_reply_comes_whole(path, daemon):
    assert call(path, "large", thousands=20_000) == ["x" * 1000] * 20_000


def test_a_reply_too_large_is_refused_with_advice(path, daemon, monkeypatch):
    monkeypatch.setattr(control_server, "LARGEST_REPLY", 10_000)
    with pytest.raises(KernelError, match="more than 10000 bytes; ask for less"):
        call(path, "large", thousands=10)
    assert call(path, "ping") == "pong"


# what clients do


def test_two_clients_take_turns(path, daemon):
    with connection(path) as one, connection(path) as other:
        for _ in range(3):
            one.sendall(b'{"method":"echo","params":{"n":1}}\n')
            other.sendall(b'{"method":"echo","params":{"n":2}}\n')
            assert lines(other, 1) == [{"result": {"n": 2}}]
            assert lines(one, 1) == [{"result": {"n": 1}}]


def test_many_requests_at_once_are_answered_in_order(path, daemon):
    with connection(path) as client:
        client.sendall(b"".join(b'{"method":"echo","params":{"n":%d}}\n' % n for n in range(500)))
        assert [reply["result"]["n"] for reply in lines(client, 500)] == list(range(500))


def test_a_request_in_pieces(path, daemon):
    with connection(path) as client:
        for piece in (b'{"meth', b'od":"ping"', b"}", b"\n"):
            client.sendall(piece)
            time.sleep(0.01)
        assert lines(client, 1) == [{"result": "pong"}]


def test_a_client_that_ends_its_side_is_answered_first(path, daemon):
    with connection(path) as client:
        client.sendall(b'{"method":"ping"}\n{"method":"large","params":{"thousands":2000}}\n')
        client.shutdown(socket.SHUT_WR)
        assert [len(reply["result"]) for reply in lines(client, 2)] == [4, 2000]
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    ("request_line", "said"),
    [
        (b"\n", "not a request: "),
        (b"GET / HTTP/1.1\n", "not a request: "),
        (b"\xff\xfe\n", "not a request: "),
        (b"[]\n", "not a request: "),
        (b'{"params":{}}\n', "not a request: "),
        (b'{"method":3}\n', "not a request: "),
        (b'{"method":"ping","params":[]}\n', "not a request: "),
        (b'{"method":"ping","x":1}\n', "not a request: "),
    ],
)
def test_what_is_not_a_request_is_told_so(path, daemon, request_line, said):
    with connection(path) as client:
        client.sendall(request_line + b'{"method":"ping"}\n')
        wrong, right = lines(client, 2)
        assert wrong["error"]["message"].startswith(said)
        assert wrong["error"]["exit_status"] == 2
        assert right == {"result": "pong"}


def test_a_huge_request_is_refused_and_the_connection_closed(path, daemon):
    with connection(path) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(b"x" * (4 * LARGEST_REQUEST))
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(65536):
                received += chunk
    assert f"a request has at most {LARGEST_REQUEST} bytes".encode() in received
    assert received.count(b"\n") == 1
    assert call(path, "ping") == "pong"


def test_a_request_of_the_largest_size_is_answered(path, daemon):
    start, end = b'{"method":"echo","params":{"x":"', b'"}}'
    fill = b"x" * (LARGEST_REQUEST - len(start) - len(end))
    with connection(path) as client:
        client.sendall(start + fill + end + b"\n")
        assert lines(client, 1) == [{"result": {"x": fill.decode()}}]


def test_a_client_that_does_not_read_stops_nobody(path, daemon):
    """Its reply of 20 MB waits for it; others are answered at once, and the loop rests meanwhile."""
    with connection(path) as slow:
        slow.sendall(b'{"method":"large","params":{"thousands":20000}}\n' * 3)
        assert call(path, "ping") == "pong"
        time.sleep(0.1)
        before = daemon.turns
        for _ in range(20):
            assert call(path, "ping") == "pong"
        assert daemon.turns - before < 200
        replies = lines(slow, 3)
    assert [len(reply["result"]) for reply in replies] == [20_000] * 3


def test_a_client_that_says_nothing_stops_nobody(path, daemon):
    with connection(path):
        eventually(lambda: daemon.server.clients, what="a client")
        eventually(lambda: rests(daemon, 0.05), what="rest, once it has been let in")
        assert rests(daemon, 0.2)
        assert call(path, "ping") == "pong"


def test_a_client_that_goes_away_within_a_reply(path, daemon):
    for _ in range(5):
        with connection(path) as rude:
            rude.sendall(b'{"method":"large","params":{"thousands":5000}}\n')
            rude.recv(10)
    assert call(path, "ping") == "pong"
    eventually(lambda: not daemon.server.clients, what="no clients")


def test_of_too_many_clients_the_quietest_is_closed(path, daemon):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connection(path)) for _ in range(MOST_CLIENTS)]
        for client in clients:
            client.sendall(b'{"method":"ping"}\n')
            assert lines(client, 1) == [{"result": "pong"}]
        clients[0].sendall(b'{"method":"ping"}\n')
        assert lines(clients[0], 1) == [{"result": "pong"}]
        assert call(path, "ping") == "pong"
        assert clients[1].recv(1) == b""
        for client in (clients[0], *clients[2:]):
            client.sendall(b'{"method":"ping"}\n')
            assert lines(client, 1) == [{"result": "pong"}]


def test_closing_ends_all_connections_and_removes_the_socket(path):
    daemon = Daemon(path, HANDLERS)
    with connection(path) as client:
        eventually(lambda: len(daemon.server.clients) == 1, what="one client")
        daemon.stop()
        assert client.recv(1) == b""
    assert not os.path.exists(path)


# who may talk


def test_the_socket_is_for_its_owner_alone(path, daemon):
    status = os.stat(path)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.geteuid()


def test_making_the_socket_leaves_the_umask_alone(path):
    before = os.umask(0o027)
    try:
        Daemon(path, HANDLERS).stop()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_another_user_is_turned_away_even_where_the_mode_allows(caplog):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = f"{folder}/fm.sock"
        daemon = Daemon(path, HANDLERS)
        os.chmod(path, 0o666)
        try:
            assert as_user(NOBODY, lambda: call(path, "ping")) == "KernelError"
            assert f"refused a client of user {NOBODY}" in caplog.text
            assert call(path, "ping") == "pong"
        finally:
            daemon.stop()


def test_another_user_is_told_to_become_root():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        daemon = Daemon(f"{folder}/fm.sock", HANDLERS)
        try:
            assert as_user(NOBODY, lambda: call(daemon.server._path, "ping")) == "KernelError: only root"
        finally:
            daemon.stop()


def as_user(uid, action):
    """Return in one word how `action` ends in a process of another user."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        word = b"?"
        try:
            os.setuid(uid)
            word = str(action()).encode()
        except FastmasqError as error:
            word = type(error).__name__.encode() + (b": only root" if "only root" in str(error) else b"")
        finally:
            os.write(writer, word)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        word = stream.read().decode()
    os.waitpid(child, 0)
    return word


# the socket's place


def test_a_second_server_is_refused_and_the_first_lives_on(path, daemon, loop):
    with pytest.raises(KernelError, match=f"another fastmasq is running at {path}; stop it"):
        Server(path, HANDLERS, loop)
    assert call(path, "ping") == "pong"


def test_a_stale_socket_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    daemon = Daemon(path, HANDLERS)
    assert call(path, "ping") == "pong"
    daemon.stop()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(path, kind, loop):
    target = Path(path)
    {"file": lambda: target.write_text("precious"), "folder": target.mkdir, "link": lambda: target.symlink_to("/x")}[
        kind
    ]()
    with pytest.raises(KernelError, match="there is something that is not a socket; choose another place"):
        Server(path, HANDLERS, loop)
    assert os.path.lexists(path)


def test_a_missing_folder(tmp_path, loop):
    with pytest.raises(KernelError, match=r"folder .*/none: No such file or directory; make it"):
        Server(tmp_path / "none" / "fm.sock", HANDLERS, loop)


def test_closing_leaves_the_socket_of_another_alone(path):
    daemon = Daemon(path, HANDLERS)
    os.unlink(path)
    other = Daemon(path, HANDLERS)
    daemon.stop()
    assert call(path, "ping") == "pong"
    other.stop()


def test_of_servers_started_together_one_wins(path, loop):
    """All find the same stale socket; only one may replace it."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    servers, refused = [], []
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        try:
            servers.append(Server(path, HANDLERS, loop))
        except KernelError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(servers) == 1
    assert all("another fastmasq is running" in text for text in refused)
    servers[0].close()


def test_a_folder_locked_by_a_stranger_keeps_nobody_from_starting(path, monkeypatch, loop):
    monkeypatch.setattr(control_server, "_LOCK_TRIES", 2)
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    Server(path, HANDLERS, loop).close()
    os.close(descriptor)


# the client's view


def test_nobody_listens(path):
    with pytest.raises(KernelError, match=f"^no fastmasq is running at {path}; start `fastmasq run`, or"):
        call(path, "ping")
    assert not is_served(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(KernelError, match=r"^no fastmasq is running"):
        call(path, "ping")
    assert not is_served(path)


def test_somebody_listens(path, daemon):
    assert is_served(path)
    assert call(path, "ping") == "pong"


def test_a_path_that_is_too_long():
    with pytest.raises(KernelError, match="too long; is this the control socket"):
        call("/" + "x" * 200, "ping")


def test_a_server_that_does_not_answer(path, monkeypatch):
    monkeypatch.setattr(control_client, "PATIENCE_S", 0.1)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen(0)
        with pytest.raises(KernelError, match=r"no answer within .* is fastmasq stopped"):
            call(path, "ping")
        with pytest.raises(KernelError, match="no answer within"):  # now its queue is full, too
            call(path, "ping")
        assert is_served(path)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed without an answer; see fastmasq's log"),
        (b'{"result":', "closed without an answer; see fastmasq's log"),
        (b"220 mail.example.org\n", "an answer that is not fastmasq's"),
        (b"x" * 5000, "more than 4096 bytes; ask for less"),
    ],
)
def test_a_server_that_is_not_ours(path, answer, said, monkeypatch):
    monkeypatch.setattr(control_client, "LARGEST_REPLY", 4096)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve():
            accepted, _ = listener.accept()
            with accepted, contextlib.suppress(OSError):
                accepted.recv(65536)
                accepted.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(KernelError, match=said):
            call(path, "ping")
        thread.join()


def rests(daemon, seconds):
    """Return whether the loop does nothing for so long."""
    before = daemon.turns
    time.sleep(seconds)
    return daemon.turns == before


# what a client may cost


@pytest.mark.parametrize("bomb", [b"[" * 100_000, b'{"method": "ping", "params": {"a": ' + b"[" * 100_000])
def test_a_request_nested_too_deep_is_told_so_and_logged_by_nobody(path, daemon, caplog, bomb):
    with connection(path) as connected:
        for _ in range(20):
            connected.sendall(bomb + b"\n")
            (reply,) = lines(connected, 1)
            assert "not a request" in reply["error"]["message"]
    assert caplog.records == []
    assert call(path, "ping") == "pong"


def test_a_mistake_that_comes_again_and_again_is_logged_once(path, daemon, caplog):
    for _ in range(50):
        for method in ("bug", "unspeakable"):
            with pytest.raises(KernelError, match="internal error; see fastmasq's log"):
                call(path, method)
    assert caplog.text.count("Traceback") == 2


def test_idle_clients_are_closed(path, daemon, monkeypatch):
    monkeypatch.setattr(control_server, "IDLE_S", 0.2)
    with connection(path) as idle, connection(path) as busy:
        deadline = time.monotonic() + 5
        while idle.fileno() >= 0 and time.monotonic() < deadline:
            busy.sendall(b'{"method": "ping"}\n')
            assert lines(busy, 1) == [{"result": "pong"}]
            daemon.loop.call_soon_threadsafe(daemon.server.every_second)
            idle.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                assert idle.recv(1) == b""
                return
        pytest.fail("the idle one is not closed")


def test_without_descriptors_the_quietest_goes_and_the_loop_sleeps(path, daemon):
    """Whoever cannot be served is refused at once, and the next ones find room again."""
    idle = [socket.socket(socket.AF_UNIX) for _ in range(6)]
    idle[0].connect(path)
    assert call(path, "ping") == "pong"
    highest = max(map(int, os.listdir("/proc/self/fd")))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    fillers = []
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        before = daemon.turns
        for one in idle[1:]:
            one.connect(path)
        assert select.select([idle[0]], [], [], 10)[0], "the one that was quiet longest"
        time.sleep(0.3)
        assert daemon.turns - before < 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in fillers:
            os.close(descriptor)
    assert idle[0].recv(1) == b""
    assert call(path, "ping") == "pong"
    for one in idle:
        one.close()


def test_clients_make_way_for_what_needs_their_descriptors(path, daemon, monkeypatch):
    """All go, and nobody comes for a moment; then whoever waited is served."""
    monkeypatch.setattr(control_lines, "WAY_S", 0.4)
    with connection(path) as idle:
        idle.sendall(b'{"method": "ping"}\n')
        assert lines(idle, 1) == [{"result": "pong"}]
        started = time.monotonic()
        daemon.loop.call_soon_threadsafe(daemon.server.make_way)
        assert idle.recv(1) == b""
        assert call(path, "ping") == "pong"
        assert time.monotonic() - started > 0.4
    eventually(lambda: not daemon.server.clients, what="no clients")
    monkeypatch.setattr(control_lines, "WAY_S", 60)
    daemon.loop.call_soon_threadsafe(daemon.server.make_way)
    assert call(path, "ping") == "pong", "nobody had to go"


def test_the_status_socket_only_tells(path, loop):
    handlers = {"ping": HANDLERS["ping"]}
    server = StatusServer(path, handlers, loop, lambda method, params: method == "ping" and not params)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    for request in (b'{"method": "reload"}', b'{"method": "ping", "params": {"zero": true}}'):
        reply = msgspec.json.decode(server.answer(None, request))
        assert reply["error"]["exit_status"] == 2
        assert "changes something" in reply["error"]["message"] and "use sudo" in reply["error"]["message"]
    assert msgspec.json.decode(server.answer(None, b'{"method": "ping"}')) == {"result": "pong"}
    server.close()


def test_the_running_one_is_found(tmp_path, path, daemon):
    nowhere, refused = str(tmp_path / "nowhere"), str(tmp_path / "refused")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(refused)
    assert find_running([nowhere, refused, path]) == path
    assert find_running([nowhere, refused]) == nowhere


def test_a_deleted_socket_is_made_anew(daemon, path):
    with connection(path) as before:
        before.sendall(b'{"method": "ping"}\n')
        assert lines(before, 1) == [{"result": "pong"}]
        os.unlink(path)
        with pytest.raises(KernelError, match="no fastmasq is running"):
            call(path, "ping")
        daemon.loop.call_soon_threadsafe(daemon.server.every_second)
        deadline = time.monotonic() + 5
        while not is_served(path):
            assert time.monotonic() < deadline
        assert call(path, "ping") == "pong"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        before.sendall(b'{"method": "ping"}\n')
        assert lines(before, 1) == [{"result": "pong"}], "who was connected still is"
