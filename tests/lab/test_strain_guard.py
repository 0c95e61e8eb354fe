"""Under strain: what was taken over is taken away or changed by others, and what is needed is not to be had."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from fastmasq import program
from fastmasq.errors import FastmasqError
from fastmasq.kernel.local_link import HOST_END
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.lab.test_forwarder_host import change_rules
from tests.lab.test_forwarder_links import make_outside_link
from tests.support.lab_network import ECHO_PORT, Network, eventually, round_trip

SERVER = (SERVER_ADDRESS, ECHO_PORT)
RESERVED = "net.ipv4.ip_local_reserved_ports"
ELSEWHERE, PROXY = "198.51.100.7", 8080
FREE_PORT = 20_000  # one of ours, without a session
PUT_BACK = "somebody removed or changed the guard ({}) at {}; it is back"
TAKEN_AWAY = {
    "tc": [
        ("tc qdisc del dev eth1 clsact", "eth1"),
        ("tc filter del dev eth0 ingress", "eth0"),
    ],
    "nftables": [
        ("nft flush chain netdev fastmasq link_eth1", "eth1"),
        ("nft flush ruleset", "eth0, eth1"),
    ],
    "iptables": [("iptables-legacy -t raw -F", "eth0, eth1")],
}


def shell(net: Network, command: str) -> None:
    net.run("gateway", "sh", "-c", command)


def lines(net: Network, text: str) -> int:
    """Return how many lines of the log have a text."""
    return sum(text in line for line in net.fastmasq.errors().splitlines())


def host_answers(net: Network) -> bool:
    """Return whether the host resets what comes for one of our ports, as it does without a guard."""
    try:
        net.connect("server", (EXTERNAL_ADDRESS, FREE_PORT), timeout=0.1)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    raise AssertionError("nobody listens there")


@pytest.mark.parametrize("guard", TAKEN_AWAY)
def test_a_guard_that_somebody_takes_away_is_put_back_with_one_line(net: Network, guard: str) -> None:
    """Connections that were quiet meanwhile live on: the host resets those alone that something came for just then."""
    net.start(f'[takeover]\nguard = "{guard}"')
    net.echo_tcp()
    connection = net.connect("inside", SERVER)
    assert round_trip(connection, None, b"before")
    before = net.status()["guard"]
    for number, (command, links) in enumerate(TAKEN_AWAY[guard], 1):
        shell(net, command)
        line = PUT_BACK.format(guard, links)
        eventually(lambda line=line: lines(net, line) == 1, what=line)
        assert lines(net, "somebody") == number
        assert not host_answers(net)
        assert round_trip(connection, None, b"after")
        assert net.status()["guard"] == before


@contextlib.contextmanager
def stopped(net: Network) -> Iterator[None]:
    """Have fastmasq notice nothing for a moment."""
    net.fastmasq.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        net.fastmasq.process.send_signal(signal.SIGCONT)


def test_status_shows_where_the_guard_is_missing_until_it_can_be_put(net: Network) -> None:
    net.start('[takeover]\nguard = "tc"')
    before = net.status()["guard"]["detail"]
    with stopped(net):
        shell(
            net, "tc filter del dev eth1 ingress; tc filter add dev eth1 ingress pref 1 protocol ip u32 match u32 0 0"
        )
    eventually(lambda: lines(net, "cannot attach a filter with priority 1 to the ingress of eth1") == 1)
    assert net.status()["guard"]["detail"] == "tc: eBPF classifier at the ingress of eth0; missing at eth1"
    eventually(lambda: host_answers(net), what="a reset of the host")
    shell(net, "tc filter del dev eth1 ingress pref 1")
    eventually(lambda: net.status()["guard"]["detail"] == before, what="the guard")
    assert not host_answers(net)


def test_settings_that_somebody_sets_have_what_we_need_and_keep_what_he_wants(net: Network) -> None:
    net.start('[masquerade]\nports = "40000-44999"')
    assert net.sysctl("gateway", RESERVED) == "40000-44999"
    net.run("gateway", "sysctl", "-qw", f"{RESERVED}=9090")
    eventually(lambda: net.sysctl("gateway", RESERVED) == "9090,40000-44999", what="both")
    eventually(lambda: lines(net, f"somebody set {RESERVED}; it has our ports, too, again") == 1, what="the line")
    net.fastmasq.remove()
    assert net.sysctl("gateway", RESERVED) == "9090"


def limit_descriptors(net: Network, left: int) -> tuple[int, int]:
    """Leave fastmasq so many descriptors beside those it has; return the limits of before."""
    pid = net.fastmasq.process.pid
    used = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    return resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + left, hard))


class Idlers:
    """Clients of the control socket that say nothing, and come again when they are turned away."""

    def __init__(self, net: Network, count: int) -> None:
        self._path = str(net.fastmasq.socket)
        self._is_over = threading.Event()
        self._selector = selectors.DefaultSelector()
        self.turned_away = 0
        for _ in range(count):
            self._come()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def _come(self) -> None:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(1)
        with contextlib.suppress(OSError):  # there are too many in the queue
            client.connect(self._path)
        self._selector.register(client, selectors.EVENT_READ)

    def _run(self) -> None:
        while not self._is_over.is_set():
            for key, _ in self._selector.select(0.05):
                self._selector.unregister(key.fileobj)
                key.fileobj.close()
                self.turned_away += 1
                self._come()


def test_a_link_made_anew_comes_back_though_idle_clients_have_all_descriptors(net: Network) -> None:
    net.start()
    net.echo_udp()
    near = net.udp("inside")
    assert round_trip(near, SERVER, b"before")
    limit_descriptors(net, 3)
    idlers = net.keep(Idlers(net, 12))
    net.ip("gateway", "link delete eth1")
    eventually(lambda: idlers.turned_away > 12, what="clients that take what the link has left")
    make_outside_link(net)
    eventually(lambda: round_trip(near, SERVER, b"after", 0.1), what="forwarding")
    eventually(lambda: not host_answers(net), what="the guard")
    assert "Traceback" not in net.fastmasq.errors()


REDIRECT = {
    "do": "append",
    "chain": "input",
    "rule": {"match": {"protocol": 6, "destination_ports": [[80, 80]]}, "target": "REDIRECT", "redirect_port": PROXY},
}


def test_a_redirect_that_there_are_no_descriptors_for_is_refused_as_a_whole_and_may_come_later(net: Network) -> None:
    """Or proxies would never learn the original destination, for want of what was to be had again a second later."""
    net.start()
    pid = net.fastmasq.process.pid
    before = limit_descriptors(net, 6)
    with pytest.raises(FastmasqError, match=r"cannot learn the original destination.*: Too many open files"):
        change_rules(net, REDIRECT)
    assert HOST_END not in net.ip("gateway", "link show")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    change_rules(net, REDIRECT)
    listener = net.listen("gateway", port=PROXY)
    net.connect("inside", (ELSEWHERE, 80))
    far = net.keep(listener.accept()[0])
    assert far.getsockname() == (ELSEWHERE, 80)
    assert "Traceback" not in net.fastmasq.errors()


def test_a_hang_up_under_nohup_is_ignored_with_a_word(net: Network) -> None:
    net.start(command=["nohup", *program.command()])
    net.fastmasq.process.send_signal(signal.SIGHUP)
    assert net.answers("inside", SERVER_ADDRESS)
    assert lines(net, "SIGHUP is ignored, as nohup wants it; `fastmasq reload` reads the configuration again") == 1
