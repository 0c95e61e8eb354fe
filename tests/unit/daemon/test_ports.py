"""Whose external ports are: what a host with nothing but a loopback leaves to us, and the ledger of all of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest

from fastmasq.config.schema import Masquerade, defaults
from fastmasq.config.values import HostPorts, PortRanges
from fastmasq.daemon import ports
from fastmasq.daemon.host import Host
from fastmasq.daemon.ports import HOST_PORTS, HostRange, Ports, no_ports
from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.kernel import sysctl
from fastmasq.kernel.ports import parse_ports
from fastmasq.kernel.takeover import Takeover
from fastmasq.kernel.watch import Watch
from tests.support.namespaces import Namespace

AUTO = PortRanges()
KERNELS = (32768, 60999)
MINE = HostRange(*KERNELS, "its own")
TCP, UDP, ICMP = range(3)


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host whose programs use 32768-60999 for connections of their own."""
    namespace = Namespace()
    namespace.sh("sysctl -qw net.ipv4.ip_local_port_range='32768 60999' net.ipv4.ip_local_reserved_ports=''")
    with namespace.entered():
        yield namespace
    namespace.remove()


def spelled(row: np.ndarray) -> str:
    return ports.format_ports(row)


def test_auto_is_all_that_the_host_does_not_use(host: Namespace) -> None:
    allowed = ports.allowed_ports(AUTO)
    assert spelled(allowed[TCP]) == "1-32767,61000-65535"
    assert spelled(allowed[UDP]) == "1-67,69-32767,61000-65535", "a DHCP client's is not to be seen, and never ours"
    assert allowed[ICMP].all()


def test_when_the_hosts_range_is_moved_inside_hosts_have_the_rest(host: Namespace) -> None:
    with socket.socket() as client:
        client.bind(("0.0.0.0", 40000))
        allowed = ports.allowed_ports(AUTO, HOST_PORTS)
    assert spelled(allowed[TCP]) == "1-20479,24576-39999,40001-65535", "a port that was bound before is the host's"
    assert np.count_nonzero(allowed[TCP]) >= 59_000
    assert np.count_nonzero(allowed[UDP][1024:]) >= 59_000


NO_PORTS = np.zeros(65536, bool)


def masquerade(host_ports: str = "auto", **keys: PortRanges) -> Masquerade:
    return Masquerade(host_ports=HostPorts.read(host_ports), **keys)


@pytest.mark.parametrize("own", [KERNELS, (32768, 61000), HOST_PORTS])
def test_the_range_that_the_kernel_has_by_itself_is_moved(own: tuple[int, int]) -> None:
    assert ports.host_range(masquerade(), own, NO_PORTS) == HostRange(*HOST_PORTS)
    assert ports.host_range(masquerade("5000-9000"), own, NO_PORTS) == HostRange(5000, 9000)
    kept = ports.host_range(masquerade("keep"), own, NO_PORTS)
    assert kept[:2] == own and "keep" in kept.reason and kept.is_decided


def test_a_range_that_somebody_has_set_is_his_unless_the_configuration_names_one() -> None:
    own = (1024, 65000)
    kept = ports.host_range(masquerade(), own, NO_PORTS)
    assert kept[:2] == own and kept.reason.startswith("somebody has set net.ipv4.ip_local_port_range")
    assert not kept.is_decided
    assert ports.host_range(masquerade("20480-24575"), own, NO_PORTS) == HostRange(*HOST_PORTS)


@pytest.mark.parametrize("compat", ["2.0", "2.2"])
def test_C1_where_our_ports_are_named_the_host_keeps_the_others(compat: str) -> None:
    """61000-65095 of 1999: the host's programs connect from where they did."""
    assert ports.host_range(defaults(compat).masquerade, KERNELS, NO_PORTS)[:2] == KERNELS
    named = masquerade(ports=PortRanges.read("40000-44999"))
    assert ports.host_range(named, KERNELS, NO_PORTS)[:2] == KERNELS
    both = msgspec.structs.replace(named, host_ports=HostPorts.read("5000-9000"))
    assert ports.host_range(both, KERNELS, NO_PORTS) == HostRange(5000, 9000)


