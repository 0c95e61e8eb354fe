"""fastmasq itself, started in a lab's gateway as a user would start it, and stopped again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmasq import program
from fastmasq.control.client import call
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab import hosts
from fastmasq.lab.topology import Lab

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0


class Fastmasq:
    """`fastmasq run` in the gateway of a lab; a context manager that returns once it forwards.

    extra is the head of its configuration: keys without a section first, then whole sections. The interfaces and the
    control socket follow it. command is how the program is started, if it is not this one; options are those of `run`.
    """

    name = "fastmasq"

    def __init__(
        self,
        lab: Lab,
        extra: str = "",
        inside: Sequence[str] = ("eth0",),
        outside: str = "eth1",
        command: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        self.lab = lab
        self._command = command or program.command()
        self._options = options
        self._process: subprocess.Popen | None = None
        self.directory = lab.directory / "gateway/fastmasq"
        self.socket = self.directory / "control.sock"
        self.configuration = self.directory / "fastmasq.toml"
        self._text = (
            f'{extra}\n[interfaces]\ninside = {list(inside)}\noutside = "{outside}"\n\n'
            f'[control]\nsocket = "{self.socket}"\n'
        )

    def __enter__(self) -> Fastmasq:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def process(self) -> subprocess.Popen:
        """The running program. Raises KernelError before install."""
        if self._process is None:
            raise KernelError("fastmasq has not been started in this lab")
        return self._process

    def is_running(self) -> bool:
        """Return whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def install(self) -> str:
        """Start it and return the line that says it forwards. Raises KernelError with what it said instead."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.configuration.write_text(self._text)
        argv = [*self._command, "run", "-c", str(self.configuration), *self._options]
        with self._log("stdout").open("wb") as output, self._log("stderr").open("wb") as errors:
            self._process = self.lab.popen("gateway", argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        hosts.wait_until(lambda: self._forwards() or not self.is_running(), START_TIMEOUT_S)
        if self._forwards() and self.is_running():
            return self.output().strip()
        status = self._process.poll()
        state = f"said nothing for {START_TIMEOUT_S:g} s" if status is None else f"ended with status {status}"
        self._kill()
        raise KernelError(f"fastmasq in the gateway {state} before it forwarded: {self.errors() or 'no message'}")

    def remove(self) -> None:
        """End it by SIGTERM and wait until it has put everything back. Raises FastmasqError unless it exits with 0."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise FastmasqError(f"fastmasq did not end within {STOP_TIMEOUT_S:g} s of SIGTERM") from None
        if status:
            raise FastmasqError(f"fastmasq ended with status {status}: {self.errors() or 'no message'}")

    def run_command(self, *arguments: str) -> str:
        """Return what a client command, for example `sessions`, prints. Raises FastmasqError if it fails."""
        argv = [*self._command, *arguments, "--socket", str(self.socket)]
        columns = str(shutil.get_terminal_size((120, 40)).columns)
        done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "COLUMNS": columns})
        if done.returncode:
            raise FastmasqError(f"fastmasq {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def ask(self, method: str, **parameters: Any) -> Any:
        """Return what it answers on its control socket, for example to `status`. Raises FastmasqError if it fails."""
        return call(str(self.socket), method, **parameters)

    def errors(self) -> str:
        """Return the end of what it wrote to standard error."""
        return self._log("stderr").read_text(errors="replace").strip()[-2000:]

    def _forwards(self) -> bool:
        return self._log("stdout").read_bytes().startswith(b"fastmasq")

    def output(self) -> str:
        """Return what it wrote to standard output."""
        return self._log("stdout").read_text(errors="replace")

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _log(self, stream: str) -> Path:
        return self.directory / stream
