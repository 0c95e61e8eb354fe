"""Output that cannot be written is one line and status 1, of every program and stream; closed ones do no harm."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = [sys.executable, "-m", "fastmasq"]
LEGACY = "import sys\nfrom fastmasq.legacy.{} import {}\nsys.argv[1:] = {}\n{}()"


def on_a_full_disk(argv: list[str], forwarder, stream: str) -> subprocess.CompletedProcess:
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        environment = {**os.environ, "FASTMASQ_SOCKET": forwarder.path}
        return subprocess.run(argv, text=True, env=environment, timeout=30, **streams)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([*PROGRAM, "status"], "fastmasq"),
        ([*PROGRAM, "sessions", "--json"], "fastmasq"),
        ([*PROGRAM, "forward", "--help"], "fastmasq"),
        ([*PROGRAM, "check", "--sample"], "fastmasq"),
        ([sys.executable, "-c", LEGACY.format("command", "ipchains", ["-L", "-n"], "ipchains")], "ipchains"),
        ([sys.executable, "-c", LEGACY.format("forwarding", "main_ipportfw", ["-L"], "main_ipportfw")], "ipportfw"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(forwarder, argv: list[str], name: str) -> None:
    done = on_a_full_disk(argv, forwarder, "stdout")
    assert (done.returncode, done.stderr) == (1, f"{name}: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("words", [["statsu"], ["status", "--socket", "/nowhere"]], ids=" ".join)
def test_errors_that_cannot_be_written_are_status_1(forwarder, words: list[str]) -> None:
    done = on_a_full_disk([*PROGRAM, *words], forwarder, "stderr")
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    ("word", "closed", "status"), [("sessions", ">&-", 0), ("sessions", "<&- >&- 2>&-", 0), ("statsu", "2>&-", 2)]
)
def test_a_stream_that_is_closed_does_no_harm(forwarder, word: str, closed: str, status: int) -> None:
    environment = {**os.environ, "FASTMASQ_SOCKET": forwarder.path}
    argv = ["sh", "-c", f'"$@" {closed}', "sh", *PROGRAM, word]
    done = subprocess.run(argv, text=True, env=environment, timeout=30, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
