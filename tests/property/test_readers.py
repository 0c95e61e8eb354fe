"""Whatever a reader gets, it says what that means or raises a FastmasqError: no other exception, and soon."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastmasq.config import load
from fastmasq.control.keys import read_keys
from fastmasq.control.protocol import decode_request
from fastmasq.daemon.methods import Methods
from fastmasq.daemon.preload import Preload
from fastmasq.errors import FastmasqError
from fastmasq.legacy import script
from fastmasq.legacy.names import Names
from fastmasq.migrate import iptables_save, nft_json
from fastmasq.migrate.carry import carry
from tests.support.policy_gateway import PolicyGateway

METHODS = (
    "rules", "rules.check", "rules.change", "forwards", "forwards.change", "redirects", "redirects.change", "triggers",
    "triggers.change", "marks", "marks.change", "policy.change", "timeouts", "dynaddr", "confirm",
)  # fmt: skip
HUGE = "9" * 5000  # more digits than int() takes
SOON_S = 2.0
NUMBERS = ["0", "1", "80", "65536", "-1", "1e9", HUGE, f"{HUGE}.5", f"0x{HUGE}", f"{HUGE}-1", "1:2:3", "\u0663"]
JUNK = [
    "",
    " ",
    "\0",
    "\n",
    "\r",
    "\\",
    '"',
    "'",
    "$(",
    "`",
    "#",
    "{",
    "}",
    "[",
    "]",
    "=",
    ":",
    "!",
    "\ud800",
    "é" * 99,
]

RULES = [
    "ipfwadm",
    "ipchains",
    "ipportfw",
    "ipmasqadm",
    "ipfwd",
    "portfw",
    "autofw",
    "mfw",
    "-A",
    "-I",
    "-F",
    "-M",
    "-S",
    "-L",
    "-P",
    "-a",
    "-d",
    "-s",
    "-p",
    "-j",
    "-i",
    "-W",
    "-y",
    "-o",
    "-k",
    "-t",
    "-m",
    "-O",
    "-Z",
    "-N",
    "-X",
    "-C",
    "-D",
    "-R",
    "-b",
    "tcp",
    "udp",
    "icmp",
    "47",
    "input",
    "forward",
    "output",
    "ACCEPT",
    "DENY",
    "MASQ",
    "REDIRECT",
    "REJECT",
    "10.0.0.2",
    "10.0.0.0/8",
    "0/0",
    "any/0",
    "eth0",
    "ppp+",
    "&",
    "&&",
    "|",
    "||",
    ";",
    "export",
    "A=1",
    "$A",
    "${A}",
    "echo",
    ">",
    "/proc/sys/net/ipv4/ip_dynaddr",
]
TOML = [
    "compat",
    "interfaces",
    "inside",
    "outside",
    "masquerade",
    "ports",
    "mapping",
    "timeouts",
    "udp",
    "rules",
    "files",
    "vpn",
    "ipsec",
    "limits",
    "sessions",
    "rings",
    "frames",
    "control",
    "socket",
    "status",
    "forward",
    "listen",
    "to",
    "redirect",
    "protocol",
    "true",
    "false",
    "'10.0.0.2:80'",
    "'eth0'",
    "'5m'",
    "'auto'",
    ".",
    ",",
]
TABLES = [
    "*nat",
    "*filter",
    ":INPUT",
    ":FORWARD",
    "ACCEPT",
    "DROP",
    "-",
    "[0:0]",
    "-A",
    "-j",
    "-p",
    "-s",
    "-d",
    "-i",
    "-o",
    "--dport",
    "--sport",
    "--to-destination",
    "--to-ports",
    "--icmp-type",
    "-m",
    "multiport",
    "--dports",
    "MASQUERADE",
    "DNAT",
    "REDIRECT",
    "COMMIT",
    "--state",
    "NEW",
    "!",
    "-g",
    "1.2.3.4:80",
]
JSON = [
    "nftables",
    "chain",
    "rule",
    "family",
    "table",
    "name",
    "ip",
    "expr",
    "match",
    "op",
    "left",
    "right",
    "payload",
    "protocol",
    "field",
    "dport",
    "set",
    "prefix",
    "addr",
    "len",
    "range",
    "meta",
    "key",
    "oifname",
    "masquerade",
    "dnat",
    "redirect",
    "port",
    "jump",
    "target",
    "accept",
    "hook",
    "policy",
    "type",
]
PARAMETERS = [
    "action",
    "forward",
    "protocol",
    "listen",
    "first",
    "last",
    "targets",
    "address",
    "port",
    "preference",
    "redirect",
    "host",
    "source",
    "do",
    "chain",
    "rule",
    "match",
    "target",
    "value",
    "tcp",
    "udp",
    "lines",
    "place",
    "method",
    "params",
    "optional",
    "changes",
    "inside",
    "remote",
    "inbound_spi",
    "masq",
    "lifetime_s",
    "packet",
    "add",
    "set",
    "delete",
    "clear",
    "append",
    "policy",
    "flush",
    "rules.change",
    "forwards.change",
    "timeouts",
    "dynaddr",
    "zero",
    "mark",
    "trigger",
]


def texts(*words: str) -> st.SearchStrategy[str]:
    """Return texts made of what a reader knows, numbers of all sizes, and junk."""
    pieces = st.sampled_from([*words, *NUMBERS, *JUNK]) | st.text(max_size=8)
    joints = st.sampled_from([" ", "", "\n", " ", "="])
    return st.lists(st.tuples(pieces, joints), max_size=30).map(lambda found: "".join(a + b for a, b in found))


def values(*words: str) -> st.SearchStrategy[object]:
    """Return what JSON can say, with keys that a reader knows."""
    leaves = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from([*words, *NUMBERS])
    )
    return st.recursive(
        leaves | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(words), inner, max_size=6),
        max_leaves=20,
    )


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    started = time.process_time()
    with contextlib.suppress(FastmasqError):
        yield
    assert time.process_time() - started < SOON_S


@given(texts(*TOML))
@example(f"x = {HUGE}")
@example(
    f"[limits]\nsessions = {HUGE}\n[vpn]\npreload = {HUGE}\n[masquerade]\nports = '{HUGE}'\ntimeouts.udp = '{HUGE}s'"
)
@example("a = " + "[" * 100_000)
@example("[[forward]]\nprotocol = 'tcp'\nlisten = '1.2.3.4:" + HUGE + "'\nto = 'x:" + HUGE + "'")
def test_configurations(text: str) -> None:
    with only_our_errors():
        load.parse(text, "f.toml")


def read_rules(text: str) -> None:
    script.parse(text, "rules", Names())


@given(texts(*RULES))
@example(f"ipchains -A input -p {HUGE} -j ACCEPT\n")
@example(f"ipchains -A input -p tcp -s 1.2.3.4 {HUGE}:{HUGE} -m {HUGE} -t {HUGE} {HUGE} -j REDIRECT {HUGE}\n")
@example(f"ipfwadm -F -a m -S 1.2.3.4/{HUGE} -P tcp -D 0/0 {HUGE}\nipfwadm -M -s {HUGE} 1 1\n")
@example(f"ipportfw -A -t 1.2.3.4/{HUGE} -R 10.0.0.2/{HUGE}\nipfwd --masq 10.0.0.2 {HUGE}\n")
@example(f"ipmasqadm portfw -a -P tcp -L 1.2.3.4 {HUGE} -R 10.0.0.2 {HUGE} -p {HUGE}\n")
@example(f"ipmasqadm autofw -A -r tcp {HUGE} {HUGE} -h 10.0.0.2 -c tcp {HUGE} -t {HUGE}\n")
@example(f"ipmasqadm mfw -A -m {HUGE} -r 10.0.0.2 {HUGE} -p {HUGE}\n")
@example(f"echo {HUGE} > /proc/sys/net/ipv4/ip_dynaddr\n")
@example("ipchains " + "x" * 1_000_000)
@example('ipchains "' + "x" * 1_000_000)
@example("A=xxxxxxxxxx\n" + "A=$A$A$A$A$A$A$A$A\n" * 40 + "ipchains -A $A\n")
@example("A=xxxxxxxxxx\n" + 'A="$A$A$A$A$A$A$A$A"\n' * 40 + 'ipchains -A "$A"\n')
def test_rule_files(text: str) -> None:
    with only_our_errors():
        read_rules(text)


@given(st.binary(max_size=300))
def test_files_of_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (load.load, lambda path: script.load(path, Names()), lambda path: read_keys(str(path))):
        with only_our_errors():
            read(path)


@given(text=texts(*TABLES))
@example(text="*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp --dport 1 -j REDIRECT --to-ports " + HUGE)
@example(text="*nat\n:PREROUTING ACCEPT\n-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.2:" + HUGE)
@example(text=f"*filter\n:FORWARD ACCEPT\n-A FORWARD -p {HUGE} --dport {HUGE} --icmp-type {HUGE}/{HUGE} -j DROP")
@example(text="*filter\n:FORWARD")
@example(text="*filter\n:x ")
def test_tables_of_todays_kernels(text: str) -> None:
    with only_our_errors():
        carry(list(iptables_save.read(text)), inside=("eth0",), outside="eth1", addresses=("1.2.3.4",))


@given(values(*JSON))
@example({"nftables": [{"chain": {"family": "ip"}}]})
@example({"nftables": [5, {}, {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": 5}}]})
def test_nft_as_json(value: object) -> None:
    for content in (value, {"nftables": value}, {"nftables": [value]}, {"nftables": [{"rule": value}]}):
        with only_our_errors():
            chains = list(nft_json.read(msgspec.json.encode(content).decode()))
            carry(chains, inside=("eth0",), outside="eth1", addresses=("1.2.3.4",))


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"method": "ping", "params": {"a": ' + HUGE.encode() + b"}}")
def test_requests(line: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        decode_request(line)


@pytest.fixture(scope="module")
def gateway() -> Iterator[PolicyGateway]:
    made = PolicyGateway()
    yield made
    made.close()


def test_every_method_is_tried(gateway: PolicyGateway) -> None:
    assert set(METHODS) == {*Methods(gateway.gateway, gateway.confirmation, gateway.leases).handlers()}


@pytest.mark.parametrize("method", METHODS)
@given(value=values(*PARAMETERS))
@example(value={"changes": [{"action": "add", "forward": {"protocol": "tcp", "listen": "eth1", "first": 10**30}}]})
@example(value={"lines": [{"place": "f:1", "method": "dynaddr", "params": {"value": 1, "changes": 5}}]})
def test_parameters_of_control_methods(gateway: PolicyGateway, method: str, value: object) -> None:
    handlers = Methods(gateway.gateway, gateway.confirmation, gateway.leases).handlers()
    wrapped = ({"changes": value}, {"changes": [value]}, {"lines": [value]}, {"packet": value, "chain": "x"})
    for params in (value, *wrapped):
        if isinstance(params, dict):
            with only_our_errors():
                handlers[method](params)


@given(values(*PARAMETERS))
def test_parameters_of_what_inside_hosts_ask(value: object) -> None:
    preload = Preload(None, lambda host: None)
    for handler in preload.inside_handlers().values():
        if isinstance(value, dict):
            with only_our_errors():
                handler(0x0A000002, value)
