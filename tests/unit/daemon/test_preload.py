"""Preloading in the forwarder (section 4.8): root and inside hosts, and packets that need no tracker after it."""

from __future__ import annotations

import pytest

from fastmasq.config.schema import Vpn as VpnSettings
from fastmasq.daemon.preload import Preload
from fastmasq.errors import FastmasqError
from fastmasq.policy.forwards import Forward, Target
from fastmasq.trackers.vpn.preload import PreloadError
from tests.support.harness import address
from tests.support.path_network import GATEWAY_OUT, HOST, INSIDE, OTHER_HOST, OUTSIDE
from tests.support.vpn_gateway import REMOTE, THIRD_HOST, Gateway, ends, esp

SA = {"inside": HOST, "remote": REMOTE, "inbound_spi": 0x5000, "outbound_spi": 0x1000}
OWN, OTHER = address(HOST), address(OTHER_HOST)


def why_not_inside(host: int) -> str | None:
    """Take 8.8.8.8 alone for a host that is not inside."""
    return "the way there leads over eth1; inside are eth0" if host == address("8.8.8.8") else None


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def preload(gateway: Gateway) -> Preload:
    return Preload(gateway.vpn, why_not_inside)


def refused(reason: str, preload: Preload, caller: int | None, **params: object) -> str:
    with pytest.raises(PreloadError) as error:
        preload.change(caller, params)
    assert error.value.reason == reason
    assert error.value.exit_status == (2 if reason == "EINVAL" else 1)
    return str(error.value)


def test_h103_packets_pass_both_ways_at_once_without_a_tracker(gateway: Gateway, preload: Preload) -> None:
    assert preload.change(None, {"do": "add", **SA}) == {"changed": 1}
    assert ends(gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x5000))) == (REMOTE, HOST)
    assert ends(gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))) == (GATEWAY_OUT, REMOTE)
    assert gateway.asked == 0


def test_h103_two_hosts_that_start_at_once_do_not_wait(gateway: Gateway, preload: Preload) -> None:
    preload.change(OWN, {"do": "add", **SA})
    preload.change(OTHER, {"do": "add", "remote": REMOTE, "inbound_spi": 0x6000, "outbound_spi": 0x2000})
    for host, inbound, outbound in ((HOST, 0x5000, 0x1000), (OTHER_HOST, 0x6000, 0x2000)):
        gateway.passes(INSIDE, esp(host, REMOTE, outbound))
        assert ends(gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, inbound))) == (REMOTE, host)
    assert gateway.asked == 0


def test_an_outbound_spi_told_later_is_moved_by_the_path(gateway: Gateway, preload: Preload) -> None:
    preload.change(OWN, {"do": "add", "remote": REMOTE, "inbound_spi": 0x5000})
    preload.change(OWN, {"do": "add", **SA})
    gateway.passes(INSIDE, esp(HOST, REMOTE, 0x1000))
    assert gateway.asked == 0


def test_what_is_deleted_no_longer_passes(gateway: Gateway, preload: Preload) -> None:
    preload.change(None, {"do": "add", **SA})
    gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x5000))
    preload.change(OWN, {"do": "delete", "remote": REMOTE, "inbound_spi": 0x5000})
    assert gateway.dropped(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x5000)) == "esp_no_row"
    refused("ENOENT", preload, OWN, do="delete", remote=REMOTE, inbound_spi=0x5000)


def test_root_speaks_for_inside_hosts_alone(preload: Preload) -> None:
    text = refused("EINVAL", preload, None, do="add", **{**SA, "inside": "8.8.8.8"})
    assert text == "inside: 8.8.8.8 is no inside host: the way there leads over eth1; inside are eth0"


def test_a_host_speaks_for_itself_alone(preload: Preload) -> None:
    text = refused("EPERM", preload, OTHER, do="add", **SA)
    assert text == "10.0.0.3 may not speak for 10.0.0.2; only the host itself, or root"
    preload.change(OWN, {"do": "add", **SA})
    refused("EPERM", preload, OTHER, do="flush", inside=HOST)
    refused("ENOENT", preload, OTHER, do="delete", remote=REMOTE, inbound_spi=0x5000)
    refused("EEXIST", preload, OTHER, do="replace", remote=REMOTE, inbound_spi=0x5000)
    assert preload.listed(OTHER, {}) == [] and preload.change(OTHER, {"do": "flush"}) == {"changed": 0}
    assert len(preload.listed(OWN, {})) == 1


