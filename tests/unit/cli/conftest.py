"""What the tests of the commands share: a runner, a forwarder that answers, and stand-ins for the layers below."""

from __future__ import annotations

import asyncio
import sys
import threading
import types

import pytest
from click.testing import CliRunner

from fastmasq.cli.main import fastmasq
from fastmasq.control.server import Server
from fastmasq.daemon.rules import Rules
from fastmasq.trackers.vpn.preload import PreloadError
from tests.support.answers import STATUS
from tests.support.harness import Harness

SESSIONS = [
    {
        "protocol": "tcp",
        "state": "established",
        "inside": "10.0.0.2:40000",
        "external": "200.200.200.200:40000",
        "remote": "199.0.0.1:80",
        "expires_s": 7431.2,
        "idle_s": 8.8,
        "packets_out": 12,
        "packets_in": 10,
    },
    {
        "protocol": "icmp",
        "state": "active",
        "inside": "10.255.255.254:7",
        "external": "200.200.200.200:61000",
        "remote": "199.255.255.255:7",
        "expires_s": 0.4,
        "idle_s": 59.6,
        "packets_out": 1_000_000_000,
        "packets_in": 0,
    },
]


class Forwarder:
    """Answers on a control socket as the daemon does; `asked` keeps the parameters of each call."""

    def __init__(self, path):
        self.path = str(path)
        self.asked = []
        self.status = STATUS
        self.sessions = SESSIONS
        self.total = len(SESSIONS)
        self.rules = Rules(Harness().forwarder, sessions=1)
        self.forwards = []
        self.triggers = []
        self.marks = []
        self.sas = []
        self.refusal = None  # reason and text
        self._loop = asyncio.new_event_loop()
        self.handlers = {
            "status": self._status,
            "sessions": self._sessions,
            "ping": lambda params: None,
            "forwards": lambda params: self.forwards,
            "triggers": lambda params: self.triggers,
            "marks": lambda params: self.marks,
            "esp": self._list_sas,
            "esp.change": self._change_sas,
            "rules": self.rules.listed,
            "rules.check": self.rules.evaluate,
        }
        self._server = Server(self.path, self.handlers, self._loop)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _status(self, params):
        self.asked.append(params)
        return self.status

    def _sessions(self, params):
        self.asked.append(params)
        return {"total": self.total, "sessions": self.sessions[: self.total]}

    def _list_sas(self, params):
        self.asked.append(params)
        return self.sas

    def _change_sas(self, params):
        self.asked.append(params)
        if self.refusal:
            raise PreloadError(*self.refusal)
        return {"changed": 1}

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._server.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


@pytest.fixture
def forwarder(tmp_path):
    forwarder = Forwarder(tmp_path / "fm.sock")
    yield forwarder
    forwarder.stop()


@pytest.fixture(autouse=True)
def no_socket_in_the_environment(monkeypatch):
    monkeypatch.delenv("FASTMASQ_SOCKET", raising=False)


@pytest.fixture
def run():
    """Run the command line; nothing may end in a traceback."""

    def run(*arguments):
        result = CliRunner().invoke(fastmasq, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def stand_in(monkeypatch):
    """Put a module with these contents in the place of another."""

    def stand_in(name, **contents):
        module = types.ModuleType(name)
        vars(module).update(contents)
        parent, _, child = name.rpartition(".")
        monkeypatch.setitem(sys.modules, name, module)
        if parent:
            monkeypatch.setattr(f"{parent}.{child}", module, raising=False)

    return stand_in


@pytest.fixture
def config_file(tmp_path, forwarder):
    path = tmp_path / "fastmasq.toml"
    path.write_text(f'[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n[control]\nsocket = "{forwarder.path}"\n')
    return path
