"""The supervisor: starts again what died, ever more slowly if need be; passes signals on; leaves nothing behind.

There are two, that of a wheel and that of a bundle, which do the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import pytest

from fastmasq.cli import supervisor
from tests.support.lab_network import eventually

SOURCE = Path(__file__).parents[3] / "scripts/packaging/supervisor.c"
MOST_OWN_KB = {"wheel": 6 * 1024, "bundle": 1024}
CHILD = """if True:
    import os, signal, sys, time
    os.write(1, b"%d\\n" % os.getpid())
    {body}
"""
Supervised = Callable[..., AbstractContextManager[subprocess.Popen]]


@pytest.fixture(scope="module", params=["wheel", "bundle"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command line that starts a supervisor."""
    if request.param == "wheel":
        return [sys.executable, "-I", "-S", supervisor.__file__]
    program = str(tmp_path_factory.mktemp("bundle") / "supervisor")
    subprocess.run(["gcc", "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return [program]


@pytest.fixture
def supervised(command: list[str]) -> Supervised:
    """Return what runs the supervisor on a small program, each of whose lives prints its process id."""

    @contextmanager
    def run(body: str, *words: str) -> Iterator[subprocess.Popen]:
        argv = [*command, sys.executable, "-c", CHILD.format(body=body), *words]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            left = children(process.pid)
            process.kill()
            for child in left:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.communicate()

    return run


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_it_starts_again_at_once_and_says_what_it_died_of(supervised: Supervised) -> None:
    with supervised("time.sleep(60)") as process:
        first = int(process.stdout.readline())
        started = time.monotonic()
        os.kill(first, signal.SIGKILL)
        assert process.stderr.readline() == (
            "fastmasq: error: the forwarder was killed by SIGKILL; starting it again in 1 s\n"
        )
        second = int(process.stdout.readline())
        assert time.monotonic() - started < 5 and second != first
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGTERM
        assert is_gone(second)


def test_the_pause_grows_while_it_dies_at_once_and_a_long_life_forgives(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[float] = []
    lives = [0.0, 0.0, 0.0, 0.0, 100.0, 0.0]
    now = 0.0

    class Rehearsal(supervisor.Supervisor):
        def _run_once(self) -> int:
            nonlocal now
            if not lives:
                return 0
            now += lives.pop(0)
            return 3 << 8

        def _say(self, code: int) -> None:
            assert code == 3
            said.append(self._pause_s)

        def _wait(self) -> None:
            pass

    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now)
    monkeypatch.setattr(supervisor.signal, "pthread_sigmask", lambda *_: None)
    assert Rehearsal(["x"]).run() == 0
    assert said == [1, 2, 4, 8, 0, 1]


@pytest.mark.parametrize("status", [0, 2])
def test_what_has_ended_in_order_or_is_wrongly_configured_stays_so(supervised: Supervised, status: int) -> None:
    with supervised(f"sys.exit({status})") as process:
        assert process.wait(5) == status
        assert len(process.stdout.readlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_end_are_passed_on(supervised: Supervised, number: signal.Signals) -> None:
    body = f"signal.signal({int(number)}, lambda *_: sys.exit(0)); os.write(1, b'ready\\n'); time.sleep(60)"
    with supervised(body) as process:
        child = int(process.stdout.readline())
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(5) == 0
        assert is_gone(child)


def test_a_hang_up_is_passed_on_and_ends_nothing(supervised: Supervised) -> None:
    body = "signal.signal(1, lambda *_: os.write(1, b'reloaded\\n')); os.write(1, b'ready\\n'); time.sleep(60)"
    with supervised(body) as process:
        process.stdout.readline()
        for _ in range(3):
            process.stdout.readline()
            process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reloaded\n"
        process.terminate()
        process.wait(5)


def test_nothing_is_signalled_once_the_child_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another process's by then: what is told meanwhile is for the next one, or for nobody."""
    signalled: list[int] = []
    waitpid = os.waitpid

    def told_when_reaped(pid: int, options: int) -> tuple[int, int]:
        ended, status = waitpid(pid, options)
        if ended:
            signal.raise_signal(signal.SIGTERM)
        return ended, status

    monkeypatch.setattr(supervisor.os, "waitpid", told_when_reaped)
    monkeypatch.setattr(supervisor.os, "kill", lambda pid, number: signalled.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        assert supervisor.Supervisor([sys.executable, "-c", "raise SystemExit(3)"]).run() == 0
        assert signalled == []
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


SUCCESSION = """def succeed(number, _):
        if os.fork() == 0:
            signal.signal(signal.SIGUSR2, lambda *_: os.write(1, b"told\\n"))
            os.kill(parent, signal.SIGUSR1)
            os.write(1, b"%d\\n" % os.getpid())
            {after}
            time.sleep(60)
            os._exit(5)
        {end}
    parent = os.getppid()
    signal.signal(signal.SIGUSR2, succeed)
    os.write(1, b"ready\\n")
    time.sleep(60)
"""


def succession(*, after: str = "pass", end: str = "time.sleep(0.1); os._exit(0)") -> str:
    """Return a program that has a child take its place when it is told SIGUSR2."""
    return SUCCESSION.format(after=after, end=end)


def upgraded(process: subprocess.Popen) -> int:
    """Have the program have a child take its place; return that."""
    first = int(process.stdout.readline())
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR2)
    second = int(process.stdout.readline())
    eventually(lambda: is_gone(first) and children(process.pid) == [second], 5, "the next one is ours")
    return second


def test_who_takes_the_place_of_the_child_is_followed(supervised: Supervised) -> None:
    with supervised(succession()) as process:
        second = upgraded(process)
        process.send_signal(signal.SIGUSR2)
        assert process.stdout.readline() == "told\n"
        os.kill(second, signal.SIGKILL)
        assert "was killed by SIGKILL; starting it again" in process.stderr.readline()
        assert int(process.stdout.readline()) not in (second, 0)
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGTERM


def test_an_end_between_the_two_ends_the_next_one(supervised: Supervised) -> None:
    """It was passed on to the one that ends anyway."""
    ends = "signal.signal(signal.SIGTERM, lambda *_: os._exit(0)); signal.pause()"
    with supervised(succession(end=ends)) as process:
        process.stdout.readline()
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR2)
        second = int(process.stdout.readline())
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGTERM
        assert is_gone(second)


def test_one_that_ends_without_a_successor_has_none(supervised: Supervised) -> None:
    """It said that there was one, which has died since."""
    with supervised(succession(after="os._exit(0)", end="os.wait(); os._exit(0)")) as process:
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGUSR2)
        assert process.wait(5) == 0


@pytest.mark.parametrize("end", ["status", "signal"])
def test_a_forwarder_without_a_supervisor_follows_its_successor(command: list[str], end: str) -> None:
    """The process becomes one, by exec, and ends as the next one does; nothing is started again."""
    lines = f"""if True:
        import os, signal, sys, time
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(7) if {end == "status"} else os.kill(os.getpid(), 9))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            os.write(1, b"ready\\n")
            time.sleep(60)
        os.execv({command[0]!r}, [*{command!r}, "--follow", str(child)])
    """
    process = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(5) == (7 if end == "status" else 128 + signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()


def test_it_may_be_ended_while_it_pauses(supervised: Supervised) -> None:
    with supervised("sys.exit(1)") as process:
        for pause_s in (1, 2):
            said = f"fastmasq: error: the forwarder ended with status 1; starting it again in {pause_s} s\n"
            assert process.stderr.readline() == said
        process.terminate()
        assert process.wait(1) == 0


def test_a_forwarder_ends_with_its_supervisor(supervised: Supervised, tmp_path: Path) -> None:
    body = (
        "sys.path.insert(0, {root!r}); from fastmasq.kernel.identity import end_with; "
        "signal.signal(15, lambda *_: (open({ended!r}, 'w').close(), os._exit(0))); "
        "end_with(int(os.environ['FASTMASQ_SUPERVISOR'])); os.write(1, b'ready\\n'); time.sleep(60)"
    ).format(root=str(Path(__file__).parents[3]), ended=str(tmp_path / "ended"))
    with supervised(body) as process:
        process.stdout.readline()
        process.stdout.readline()
        process.kill()
        eventually((tmp_path / "ended").exists, 5, "the forwarder ends in order")


def test_a_program_reads_what_it_says_in_json(supervised: Supervised) -> None:
    with supervised("sys.exit(1)", "--log-json") as process:
        entry = json.loads(process.stderr.readline())
    assert (entry.pop("level"), entry.pop("logger")) == ("error", "fastmasq.supervisor")
    assert entry.pop("message") == "the forwarder ended with status 1; starting it again in 1 s"
    datetime.fromisoformat(entry.pop("time"))
    assert entry == {}


def test_what_nohup_has_ignored_stays_so(supervised: Supervised) -> None:
    body = "os.write(1, b'%s\\n' % str(signal.getsignal(1)).encode()); time.sleep(60)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with supervised(body) as process:
            process.stdout.readline()
            assert process.stdout.readline() == "1\n"
            process.send_signal(signal.SIGHUP)
            process.terminate()
            assert process.wait(5) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


def test_it_is_small(supervised: Supervised, request: pytest.FixtureRequest) -> None:
    with supervised("time.sleep(60)") as process:
        process.stdout.readline()
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        own = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
    kind = request.node.callspec.params["command"]
    assert own <= MOST_OWN_KB[kind], "of its own; what it shares is the interpreter's text"
