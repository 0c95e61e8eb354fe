"""What running programs of the host would lose is refused by name, unless it is to be taken, and given back later."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastmasq.config.load import parse
from fastmasq.config.schema import Settings
from fastmasq.daemon.policy import Declared, declare
from fastmasq.daemon.reload import Reload
from fastmasq.errors import ConfigurationError
from fastmasq.kernel.ports import Waiting
from fastmasq.kernel.programs import Program, program_of
from fastmasq.policy import forwards, marks, redirects, triggers
from fastmasq.policy.chains import Match, Rule
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.redirects import Redirect
from fastmasq.policy.triggers import Trigger
from tests.support.harness import address
from tests.support.packets import tcp, udp
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE, delivered, passes
from tests.support.policy_gateway import Host, PolicyGateway

TCP, UDP, GRE, ESP = 6, 17, 47, 50
STRANGER = ("199.0.0.77", 5000)
US = f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"


@pytest.fixture
def inode() -> Iterator[int]:
    """The inode of a socket that this process has open."""
    with socket.socket() as ours:
        yield os.fstat(ours.fileno()).st_ino


@pytest.fixture
def host(inode: int) -> Host:
    """A host where this process waits at TCP port 22 and UDP port 7000, and for ESP."""
    made = Host()
    made.waits = {
        TCP: [Waiting("0.0.0.0", 22, 0, inode)],
        UDP: [Waiting("::", 7000, 0, inode)],
        ESP: [Waiting("0.0.0.0", ESP, 0, inode)],
    }
    made.used[0, 22] = made.used[1, 7000] = True
    made.has_tunnels = {GRE: ["gre1"]}
    return made


@pytest.fixture
def gateway(host: Host) -> Iterator[PolicyGateway]:
    made = PolicyGateway(host=host, local=("200.200.200.201",))
    yield made
    made.close()


def add(listen: str, protocol: str = "tcp", *, steal: bool = False) -> list[dict[str, Any]]:
    return [{"action": "add", "forward": forwards.read(protocol, listen, [f"{HOST}:22"], steal=steal)}]


def test_a_forward_names_the_program_whose_port_it_would_take(gateway: PolicyGateway):
    with pytest.raises(ConfigurationError) as refusal:
        gateway.call("forwards.change", changes=add("eth1:22"))
    assert str(refusal.value) == (
        f"tcp eth1:22: {US} waits at tcp 0.0.0.0:22, and would hear nothing more; "
        "stop it, use another port, or take this one with --force (steal = true in the configuration)"
    )
    assert gateway.call("forwards") == []
    assert delivered(gateway.harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S", seq=1))
    gateway.call("forwards.change", changes=add("eth1:22", steal=True))
    passes(gateway.harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S", seq=1))


@pytest.mark.parametrize(
    ("waits", "listen", "is_refused"),
    [
        ("0.0.0.0", "eth1:80", True),
        ("::", "eth1:80", True),
        (GATEWAY_OUT, "eth1:80", True),
        (f"::ffff:{GATEWAY_OUT}", "eth1:80", True),
        (GATEWAY_OUT, "eth1:79-81", True),
        (GATEWAY_OUT, f"{GATEWAY_OUT}:80", True),
        ("0.0.0.0", "200.200.200.250:80", True),  # an address that may yet come
        ("127.0.0.1", "eth1:80", False),
        ("::1", "eth1:80", False),
        ("10.0.0.1", "eth1:80", False),
        (GATEWAY_OUT, "eth1:81", False),
        (GATEWAY_OUT, "200.200.200.250:80", False),
    ],
)
def test_who_waits_at_what_is_forwarded(gateway: PolicyGateway, waits: str, listen: str, is_refused: bool):
    gateway.host.waits[TCP] = [Waiting(waits, 80, 0, 0)]
    if is_refused:
        with pytest.raises(ConfigurationError, match="the kernel waits at tcp"):
            gateway.call("forwards.change", changes=add(listen))
    else:
        gateway.call("forwards.change", changes=add(listen))
    gateway.call("forwards.change", changes=add(listen, "udp"))


def test_what_is_in_force_is_no_longer_the_programs(gateway: PolicyGateway):
    gateway.call("forwards.change", changes=add("eth1:8080"))
    gateway.host.waits[TCP].append(Waiting("0.0.0.0", 8080, 0, 0))
    gateway.call("forwards.change", changes=add("eth1:8081"))
    change = forwards.Change(action="set", forward=forwards.read("tcp", "eth1:8080", ["10.0.0.3:22"]))
    gateway.call("forwards.change", changes=[change])


def test_the_ports_of_triggers_and_redirected_protocols_are_refused_alike(gateway: PolicyGateway):
    opened = Trigger(kind="range", protocol="udp", first=6970, last=7170, control_protocol="tcp", control_port=7070)
    fixed = Trigger(kind="range", protocol="udp", first=7000, last=7000, host=HOST)
    for row in (opened, fixed):
        with pytest.raises(ConfigurationError) as refusal:
            gateway.call("triggers.change", changes=[triggers.Change(action="add", row=row)])
        assert str(refusal.value) == (
            f"trigger {row}: {US} waits at udp [::]:7000, and would hear nothing more; "
            "stop it, use other ports, or take these with ipmasqadm --force (steal = true under [rules])"
        )
    for protocol, user in ((ESP, US), (GRE, "the tunnel gre1")):
        change = redirects.Change(action="set", redirect=Redirect(protocol=protocol, host=HOST))
        with pytest.raises(ConfigurationError, match=r"^protocol") as refusal:
            gateway.call("redirects.change", changes=[change])
        assert str(refusal.value).startswith(f"protocol {protocol}: {user} of this host uses it, ")
    for protocol in (ESP, GRE, 99):
        steal = redirects.Change(action="set", redirect=Redirect(protocol=protocol, host=HOST, steal=protocol != 99))
        gateway.call("redirects.change", changes=[steal])
    direct = Trigger(kind="direct", protocol="udp", first=6970, last=7170)
    gateway.call("triggers.change", changes=[triggers.Change(action="add", row=direct)])


def marking(*ports: tuple[int, int], mark: int = 1, protocol: int = TCP) -> Rule:
    return Rule(match=Match(protocol=protocol, destination_ports=ports), mark=("set", mark), target="ACCEPT")


def mark(gateway: PolicyGateway, action: str = "add", number: int = 1, host: str = HOST, **how: Any) -> None:
    target = MarkTarget(mark=number, address=host, port=22, **how)
    gateway.call("marks.change", changes=[marks.Change(action=action, target=target)])


TAKEN = (
    f"mark 1: {US} waits at tcp 0.0.0.0:22, and would hear nothing more; "
    "stop it, have no rule mark this port, or take these with ipmasqadm --force (steal = true under [rules])"
)


def test_a_mark_names_the_program_whose_port_it_would_take(gateway: PolicyGateway):
    """Whether the rule that marks its port or the host of the mark comes first; one with another mark takes nothing."""
    gateway.use(marking((22, 22)), marking((1, 1000), mark=2))
    with pytest.raises(ConfigurationError) as refusal:
        mark(gateway)
    assert str(refusal.value) == TAKEN
    assert gateway.call("marks") == []
    gateway.use()
    mark(gateway)
    with pytest.raises(ConfigurationError) as refusal:
        gateway.use(marking((80, 80)), marking((1, 1000)))
    assert str(refusal.value) == TAKEN
    assert gateway.call("rules")["chains"][0]["rules"] == []
    assert delivered(gateway.harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S", seq=1))
    mark(gateway, "delete")
    mark(gateway, host=OTHER_HOST)
    mark(gateway, steal=True)
    gateway.use(marking((22, 22)))
    passes(gateway.harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S", seq=1))
    mark(gateway, host="10.0.0.9")
    assert [one["steal"] for one in gateway.call("marks")] == [False, True, False]


def test_a_rule_that_marks_any_port_takes_none_of_a_program(gateway: PolicyGateway):
    for rule in (marking(), marking((1, 2000)), Rule(match=Match(), mark=("set", 1), target="ACCEPT")):
        gateway.use(rule)
        mark(gateway)
        assert delivered(gateway.harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S", seq=1))
        mark(gateway, "delete")


def declared(**policy: Any) -> Declared:
    return replace(declare(Settings()), **policy)


FILE = (
    '[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n[vpn]\npptp = false\nipsec = false\n'
    '[masquerade]\nports = "1-65535"\nother_protocols = false\n[rules]\nfiles = ["{}"]\n'
)
LISTS = (
    '[[redirect]]\nprotocol = 50\nto = "10.0.0.2"\n'  # FILE has 11 lines
    '[[forward]]\nprotocol = "tcp"\nlisten = "eth1:80"\nto = "10.0.0.2:80"\n'
    '[[forward]]\nprotocol = "tcp"\nlisten = "eth1:81"\nto = "9.9.9.9:22"\n'
)
SCRIPT = "# rows\nipchains -A input -p tcp -d 0/0 22 -m 1\nipmasqadm mfw -A -m 1 -r 10.0.0.2\n"


def test_what_files_ask_for_is_refused_with_its_line(gateway: PolicyGateway, tmp_path: Path):
    """At the start, by a reload, and by a script that is loaded; what is asked for by hand has none."""
    script, empty = tmp_path / "rc.firewall", tmp_path / "empty"
    empty.touch()
    script.write_text(SCRIPT + "ipmasqadm autofw -A -r udp 7000 7000 -c tcp 1\n")
    before, after = (parse(FILE.format(name) + lists, "f.toml") for name, lists in ((empty, ""), (script, LISTS)))
    places = [f"{script}:4", f"{script}:3", "f.toml:12", "f.toml:19"]
    with pytest.raises(ConfigurationError) as refusal:
        PolicyGateway(host=gateway.host, declared=declare(after.settings, places=after.places))
    lines = str(refusal.value).splitlines()
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(places)
    gateway.gateway.declared = declare(before.settings)
    reload = Reload(gateway.gateway, lambda: after, gateway.confirmation)
    with pytest.raises(ConfigurationError) as refusal:
        reload.handle({})
    assert sorted(str(refusal.value).splitlines()) == sorted(lines)
    request = {"changes": add("eth1:22")}
    with pytest.raises(ConfigurationError, match=r"^rc\.firewall:7: tcp eth1:22: "):
        line = {"place": "rc.firewall:7", "method": "forwards.change", "params": request}
        gateway.call("policy.change", lines=[line])
    with pytest.raises(ConfigurationError, match=r"^tcp eth1:22: "):
        gateway.call("forwards.change", **request)


def test_a_start_is_refused_but_not_in_the_place_of_a_run_that_had_it(host: Host, caplog: pytest.LogCaptureFixture):
    wanted = declared(forwards=(forwards.read("tcp", "eth1:22", [f"{HOST}:22"]),))
    with pytest.raises(ConfigurationError, match="waits at tcp"):
        PolicyGateway(host=host, declared=wanted)
    host.goes_on = True
    PolicyGateway(host=host, declared=wanted).close()
    assert f"tcp eth1:22: {US} waits at" in caplog.text


def test_rule_files_may_be_let_take_ports(tmp_path: Path):
    script = tmp_path / "rc.firewall"
    script.write_text(
        f"ipportfw -A -t{GATEWAY_OUT}/22 -R {HOST}/22\n"
        f"ipmasqadm autofw -A -r udp 7000 7001 -h {HOST}\n"
        f"ipmasqadm mfw -A -m 1 -r {HOST} 22\n"
        f"ipmasqadm mfw --force -A -m 2 -r {HOST} 22\n"
    )
    for text, steals in (("", False), ("steal = true", True)):
        configuration = f'[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n[rules]\nfiles = ["{script}"]\n{text}\n'
        found = declare(parse(configuration, "f.toml").settings)
        assert [one.steal for one in (*found.forwards, *found.triggers, *found.marks)] == [steals] * 3 + [True]


def test_sessions_of_a_forward_that_is_gone_give_way_to_the_program(gateway: PolicyGateway):
    gateway.call("forwards.change", changes=add("eth1:22", steal=True))
    passes(gateway.harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S", seq=1))
    passes(gateway.harness, INSIDE, tcp((HOST, 22), STRANGER, "SA", seq=1, ack=2))
    gateway.call("forwards.change", changes=add("eth1:25"))
    passes(gateway.harness, OUTSIDE, tcp(("199.0.0.79", 5000), (GATEWAY_OUT, 25), "S", seq=1))
    gateway.call("forwards.change", changes=[{"action": "clear"}])
    assert [one["external"][1] for one in gateway.harness.sessions()] == [25], "nobody waits there: it lives on"
    assert [int(one["flow"][0]["sid"]) for one in gateway.host.were_reset] == [22]
    kept = gateway.host.kept[address(GATEWAY_OUT)][0]
    assert (kept[22], kept[25]) == (False, True)
    assert delivered(gateway.harness, OUTSIDE, tcp(("199.0.0.78", 5000), (GATEWAY_OUT, 22), "S", seq=1))
    gateway.host.waits[TCP].append(Waiting("0.0.0.0", 25, 0, 0))
    for step in gateway.gateway.every_second():
        step()
    assert gateway.harness.sessions() == []


def test_sessions_of_a_mark_or_trigger_that_is_gone_give_way_to_the_program(gateway: PolicyGateway):
    """Whether the mark's host or the rule has gone."""
    opened = Trigger(
        kind="range", protocol="udp", first=7000, last=7001, control_protocol="tcp", control_port=99, steal=True
    )
    for end in (lambda: mark(gateway, "delete"), gateway.use):
        gateway.use(marking((22, 22)))
        mark(gateway, steal=True)
        passes(gateway.harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S", seq=1))
        end()
        assert gateway.harness.sessions() == []
        assert not gateway.host.kept[address(GATEWAY_OUT)][0][22]
        assert delivered(gateway.harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S", seq=1))
    gateway.call("triggers.change", changes=[triggers.Change(action="add", row=opened)])
    passes(gateway.harness, INSIDE, tcp((HOST, 1025), ("199.0.0.77", 99), "S", seq=1))
    passes(gateway.harness, OUTSIDE, udp(STRANGER, (GATEWAY_OUT, 7000), b"x"))
    gateway.call("triggers.change", changes=[triggers.Change(action="delete", row=opened)])
    assert [one["protocol"] for one in gateway.harness.sessions()] == ["tcp"]
    assert delivered(gateway.harness, OUTSIDE, udp(STRANGER, (GATEWAY_OUT, 7000), b"x"))


def test_nobody_that_can_be_named(inode: int):
    assert program_of(Waiting("0.0.0.0", 22, 0, inode)) == Program(US.split(" (")[0], os.getpid())
    assert str(program_of(Waiting("0.0.0.0", 51820, 0, 0))) == "the kernel"
    assert str(program_of(Waiting("0.0.0.0", 22, 33, 2**31))) == "a program of user 33"
