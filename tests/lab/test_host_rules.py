"""The chains input and output protect the gateway host itself: its services, its own packets, loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, fragment

from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.kernel.host_rules.ruleset import HostRules
from fastmasq.kernel.host_rules.unsolicited import Gate
from fastmasq.kernel.links import interface_addresses
from fastmasq.kernel.takeover import Takeover, release
from fastmasq.policy.chains import ACCEPT, DENY, INPUT, OUTPUT, REJECT, RETURN, Match, Rule, RuleSet
from fastmasq.wire import numbers
from tests.support.guarded_host import (
    EXTERNAL,
    FOREIGN,
    INSIDE,
    SPEC,
    TIMEOUT_S,
    ping,
    services,
    tcp,
    traces,
    udp,
)
from tests.support.harness import address
from tests.support.namespaces import Gateway, Namespace

SSH, DNS = 22, 5353
ANSWERS = Rule(match=Match(protocol=numbers.TCP, syn=False), target=ACCEPT)
FROM_INSIDE = Match(source=(address("10.0.0.0"), 0xFF000000), interface="eth0")


class Judged:
    """The rules in force on the gateway host, and the set that they are to be."""

    def __init__(self, host: Namespace) -> None:
        self.host = host
        self.rules = HostRules()
        self.set = RuleSet()

    def update(self) -> list[str]:
        with self.host.entered():
            return self.rules.update(self.set, interface_addresses())

    def policy(self, chain: str, target: str) -> None:
        self.set.set_policy(chain, target)
        self.update()

    def append(self, chain: str, *rules: Rule) -> None:
        for rule in rules:
            self.set.append(chain, rule)
        self.update()

    def counts(self, chain: str) -> list[int]:
        """Return how many packets met the policy, and each rule."""
        with self.host.entered():
            self.rules.collect(self.set)
        return [self.set.chain(chain).packets, *(counted.packets for counted in self.set.chain(chain).rules)]


@pytest.fixture
def judged(gateway: Gateway) -> Judged:
    return Judged(gateway.host)


def port(number: int, **more: object) -> Match:
    return Match(protocol=numbers.TCP, destination_ports=((number, number),), **more)


def send_error(host: Namespace, destination: str, number: int) -> str:
    """Return what the kernel says to a program that sends a datagram."""
    with host.entered(), socket.socket(type=socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(b"x", (destination, number))
        except OSError as error:
            return error.strerror
    return ""


def test_h31_input_policy_deny_protects_the_hosts_services(gateway: Gateway, judged: Judged) -> None:
    with services(gateway.host, (INSIDE, EXTERNAL), (SSH, DNS)):
        assert tcp(gateway.outside, EXTERNAL, SSH) == "connected"
        judged.policy(INPUT, DENY)
        for peer, own in ((gateway.outside, EXTERNAL), (gateway.inside, INSIDE)):
            assert tcp(peer, own, SSH) == "silence"
            assert udp(peer, own, DNS) == "silence"
            assert udp(peer, own, DNS, size=4000) == "silence", "in fragments"
            assert not ping(peer, own)
        judged.append(INPUT, Rule(match=FROM_INSIDE, target=ACCEPT))
        assert tcp(gateway.inside, INSIDE, SSH) == "connected"
        assert udp(gateway.inside, INSIDE, DNS) == "answered"
        assert udp(gateway.inside, INSIDE, DNS, size=4000) == "answered", "in fragments"
        assert tcp(gateway.outside, EXTERNAL, SSH) == "silence"


def test_t5_what_the_host_sends_meets_output_and_the_answers_input(gateway: Gateway, judged: Judged) -> None:
    with services(gateway.outside, (FOREIGN,), (80, 81)):
        judged.policy(INPUT, DENY)
        assert tcp(gateway.host, FOREIGN, 80) == "silence", "the answer is not let in"
        judged.append(INPUT, ANSWERS)
        assert tcp(gateway.host, FOREIGN, 80) == "connected"
        assert tcp(gateway.outside, EXTERNAL, SSH) == "silence", "-y"
        judged.policy(OUTPUT, DENY)
        assert tcp(gateway.host, FOREIGN, 80) == "silence"
        judged.append(OUTPUT, Rule(match=port(80, interface="eth+"), target=ACCEPT))
        assert tcp(gateway.host, FOREIGN, 80) == "connected"
        assert tcp(gateway.host, FOREIGN, 81) == "silence"


def test_a11_deny_locks_loopback_out_until_a_rule_for_it(gateway: Gateway, judged: Judged) -> None:
    with services(gateway.host, ("127.0.0.1", INSIDE), (SSH,)):
        judged.policy(INPUT, DENY)
        assert tcp(gateway.host, "127.0.0.1", SSH) == "silence"
        assert tcp(gateway.host, INSIDE, SSH) == "silence", "an own address is reached by lo"
        judged.append(INPUT, Rule(match=Match(interface="lo"), target=ACCEPT))
        assert tcp(gateway.host, "127.0.0.1", SSH) == "connected"
        assert tcp(gateway.host, INSIDE, SSH) == "connected"
        judged.policy(OUTPUT, DENY)
        assert tcp(gateway.host, "127.0.0.1", SSH) == "silence", "output on lo comes first"


def test_a11_ipv6_arp_and_netlink_are_left_alone(gateway: Gateway, judged: Judged) -> None:
    gateway.host.ip("addr add fd00::1/64 dev eth0 nodad")
    gateway.inside.ip("addr add fd00::2/64 dev eth0 nodad")
    judged.policy(INPUT, DENY)
    judged.policy(OUTPUT, DENY)
    assert ping(gateway.inside, "fd00::1")
    gateway.inside.ip("neigh flush all")
    ping(gateway.inside, INSIDE)
    assert "lladdr" in gateway.inside.ip(f"neigh show {INSIDE}")
    with gateway.host.entered():
        assert "eth0" in interface_addresses()


def test_t9_input_reject_is_port_unreachable(gateway: Gateway, judged: Judged) -> None:
    with services(gateway.host, (EXTERNAL,), (SSH, DNS)):
        judged.policy(INPUT, REJECT)
        assert tcp(gateway.outside, EXTERNAL, SSH) == "refused"
        assert udp(gateway.outside, EXTERNAL, DNS) == "refused"
        said = gateway.outside.sh(f"ping -c1 -W1 {EXTERNAL}", check=False)
        assert "Destination Port Unreachable" in said
        judged.policy(OUTPUT, DENY)
        assert udp(gateway.outside, EXTERNAL, DNS) == "silence", "the answer is a packet of the host's own"


def test_t9_output_reject_gives_the_program_an_error(gateway: Gateway, judged: Judged) -> None:
    judged.append(OUTPUT, Rule(match=Match(destination_ports=((80, 81),)), target=REJECT))
    judged.policy(INPUT, DENY)
    judged.policy(OUTPUT, DENY)
    assert tcp(gateway.host, FOREIGN, 80) == "refused", "at once, though no rule lets anything in"
    assert tcp(gateway.host, FOREIGN, 82) == "silence", "DENY"
    assert send_error(gateway.host, FOREIGN, 81) == "Operation not permitted"


def test_user_chains_return_and_jumps(gateway: Gateway, judged: Judged) -> None:
    judged.set.new_chain("services")
    judged.set.new_chain("trusted")
    judged.append(
        "trusted", Rule(match=Match(interface="eth0", not_interface=True), target=RETURN), Rule(target=ACCEPT)
    )
    judged.append("services", Rule(match=port(SSH, syn=True), target="trusted"), Rule(match=port(DNS), target=ACCEPT))
    judged.append(INPUT, Rule(match=Match(protocol=numbers.TCP), target="services"), Rule(target=REJECT))
    with services(gateway.host, (INSIDE, EXTERNAL), (SSH, DNS, 80)):
        assert tcp(gateway.inside, INSIDE, DNS) == "connected"
        assert tcp(gateway.outside, EXTERNAL, SSH) == "refused"
        assert tcp(gateway.inside, INSIDE, 80) == "refused"
        assert ping(gateway.inside, INSIDE) is False
        assert judged.counts("trusted") == [0, 1, 0]


def test_a_loop_denies(gateway: Gateway, judged: Judged) -> None:
    judged.set.new_chain("a")
    judged.set.new_chain("b")
    judged.append("a", Rule(match=Match(protocol=numbers.ICMP), target="b"))
    judged.append("b", Rule(match=Match(interface="eth0"), target="a"))
    judged.append(INPUT, Rule(target="a"))
    assert not ping(gateway.inside, INSIDE)
    assert ping(gateway.outside, EXTERNAL)
    assert judged.counts("b") == [0, 1]


def test_icmp_types(gateway: Gateway, judged: Judged) -> None:
    judged.append(INPUT, Rule(match=Match(protocol=numbers.ICMP, source_ports=((8, 8),)), target=DENY))
    assert not ping(gateway.outside, EXTERNAL)
    assert ping(gateway.host, FOREIGN), "echo replies are of another type"


def test_5_2_example_4_the_address_of_an_interface(gateway: Gateway, judged: Judged) -> None:
    """`ipfwadm -I -a deny -W eth1 -V ADDRESS -P tcp` never matches where eth1 has another address."""
    match = Match(protocol=numbers.TCP, interface="eth1", interface_address=address(EXTERNAL))
    judged.append(INPUT, Rule(match=match, target=DENY))
    with services(gateway.host, (INSIDE,), (SSH,)):
        assert tcp(gateway.outside, INSIDE, SSH) == "silence"
        assert tcp(gateway.inside, INSIDE, SSH) == "connected"
        gateway.host.ip(f"addr del {EXTERNAL}/24 dev eth1")
        gateway.host.ip("addr add 200.200.200.201/24 dev eth1")
        gateway.host.ip("route add default via 200.200.200.1")
        gateway.outside.ip("route replace 10.0.0.0/8 via 200.200.200.201")
        judged.update()
        assert tcp(gateway.outside, INSIDE, SSH) == "connected"


def test_5_3_flags_hidden_in_a_second_fragment_are_denied(gateway: Gateway, judged: Judged) -> None:
    """A SYN whose flags come eight octets late would pass a rule that denies SYNs."""
    syn = IP(src="200.200.200.1", dst=EXTERNAL, id=7) / TCP(sport=7777, dport=SSH, flags="S")
    pieces = [bytes(piece) for piece in fragment(IP(bytes(syn)), fragsize=8)]
    assert [IP(piece).frag for piece in pieces] == [0, 1, 2]
    with gateway.outside.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        hearer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    hearer.settimeout(TIMEOUT_S)
    with sender, hearer, services(gateway.host, (EXTERNAL,), (SSH,)):
        for piece in pieces:
            sender.sendto(piece, (EXTERNAL, 0))
        assert IP(hearer.recv(100)).payload.flags == "SA"
        judged.append(INPUT, Rule(match=Match(protocol=numbers.TCP, syn=True), target=DENY))
        for piece in pieces:
            sender.sendto(piece, (EXTERNAL, 0))
        with pytest.raises(TimeoutError):
            hearer.recv(100)


def test_counters_go_on_through_updates(gateway: Gateway, judged: Judged) -> None:
    echo = Rule(match=Match(protocol=numbers.ICMP), target=ACCEPT)
    judged.append(INPUT, echo)
    assert ping(gateway.outside, EXTERNAL)
    judged.set.insert(INPUT, Rule(match=Match(protocol=numbers.TCP)))
    judged.update()
    assert ping(gateway.outside, EXTERNAL)
    assert udp(gateway.outside, EXTERNAL, DNS) == "refused"
    assert judged.counts(INPUT) == [1, 0, 2]
    assert judged.set.chain(INPUT).rules[1].bytes == 2 * 84
    assert judged.counts(INPUT) == [1, 0, 2], "nothing is added twice"
    judged.set.zero()
    assert ping(gateway.outside, EXTERNAL)
    assert judged.counts(INPUT) == [0, 0, 1]
    copy = judged.set.copy()
    copy.delete(INPUT, 2)
    copy.append(INPUT, echo)
    judged.set = copy
    judged.update()
    assert ping(gateway.outside, EXTERNAL)
    assert judged.counts(INPUT) == [0, 0, 1], "a new rule begins at zero"


def test_updates_leave_no_gap(gateway: Gateway, judged: Judged) -> None:
    judged.set.new_chain("a")
    judged.append(INPUT, Rule(target="a"))
    judged.policy(INPUT, DENY)
    with gateway.host.entered():
        service = socket.socket(type=socket.SOCK_DGRAM)
    service.bind((EXTERNAL, DNS))
    service.setblocking(False)
    flood = gateway.outside.python(
        f"""if True:
        import socket
        wire = socket.socket(type=socket.SOCK_DGRAM)
        print("ready")
        while True:
            wire.sendto(b"x", ("{EXTERNAL}", {DNS}))
        """
    )
    try:
        assert flood.stdout.readline() == "ready\n"
        for number in range(40):
            judged.append("a", Rule(match=port(number), target=ACCEPT))
            if number % 10 == 9:
                judged.set.flush("a")
        assert judged.counts(INPUT)[0] > 1000
        with pytest.raises(BlockingIOError):
            service.recv(10)
    finally:
        flood.kill()
        flood.communicate()
        service.close()


def test_a_set_that_cannot_be_enforced_leaves_the_old_one(gateway: Gateway, judged: Judged) -> None:
    judged.policy(INPUT, DENY)
    names = [f"chain{number}" for number in range(16)]
    for name in names:
        judged.set.new_chain(name)
    for caller, called in zip([INPUT, *names], names, strict=False):
        judged.set.append(caller, Rule(target=called))
    judged.set.set_policy(INPUT, ACCEPT)
    with pytest.raises(ConfigurationError, match="chains call each other more than 14 deep: input -> chain0"):
        judged.update()
    assert not ping(gateway.outside, EXTERNAL)
    judged.set.delete("chain13", 1)
    judged.update()
    assert ping(gateway.outside, EXTERNAL)


@pytest.mark.parametrize(
    "command",
    [
        "nft flush ruleset",
        "nft flush table ip fastmasq",
        "nft 'add table ip fastmasq { flags dormant; }'",
        "nft list chains ip | sed -n 's/.*chain \\(.*\\) {/flush chain ip fastmasq \\1/p' | nft -f -",
    ],
)
def test_what_somebody_flushed_is_put_back(gateway: Gateway, judged: Judged, command: str) -> None:
    judged.policy(INPUT, DENY)
    with gateway.host.entered():
        assert judged.rules.put_back() is False
        gateway.host.sh(command)
        assert ping(gateway.outside, EXTERNAL)
        assert judged.rules.put_back() is True
        assert not ping(gateway.outside, EXTERNAL)
        assert judged.rules.put_back() is False
    assert judged.counts(INPUT) == [1]


RUNNING = """if True:
    import time
    from pathlib import Path
    from fastmasq.kernel.links import interface_addresses
    from fastmasq.kernel.takeover import Takeover
    from fastmasq.policy.chains import RuleSet
    from tests.support.guarded_host import SPEC
    takeover = Takeover(Path({folder!r}))
    takeover.guard({guard!r}, SPEC)
    rules = RuleSet()
    rules.set_policy("input", "DENY")
    assert takeover.set_host_rules(rules, interface_addresses()) == []
    print("ready")
    time.sleep(60)
