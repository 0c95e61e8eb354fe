"""The HOWTO's rule sets, word for word, in a running fastmasq: what becomes of real packets, one table for each set.

Each probe is one packet and its answer. Either is heard where it should arrive, or a drop counter says what became of
it; so nothing waits for a packet that never comes. A TCP probe is a SYN, answered by the listener's kernel; ESP, AH and
GRE come from raw sockets. That `-c` and `-C` give the same verdicts is tested in tests/unit/legacy/test_howto_rules.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastmasq.advice.templates import FOLDER as TEMPLATES
from fastmasq.control.client import call
from fastmasq.lab.topology import EXTERNAL_ADDRESS, Lab
from fastmasq.wire.numbers import AH, ESP, GRE, ICMP, TCP, UDP
from tests.support.lab_network import Network, Overheard, eventually
from tests.support.packets import internet_checksum

RULE_SETS = Path(__file__).parents[1] / "data" / "howto-rules"
SYN, SYN_ACK = 0x02, 0x12
ECHO, ECHO_REPLY, UNREACHABLE = 8, 0, 3
QUESTION, ANSWER = (SYN, ECHO), (SYN_ACK, ECHO_REPLY)  # what is to be seen of TCP and of ICMP; the rest comes once


class Kind(NamedTuple):
    """A packet but for its addresses: protocol, ports, what follows the header of IP or UDP, and what answers it."""

    protocol: int
    source_port: int = 0
    port: int = 0
    question: bytes = b"question"
    answer: bytes = b"answer"


def isakmp(responder: int) -> bytes:
    """Return the header of an ISAKMP message of main mode; a responder's cookie of 0 begins an exchange."""
    return struct.pack(">QQBBBBII", 0x0123456789ABCDEF, responder, 1, 0x10, 2, 0, 0, 28)


def echo(type_: int) -> bytes:
    message = struct.pack(">BBHHH", type_, 0, 0, 1025, 1)
    return struct.pack(">BBHHH", type_, 0, internet_checksum(message), 1025, 1)


GRE_HEADER = struct.pack(">HH", 0, 0x0800)  # version 0: no call of PPTP
KINDS = {
    "isakmp": Kind(UDP, 500, 500, isakmp(0), isakmp(1)),
    "isakmp from another port": Kind(UDP, 1025, 500, isakmp(0), isakmp(1)),
    "dns": Kind(UDP, 1025, 53),
    "pptp": Kind(TCP, 1025, 1723),
    "web": Kind(TCP, 1025, 80),
    "ping": Kind(ICMP, question=echo(ECHO), answer=echo(ECHO_REPLY)),
    "gre": Kind(GRE, question=GRE_HEADER + b"question", answer=GRE_HEADER + b"answer"),
    "esp": Kind(
        ESP, question=struct.pack(">II", 0x1001, 1) + bytes(24), answer=struct.pack(">II", 0x2002, 1) + bytes(24)
    ),
    "ah": Kind(AH, question=struct.pack(">BBHII", 4, 4, 0, 0x1001, 1) + bytes(12)),
}


class Place(NamedTuple):
    """Who sends or gets a packet: the host, its address, and the address that others write to, if it is another."""

    host: str
    address: str
    known_as: str = ""

    @property
    def target(self) -> str:
        return self.known_as or self.address


CLIENT, LAN_HOST = Place("inside", "10.0.0.2"), Place("inside2", "10.0.0.3")
PUBLIC = Place("inside", "10.0.0.2", EXTERNAL_ADDRESS)
REGISTERED, REGISTERED_2 = Place("inside", "222.0.0.2"), Place("inside2", "222.0.0.3")
PEER, PEER_2, PEER_3 = (Place("server", f"199.0.0.{number}") for number in (1, 2, 3))
HOST = Place("gateway", EXTERNAL_ADDRESS)  # a program on the gateway; only as a sender
GATEWAY = ("10.0.0.1", "222.0.0.1", EXTERNAL_ADDRESS)
PASSED = ("masqueraded", "forwarded", "routed")


