"""Names of this host: the order of look-ups, /etc/networks, and what works where nothing is known."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastmasq.legacy.names import Names, read_dotted, read_mask, write_mask
from fastmasq.legacy.tokens import hex_octet, number, plain_dashes


@pytest.fixture
def names(tmp_path) -> Names:
    file = tmp_path / "networks"
    file.write_text("# networks\nloopback 127.0.0.0\nshort 10 alias # of the LAN\nlocalhost 44.0.0.0\nbad x.y\n")
    return Names(file)


def test_dotted_quads_come_first_then_networks_then_hosts(names, tmp_path):
    assert names.addresses("10.0.0.1") == [0x0A000001]
    assert names.addresses("short") == names.addresses("alias") == [0x0A000000]
    assert names.addresses("localhost") == [0x2C000000]  # a network before a host of the same name
    assert names.addresses("bad") == []
    assert Names(networks=tmp_path / "none").addresses("localhost") == [0x7F000001]


def test_an_address_without_any_name_is_written_as_it_is(names):
    assert names.describe(0x2C000000) == "localhost"
    assert names.describe(0xF0000001) == "240.0.0.1"


def test_protocols_both_programs_know_need_no_file(names):
    assert [names.protocol(name) for name in ("all", "icmp", "tcp", "udp", "nonsense")] == [0, 1, 6, 17, None]
    assert [names.protocol_name(protocol) for protocol in (0, 1, 6, 17, 253)] == ["all", "icmp", "tcp", "udp", None]
    assert names.port("www", 47) is None
    assert names.service(80, 1) is None


@pytest.mark.parametrize(
    ("text", "mask", "written"),
    [
        ("0", 0, "/0"),
        ("8", 0xFF000000, "/8"),
        ("32", 0xFFFFFFFF, ""),
        ("255.255.0.0", 0xFFFF0000, "/16"),
        ("255.0.255.0", 0xFF00FF00, "/255.0.255.0"),
        ("33", None, None),
        ("-1", None, None),
        ("255.255.0", None, None),
        ("", None, None),
    ],
)
def test_masks(text, mask, written):
    assert read_mask(text) == mask
    if mask is not None:
        assert write_mask(mask) == written


@pytest.mark.parametrize("text", ["1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.x", "1.2..4", "", "1.2.3.4x"])
def test_what_is_no_dotted_quad(text):
    assert read_dotted(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("007", 7), ("+7", 7), (" 7", 7), ("99", None), ("-1", None), ("7x", None), ("", None)],
)
def test_numbers(text, value):
    assert number(text, 0, 9) == value


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("ff", 255), ("0x1E", 30), ("100", None), ("-1", None), ("0x", None), ("", None)]
)
def test_octets_in_hexadecimal(text, value):
    assert hex_octet(text) == value


@pytest.mark.parametrize(
    ("word", "plain"),
    [("–A", "-A"), ("—masq", "--masq"), ("—A", "-A"), ("−−log", "--log"), ("-A", "-A"), ("a–b", "a–b"), ("", "")],
)
def test_a29_typographic_dashes(word, plain):
    assert plain_dashes(word) == plain


SILENT_SERVER = """\
ip link add near type veth peer name far
ip link set near up
ip link set far up
ip addr add 192.0.2.1/24 dev near
ip neigh add 192.0.2.53 lladdr 02:00:00:00:00:53 dev near
mount --bind {resolver} /etc/resolv.conf
exec {python} -c "{asking}"
"""
ASKING = """
import time
from fastmasq.legacy.names import Names
names, began = Names(), time.monotonic()
print(*[names.describe(0xC6336400 + host) for host in range(40)])
print(time.monotonic() - began)
"""


def test_a_name_server_that_does_not_answer_is_not_waited_for(tmp_path):
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 192.0.2.53\n")
    script = SILENT_SERVER.format(resolver=resolver, python=sys.executable, asking=ASKING)
    done = subprocess.run(["unshare", "-n", "-m", "sh", "-ec", script], capture_output=True, text=True, timeout=60)
    addresses, took = done.stdout.splitlines()
    assert addresses.split() == [f"198.51.100.{host}" for host in range(40)]
    assert float(took) < 5
