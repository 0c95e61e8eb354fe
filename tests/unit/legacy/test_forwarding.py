"""The worked examples of ipportfw (5.4), ipmasqadm (5.5) and ipfwd (5.6), by section and number, and their errors."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.legacy import ipmasqadm, proc
from fastmasq.legacy.forwarding import run_ipfwd, run_ipmasqadm, run_ipportfw
from fastmasq.policy import portfw, redirect

PUBLIC = "200.200.200.200"


class Running:
    """A forwarder without packets: what the control socket would do to the two lists."""

    def __init__(self) -> None:
        self.forwards: tuple[portfw.PortForward, ...] = ()
        self.redirects: tuple[redirect.Redirect, ...] = ()

    def __call__(self, method: str, **params: Any) -> Any:
        if method == "forwards":
            return [{**msgspec.to_builtins(one), "address": PUBLIC, "state": "in force"} for one in self.forwards]
        if method == "redirects":
            return [msgspec.to_builtins(one) for one in self.redirects]
        module, name = (portfw, "forwards") if method == "forwards.change" else (redirect, "redirects")
        setattr(self, name, module.apply(getattr(self, name), msgspec.convert(params["changes"], list[module.Change])))
        return {"warnings": []}

    def rows(self) -> list[tuple[str, str, list[tuple[str, int, int]]]]:
        return [
            (
                one.protocol,
                portfw.write_ports(one.listen, one.first, one.last),
                [(target.address, target.port, target.preference) for target in one.targets],
            )
            for one in self.forwards
        ]


@pytest.fixture
def running() -> Running:
    return Running()


def do(run, line: str, running: Running) -> list[str]:
    return list(run(line.split(), running))


def refused(run, line: str, running: Running | None = None) -> tuple[str, int]:
    with pytest.raises(FastmasqError) as caught:
        do(run, line, running or Running())
    return str(caught.value), caught.value.exit_status


# -- 5.4 ipportfw ----------------------------------------------------------------------------------------------------


def test_5_4_example_1_clear(running: Running):
    do(run_ipportfw, "-A -t 200.200.200.200/1723 -R 10.0.0.2/1723", running)
    do(run_ipportfw, "-C", running)
    assert running.rows() == []


def test_5_4_example_2_isakmp(running: Running):
    do(run_ipportfw, "-A -u 200.200.200.200/500 -R 10.0.0.2/500", running)
    assert running.rows() == [("udp", "200.200.200.200:500", [("10.0.0.2", 500, 10)])]


def test_5_4_example_3_pptp_control_and_its_listing(running: Running):
    do(run_ipportfw, "-A -t200.200.200.200/1723 -R 10.0.0.2/1723", running)
    assert do(run_ipportfw, "-L", running) == [
        "Prot Local Addr/Port > Remote Addr/Port",
        "TCP  200.200.200.200/1723 > 10.0.0.2/1723",
        "",
    ]


def test_5_4_example_4_h37_a_link_in_place_of_the_address(running: Running):
    do(run_ipportfw, "-A -t ppp0/1723 -R 10.0.0.2/1723", running)
    assert running.rows() == [("tcp", "ppp0:1723", [("10.0.0.2", 1723, 10)])]


def test_5_4_example_5_delete(running: Running):
    do(run_ipportfw, "-A -t 200.200.200.200/1723 -R 10.0.0.2/1723", running)
    do(run_ipportfw, "-D -t 200.200.200.200/1723", running)
    assert running.rows() == []
    assert refused(run_ipportfw, "-D -t 200.200.200.200/1723") == ("ipfwadm: setsockopt failed: No such process", 1)


def test_5_4_example_6_a_port_of_masquerading():
    line = "-A -t 200.200.200.200/61000 -R 10.0.0.2/80"
    assert refused(run_ipportfw, line) == ("ipportfw: illegal local address/port specified", 2)


def test_5_4_example_7_the_second_block_clears_the_first(running: Running):
    for line in (
        "-C",
        "-A -u 200.200.200.200/500 -R 10.0.0.2/500",
        "-C",
        "-A -t 200.200.200.200/1723 -R 10.0.0.2/1723",
    ):
        do(run_ipportfw, line, running)
    assert [row[1] for row in running.rows()] == ["200.200.200.200:1723"]


def test_5_4_adding_again_replaces(running: Running):
    do(run_ipportfw, "-A -t 200.200.200.200/80 -R 10.0.0.2/80", running)
    do(run_ipportfw, "-A -t 200.200.200.200/80 -R 10.0.0.3/80", running)
    assert running.rows() == [("tcp", "200.200.200.200:80", [("10.0.0.3", 80, 10)])]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("-A -C", "multiple commands specified"),
        ("-A -t 1.2.3.4/80 -u 1.2.3.4/80 -R 10.0.0.2/80", "multiple protocols specified"),
        ("-A -t 1.2.3.4 -R 10.0.0.2/80", "illegal local address/port specified"),
        ("-A -t 1.2.3.4/80 -R 10.0.0.2/80 -R 10.0.0.3/80", "multiple destinations specified"),
        ("-A -t 1.2.3.4/80 -R www/80", "illegal destination specified"),
        ("-A -t 1.2.3.4/80", "insufficient options specified"),
        ("-D", "insufficient options specified"),
        ("-D -t 1.2.3.4/80 -R 10.0.0.2/80", "incompatible options specified"),
        ("-L -t 1.2.3.4/80", "incompatible options specified"),
        ("-C again", "unknown arguments found on commandline"),
    ],
)
def test_5_4_errors(line: str, text: str):
    assert refused(run_ipportfw, line) == (f"ipportfw: {text}", 2)


@pytest.mark.parametrize("line", ["", "-h", "-x"])
def test_5_4_help(line: str, running: Running):
    assert do(run_ipportfw, line, running)[0].startswith("Usage: ipportfw")


def test_5_4_without_a_forwarder():
    def ask(method: str, **_: Any) -> Any:
        raise KernelError("no fastmasq is running at /run/fastmasq.sock")

    with pytest.raises(FastmasqError, match="Could not open /proc/net/ip_portfw") as caught:
        run_ipportfw(["-L"], ask)
    assert caught.value.exit_status == 1


# -- 5.5 ipmasqadm ---------------------------------------------------------------------------------------------------


def test_5_5_portfw_examples_1_and_2(running: Running):
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 1723 -R 10.0.0.2 1723", running)
    do(run_ipmasqadm, "portfw -a -P udp -L 200.200.200.200 500 -R 10.0.0.2 500", running)
    assert running.rows() == [
        ("tcp", "200.200.200.200:1723", [("10.0.0.2", 1723, 10)]),
        ("udp", "200.200.200.200:500", [("10.0.0.2", 500, 10)]),
    ]
    assert do(run_ipmasqadm, "portfw -l -n", running) == [
        "prot localaddr            rediraddr               lport    rport  pcnt  pref",
        "UDP  200.200.200.200      10.0.0.2                  500      500    10    10",
        "TCP  200.200.200.200      10.0.0.2                 1723     1723    10    10",
    ]


def test_5_5_proc_view(running: Running):
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 1723 -R 10.0.0.2 1723", running)
    lines = list(proc.portfw(ipmasqadm.rows(running("forwards"))))
    assert [line.rstrip() for line in lines] == [
        "Prot LAddr    LPort > RAddr    RPort PrCnt  Pref",
        "TCP  C8C8C8C8  1723 > 0A000002  1723    10    10",
    ]
    assert {len(line) for line in lines} == {63}


def test_5_5_portfw_example_3_two_targets(running: Running):
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 80 -R 10.0.0.2 80 -p 10", running)
    do(run_ipmasqadm, "portfw -a -Ptcp -L 200.200.200.200 80 -R 10.0.0.3 80 -p 5", running)
    assert running.rows() == [("tcp", "200.200.200.200:80", [("10.0.0.3", 80, 5), ("10.0.0.2", 80, 10)])]


def test_5_5_portfw_example_4_the_same_again_edits(running: Running):
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 1723 -R 10.0.0.2 1723", running)
    do(run_ipmasqadm, "portfw -a -P t -L 200.200.200.200 1723 -R 10.0.0.2 1723 -p 3", running)
    assert running.rows() == [("tcp", "200.200.200.200:1723", [("10.0.0.2", 1723, 3)])]


def test_5_5_portfw_example_5_delete_by_wildcard(running: Running):
    for address in (PUBLIC, "200.200.200.201"):
        do(run_ipmasqadm, f"portfw -a -P tcp -L {address} 1723 -R 10.0.0.2 1723", running)
    do(run_ipmasqadm, "portfw -d -P tcp -L 0.0.0.0 1723", running)
    assert running.rows() == []
    line = "portfw -d -P tcp -L 0.0.0.0 1723"
    assert refused(run_ipmasqadm, line, running) == ("portfw: setsockopt failed: No such process", 1)


def test_5_5_portfw_example_6_flush(running: Running):
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 1723 -R 10.0.0.2 1723", running)
    do(run_ipmasqadm, "portfw -f", running)
    assert running.rows() == []


def test_5_5_autofw_example_1_a_range(running: Running):
    do(run_ipmasqadm, "autofw -A -r tcp 2000 2010 -h 10.0.0.5", running)
    assert running.rows() == [("tcp", "outside:2000-2010", [("10.0.0.5", 2000, 10)])]


def test_5_5_autofw_examples_4_and_5_a_port_and_flush(running: Running):
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 1723 -R 10.0.0.2 1723", running)
    do(run_ipmasqadm, "autofw -A -p tcp 8080 10.0.0.5:80", running)
    assert running.rows()[1:] == [("tcp", "outside:8080", [("10.0.0.5", 80, 10)])]
    do(run_ipmasqadm, "autofw -F", running)
    assert [row[1] for row in running.rows()] == ["200.200.200.200:1723"]


def test_5_5_autofw_example_6_flush_takes_no_options():
    assert refused(run_ipmasqadm, "autofw -F -v") == ("The flush command does not take options", 1)


@pytest.mark.parametrize(
    ("line", "text", "status"),
    [
        ("", "usage: ipmasqadm MODULE [opts]", 1),
        ("nothing -l", "dlopen(): ", 1),
        ("portfw -a -P tcp -L 1.2.3.4 80", "portfw: insufficient options specified", 2),
        ("portfw -a -P tcp -L 1.2.3.4 61000 -R 10.0.0.2 80", "portfw: invalid port specified: 61000", 2),
        ("portfw -a -P tcp -L 1.2.3.4", "portfw: option -L needs 2 arguments", 2),
        ("autofw -A -h 10.0.0.5", "You must select a type of forwarding (direct, port, or range)", 1),
        ("autofw -A -r udp 6970 7170 -c tcp 7070", "autofw: ranges opened by a control port (-c)", 1),
        ("mfw -L", "mfw: forwarding by mark is not available in this version", 1),
    ],
)
def test_5_5_errors(line: str, text: str, status: int):
    said, ended = refused(run_ipmasqadm, line)
    assert said.startswith(text)
    assert ended == status


# -- 5.6 ipfwd -------------------------------------------------------------------------------------------------------


def test_5_6_examples_1_and_2_h39(running: Running):
    do(run_ipfwd, "--masq 10.0.0.2 50 &", running)
    do(run_ipfwd, "--masq 10.0.0.2 47 &", running)
    do(run_ipfwd, "--masq 10.0.0.2 47", running)
    assert [(one.protocol, one.host) for one in running.redirects] == [(50, "10.0.0.2"), (47, "10.0.0.2")]


def test_5_6_one_host_for_each_protocol_unless_from_tells_them_apart(running: Running):
    do(run_ipfwd, "10.0.0.2 gre", running)
    do(run_ipfwd, "--masq --add --from 199.0.0.0/24 10.0.0.3 47", running)
    do(run_ipfwd, "10.0.0.4 47", running)
    assert sorted((one.host, one.source) for one in running.redirects) == [
        ("10.0.0.3", "199.0.0.0/24"),
        ("10.0.0.4", "0.0.0.0/0"),
    ]
    do(run_ipfwd, "--delete 10.0.0.4 47", running)
    assert do(run_ipfwd, "--list", running)[1:] == ["47     10.0.0.3         199.0.0.0/24"]
    do(run_ipfwd, "--flush", running)
    assert running.redirects == ()


@pytest.mark.parametrize("line", ["--masq 10.0.0.2 6", "--masq 10.0.0.2 udp", "--masq 10.0.0.2", "--proxy 10.0.0.2 47"])
def test_5_6_errors(line: str):
    said, ended = refused(run_ipfwd, line)
    assert said.startswith("ipfwd: ")
    assert ended == 2