class Probe(NamedTuple):
    """A packet, and what must become of it and of its answer: one of PASSED and "answered", or a drop's reason.

    The answers to HOST are not looked at.
    """

    kind: str
    sender: Place
    receiver: Place
    question: str
    answer: str = ""

    @property
    def expected(self) -> tuple[str, str]:
        answered = self.question in PASSED and self.sender != HOST
        return self.question, self.answer or ("answered" if answered else "")


def probes(kinds: str, sender: Place, receiver: Place, question: str, answer: str = "") -> list[Probe]:
    """Return a probe for each of some kinds, separated by commas."""
    return [Probe(kind, sender, receiver, question, answer) for kind in kinds.split(", ")]


class Trial:
    """Sends probes through the fastmasq of a network, one after the other, and tells what becomes of them."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self._sniffers = {host: net.sniff(host, "eth0") for host in ("inside", "inside2", "server", "gateway")}

    def check(self, table: list[Probe]) -> None:
        """Assert that each probe fares as its row says, and that the gateway tells nobody of a denial (T-9)."""
        found = [(probe.kind, probe.sender.address, probe.receiver.target, *self.fate(probe)) for probe in table]
        expected = [(probe.kind, probe.sender.address, probe.receiver.target, *probe.expected) for probe in table]
        assert found == expected
        told = [each for sniffer in self._sniffers.values() for each in sniffer.of(sent=False, protocol=ICMP)]
        assert not [each for each in told if each.source in GATEWAY and each.icmp_type_and_code[0] == UNREACHABLE]

    def fate(self, probe: Probe) -> tuple[str, str]:
        """Send a probe and its answer; return what became of both, "" for an answer there was none of."""
        kind, sender, receiver = KINDS[probe.kind], probe.sender, probe.receiver
        lost = self._denied_to_host if sender == HOST else self._drops
        before = lost()
        with contextlib.ExitStack() as opened:
            far = opened.enter_context(self._socket(receiver, kind.protocol, kind.port))
            near = opened.enter_context(self._socket(sender, kind.protocol, kind.source_port))
            if kind.protocol == TCP:
                far.listen()
            came = self._coming(receiver.host, protocol=kind.protocol, destination_port=kind.port)
            back = self._coming(sender.host, protocol=kind.protocol, destination=sender.address, source_port=kind.port)
            near.setblocking(False)
            with contextlib.suppress(BlockingIOError, PermissionError):  # a SYN is on its way; output has denied it
                near.connect((receiver.target, kind.port))
                near.send(kind.question)
            question = _wait(lambda: came(QUESTION), lost, before)
            if isinstance(question, str):
                return question, ""
            if sender == HOST:
                return self._way(question, probe), ""
            if kind.protocol not in (TCP, ICMP):  # the kernel answers those
                far.sendto(kind.answer, (question.source, question.source_port))
            answer = _wait(lambda: back(ANSWER), lost, before)
            if not isinstance(answer, str):
                answer = "answered" if answer.source == receiver.target else f"answered from {answer.source}"
        return self._way(question, probe), answer

    def _way(self, question: Overheard, probe: Probe) -> str:
        """Say what was done to the addresses of a probe that has arrived."""
        ways = {
            (EXTERNAL_ADDRESS, probe.receiver.target): "masqueraded",
            (probe.sender.address, probe.receiver.target): "routed",
        }
        if probe.receiver.known_as:
            ways = {(probe.sender.address, probe.receiver.address): "forwarded"}
        seen = (question.source, question.destination)
        return ways.get(seen, f"from {seen[0]} to {seen[1]}")

    def _socket(self, place: Place, protocol: int, port: int) -> socket.socket:
        type_ = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}.get(protocol, socket.SOCK_RAW)
        with self.net.on(place.host):
            made = socket.socket(socket.AF_INET, type_, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a TCP connection ends at once
        made.bind((place.address, port))
        return made

    def _coming(self, host: str, **fields: object) -> Callable[[tuple[int, int]], list[Overheard]]:
        """Return a function that gives the packets, QUESTION or ANSWER, that a host has got from now on."""
        sniffer = self._sniffers[host]
        earlier = len(sniffer.of(sent=False, **fields))
        return lambda what: [each for each in sniffer.of(sent=False, **fields)[earlier:] if _is(each, *what)]

    def _drops(self) -> dict[str, int]:
        return {row["reason"]: row["packets"] for row in call(str(self.net.fastmasq.socket), "status")["drops"]}

    def _denied_to_host(self) -> dict[str, int]:
        """Return what the output chain has denied: counted by the kernel where the host is the sender (T-5)."""
        [chain] = call(str(self.net.fastmasq.socket), "rules", chain="output")["chains"]
        denials = [each["packets"] for each in chain["rules"] if each["rule"]["target"] == "DENY"]
        return {"output_denied": sum(denials) + (chain["packets"] if chain["policy"] == "DENY" else 0)}


def _wait(
    come: Callable[[], list[Overheard]], lost: Callable[[], dict[str, int]], before: dict[str, int]
) -> Overheard | str:
    """Wait for a packet to come or to be lost: return it, or the one counter that went up by one."""
    eventually(lambda: come() or lost() != before, what="a packet come or a drop counted")
    if heard := come():
        return heard[0]
    grown = {name: count - before.get(name, 0) for name, count in lost().items() if count != before.get(name, 0)}
    [(reason, packets)] = grown.items()
    return reason if packets == 1 else f"{reason}, {packets} packets"


def _is(packet: Overheard, flags: int, icmp_type: int) -> bool:
    if packet.protocol == TCP:
        return packet.tcp_flags & SYN_ACK == flags
    return packet.protocol != ICMP or packet.icmp_type_and_code[0] == icmp_type


def start(net: Network, *sets: str | Path, link: str = "eth1") -> Trial:
    """Start fastmasq with rule sets, one after the other; its outside link bears the name that they use."""
    if link != "eth1":
        net.ip("gateway", f"link set eth1 name {link}")
    files = [str(name if isinstance(name, Path) else RULE_SETS / f"{name}.rules") for name in sets]
    net.start(f"[rules]\nfiles = {json.dumps(files)}", outside=link)
    return Trial(net)


def variants(tool: str, strictness: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return both variants of a set as (link, sets): the lines for eth1 follow the policies in the other (A-7)."""
    modem, permanent = f"{tool}-{strictness}-ppp0", f"{tool}-{strictness}-eth1-lines"
    return [("ppp0", (modem,)), ("eth1", (modem, permanent))]


