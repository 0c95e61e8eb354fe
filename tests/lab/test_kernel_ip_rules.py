"""Rules of policy routing, as `ip rule` sets them: which concern a gateway, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastmasq.kernel.addresses import InterfaceAddress
from fastmasq.kernel.ip_rules import concerning
from fastmasq.kernel.links import Link
from fastmasq.kernel.routes import LOCAL, UNICAST, KernelRoute, flatten
from fastmasq.kernel.rtnetlink import TABLE_LOCAL, TABLE_MAIN
from fastmasq.kernel.watch import Snapshot
from tests.support.harness import address
from tests.support.namespaces import Namespace


def snapshot(*, inside: bool = True) -> Snapshot:
    """Return what the kernel says of eth0 with 10.0.0.1/24 and eth1 with 200.200.200.200; eth0 may be missing."""
    own = (InterfaceAddress(address("10.0.0.1"), 24),) if inside else ()
    common = {"up": inside, "mtu": 1500, "mac": bytes(6), "header_length": 14, "qdisc": ""}
    links = (
        Link("eth0", int(inside), "inside", addresses=own, **common),
        Link("eth1", 2, "outside", addresses=(), **common),
    )
    routes = [
        KernelRoute(TABLE_MAIN, 0, 0, 0, UNICAST, 2, address("200.200.200.1")),
        *(KernelRoute(TABLE_LOCAL, address(one), 32, 0, LOCAL) for one in ("10.0.0.1", "200.200.200.200")),
    ]
    if inside:
        routes.append(KernelRoute(TABLE_MAIN, address("10.0.0.0"), 24, 0, UNICAST, 1))
    return Snapshot(1, links, flatten(routes))


@pytest.fixture
def host() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.remove()


RULES = [
    ("from 10.0.0.0/24 lookup 100", "from 10.0.0.0/24 lookup 100"),
    ("from 10.0.0.9 to 192.0.2.0/24 lookup 1000", "from 10.0.0.9 to 192.0.2.0/24 lookup 1000"),
    ("not fwmark 0xca6c lookup 51820", "not from all fwmark 0xca6c lookup 51820"),
    ("fwmark 1/0xff iif eth0 lookup 7", "from all fwmark 0x1/0xff iif eth0 lookup 7"),
    ("tos 0x10 lookup 7", "from all tos 0x10 lookup 7"),
    ("ipproto tcp dport 25 prohibit", "from all ipproto 6 dport 25 prohibit"),
    ("sport 1-9 to 192.0.2.1 blackhole", "from all to 192.0.2.1 sport 1-9 blackhole"),
    ("iif eth1 unreachable", "from all iif eth1 unreachable"),
    ("goto 32767", "from all goto 32767"),
    ("from 8.0.0.0/6 lookup 100", "from 8.0.0.0/6 lookup 100"),
    ("from 200.200.200.200 lookup 100", "from 200.200.200.200 lookup 100"),
    ("from 8.8.8.8 iif eth1 lookup 100", "from 8.8.8.8 iif eth1 lookup 100"),
    ("not from 8.8.8.8 lookup 100", "not from 8.8.8.8 lookup 100"),
    ("from 8.8.8.8 lookup 100", None),  # no source of ours
    ("from 10.0.1.0/24 lookup 100", None),
    ("from 8.8.8.8 iif eth0 lookup 100", None),
    ("lookup main suppress_prefixlength 0", None),  # what goes on is followed
    ("from 10.0.0.0/24 lookup main", None),
    ("from 10.0.0.0/24 nop", None),
    ("iif eth7 lookup 100", None),
    ("iif lo lookup 100", None),
    ("oif eth1 lookup 100", None),
    ("uidrange 0-99 lookup 100", None),
]


def test_which_rules_concern_us(host: Namespace) -> None:
    for rule, shown in RULES:
        host.ip(f"rule add priority 500 {rule}")
        with host.entered():
            assert concerning(snapshot()) == ([f"500: {shown}"] if shown else []), rule
        host.ip("rule delete priority 500")


def test_the_kernels_own_rules_and_ours_do_not(host: Namespace) -> None:
    with host.entered():
        assert concerning(snapshot()) == []
    host.sh("ip rule add priority 1 from 169.254.255.0/24 lookup 6160; ip rule add l3mdev")
    with host.entered():
        assert concerning(snapshot()) == []


def test_while_an_inside_link_is_missing_nobody_knows_its_hosts(host: Namespace) -> None:
    host.ip("rule add priority 500 from 8.8.8.8 lookup 100")
    with host.entered():
        assert concerning(snapshot(inside=False)) == ["500: from 8.8.8.8 lookup 100"]
