"""The defaults, today's and those of 1999; and the sample file, which has every key with its default."""

from __future__ import annotations

import re
import tomllib
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import asdict, replace

from fastmasq.config.load import SAMPLE, load, parse
from fastmasq.config.schema import Control, Settings, defaults
from fastmasq.config.values import Duration, PortRanges, Rate

SECOND = 1_000_000_000


def timeouts(compat):
    settings = defaults(compat).masquerade.timeouts
    return [
        value // SECOND for value in (settings.tcp_established, settings.tcp_transitory, settings.udp, settings.icmp)
    ]


def test_timeouts_of_today():
    """RFC 5382 REQ-5, RFC 4787 REQ-5, RFC 5508 REQ-2."""
    assert timeouts("modern") == [7440, 240, 300, 60]


@pytest.mark.parametrize("compat", ["modern", "2.0", "2.2"])
def test_rfc5382_req6_of_the_gateways_that_ports_are_named_for_only_ftps_is_on(compat):
    assert {name for name, ports in asdict(defaults(compat).gateways).items() if ports} == {"ftp"}


def test_timeouts_of_1999():
    assert timeouts("2.0") == [900, 120, 300, 125]
    assert timeouts("2.2") == [900, 120, 300, 60]


@pytest.mark.parametrize("compat", ["2.0", "2.2"])
def test_ports_of_1999(compat):
    """C-1, C-2: 61000-65095, one after the other."""
    settings = defaults(compat)
    assert settings.masquerade.ports == ((61000, 65095),)
    assert settings.sequential_ports
    assert settings.limits.ports_per_host == 1024
    assert not settings.masquerade.hairpin
    assert settings.masquerade.filtering == "address-and-port-dependent"


def test_ports_of_today():
    settings = defaults()
    assert settings.masquerade.ports == ()
    assert not settings.sequential_ports
    assert settings.limits.ports_per_host == 16_384


def test_what_leaves_by_addresses_alone():
    """Everything without ports but AH, which covers them, and what only a tracker carries."""
    today = defaults().by_address
    assert set(range(256)) - today == {1, 6, 17, 50, 51}
    assert today - replace(defaults(), vpn=replace(defaults().vpn, pptp=False)).by_address == {47}
    assert not replace(defaults(), masquerade=replace(defaults().masquerade, other_protocols=False)).by_address


@pytest.mark.parametrize("compat", ["2.0", "2.2"])
def test_c_30_nothing_left_by_addresses_alone_in_1999(compat):
    assert defaults(compat).by_address == frozenset()


def test_settings_do_not_change():
    with pytest.raises(AttributeError):
        defaults().compat = "2.0"


def test_the_status_socket_goes_with_the_usual_control_sockets():
    assert Control().status_socket == "/run/fastmasq/status.sock"
    assert Control(socket="/run/fastmasq/control.sock").status_socket == "/run/fastmasq/status.sock"
    assert Control(socket="/tmp/a").status_socket is None, "a second forwarder would be in the way of the first"
    assert Control(status="off").status_socket is None
    assert Control(socket="/tmp/a", status="/tmp/b").status_socket == "/tmp/b"


def test_where_version_0_1_kept_its_journal():
    assert str(Control().former_journal) == "/run/fastmasq.journal"
    assert str(Control(socket="/tmp/a.b/c").former_journal) == "/tmp/a.b/c.journal"


def all_keys(section: type[Struct] = Settings, place: tuple[str, ...] = ()):
    for key, hint in get_type_hints(section).items():
        if isinstance(hint, type) and issubclass(hint, Struct):
            yield from all_keys(hint, (*place, key))
        else:
            yield (*place, key)


def places(table, place=()):
    for key, value in table.items():
        yield from places(value, (*place, key)) if isinstance(value, dict) else [(*place, key)]


def uncommented() -> str:
    return re.sub(r"^#(?=[\w\[])", "", SAMPLE.read_text(), flags=re.MULTILINE)


def test_the_sample_has_every_key():
    assert sorted(places(tomllib.loads(uncommented()))) == sorted(all_keys())


def test_the_sample_shows_the_defaults():
    settings, warnings = load(SAMPLE).settings, load(SAMPLE).warnings
    assert warnings == ()
    assert settings == replace(defaults(), interfaces=settings.interfaces)
    shown = parse(uncommented(), "sample").settings
    assert replace(shown, forward=(), redirect=()) == settings
    assert [str(one) for one in (*shown.forward, *shown.redirect)] == ["tcp eth1:8080", "protocol 50"]
    assert parse(uncommented(), "sample").warnings == ()


def test_the_sample_tells_what_compat_changes():
    """Each value that 1999 changes stands in the comment above its key."""
    comments = dict(re.findall(r"((?:^# .*\n)+)^#(\w+) =", SAMPLE.read_text(), flags=re.MULTILINE))
    comments = {key: comment for comment, key in comments.items()}
    for compat in ("2.0", "2.2"):
        for section in ("masquerade", "rings", "takeover"):
            old, new = getattr(defaults(compat), section), getattr(defaults(), section)
            for key in old.__struct_fields__:
                if key != "timeouts" and getattr(old, key) != getattr(new, key):
                    assert str(getattr(old, key)).lower() in comments[key]
    for key in ("tcp_established", "tcp_transitory"):
        assert f'"{getattr(defaults("2.0").masquerade.timeouts, key)}"' in comments[key]
    assert f'compat "2.0": "{timeouts("2.0")[3]}s"' in comments["icmp"]


@given(st.sets(st.integers(1, 65_535), max_size=30))
def test_port_ranges_read_back(ports):
    ranges = PortRanges.read(",".join(map(str, ports)) or "auto")
    assert PortRanges.read(str(ranges)) == ranges
    assert ranges.count == len(ports)
    assert {port for first, last in ranges for port in range(first, last + 1)} == ports


@given(st.integers(0, 10**15))
def test_durations_and_rates_read_back(number):
    assert Duration.read(str(Duration(number))) == number
    assert Rate.read(str(Rate(number))) == number
