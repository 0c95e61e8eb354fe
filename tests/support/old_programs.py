"""The programs of 1999, run in the gateway of a lab as its administrator would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.lab_network import Network

PROGRAMS = Path(sys.executable).parent  # where console scripts are installed


class Old:
    """Runs the old programs in the gateway of a network."""

    def __init__(self, net: Network) -> None:
        self.net = net

    def run(self, line: str, text: str = "", **environment: str) -> subprocess.CompletedProcess:
        program, *words = line.split()
        environment = {"FASTMASQ_SOCKET": str(self.net.fastmasq.socket), "PATH": "/usr/sbin:/usr/bin", **environment}
        argv = [str(PROGRAMS / program), *words]
        return self.net.lab.exec(
            "gateway", argv, capture_output=True, text=True, input=text, env=environment, timeout=30
        )

    def lines(self, line: str, text: str = "") -> list[str]:
        """Run a program that must succeed in silence on standard error; return what it prints."""
        done = self.run(line, text)
        assert (done.returncode, done.stderr) == (0, ""), line
        return done.stdout.splitlines()
