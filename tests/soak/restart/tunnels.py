"""The tunnels of the restart soak: a PPTP call of the real programs, and a pair of ESP SAs, with pings in both."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from tests.soak.restart.hosts import PATIENCE_S, ordinary
from tests.support.ipsec_hosts import IpsecHost
from tests.support.lab_network import Network
from tests.support.pptp_programs import Client, start_pptpd

ADOPTED = {"calls": 1, "sas": 1}
"""What each start must say that it goes on with, beside sessions."""
PAUSE_S = 0.5  # from an answer to the next ping
_LCP_NUMBERS = 250  # an octet says which


class Tunnel(NamedTuple):
    """How many pings were answered in a tunnel, and what ended it too early, if anything did."""

    name: str
    pings: int
    failure: str


class _Pinging:
    """A thread that pings through a tunnel, one ping after another, each sent again until it is answered."""

    def __init__(self, name: str, answers: Callable[[int], bool]) -> None:
        self._name, self._answers = name, answers
        self._pings, self._failure = 0, ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ping)
        self._thread.start()

    def end(self) -> Tunnel:
        self._over.set()
        self._thread.join()
        return Tunnel(self._name, self._pings, self._failure)

    def _ping(self) -> None:
        for number in itertools.count(1):
            try:
                if not self._answers(number):
                    self._failure = f"no answer for {PATIENCE_S:g} s"
            except OSError as error:
                self._failure = str(error)
            if self._failure:
                return
            self._pings += 1
            if self._over.wait(PAUSE_S):
                return


def tunnel_all(lab: Lab, orders: Connection) -> None:
    """Have a call and a pair of SAs between inside hosts and the server; say when there are, and how it went."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.closing(Network(lab)) as net:
        start_pptpd(net, "server", SERVER_ADDRESS)
        client = Client(net, "inside", SERVER_ADDRESS)
        host, address, _ = ordinary(2)
        net.keep(IpsecHost(partial(net.on, "server"), SERVER_ADDRESS))
        peer = net.keep(IpsecHost(partial(net.on, host), address)).negotiate(SERVER_ADDRESS)
        ways = {
            "PPTP call": lambda number: client.answers(number % _LCP_NUMBERS, PATIENCE_S),
            "ESP SAs": lambda _: peer.answers(PATIENCE_S),
        }
        if all(answers(0) for answers in ways.values()):
            orders.send("begun")
        pinging = [_Pinging(name, answers) for name, answers in ways.items()]
        orders.recv()
        orders.send([each.end() for each in pinging])