@pytest.fixture
def registered(make_lab: Callable[..., Lab]) -> Iterator[Network]:
    """Return the network of registered addresses, up, without fastmasq."""
    network = Network(make_lab("registered"))
    yield network
    network.close()


# -- masquerading: HOWTO 3.5, 3.6, 5.2 -------------------------------------------------------------------------------

ALL_BUT_AH = "isakmp, isakmp from another port, dns, pptp, web, ping, gre, esp"
ORDINARY = [  # what all of the sets do that masquerade everything; 3.8-ipfwd has GRE and ESP masqueraded for the client
    *probes(ALL_BUT_AH, CLIENT, PEER, "masqueraded"),
    *probes("pptp, web, ping", LAN_HOST, PEER_2, "masqueraded"),
    *probes("ah", CLIENT, PEER, "ah_not_masqueraded"),
    *probes("gre, esp", PEER_3, PUBLIC, "forwarded"),
]


@pytest.mark.parametrize(("link", "sets"), [*variants("3.5-ipfwadm", "minimum"), *variants("3.6-ipchains", "minimum")])
def test_h30_h32_the_minimum_sets_masquerade_everything(net: Network, link: str, sets: tuple[str, ...]) -> None:
    net.ip("router", f"route add 10.0.0.0/8 via {EXTERNAL_ADDRESS}")
    trial = start(net, *sets, "3.8-ipfwd", link=link)
    trial.check([*ORDINARY, *probes("pptp, web, ping, gre, esp", PEER_2, CLIENT, "forward_denied")])


