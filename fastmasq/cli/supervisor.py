"""Starts the forwarder again whenever it dies: a small process of its own, for hosts whose init does not do that.

It is this file, run by a Python of its own without site packages (`become`), so that it needs the standard library
alone, and little memory: nothing of the package is imported here. A bundle, whose Python would share nothing with
others, brings a program for it: scripts/packaging/supervisor.c, which does the same.

SIGTERM, SIGINT, SIGHUP and SIGUSR2 are passed on to the forwarder. One that ends with status 0, or after SIGTERM or
SIGINT, has been told to; so has one that finds its configuration wrong (2). Any other end is said, and it is started
again at once; one that dies within SHORT_S each time after a pause that grows from FIRST_PAUSE_S to LONGEST_PAUSE_S.

A forwarder that was upgraded ends, and the one that has taken its place, which it had started, is our child then: that
one has told us by SIGUSR1, and is followed from there. A forwarder whose parent is none of us becomes one of us when it
is upgraded (`follow`): for a shell, or for any program that waits for it, nothing has changed.
"""

import os
import signal
import sys
import time

SHORT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_USAGE = 2
_ENDING = (signal.SIGTERM, signal.SIGINT)
_PASSED_ON = (*_ENDING, signal.SIGHUP, signal.SIGUSR2)
_SUCCEEDS = signal.SIGUSR1
_FOLLOW = "--follow"
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
VARIABLE = "FASTMASQ_SUPERVISOR"  # of the forwarder's environment: our process, without which it is to end


def become(forwarder: list[str]) -> None:
    """Have this process supervise a forwarder, started by this command line, from now on. Does not return."""
    from fastmasq import program  # before this file runs by itself

    sys.stdout.flush()
    if program.is_bundle():
        program.become("supervisor", forwarder)
    os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, *forwarder])


def follow(child: int) -> None:
    """Have this process end as a child does that has taken its place, and pass signals on until then; no return."""
    become([_FOLLOW, str(child)])


class Supervisor:
    """Runs a program, and again whenever it dies, until it is told to end; or follows a `child` that runs already.

    Signals wait until there is somebody to pass them on to.
    """

    def __init__(self, argv: list[str], child: int = 0) -> None:
        self._argv = argv
        self._child = child
        self._next = 0  # who has taken the place of the one that runs
        self._is_ending = False
        self._pause_s = 0.0
        self._awaited = {signal.SIGCHLD, _SUCCEEDS}

    def run(self) -> int:
        """Return the status to end with."""
        self._awaited |= {number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while True:
            started = time.monotonic()
            code = os.waitstatus_to_exitcode(self._run_once())
            if code == 0 or self._is_ending or code == _USAGE or self._child:
                return code if code >= 0 else 128 - code
            is_short = time.monotonic() - started < SHORT_S
            self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S) if is_short else 0.0
            self._say(code)
            self._wait()
            if self._is_ending:
                return 0

    def _run_once(self) -> int:
        """Run the program, and what takes its place, to the end; return the last one's status as wait(2) gives it."""
        child = self._child
        if not child:
            environment = {**os.environ, VARIABLE: str(os.getpid())}
            child = os.posix_spawn(self._argv[0], self._argv, environment, setsigmask=())
        while True:
            status = self._wait_for(child)
            while known := signal.sigtimedwait([_SUCCEEDS], 0):  # said before it has ended
                self._next = known.si_pid
            child, self._next = self._next, 0
            if not is_child(child):
                return status
            if self._is_ending:
                os.kill(child, signal.SIGTERM)

    def _wait_for(self, child: int) -> int:
        """Pass signals on to a child until it has ended; return its status. Once reaped its number may be another's."""
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status
            self._pass_on(signal.sigwaitinfo(self._awaited), child)

    def _pass_on(self, told: signal.struct_siginfo, child: int = 0) -> None:
        if told.si_signo == _SUCCEEDS:
            self._next = told.si_pid
        elif told.si_signo != signal.SIGCHLD:
            self._is_ending |= told.si_signo in _ENDING
            if child:
                os.kill(child, told.si_signo)

    def _say(self, code: int) -> None:
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        when = f"in {self._pause_s:g} s" if self._pause_s else "at once"
        said = f"the forwarder {cause}; starting it again {when}"
        if "--log-json" in self._argv:
            import json  # not before: this process stays small

            stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
            entry = {"time": stamp, "level": "error", "logger": "fastmasq.supervisor", "message": said}
            line = json.dumps(entry)
        else:
            line = f"fastmasq: error: {said}"
        print(line, file=sys.stderr, flush=True)

    def _wait(self) -> None:
        until = time.monotonic() + self._pause_s
        while not self._is_ending and (left := until - time.monotonic()) > 0:
            if told := signal.sigtimedwait(self._awaited, left):
                self._pass_on(told)


def is_child(pid: int) -> bool:
    """Whether a process is a child of ours, which may have ended."""
    if not pid:
        return False
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def adopt_orphans() -> None:
    """Have the children of a child that ends be ours (prctl(2); since Linux 3.4)."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


if __name__ == "__main__":
    adopt_orphans()
    words = sys.argv[1:]
    followed = int(words[1]) if words[0] == _FOLLOW else 0
    sys.exit(Supervisor(words, followed).run())
