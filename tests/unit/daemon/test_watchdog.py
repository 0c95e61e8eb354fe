"""A worker that gets through no turn is found out, one that is idle or slow is not, and a process that slept is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from fastmasq.daemon import watchdog
from fastmasq.daemon.notify import Notifier
from fastmasq.daemon.watchdog import ALIVE_LOOKS, LOOKS, Progress, Watchdog
from tests.support.lab_network import eventually


def test_a_worker_that_has_a_turn_now_and_then_is_not_stuck() -> None:
    progress = Progress()
    for turn in range(100):
        for _ in range(LOOKS):
            assert not progress.look(turn), "a turn in ten looks is enough"


def test_ten_looks_without_a_turn_are_stuck() -> None:
    progress = Progress()
    progress.look(7)
    assert [progress.look(7) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]


def test_the_service_manager_hears_of_it_soon() -> None:
    dog = Watchdog(lambda: 0, lambda: 0)
    assert dog.is_alive()
    for _ in range(ALIVE_LOOKS + 2):
        dog._progress.look(0)
    assert not dog.is_alive()


def test_it_says_where_and_ends_at_once_with_status_1() -> None:
    program = (
        "import atexit, logging, threading; from fastmasq.daemon import watchdog; from fastmasq.observe import log\n"
        "log.set_up(); watchdog.EVERY_S = 0.01; atexit.register(print, 'in order')\n"
        "watchdog.Watchdog(lambda: 5, threading.get_native_id).start(); threading.Event().wait(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastmasq: critical: the worker is stuck: no turn has ended in 10 s, it is ")
    assert line.endswith("; ending, so that it can be started again")


def test_it_ends_even_where_nobody_reads_what_it_says() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(65536))
    os.set_blocking(writer, True)
    program = (
        "from fastmasq.daemon import watchdog; from fastmasq.observe import log\n"
        "log.set_up(); watchdog._LAST_WORDS_S = 0.1; watchdog.end('stuck')"
    )
    done = subprocess.run([sys.executable, "-c", program], stderr=writer, timeout=20)
    assert done.returncode == 1
    os.close(reader)
    os.close(writer)


def test_where_a_thread_is() -> None:
    event, started, ids = threading.Event(), threading.Event(), []

    def sleep() -> None:
        ids.append(threading.get_native_id())
        started.set()
        event.wait()

    thread = threading.Thread(target=sleep)
    thread.start()
    started.wait()
    assert "it is " in watchdog.place(ids[0]) and " s of processor time used" in watchdog.place(ids[0])
    event.set()
    thread.join()
    eventually(lambda: "does not say where it is" in watchdog.place(ids[0]), what="the end of the thread")


# -- what the service manager is told


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_what_is_told(tmp_path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "file" else f"\0fastmasq-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        notifier = Notifier()
        assert "NOTIFY_SOCKET" not in os.environ, "what we start does not speak for us"
        notifier.ready("forwarding")
        assert manager.recv(1000) == b"READY=1\nSTATUS=forwarding"
        notifier.reloading()
        first, second = manager.recv(1000).split(b"\n")
        assert first == b"RELOADING=1" and second.startswith(b"MONOTONIC_USEC=")
        notifier.alive()
        assert manager.recv(1000) == b"WATCHDOG=1"
        notifier.stopping()
        assert manager.recv(1000).startswith(b"STOPPING=1\nSTATUS=")


@pytest.mark.parametrize("name", [None, "/nowhere/notify", "@nobody-listens", "x" * 500])
def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if name:
        monkeypatch.setenv("NOTIFY_SOCKET", name)
    Notifier().ready("forwarding")
