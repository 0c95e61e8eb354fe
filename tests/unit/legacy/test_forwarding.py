"""The worked examples of ipportfw (5.4), ipmasqadm (5.5) and ipfwd (5.6), by section and number, and their errors."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import pytest

from fastmasq.errors import FastmasqError, KernelError
from fastmasq.legacy import ipmasqadm, ipmasqadm_autofw, ipmasqadm_mfw, proc
from fastmasq.legacy.forwarding import run_ipfwd, run_ipmasqadm, run_ipportfw
from fastmasq.policy import forwards, marks, redirects, triggers

PUBLIC = "200.200.200.200"


class Running:
    """A forwarder without packets: what the control socket would do to the lists."""

    def __init__(self) -> None:
        self.forwards: tuple[forwards.Forward, ...] = ()
        self.redirects: tuple[redirects.Redirect, ...] = ()
        self.triggers: tuple[triggers.Trigger, ...] = ()
        self.marks: tuple[marks.MarkTarget, ...] = ()

    def __call__(self, method: str, **params: Any) -> Any:
        if method == "forwards":
            return [{**msgspec.to_builtins(one), "address": PUBLIC, "state": "in force"} for one in self.forwards]
        if method == "redirects":
            return [msgspec.to_builtins(one) for one in self.redirects]
        if method == "triggers":
            idle = {"contact": None, "peer": None, "left_s": 0.0}
            return [{**{name: getattr(one, name) for name in one.__struct_fields__}, **idle} for one in self.triggers]
        if method == "marks":
            return [
                {**{name: getattr(one, name) for name in one.__struct_fields__}, "left": one.left or one.preference}
                for one in self.marks
            ]
        name = method.removesuffix(".change")
        module = {"forwards": forwards, "redirects": redirects, "triggers": triggers, "marks": marks}[name]
        setattr(self, name, module.apply(getattr(self, name), msgspec.convert(params["changes"], list[module.Change])))
        return {"warnings": []}

    def rows(self) -> list[tuple[str, str, list[tuple[str, int, int]]]]:
        return [
            (
                one.protocol,
                forwards.write_ports(one.listen, one.first, one.last),
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
    assert refused(run_ipmasqadm, line, running) == ("portfw: setsockopt failed: No such process", 255)


def test_5_5_portfw_example_6_flush(running: Running):
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 1723 -R 10.0.0.2 1723", running)
    do(run_ipmasqadm, "portfw -f", running)
    assert running.rows() == []


def proc_autofw(running: Running) -> list[str]:
    return list(ipmasqadm_autofw.proc_lines(running("triggers")))[1:]


def test_5_5_autofw_example_1_a_range(running: Running):
    do(run_ipmasqadm, "autofw -A -r tcp 2000 2010 -h 10.0.0.5", running)
    [forward] = triggers.port_forwards(running.triggers)
    assert (str(forward), forward.targets) == ("tcp outside:2000-2010", (forwards.Target("10.0.0.5", 2000),))
    assert proc_autofw(running) == ["   1    6 07D0-07DA/0000 0000 0A000005 00000000 0000 0000      0    2"]


def test_5_5_autofw_example_2_a_triggered_range(running: Running):
    assert do(run_ipmasqadm, "autofw -A -r udp 6970 7170 -c tcp 7070", running) == []
    assert triggers.trigger_rows(running.triggers) == [(17, 6970, 7170, 6, 7070, True, True)]
    assert triggers.port_forwards(running.triggers) == ()
    assert proc_autofw(running) == ["   1   11 1B3A-1C02/0000 0000 00000000 00000000 0006 1B9E      0    6"]


def test_5_5_autofw_example_2_the_proc_view_of_a_row_that_is_active(running: Running):
    do(run_ipmasqadm, "autofw -A -r udp 6970 7170 -c tcp 7070", running)
    [row] = running("triggers")
    lines = ipmasqadm_autofw.proc_lines([{**row, "contact": "10.0.0.7", "peer": "199.0.0.1", "left_s": 12.5}])
    assert list(lines)[1] == "   1   11 1B3A-1C02/0000 0000 0A000007 C7000001 0006 1B9E   1250    7"


def test_5_5_autofw_u_and_i_lift_the_limits(running: Running):
    do(run_ipmasqadm, "autofw -A -r udp 1 2 -c tcp 3 -u", running)
    assert do(run_ipmasqadm, "autofw -A -r udp 4 5 -c tcp 3 -i", running) == [
        "-i cannot be specified with a control port"
    ]
    assert triggers.trigger_rows(running.triggers) == [(17, 4, 5, 6, 3, True, False), (17, 1, 2, 6, 3, False, True)]


def test_5_5_autofw_example_3_direct_ports(running: Running):
    do(run_ipmasqadm, "autofw -A -d udp 28800 28900", running)
    assert triggers.direct_rows(running.triggers) == [(17, 28800, 28900)]
    assert proc_autofw(running) == ["   3   11 7080-70E4/0000 0000 00000000 00000000 0000 0000      0    2"]


def test_5_5_autofw_examples_4_and_5_a_port_and_flush(running: Running):
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 1723 -R 10.0.0.2 1723", running)
    do(run_ipmasqadm, "autofw -A -p tcp 8080 10.0.0.5:80", running)
    [forward] = triggers.port_forwards(running.triggers)
    assert (str(forward), forward.targets) == ("tcp outside:8080", (forwards.Target("10.0.0.5", 80),))
    assert proc_autofw(running) == ["   2    6 0000-0000/1F90 0050 0A000005 00000000 0000 0000      0    2"]
    do(run_ipmasqadm, "autofw -F", running)
    assert running.triggers == ()
    assert [row[1] for row in running.rows()] == ["200.200.200.200:1723"]
    do(run_ipmasqadm, "autofw -A -p tcp 8080 10.0.0.5:80", running)
    do(run_ipmasqadm, "portfw -f", running)
    assert (running.rows(), len(running.triggers)) == ([], 1)


def test_5_5_autofw_example_6_flush_takes_no_options():
    assert refused(run_ipmasqadm, "autofw -F -v") == ("The flush command does not take options", 1)


def test_5_5_autofw_rows_are_deleted_by_all_but_their_limits(running: Running):
    for row in ("-r udp 6970 7170 -c tcp 7070", "-r tcp 1 2 -h 10.0.0.5", "-d udp 3 4", "-p tcp 5 10.0.0.5:6"):
        do(run_ipmasqadm, f"autofw -A {row}", running)
    missing = ("autofw: setsockopt failed: Invalid argument", 255)
    for row in ("-r udp 6970 7170 -c tcp 7071", "-r tcp 1 2 -h 10.0.0.6", "-d tcp 3 4", "-p tcp 5 10.0.0.5:7"):
        assert refused(run_ipmasqadm, f"autofw -D {row}", running) == missing
    for row in ("-r u 6970 7170 -c t 7070 -u", "-r tcp 1 2 -h 10.0.0.5", "-d udp 3 4", "-p tcp 5 10.0.0.5:6"):
        do(run_ipmasqadm, f"autofw -D {row}", running)
    assert running.triggers == ()


def test_5_5_autofw_the_same_row_again_takes_its_place(running: Running):
    do(run_ipmasqadm, "autofw -A -r tcp 1 2 -h 10.0.0.5", running)
    do(run_ipmasqadm, "autofw -A -r tcp 1 2 -h 10.0.0.6", running)
    assert [row.host for row in running.triggers] == ["10.0.0.6"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-A -v -d udp 3 4", ["Adding autofwd (direct) ports 3 - 4", "U"]),
        ("-A -p tcp 5 10.0.0.5:6 -v", ["Adding autofwd tcp port 5 -> 10.0.0.5:6 U"]),
        ("-A -r tcp 1 2 -h 10.0.0.5 -v -u", ["Adding autofwd tcp ports 1 - 2 to fixed host 10.0.0.5 "]),
        ("-A -r udp 1 2 -c tcp 3 -v", ["Adding autofwd udp ports 1 - 2 via tcp ctl port 3 US"]),
    ],
)
def test_5_5_autofw_verbose(line: str, said: list[str], running: Running):
    assert do(run_ipmasqadm, f"autofw {line}", running) == said


def listed(running: Running) -> list[list[str]]:
    return [line.split() for line in do(run_ipmasqadm, "mfw -L -n", running)[1:]]


def test_5_5_mfw_example_1_a_mark_and_its_listing(running: Running):
    do(run_ipmasqadm, "mfw -A -m 1 -r 10.0.0.2 80", running)
    assert do(run_ipmasqadm, "mfw -Ln", running) == [
        "fwmark   rediraddr               rport  pcnt  pref",
        "1        10.0.0.2                   80    10    10",
    ]
    lines = list(ipmasqadm_mfw.proc_lines(running("marks")))
    assert [line.rstrip() for line in lines] == [
        "FwMark > RAddr    RPort PrCnt  Pref",
        "0x1 > 0A000002    80    10    10",
    ]
    assert {len(line) for line in lines} == {63}


def test_listings_ask_no_name_server_again_that_is_not_there(running: Running, monkeypatch):
    asked = []

    def nobody(address: str) -> None:
        asked.append(address)
        raise socket.herror(2, "Host name lookup failure")

    monkeypatch.setattr(socket, "gethostbyaddr", nobody)
    for host in ("10.0.0.2", "10.0.0.3"):
        do(run_ipmasqadm, f"mfw -A -m 1 -r {host} 80", running)
    lines = do(run_ipmasqadm, "mfw -L", running)
    assert [line.split()[1] for line in lines[1:]] == ["10.0.0.2", "10.0.0.3"]
    assert len(asked) == 1
    do(run_ipmasqadm, "portfw -a -P tcp -L 200.200.200.200 8080 -R 10.0.0.2 80", running)
    assert do(run_ipmasqadm, "portfw -l", running)[1].split()[1:3] == ["200.200.200.200", "10.0.0.2"]
    assert len(asked) == 2


def test_5_5_mfw_examples_2_to_5_hosts_of_a_mark(running: Running):
    do(run_ipmasqadm, "mfw -A -m 1 -r 10.0.0.2 80", running)
    do(run_ipmasqadm, "mfw -A -m 1 -r 10.0.0.3 80 -p 20", running)
    assert marks.rows_by_mark(running.marks) == {1: [(0x0A000002, 80, 10, 10), (0x0A000003, 80, 20, 20)]}
    do(run_ipmasqadm, "mfw -E -m 1 -r 10.0.0.2 80 -p 0", running)
    assert marks.rows_by_mark(running.marks) == {1: [(0x0A000002, 80, 0, 0), (0x0A000003, 80, 20, 20)]}
    do(run_ipmasqadm, "mfw -S -m 1", running)
    assert [row[1] for row in listed(running)] == ["10.0.0.3", "10.0.0.2"]
    do(run_ipmasqadm, "mfw -D -m 1", running)
    assert running.marks == ()


def test_5_5_mfw_example_6_mark_0():
    assert refused(run_ipmasqadm, "mfw -A -m 0 -r 10.0.0.2") == ("mfw: insufficient options specified", 2)


def test_5_5_mfw_deleting_and_editing_take_wildcards(running: Running):
    for host in ("10.0.0.2 80", "10.0.0.2 81", "10.0.0.3 80"):
        do(run_ipmasqadm, f"mfw -A -m 1 -r {host}", running)
    do(run_ipmasqadm, "mfw -A -m 17 -r 10.0.0.4", running)
    do(run_ipmasqadm, "mfw -E -m 1 -r 10.0.0.2 -p 3", running)
    assert [row[2:] for row in listed(running)] == [
        ["0", "10", "10"],
        ["80", "3", "3"],
        ["81", "3", "3"],
        ["80", "10", "10"],
    ]
    do(run_ipmasqadm, "mfw -D -m 1 -r 0.0.0.0 80", running)
    assert [row[:3] for row in listed(running)] == [["17", "10.0.0.4", "0"], ["1", "10.0.0.2", "81"]]
    do(run_ipmasqadm, "mfw -F", running)
    assert listed(running) == []


def test_5_5_mfw_a_single_host_is_not_scheduled(running: Running):
    do(run_ipmasqadm, "mfw -A -m 1 -r 10.0.0.2 80 -p 3", running)
    do(run_ipmasqadm, "mfw -S -m 1", running)
    assert listed(running) == [["1", "10.0.0.2", "80", "3", "3"]]


@pytest.mark.parametrize("line", ["mfw", "mfw -h", "mfw -x", "mfw -m", "mfw -m 1"])
def test_5_5_mfw_help(line: str, running: Running):
    assert do(run_ipmasqadm, line, running)[0] == "Usage: mfw -A -m FWMARK -r RADDR RPORT [-p PREF] add entry"


def test_5_5_mfw_without_a_forwarder():
    def ask(method: str, **_: Any) -> Any:
        raise KernelError("no fastmasq is running at /run/fastmasq.sock")

    with pytest.raises(FastmasqError) as caught:
        run_ipmasqadm(["mfw", "-L"], ask)
    assert str(caught.value).splitlines()[:2] == [
        'Could not open "/proc/net/ip_masq/mfw"',
        "Check if you have enabled fwmark-forwarding",
    ]
    assert caught.value.exit_status == 1


@pytest.mark.parametrize(
    ("line", "text", "status"),
    [
        ("", "usage: ipmasqadm MODULE [opts]", 1),
        ("nothing -l", "dlopen(): ", 1),
        ("portfw -a -P tcp -L 1.2.3.4 80", "portfw: insufficient options specified", 2),
        ("portfw -a -P tcp -L 1.2.3.4 61000 -R 10.0.0.2 80", "portfw: invalid port specified: 61000", 2),
        ("portfw -a -P tcp -L 1.2.3.4", "portfw: option -L needs 2 arguments", 2),
        ("autofw -A -h 10.0.0.5", "You must select a type of forwarding (direct, port, or range)", 1),
        ("autofw", "Usage:", 1),
        ("autofw -L", "Command must be either -A, -D, or -F", 1),
        ("autofw -A -r udp 6970 7170", "autofw: a range needs the host that gets it (-h), or the control port", 1),
        ("autofw -A -r udp 2 1 -h 10.0.0.5", "Illegal port numbers", 1),
        ("autofw -A -p tcp 80 10.0.0.5", "Illegal port numbers", 1),
        ("autofw -A -r icmp 1 2 -h 10.0.0.5", "protocol must be either tcp or udp", 1),
        ("autofw -A -r udp 1 2 -c gre 1", "Control protocol must be either tcp or udp", 1),
        ("autofw -A -d udp 1 2 -r udp 1 2", "-r cannot be used in conjunction with -p or -d", 1),
        ("autofw -A -r udp 1 2 -h there", "Invalid IP address: there", 1),
        ("autofw -A -r udp 1 2 -x", "Invalid option: -x", 1),
        ("autofw -A -r udp 1", "autofw: option -r needs 3 arguments", 1),
        ("mfw -A -D", "mfw: multiple commands specified", 2),
        ("mfw -D", "mfw: insufficient options specified", 2),
        ("mfw -L -m 1", "mfw: incompatible options specified", 2),
        ("mfw -F -r 10.0.0.2", "mfw: incompatible options specified", 2),
        ("mfw -A -m 1 -n -r www", "mfw: illegal destination specified", 2),
        ("mfw -A -m 1 -r 10.0.0.2 -r 10.0.0.3", "mfw: multiple destinations specified", 2),
        ("mfw -A -m 1 -r 10.0.0.2 -p -1", "mfw: illegal preference value specified", 2),
        ("mfw -L again", "mfw: unknown arguments found on commandline", 2),
        ("mfw -A -m 1", "mfw: setsockopt failed: Invalid argument", 255),
        ("mfw -E -m 1 -p 3", "mfw: setsockopt failed: Invalid argument", 255),
        ("mfw -S -m 1", "mfw: setsockopt failed: Invalid argument", 255),
        ("mfw -D -m 1", "mfw: setsockopt failed: No such process", 255),
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


# -- what the originals did not have -----------------------------------------------------------------------------------


def test_force_takes_what_a_running_program_has(running: Running):
    do(run_ipportfw, "--force -A -t 200.200.200.200/22 -R 10.0.0.2/22", running)
    do(run_ipmasqadm, "portfw -a -P udp -L 200.200.200.200 53 -R 10.0.0.2 53 --force", running)
    do(run_ipmasqadm, "autofw --force -A -r udp 6970 7170 -c tcp 7070", running)
    do(run_ipmasqadm, "mfw -A --force -m 1 -r 10.0.0.2 22", running)
    do(run_ipmasqadm, "mfw -A -m 1 -r 10.0.0.3 22", running)
    do(run_ipfwd, "--masq --force 10.0.0.2 47", running)
    assert [one.steal for one in running.forwards] == [True, True]
    assert [one.steal for one in (*running.triggers, *running.redirects)] == [True, True]
    assert [one.steal for one in running.marks] == [True, False]
    do(run_ipmasqadm, "mfw --force -F", running)
    assert running.marks == ()