def test_root_replaces_and_flushes(gateway: Gateway, preload: Preload) -> None:
    preload.change(OWN, {"do": "add", **SA})
    other = {**SA, "inside": OTHER_HOST, "outbound_spi": 0x2000}
    refused("EEXIST", preload, None, do="add", **other)
    preload.change(None, {"do": "replace", **other})
    assert ends(gateway.passes(OUTSIDE, esp(REMOTE, GATEWAY_OUT, 0x5000))) == (REMOTE, OTHER_HOST)
    preload.change(OWN, {"do": "add", **SA, "inbound_spi": 0x5001})
    assert preload.change(None, {"do": "flush", "inside": OTHER_HOST}) == {"changed": 1}
    assert [one["inside"] for one in preload.listed(None, {})] == [HOST]
    assert preload.change(None, {"do": "flush"}) == {"changed": 1}


@pytest.mark.parametrize(
    ("lifetime", "shown"), [(None, None), (60, 60), ("until-deleted", "until-deleted")], ids=["usual", "60 s", "ever"]
)
def test_lists_what_it_was_told(preload: Preload, lifetime: object, shown: object) -> None:
    preload.change(None, {"do": "add", **SA, "outbound_spi": None, "lifetime_s": lifetime})
    [row] = preload.listed(None, {"inside": HOST})
    assert row.pop("age_s") < 10
    left = row.pop("left_s")
    assert left is None if shown == "until-deleted" else (shown or 1800) - 10 < left <= (shown or 1800)
    ends = {"inside": HOST, "remote": REMOTE, "masq": GATEWAY_OUT}
    assert row == {**ends, "inbound_spi": 0x5000, "outbound_spi": None, "lifetime_s": shown}
    assert preload.listed(None, {"inside": OTHER_HOST}) == []


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"remote": None}, "remote: missing"),
        ({"remote": "199.0.0"}, "remote: '199.0.0' is not an IPv4 address"),
        ({"remote": "224.0.0.1"}, "remote: 224.0.0.1 is not the address of a host"),
        ({"inside": None}, "inside: missing"),
        ({"inbound_spi": 255}, "SPIs are 256 to 4294967295"),
        ({"inbound_spi": "0x5000"}, "inbound_spi"),
        ({"outbound_spi": -1}, "SPIs are 256"),
        ({"lifetime_s": 0}, "lifetime_s: 0 is not"),
        ({"lifetime_s": "soon"}, "lifetime_s: 'soon' is not"),
        ({"lifetime_s": 1 << 60}, "lifetime_s"),
        ({"masq": "10.9.9.9"}, "masq: 10.9.9.9 is no external address of this gateway; there is 200.200.200.200"),
        ({"do": "steal"}, "do"),
        ({"what": 1}, "what"),
    ],
)
def test_bad_announcements_are_einval(preload: Preload, wrong: dict, text: str) -> None:
    assert text in refused("EINVAL", preload, None, **{"do": "add", **SA, **wrong})
    assert preload.listed(None, {}) == []


def test_no_room_is_enospc(preload: Preload, gateway: Gateway) -> None:
    limit = gateway.vpn.ipsec.esp.settings.associations_per_host
    for spi in range(256, 256 + limit):
        preload.change(OWN, {"do": "add", "remote": REMOTE, "inbound_spi": spi})
    assert "esp_host_limit" in refused("ENOSPC", preload, OWN, do="add", remote=REMOTE, inbound_spi=0x5000)
    preload.change(OTHER, {"do": "add", "remote": REMOTE, "inbound_spi": 0x5000})


def test_only_root_names_another_external_address() -> None:
    second = "200.200.200.201"
    forward = Forward(protocol="tcp", listen=second, first=80, last=80, targets=(Target(THIRD_HOST, 80),))
    gateway = Gateway(forwards=(forward,))
    gateway.forwards.resolve({second: address(second)})
    preload = Preload(gateway.vpn, why_not_inside)
    refused("EINVAL", preload, OWN, do="add", **SA, masq=second)
    preload.change(None, {"do": "add", **SA, "masq": second})
    assert preload.listed(None, {})[0]["masq"] == second


def test_without_an_external_address(gateway: Gateway, preload: Preload) -> None:
    gateway.vpn.address = lambda host=None: None
    assert "the outside link has no address now" in refused("ENOENT", preload, OWN, do="add", **SA)


def test_with_ipsec_off() -> None:
    for vpn in (None, Gateway(vpn=VpnSettings(ipsec=False)).vpn):
        preload = Preload(vpn, why_not_inside)
        for ask in (lambda: preload.listed(None, {}), lambda: preload.change(None, {"do": "flush"})):  # noqa: B023
            with pytest.raises(FastmasqError, match=r"IPsec is not followed.*\[vpn\] ipsec is off"):
                ask()