def test_a_range_is_not_moved_to_where_the_administrator_has_reserved_most() -> None:
    most, half = parse_ports("22528-24575,20480"), parse_ports("22528-24575")
    assert ports.host_range(masquerade(), KERNELS, most)[:2] == KERNELS
    assert ports.host_range(masquerade(), KERNELS, half) == HostRange(*HOST_PORTS)
    with pytest.raises(ConfigurationError, match=r"ip_local_reserved_ports has all of 5000-5999; choose others"):
        ports.reservation(AUTO, parse_ports("5000-6000"), HostRange(5000, 5999))
    assert ports.reservation(AUTO, parse_ports("32768-60999"), MINE) is None, "his own affair"


RANGE, RESERVED = "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"
MINUTE = 60_000_000_000


@pytest.fixture
def in_charge(host: Namespace, tmp_path: Path) -> Iterator[Host]:
    """What is in charge of that host; it puts everything back."""
    takeover = Takeover(tmp_path / "run")
    made = Host(defaults(), takeover, cast(Watch, None))
    yield made
    made.close()
    assert takeover.restore().left == []


def test_the_hosts_range_follows_its_administrator(
    host: Namespace, in_charge: Host, caplog: pytest.LogCaptureFixture
) -> None:
    in_charge.reserve(masquerade())
    assert sysctl.read(RANGE) == "20480 24575"
    for minute, (value, then, said) in enumerate(
        (
            ("30000 50001", "30000 50001", "it stays 30000-50001"),
            ("32768 60999", "20480 24575", "it is 20480-24575 again"),
            ("1024 65000", "1024 65000", "it stays 1024-65000"),
        )
    ):
        sysctl.write(RANGE, value)
        in_charge.look_after(2 * minute * MINUTE)
        assert sysctl.read(RANGE) == then
        assert f"somebody set {RANGE}; {said}" in caplog.text
        caplog.clear()
        in_charge.look_after((2 * minute + 1) * MINUTE)
        assert caplog.text == ""
    in_charge.reserve(masquerade("5000-6000"))
    assert in_charge.connects_from() == {"range": "5000-6000", "own": "1024-65000", "reason": ""}
    sysctl.write(RANGE, "1024 64000")
    in_charge.look_after(0)
    assert sysctl.read(RANGE) == "5000 6000"
    in_charge.reserve(masquerade("keep"))
    assert sysctl.read(RANGE) == "1024 64000"


