"""The networks of a test run: each test gets a fresh one, made while the test before ran, and taken down behind it.

A process of its own makes and removes them, in the order of asking, so that the tests' own process has no thread and
no descriptor more from one test to the next. It ends when its standard input does, and takes down whatever is up: also
when the tests have been killed.

    test process                          maker
    make t12-3 masquerade            ->   Lab.up
                                     <-   t12-3
    remove t12-2 masquerade          ->   Lab.down
                                     <-   t12-2: what went wrong
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab.topology import Host, Lab, Network

OWN_NETWORKS = {
    "alone": Network({"host": Host({}, ipv6=True)}, ()),
    "between": Network(
        hosts={
            "inside": Host({"eth0": ("10.0.0.2/8",)}, ("default via 10.0.0.1",), ipv6=True),
            "host": Host(
                {"eth0": ("10.0.0.1/8 brd +",), "eth1": ("200.200.200.200/24 brd +",)},
                ("default via 200.200.200.1",),
                ipv6=True,
            ),
            "outside": Host(
                {"eth0": ("200.200.200.1/24",), "lo": ("199.0.0.1/32",)},
                ("10.0.0.0/8 via 200.200.200.200",),
                ipv6=True,
            ),
        },
        wires=(("host", "eth0", "inside", "eth0"), ("host", "eth1", "outside", "eth0")),
    ),
}

_END_S = 60.0
_numbers = itertools.count(1)


def _new_prefix() -> str:
    return f"t{os.getpid()}-{next(_numbers)}"


def lab_of(prefix: str, kind: str) -> Lab:
    """Return the lab of this prefix and kind of network, whether it is up or not."""
    return Lab(prefix, OWN_NETWORKS.get(kind, kind))


class Networks:
    """What is up for this process: `take` and `give_back` are for each test, `expect` tells what the next will take."""

    def __init__(self) -> None:
        self._maker: subprocess.Popen[str] | None = None
        self._expected: set[str] = set()
        self._ready: dict[str, str] = {}  # prefix by kind: made, or being made, and nobody's yet
        self._taken: dict[str, str] = {}  # kind by prefix
        self._answers: dict[str, str] = {}  # by prefix: empty, or what went wrong

    def prefix(self) -> str:
        """Return a prefix that no other lab on this machine has; what it will name is taken down at the end."""
        prefix = _new_prefix()
        self._say("keep", prefix, "masquerade")
        return prefix

    def expect(self, kinds: Iterable[str]) -> None:
        """Have a network of each of these kinds ready for the test after this one."""
        self._expected = set(kinds)
        for kind in self._expected - self._ready.keys():
            self._ready[kind] = self._make(kind)

    def take(self, kind: str) -> Lab:
        """Return a fresh lab of this kind, up. Raises KernelError if it could not be made."""
        prefix = self._ready.pop(kind, None) or self._make(kind)
        if kind in self._expected:
            self._ready[kind] = self._make(kind)
        answer = self._answer(prefix)
        if answer:
            raise KernelError(answer)
        self._taken[prefix] = kind
        return lab_of(prefix, kind)

    def taken(self) -> list[Lab]:
        """Return the labs that have been taken and not given back."""
        return [lab_of(prefix, kind) for prefix, kind in self._taken.items()]

    def give_back(self, lab: Lab) -> None:
        """Have a lab taken down, with all that runs in it, whatever the test has left of it."""
        if lab.prefix in self._taken:
            self._say("remove", lab.prefix, self._taken.pop(lab.prefix))

    def close(self) -> None:
        """Wait until everything is gone. Raises KernelError if something of a test could not be ended."""
        maker, self._maker = self._maker, None
        if maker is None:
            return
        maker.stdin.close()
        complaints = [line for line in maker.stdout.read().splitlines() if ": " in line]
        maker.wait(_END_S)
        if complaints:
            raise KernelError("; ".join(complaints))

    def _make(self, kind: str) -> str:
        prefix = _new_prefix()
        self._say("make", prefix, kind)
        return prefix

    def _say(self, *words: str) -> None:
        if self._maker is None:
            argv = [sys.executable, "-m", __name__]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            root = Path(__file__).parents[2]
            self._maker = subprocess.Popen(argv, cwd=root, text=True, bufsize=1, start_new_session=True, **pipes)
        self._maker.stdin.write(" ".join(words) + "\n")

    def _answer(self, wanted: str) -> str:
        """Wait for what came of making a lab. Raises KernelError for a lab of before that could not be taken down."""
        while wanted not in self._answers:
            line = self._maker.stdout.readline()
            if not line:
                raise KernelError("the process that makes networks has ended")
            prefix, _, complaint = line.rstrip("\n").partition(": ")
            if prefix == wanted or prefix in self._ready.values():
                self._answers[prefix] = complaint
            elif complaint:
                raise KernelError(f"of an earlier test, {prefix}: {complaint}")
        return self._answers.pop(wanted)


networks = Networks()


def serve(orders: TextIO, answers: TextIO) -> None:
    """Make and remove labs as told, one line each, until there are no more orders; then remove the rest."""
    up: dict[str, Lab] = {}
    for line in orders:
        order, prefix, kind = line.split()
        complaint = ""
        try:
            up.setdefault(prefix, lab_of(prefix, kind))
            if order == "make":
                up[prefix].up()
            elif order == "remove":
                up[prefix].down()
                del up[prefix]
        except FastmasqError as error:
            complaint = ": " + " ".join(str(error).split())
        if order != "keep":
            _tell(answers, prefix + complaint)
    for prefix, lab in up.items():
        try:
            lab.down()
        except FastmasqError as error:
            _tell(answers, f"{prefix}: {' '.join(str(error).split())}")


def _tell(answers: TextIO, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is left to hear it
        print(line, file=answers, flush=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    serve(sys.stdin, sys.stdout)