"""


def killed(gateway: Gateway, folder: Path, guard: str = "tc") -> None:
    """Have a process put rules in force and be killed."""
    process = gateway.host.python(RUNNING.format(folder=str(folder), guard=guard))
    assert process.stdout.readline() == "ready\n"
    os.kill(json.loads(next(folder.glob("*.journal")).read_text())["pid"], signal.SIGKILL)
    process.communicate()


def test_after_kill_9_they_stay_until_release(gateway: Gateway, tmp_path: Path) -> None:
    before = traces(gateway.host)
    folder = tmp_path / "run"
    killed(gateway, folder)
    assert not ping(gateway.outside, EXTERNAL)
    with gateway.host.entered():
        assert release(folder).done == ["rules for the host itself removed", "guard (tc) removed"]
    assert ping(gateway.outside, EXTERNAL)
    assert traces(gateway.host) == before


def test_release_without_the_journal_removes_them_too(gateway: Gateway, tmp_path: Path) -> None:
    before = traces(gateway.host)
    killed(gateway, tmp_path / "run", guard="nftables")
    next((tmp_path / "run").glob("*.journal")).unlink()
    with gateway.host.entered():
        assert release(tmp_path / "run").done == ["rules for the host itself removed", "guard (nftables) removed"]
    assert traces(gateway.host) == before


def test_a_successor_replaces_them_and_restores(gateway: Gateway, tmp_path: Path) -> None:
    before = traces(gateway.host)
    killed(gateway, tmp_path / "run")
    rules = RuleSet()
    rules.set_policy(INPUT, DENY)
    rules.append(INPUT, Rule(match=FROM_INSIDE, target=ACCEPT))
    with gateway.host.entered():
        takeover = Takeover(tmp_path / "run")
        takeover.guard("tc", SPEC)
        assert takeover.set_host_rules(rules, interface_addresses()) == []
        assert ping(gateway.inside, INSIDE)
        assert not ping(gateway.outside, EXTERNAL)
        takeover.host_rules.collect(rules)
        assert (rules.chain(INPUT).packets, rules.chain(INPUT).rules[0].packets) == (1, 1)
        assert takeover.restore().done == ["rules for the host itself removed", "guard (tc) removed"]
    assert traces(gateway.host) == before


def test_rules_that_ask_nothing_need_no_nftables(gateway: Gateway, tmp_path: Path) -> None:
    before = traces(gateway.host)
    rules = RuleSet()
    with gateway.host.entered():
        takeover = Takeover(tmp_path / "run")
        assert takeover.set_host_rules(rules, interface_addresses()) == []
        assert traces(gateway.host) == before
        rules.set_policy(OUTPUT, DENY)
        assert takeover.set_host_rules(rules, interface_addresses()) == []
        assert "policy accept" in traces(gateway.host)
        rules.set_policy(OUTPUT, ACCEPT)
        assert takeover.set_host_rules(rules, interface_addresses()) == []
        assert traces(gateway.host) == before
        assert takeover.restore().done == []


def test_without_nftables_one_line_says_what_is_not_enforced(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    rules = RuleSet()
    rules.set_policy(INPUT, DENY)
    with gateway.host.entered():
        takeover = Takeover(tmp_path / "run")
        assert takeover.set_host_rules(rules, interface_addresses()) == [
            "the chains input and output do not protect the host itself, only what fastmasq handles: "
            "rules for the host itself: the program nft is not installed; install the package nftables"
        ]
        assert takeover.restore().done == []


@pytest.mark.parametrize("guard", ["tc", "iptables"])
def test_without_nftables_strangers_cannot_be_kept_off_and_nothing_is_left_half_done(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    """What is for the host itself is nftables' to judge, whatever the guard; who wants that without it is refused."""
    before = traces(gateway.host)
    with gateway.host.entered():
        takeover = Takeover(tmp_path / "run")
        takeover.guard(guard, SPEC)
        guarded = traces(gateway.host)
        with monkeypatch.context() as patch:
            patch.setattr("fastmasq.kernel.nft.shutil.which", lambda *_, **__: None)
            with pytest.raises(KernelError, match=r'\[host\] unsolicited = "drop" needs nftables: .* is not installed'):
                takeover.set_host_rules(RuleSet(), interface_addresses(), Gate(["eth1"]))
        assert traces(gateway.host) == guarded
        assert takeover.set_host_rules(RuleSet(), interface_addresses(), Gate(["eth1"])) == []
        assert takeover.restore().done == ["rules for the host itself removed", f"guard ({guard}) removed"]
    assert traces(gateway.host) == before