TIGHT = [
    *probes("isakmp, pptp, gre, esp", CLIENT, PEER, "masqueraded"),
    *probes("isakmp from another port, dns, web", CLIENT, PEER, "forward_denied"),
    *probes("isakmp, pptp, web, ping, gre, esp, ah", CLIENT, PEER_2, "forward_denied"),
    *probes("isakmp, pptp, web, ping, gre, esp, ah", LAN_HOST, PEER, "forward_denied"),
    *probes("gre, esp", PEER, PUBLIC, "forwarded"),
    *probes("dns, web", PEER, PUBLIC, "input_denied"),
    *probes("isakmp, gre, esp", PEER_2, PUBLIC, "input_denied"),
    *probes("isakmp, pptp, ping, gre, esp", PEER_2, CLIENT, "input_denied"),
    *probes("isakmp, pptp, gre, esp", PEER, CLIENT, "input_denied"),
]


TIGHT_FOR_HOST = [
    *probes("isakmp, pptp, gre, esp", HOST, PEER, "routed"),
    *probes("isakmp from another port, dns, web", HOST, PEER, "output_denied"),
    *probes("isakmp, pptp, ping, gre, esp", HOST, PEER_2, "output_denied"),
]


@pytest.mark.parametrize(("link", "sets"), variants("3.5-ipfwadm", "tight"))
def test_h31_the_tight_ipfwadm_sets_let_the_vpn_and_protocols_without_ports_through(
    net: Network, link: str, sets: tuple[str, ...]
) -> None:
    net.ip("router", f"route add 10.0.0.0/8 via {EXTERNAL_ADDRESS}")
    trial = start(net, *sets, "3.8-ipfwd", link=link)
    trial.check(
        [*TIGHT, *probes("ping", CLIENT, PEER, "masqueraded"), *probes("ah", CLIENT, PEER, "ah_not_masqueraded")]
    )
    trial.check([*TIGHT_FOR_HOST, *probes("ping, ah", HOST, PEER, "routed")])


@pytest.mark.parametrize(("link", "sets"), variants("3.6-ipchains", "tight"))
def test_h32_the_tight_ipchains_sets_let_nothing_but_the_vpn_through(
    net: Network, link: str, sets: tuple[str, ...]
) -> None:
    net.ip("router", f"route add 10.0.0.0/8 via {EXTERNAL_ADDRESS}")
    trial = start(net, *sets, "3.8-ipfwd", link=link)
    trial.check([*TIGHT, *probes("ping, ah", CLIENT, PEER, "forward_denied")])
    trial.check([*TIGHT_FOR_HOST, *probes("ping, ah", HOST, PEER, "output_denied")])


@pytest.mark.parametrize("name", ["5.2-ipfwadm-open", "5.2-ipchains-open"])
def test_h68_the_open_sets_masquerade_everything(net: Network, name: str) -> None:
    """A-21: packets for the inside are let in as well. They are not masqueraded, having no address to hide behind."""
    net.ip("router", f"route add 10.0.0.0/8 via {EXTERNAL_ADDRESS}")
    start(net, name, "3.8-ipfwd").check(
        [*ORDINARY, *probes("web, esp", PEER_2, CLIENT, "routed", f"answered from {EXTERNAL_ADDRESS}")]
    )


# -- servers with private addresses: HOWTO 3.8 -----------------------------------------------------------------------

MASQUERADING = {tool: variants(tool, "minimum")[1][1] for tool in ("3.5-ipfwadm", "3.6-ipchains")}
SERVERS = {"pptp": "pptp", "ipsec": "isakmp"}