def test_settings_that_leave_programs_no_port_stop_no_other_look(
    host: Namespace, in_charge: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each second it is said what is wrong, and tried again."""
    in_charge.reserve(msgspec.structs.replace(masquerade(), ports=PortRanges.read("40000-44999")))
    sysctl.write(RANGE, "40000 44999")
    sysctl.write(RESERVED, "9090")
    looks = []
    monkeypatch.setattr(in_charge, "_put_back_offloads", lambda: looks.append("offloads") or "")
    for _ in range(2):
        with pytest.raises(KernelError, match="40000-44999 leaves programs of this host none"):
            in_charge.look_after(0)
        assert not in_charge.is_whole
    assert looks == ["offloads"] * 2
    sysctl.write(RANGE, "32768 60999")
    in_charge.look_after(0)
    assert in_charge.is_whole
    assert sysctl.read(RESERVED) == "9090,40000-44999"


@pytest.mark.parametrize(
    ("written", "present", "led", "value"),
    [
        ("auto", "", "8080,61000", None),
        ("auto", "8080", "40000,61000", "8080,40000"),
        ("40000-40003", "", "40002-40005,80", "40000-40005"),
        ("auto", "9090", "32768-60999", None),  # programs would have none to connect from
    ],
)
def test_programs_connect_from_no_port_that_leads_inside(
    host: Namespace, written: str, present: str, led: str, value: str | None
) -> None:
    ranges = PortRanges.read(written)
    assert ports.reservation(ranges, parse_ports(present), MINE, parse_ports(led)) == value


def test_programs_are_kept_off_what_leads_inside_for_as_long_as_it_does(host: Namespace, in_charge: Host) -> None:
    sysctl.write(RESERVED, "9090")
    in_charge.keep_off(parse_ports("22000"))
    in_charge.reserve(masquerade())
    assert sysctl.read(RESERVED) == "9090,22000"
    in_charge.keep_off(parse_ports("22001,80"))
    assert sysctl.read(RESERVED) == "9090,22001"
    in_charge.keep_off(parse_ports("80"))
    assert sysctl.read(RESERVED) == "9090"


def test_the_hosts_range_is_put_back_after_a_kill(host: Namespace, tmp_path: Path) -> None:
    for step in range(3):
        takeover = Takeover(tmp_path / "run")
        made = Host(defaults(), takeover, cast(Watch, None))
        made.reserve(masquerade())
        assert made.connects_from() == {"range": "20480-24575", "own": "32768-60999", "reason": ""}
        made.close()
        if step < 2:
            takeover.leave()
    assert f"{RANGE} = 32768 60999" in takeover.restore().done


def test_rfc6056_own_a_bound_port_is_the_hosts_protocol_by_protocol(host: Namespace) -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 8080))
        server.listen()
        allowed = ports.allowed_ports(AUTO)
    assert not allowed[TCP][8080]
    assert allowed[UDP][8080]
    assert ports.allowed_ports(AUTO)[TCP][8080], "it has left it"


def test_ports_that_the_settings_name_are_taken_from_the_ephemeral_range(host: Namespace) -> None:
    allowed = ports.allowed_ports(PortRanges.read("40000-40003,61000-61001"))
    assert spelled(allowed[TCP]) == "40000-40003,61000-61001"
    assert spelled(allowed[ICMP]) == "40000-40003,61000-61001"


def test_a_bound_port_stays_with_the_host_even_if_it_is_named(host: Namespace) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("127.0.0.1", 40001))
        allowed = ports.allowed_ports(PortRanges.read("40000-40003"))
    assert spelled(allowed[UDP]) == "40000,40002-40003"
    assert spelled(allowed[TCP]) == "40000-40003"


@pytest.mark.parametrize(
    ("written", "present", "value"),
    [
        ("auto", "", None),
        ("61000-65095", "", None),
        ("40000-40003", "", "40000-40003"),
        ("40000-40003,61000-61001", "8080,40002-40010", "8080,40000-40010,61000-61001"),
    ],
)
def test_the_host_is_kept_off_what_is_in_its_ephemeral_range(
    host: Namespace, written: str, present: str, value: str | None
) -> None:
    assert ports.reservation(PortRanges.read(written), parse_ports(present), MINE) == value


@pytest.mark.parametrize("written", ["1-65535", "1024-65535", "32768-60999"])
def test_ports_that_leave_the_host_none_are_refused(host: Namespace, written: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"{written} leaves programs of this host none of the ports 32768-60999"
    ):
        ports.reservation(PortRanges.read(written), NO_PORTS, MINE)
    with pytest.raises(ConfigurationError, match="leaves programs of this host none"):
        ports.reservation(PortRanges.read("32769-60999"), parse_ports("32768"), MINE)
    assert ports.reservation(PortRanges.read("32769-60999"), NO_PORTS, MINE) == "32769-60999"


# -- the ledger --------------------------------------------------------------------------------------------------------

OURS, BEFORE, OTHER = 1, 2, 3  # addresses
NO_CLASS = np.zeros((3, 1), bool)


def some(port_class: int, *numbers: int) -> np.ndarray:
    ports = no_ports()
    ports[port_class, list(numbers)] = True
    return ports


def listed(array: np.ndarray) -> list[tuple[int, int]]:
    return [(int(port_class), int(port)) for port_class, port in np.argwhere(array)]


class Ledger(Ports):
    """A ledger whose external address is OURS; `sessions` has the ports that are mapped, by address."""

    def __init__(self) -> None:
        super().__init__(lambda address, ports: ports & self.sessions.get(address, no_ports()))
        self.sessions: dict[int, np.ndarray] = {}
        self.move(OURS)

    def kept(self, held: dict[int, np.ndarray] | None = None, local: tuple[int, ...] = (OURS,)) -> dict[int, list]:
        return {address: listed(ports) for address, ports in self.guarded(held or {}, local).items()}


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger()
    made.leave(some(TCP, 80, 81, 82) | some(UDP, 80, 500))
    assert not made.take_lost().any()
    return made


def test_mappings_use_what_is_free_and_nobody_elses(ledger: Ledger) -> None:
    ledger.reserve(some(TCP, 80), NO_CLASS)
    ledger.track(UDP, 500)
    ledger.forward({OURS: some(TCP, 81), OTHER: some(UDP, 80)})
    assert listed(ledger.for_mappings(OURS)) == [(TCP, 82), (UDP, 80)]
    assert listed(ledger.for_mappings(OTHER)) == [(TCP, 81), (TCP, 82)]
    assert listed(ledger.for_mappings(BEFORE)) == listed(ledger.for_mappings(None)) == [(TCP, 81), (TCP, 82), (UDP, 80)]


def test_the_guard_keeps_what_is_anybodys(ledger: Ledger) -> None:
    ledger.reserve(some(TCP, 7), NO_CLASS)
    ledger.track(UDP, 500)
    held = {OURS: some(TCP, 90), OTHER: some(UDP, 53)}
    ours = [(TCP, 7), (TCP, 80), (TCP, 81), (TCP, 82), (TCP, 90), (UDP, 80), (UDP, 500)]
    assert ledger.kept(held, (OURS, OTHER)) == {OURS: ours, OTHER: [(UDP, 53)]}
    assert ledger.kept(held, (OURS,)) == {OURS: ours}, "an address that the host has not got"


def test_sessions_keep_their_source_port_only_where_some_trigger_says_so(ledger: Ledger) -> None:
    ledger.leave_spare(some(TCP, 1000) | some(UDP, 1000))
    assert not ledger.led_inside().any()
    ledger.reserve(no_ports(), np.array([[False], [True], [False]]))
    assert listed(ledger.led_inside()) == [(UDP, 1000)]
    assert (UDP, 1000) in ledger.kept()[OURS] and (UDP, 1000) not in listed(ledger.for_mappings(OURS))


def test_a_port_that_the_host_takes_is_kept_until_its_sessions_end(ledger: Ledger) -> None:
    ledger.sessions[OURS] = some(TCP, 80)
    ledger.leave(some(TCP, 82))
    assert listed(ledger.take_lost()) == [(TCP, 80)]
    assert not ledger.take_lost().any(), "it was told already"
    assert ledger.kept() == {OURS: [(TCP, 80), (TCP, 82)]}
    assert listed(ledger.for_mappings(OURS)) == [(TCP, 82)]
    ledger.sessions.clear()
    assert not ledger.take_lost().any()
    assert ledger.kept() == {OURS: [(TCP, 82)]}


def test_a_port_that_leads_inside_no_longer_is_kept_until_its_sessions_end(ledger: Ledger) -> None:
    ledger.reserve(some(UDP, 6970, 6971), NO_CLASS)
    assert not ledger.take_lost().any()
    ledger.sessions[OURS] = some(UDP, 6970)
    ledger.reserve(no_ports(), NO_CLASS)
    assert listed(ledger.take_lost()) == [(UDP, 6970)]
    assert (UDP, 6970) in ledger.kept()[OURS] and (UDP, 6971) not in ledger.kept()[OURS]


def test_a_port_that_comes_back_is_not_lost(ledger: Ledger) -> None:
    ledger.sessions[OURS] = some(TCP, 80)
    before = ledger.free
    ledger.leave(no_ports())
    assert listed(ledger.take_lost()) == [(TCP, 80)]
    ledger.leave(before)
    assert not ledger.take_lost().any()
    ledger.leave(no_ports())
    assert listed(ledger.take_lost()) == [(TCP, 80)]


def test_a_former_address_is_guarded_while_a_forward_listens_there(ledger: Ledger) -> None:
    ledger.leave(some(TCP, 80))
    ledger.move(BEFORE)
    ledger.move(OURS)
    held = {BEFORE: some(UDP, 53), OTHER: some(UDP, 53)}
    everywhere = (OURS, BEFORE, OTHER)
    assert ledger.kept(held, everywhere) == {OURS: [(TCP, 80)], BEFORE: [(TCP, 80), (UDP, 53)], OTHER: [(UDP, 53)]}
    assert ledger.kept({}, everywhere) == {OURS: [(TCP, 80)]}
    ledger.move(BEFORE)
    assert ledger.former == {OURS}


def test_without_an_address_nothing_is_mapped_and_nothing_lost(ledger: Ledger) -> None:
    ledger.sessions[OURS] = some(TCP, 80)
    ledger.move()
    ledger.leave(no_ports())
    assert not ledger.take_lost().any()
    assert ledger.kept() == {}
    assert ledger.former == {OURS}
