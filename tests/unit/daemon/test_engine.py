"""The engine's life in this process: it starts, says so, follows the kernel, answers, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fastmasq.clock import now_ns
from fastmasq.config.schema import Settings, State, defaults
from fastmasq.config.values import FolderPath, InterfaceName, InterfaceNames, SocketPath
from fastmasq.daemon.engine import Engine, run_forever
from fastmasq.daemon.reload import Reload
from fastmasq.errors import KernelError
from fastmasq.kernel import sysctl
from tests.support.lab_network import eventually
from tests.support.namespaces import Gateway

FORWARDING = "net.ipv4.ip_forward"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(inside: tuple[str, ...] = ("eth0",), outside: str = "eth1") -> Settings:
        usual = defaults()
        return msgspec.structs.replace(
            usual,
            interfaces=msgspec.structs.replace(
                usual.interfaces, inside=InterfaceNames(inside), outside=InterfaceName(outside)
            ),
            limits=msgspec.structs.replace(usual.limits, sessions=1000),
            control=msgspec.structs.replace(usual.control, socket=SocketPath(tmp_path / "socket")),
        )

    return make


def state(folder: Path) -> tuple:
    """Return what a run must leave as it was; what earlier tests have left to the garbage collector is closed first."""
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    handlers = [signal.getsignal(number) for number in SIGNALS]
    return sysctl.read(FORWARDING), descriptors, handlers, threading.active_count(), sorted(folder.iterdir())


def test_it_runs_until_it_is_told_to_end(gateway: Gateway, make_settings: Callable, tmp_path: Path) -> None:
    gateway.host.sh("sysctl -qw net.ipv4.ip_forward=1")
    before = state(tmp_path)
    said: list[str] = []

    def announce(line: str) -> None:
        said.append(line)
        said.append(sysctl.read(FORWARDING))
        os.kill(os.getpid(), signal.SIGTERM)

    run_forever(make_settings(), announce)
    assert "is forwarding: eth0 -> eth1 (200.200.200.200)" in said[0]
    assert said[1] == "0", "the kernel forwards as well"
    assert state(tmp_path) == before


def test_no_second_passes_once_it_has_ended(
    gateway: Gateway, make_settings: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been put back stays so: the loop runs once more when it has been."""
    passed: list[int] = []
    monkeypatch.setattr(Engine, "_steps", lambda _: [lambda: passed.append(1)])
    engine = Engine(make_settings())
    engine.start()
    engine.loop.call_soon(engine.loop.stop)
    engine.serve()
    time.sleep(1.1)
    engine.stop()
    assert passed == []