@pytest.mark.parametrize("tool", MASQUERADING)
@pytest.mark.parametrize(("vpn", "kind"), SERVERS.items())
def test_h36_h39_h40_a_server_inside_is_reached_and_answers_as_the_gateway(
    net: Network, tool: str, vpn: str, kind: str
) -> None:
    trial = start(net, *MASQUERADING[tool], f"3.8-ipportfw-static-{vpn}", "3.8-ipfwd")
    trial.check([probe for peer in (PEER, PEER_2) for probe in probes(f"{kind}, gre, esp", peer, PUBLIC, "forwarded")])
    trial.check(probes("web, ping, dns", LAN_HOST, PEER, "masqueraded"))


def test_h40_t6_answers_of_a_server_need_a_rule_that_masquerades(net: Network, tmp_path: Path) -> None:
    policy = tmp_path / "rc.firewall"
    policy.write_text("ipchains -P forward DENY\n")
    trial = start(net, policy, "3.8-ipportfw-static-pptp", "3.8-ipfwd")
    trial.check(probes("pptp, gre, esp", PEER, PUBLIC, "forwarded", "forward_denied"))


def test_h37_the_blocks_for_a_dynamic_address_are_run_by_ip_up(net: Network) -> None:
    """A-14: each block clears the table first, so the one run last is the one in force."""
    trial = start(net, "3.6-ipchains-minimum-ppp0", "3.8-ipfwd", link="ppp0")
    for vpn, kind in SERVERS.items():
        arguments = f"ppp0 /dev/ttyS0 115200 {EXTERNAL_ADDRESS} 200.200.200.1".split()
        net.fastmasq.run_command("rule", "load", str(RULE_SETS / f"3.8-ipportfw-dynamic-{vpn}.rules"), *arguments)
        trial.check(probes(f"{kind}, gre, esp", PEER, PUBLIC, "forwarded"))
    [left] = json.loads(net.fastmasq.run_command("forward", "list", "--json"))
    assert (left["protocol"], left["address"]) == ("udp", EXTERNAL_ADDRESS)


def test_h38_both_servers_by_ipmasqadm(net: Network) -> None:
    trial = start(net, *MASQUERADING["3.6-ipchains"], TEMPLATES / "3.8-ipmasqadm-server.rules", "3.8-ipfwd")
    trial.check(probes("pptp, isakmp, gre, esp", PEER, PUBLIC, "forwarded"))


def test_h36_a14_the_second_block_takes_the_first_away(net: Network) -> None:
    trial = start(net, *MASQUERADING["3.6-ipchains"], "3.8-ipportfw-static-pptp", "3.8-ipportfw-static-ipsec")
    trial.check([Probe("isakmp", PEER, PUBLIC, "forwarded"), Probe("pptp", PEER, PUBLIC, "no_session")])


# -- registered addresses: HOWTO 3.9, 3.10 ---------------------------------------------------------------------------

WITH_PORTS = "isakmp, isakmp from another port, dns, pptp, web"
SERVER_FOR_TWO = [
    *(row for peer in (PEER_2, PEER_3) for row in probes("isakmp, pptp, gre, esp", peer, REGISTERED, "routed")),
    *probes("isakmp from another port, dns, web", PEER_2, REGISTERED, "input_denied"),
    *probes(f"{WITH_PORTS}, ping, gre, esp, ah", PEER, REGISTERED, "input_denied"),
    *probes("isakmp, pptp, ping, gre, esp", PEER_2, REGISTERED_2, "input_denied"),
    *probes("isakmp, gre, esp", REGISTERED, PEER_2, "routed"),
    *probes("web, pptp, dns", REGISTERED, PEER_2, "routed", "input_denied"),
    *probes("web, ping, esp", REGISTERED_2, PEER, "routed", "input_denied"),
]


