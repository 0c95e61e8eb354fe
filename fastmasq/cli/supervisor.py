"""Starts the forwarder again whenever it dies: a small process of its own, for hosts whose init does not do that.

It is this file, run by a Python of its own without site packages (`become`), so that it needs the standard library
alone, and little memory: nothing of the package is imported here. A bundle, whose Python would share nothing with
others, brings a program for it: scripts/packaging/supervisor.c, which does the same.

SIGTERM, SIGINT and SIGHUP are passed on to the forwarder. One that ends with status 0, or after such a signal, has been
told to; so has one that finds its configuration wrong (2). Any other end is said, and it is started again at once; one
that dies within SHORT_S each time after a pause that grows from FIRST_PAUSE_S to LONGEST_PAUSE_S.
"""

import os
import signal
import sys
import time

SHORT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_USAGE = 2
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
VARIABLE = "FASTMASQ_SUPERVISOR"  # of the forwarder's environment: our process, without which it is to end


def become(forwarder: list[str]) -> None:
    """Have this process supervise a forwarder, started by this command line, from now on. Does not return."""
    from fastmasq import program  # before this file runs by itself

    sys.stdout.flush()
    if program.is_bundle():
        program.become("supervisor", forwarder)
    os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, *forwarder])


class Supervisor:
    """Runs a program, and again whenever it dies, until it is told to end."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._child = 0
        self._is_ending = False
        self._pause_s = 0.0

    def run(self) -> int:
        """Return the status to end with."""
        for number in _PASSED_ON:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._pass_on)
        while True:
            started = time.monotonic()
            status = self._run_once()
            code = os.waitstatus_to_exitcode(status)
            if code == 0 or self._is_ending or code == _USAGE:
                return code if code >= 0 else 128 - code
            is_short = time.monotonic() - started < SHORT_S
            self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S) if is_short else 0.0
            self._say(code)
            self._wait()
            if self._is_ending:
                return 0

    def _run_once(self) -> int:
        """Run the program to its end; return its status as wait(2) gives it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        environment = {**os.environ, VARIABLE: str(os.getpid())}
        self._child = os.posix_spawn(self._argv[0], self._argv, environment, setsigmask=())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT)  # its number is nobody else's until it is reaped
        child, self._child = self._child, 0
        _, status = os.waitpid(child, 0)
        return status

    def _pass_on(self, number: int, _: object) -> None:
        self._is_ending |= number != signal.SIGHUP
        if self._child:
            os.kill(self._child, number)

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
            time.sleep(min(left, 0.2))


if __name__ == "__main__":
    sys.exit(Supervisor(sys.argv[1:]).run())