@pytest.mark.parametrize(
    ("inside", "outside", "words"),
    [
        (tuple(f"in{number}" for number in range(15)), "eth1", "16 links: at most 15"),
        (("eth7",), "eth1", "interface eth7 (inside) does not exist; there are: eth0, eth1"),
        (("lo",), "eth1", "is the loopback interface"),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    gateway: Gateway, make_settings: Callable, tmp_path: Path, inside: tuple[str, ...], outside: str, words: str
) -> None:
    before = state(tmp_path)
    with pytest.raises(KernelError) as failed:
        run_forever(make_settings(inside, outside), lambda line: pytest.fail(line))
    assert words in str(failed.value)
    assert state(tmp_path) == before


def test_sessions_go_on_in_the_next_run(gateway: Gateway, make_settings: Callable) -> None:
    """Those of the run before are all there, its port outside is kept from the host, and another address ends them."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        usual = make_settings()
        settings = msgspec.structs.replace(usual, state=State(directory=FolderPath(folder)))
        first = Engine(settings, keep=True)
        first.start()
        with first.gateway.forwarder.locked():
            for number in range(5):
                assert isinstance(
                    first.gateway.table.open(6, 0x0A000002, 40_000 + number, 0xC7000001, 53, now_ns()), int
                )
        ports = sorted(int(port) for port in first.gateway.table.sessions["flow"][:5, 0]["sid"])
        first.stop()
        second = Engine(settings, keep=True)
        second.start()
        told = second.status.status({})
        assert told["adopted"] == {"sessions": 5, "calls": 0, "sas": 0, "exchanges": 0, "dropped": {}}
        assert told["sessions"]["opened_total"] == 0
        assert sorted(int(port) for port in second.gateway.table.sessions["flow"][:5, 0]["sid"]) == ports
        second.gateway.look()
        second.stop()
        gateway.host.ip("addr flush dev eth1")
        gateway.host.ip("addr add 200.200.200.201/24 dev eth1")
        third = Engine(settings)
        third.start()
        told = third.status.status({})
        assert (told["adopted"]["sessions"], told["sessions"]["active"]) == (5, 0), "dynaddr closes them"
        third.stop()
        assert list(Path(folder).iterdir()) == []


@pytest.fixture
def engine(gateway: Gateway, make_settings: Callable) -> Engine:
    made = Engine(make_settings())
    made.start()
    yield made
    made.stop()


def test_a_second_stop_does_nothing(engine: Engine) -> None:
    engine.stop()
    engine.stop()


def test_status_tells_what_there_is(engine: Engine) -> None:
    told = msgspec.json.decode(msgspec.json.encode(engine.status.status({})))
    assert [(link["name"], link["role"], link["state"]) for link in told["links"]] == [
        ("eth0", "inside", "up"),
        ("eth1", "outside", "up"),
    ]
    assert told["external"]["address"] == "200.200.200.200"
    assert (told["sessions"]["active"], told["sessions"]["capacity"]) == (0, 1000)
    assert engine.status.sessions({}) == {"total": 0, "sessions": []}


def test_sessions_are_counted_in_full_and_shown_up_to_the_limit(engine: Engine) -> None:
    with engine.gateway.forwarder.locked():
        for number in range(5):
            engine.gateway.table.open(17, 0x0A000002, 4000 + number, 0xC7000001, 53, now_ns())
    told = engine.status.sessions({"limit": 2, "protocol": "udp"})
    assert (told["total"], len(told["sessions"])) == (5, 2)


def test_it_follows_the_outside_address(gateway: Gateway, engine: Engine) -> None:
    gateway.host.ip("addr flush dev eth1")
    engine.read_kernel()
    assert engine.status.status({})["external"]["address"] is None
    gateway.host.ip("addr add 200.200.200.201/24 dev eth1")
    engine.read_kernel()
    assert engine.status.status({})["external"]["address"] == "200.200.200.201"


def test_it_lets_go_of_a_link_that_is_gone_and_takes_the_next_of_its_name(gateway: Gateway, engine: Engine) -> None:
    gateway.host.ip("link delete eth1")
    engine.read_kernel()
    assert engine.status.status({})["links"][1]["state"] == "missing"
    assert 1 not in engine.links.attached
    gateway.host.ip("link add eth1 type veth peer name far")
    gateway.host.ip("link set eth1 up")
    gateway.host.ip("link set far up")
    eventually(lambda: engine.read_kernel() or engine.status.status({})["links"][1]["state"] == "up", what="up")
    assert engine.links.attached[1].ifindex == engine.links.links[1].ifindex


def test_a_step_that_fails_takes_nothing_from_those_after_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    monkeypatch.setattr(engine.status, "every_second", lambda: 1 / 0)
    monkeypatch.setattr(engine.gateway.forwards, "retry", lambda: int("9" * 5000))
    monkeypatch.setattr(engine.hops, "follow", lambda: done.append("hops"))
    monkeypatch.setattr(engine.hops, "probe", lambda: done.append("probe"))
    for _ in range(30):
        engine._pass_second()
        engine._timers["_pass_second"].cancel()
    engine.read_kernel()
    assert (done.count("hops"), done.count("probe")) == (31, 2)
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [line.split(" at ")[0].rpartition(": ")[2] for line in said] == ["ZeroDivisionError", "ValueError"]
    assert all(" at daemon/test_engine.py:" in line for line in said), "each has its place"


def test_a_hang_up_with_a_mistake_that_nobody_foresaw_changes_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.reload = Reload(engine.gateway, lambda: int("9" * 5000), engine.confirmation)
    for _ in range(5):
        engine._hang_up()
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith("not reloaded: ValueError at daemon/test_engine.py:")
    assert engine.status.sessions({}) == {"total": 0, "sessions": []}