def test_h43_a_registered_server_is_routed_for_its_two_clients(registered: Network) -> None:
    """All protocols without ports pass with them, as the HOWTO says: ipfwadm knows no numbers of protocols."""
    trial = start(registered, "3.9-ipfwadm-registered-server")
    trial.check([*SERVER_FOR_TWO, *probes("ping, ah", PEER_2, REGISTERED, "routed")])


def test_h46_a_registered_server_with_ipchains(registered: Network) -> None:
    trial = start(registered, TEMPLATES / "3.9-ipchains-registered-server.rules")
    trial.check([*SERVER_FOR_TWO, *probes("ping, ah", PEER_2, REGISTERED, "input_denied")])


CLIENT_OF_ONE = [
    *probes("isakmp, pptp, gre, esp", REGISTERED, PEER, "routed"),
    *probes("isakmp, gre, esp", PEER, REGISTERED, "routed"),
    *probes("isakmp from another port, dns, web", REGISTERED, PEER, "routed", "input_denied"),
    *probes(f"{WITH_PORTS}, ping, gre, esp", REGISTERED, PEER_2, "routed", "input_denied"),
    *probes(f"{WITH_PORTS}, ping, gre, esp, ah", PEER_2, REGISTERED, "input_denied"),
    *probes("isakmp from another port, dns, pptp, web", PEER, REGISTERED, "input_denied"),
    *probes("isakmp, pptp, ping, gre, esp", REGISTERED_2, PEER, "routed", "input_denied"),
]


def test_h45_a_registered_client_is_routed_to_its_server(registered: Network) -> None:
    trial = start(registered, "3.10-ipfwadm-registered-client")
    trial.check([*CLIENT_OF_ONE, *probes("ping, ah", REGISTERED, PEER, "routed")])


def test_h46_a_registered_client_with_ipchains(registered: Network) -> None:
    trial = start(registered, TEMPLATES / "3.10-ipchains-registered-client.rules")
    trial.check([*CLIENT_OF_ONE, *probes("ping, ah", REGISTERED, PEER, "routed", "input_denied")])


VPN_OF_TWO = [row for peer in (PEER_2, PEER_3) for row in probes("isakmp, pptp, gre, esp", peer, REGISTERED, "routed")]
VPN_OF_ONE = probes("isakmp, pptp, gre, esp", REGISTERED, PEER, "routed")


@pytest.mark.parametrize(
    ("rules", "passing", "stranger"),
    [
        (RULE_SETS / "3.9-ipfwadm-registered-server.rules", VPN_OF_TWO, PEER),
        (TEMPLATES / "3.9-ipchains-registered-server.rules", VPN_OF_TWO, PEER),
        (RULE_SETS / "3.10-ipfwadm-registered-client.rules", VPN_OF_ONE, PEER_2),
        (TEMPLATES / "3.10-ipchains-registered-client.rules", VPN_OF_ONE, PEER_2),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_a5_h43_h45_h46_where_output_denies_the_rules_let_the_vpn_out(
    registered: Network, tmp_path: Path, rules: Path, passing: list[Probe], stranger: Place
) -> None:
    """By themselves the sets deny nothing on its way out, and their rules for output change nothing."""
    policy = tmp_path / "rc.firewall"
    policy.write_text("ipfwadm -O -p deny\nipfwadm -O -a accept -W eth0\n")
    trial = start(registered, policy, rules)
    trial.check([*passing, *probes("isakmp, pptp, gre, esp, ping", REGISTERED, stranger, "output_denied")])


def test_a3_the_rules_hold_only_where_the_link_has_that_address(registered: Network) -> None:
    """`-V` asks for the address of the link: with another on it, no rule of 3.9 matches, and everything passes."""
    registered.ip("gateway", "address flush dev eth1")
    registered.ip("gateway", "address add 200.200.200.201/24 dev eth1")
    registered.ip("gateway", "route add default via 200.200.200.1")
    registered.ip("router", "route replace 222.0.0.0/24 via 200.200.200.201")
    start(registered, "3.9-ipfwadm-registered-server").check(probes("web, ping", PEER, REGISTERED, "routed"))
