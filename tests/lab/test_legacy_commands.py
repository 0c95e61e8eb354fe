"""The programs of 1999 on a forwarder that forwards: changes, listings, checks, timeouts, exit statuses, rule files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastmasq.control.client import call
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.lab.topology import SERVER_ADDRESS
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip
from tests.support.old_programs import PROGRAMS, Old

RULE_SETS = Path(__file__).parents[1] / "data" / "howto-rules"


@pytest.fixture
def old(net: Network) -> Old:
    net.start()
    return Old(net)


def test_5_2_ipfwadm_changes_and_lists(old: Old) -> None:
    assert old.lines("ipfwadm -F -l") == ["IP firewall forward rules, default policy: accept"]
    assert old.lines("ipfwadm -F -a accept -m -S 10.0.0.0/8 -D 0.0.0.0/0 -W eth1") == []
    assert old.lines("ipfwadm -I -a accept -W eth0 -v") == [
        "acc all opt ---- tos 0xFF 0x00 via eth0 0.0.0.0   0.0.0.0/0 -> 0.0.0.0/0   n/a"
    ]
    assert old.lines("ipfwadm -F -l -n") == [
        "IP firewall forward rules, default policy: accept",
        "type  prot source               destination          ports",
        "acc/m all  10.0.0.0/8           0.0.0.0/0            n/a",
    ]
    assert old.lines("ipfwadm -I -f") == old.lines("ipfwadm -I -z") == []
    assert old.lines("ipfwadm -I -l") == ["IP firewall input rules, default policy: accept"]


def test_5_2_ipfwadm_checks_and_its_exit_statuses(old: Old) -> None:
    old.lines("ipfwadm -F -a accept -m -P tcp -W eth1")
    old.lines("ipfwadm -F -a reject -P udp")
    old.lines("ipfwadm -F -p deny")
    packet = "-S 10.0.0.2 1025 -D 199.0.0.1 80 -V 200.200.200.200 -W eth1"
    for line, said, status in (
        (f"ipfwadm -F -c -P tcp {packet}", "packet masqueraded\n", 255),
        (f"ipfwadm -F -c -P udp {packet}", "packet rejected\n", 0),
        (f"ipfwadm -F -c -P tcp {packet}".replace("-W eth1", "-W eth0"), "packet denied\n", 0),
        (f"ipfwadm -I -c -P tcp {packet}", "packet accepted\n", 0),
    ):
        done = old.run(line)
        assert (done.stdout, done.stderr, done.returncode) == (said, "", status)
    done = old.run("ipfwadm -F -d deny -W eth7")
    assert (done.stderr, done.returncode) == ("ipfwadm: setsockopt failed: Invalid argument\n", 255)
    assert old.run("ipfwadm -F -a").returncode == 2


def test_5_3_ipchains_changes_lists_and_checks(old: Old) -> None:
    for line in ("-P forward DENY", "-N vpn", "-A vpn -p 47 -j MASQ", "-A forward -i eth1 -j vpn"):
        assert old.lines(f"ipchains {line}") == []
    assert old.lines("ipchains -L -n") == [
        "Chain input (policy ACCEPT):",
        "Chain forward (policy DENY):",
        "target     prot opt     source                destination           ports",
        "vpn        all  ------  0.0.0.0/0            0.0.0.0/0             n/a",
        "Chain output (policy ACCEPT):",
        "Chain vpn (1 references):",
        "target     prot opt     source                destination           ports",
        "MASQ       47   ------  0.0.0.0/0            0.0.0.0/0             n/a",
    ]
    packet = "-s 10.0.0.2 -d 199.0.0.1 -i eth1"
    assert old.lines(f"ipchains -C forward -p 47 {packet}") == ["masqueraded"]
    assert old.lines(f"ipchains -C forward -p 50 {packet}") == ["denied"]
    assert old.lines(f"ipchains -C vpn -p 50 {packet}") == ["passed through chain"]
    old.lines("ipchains -A vpn -j vpn")
    assert old.lines(f"ipchains -C forward -p 50 {packet}") == ["caught in loop"]
    assert old.lines("ipchains -F -v")[0] == "Flushing chain `input'"
    assert old.lines("ipchains -X -v") == ["Deleting chain `vpn'"]


@pytest.mark.parametrize(
    ("line", "said", "status"),
    [
        ("-A input -j nowhere", "No target by that name", 1),
        ("-F nowhere", "No chain by that name", 1),
        ("-L nowhere", "No chain by that name", 1),
        ("-L acct", "No chain by that name", 1),
        ("-D input 1", "bad rule (does a matching rule exist in that chain?)", 1),
        ("-X input", "Device or resource busy", 1),
        ("-N input", "Chain already exists", 1),
        ("-A input -j MASQ", "masquerading not allowed for input and output chains", 2),
    ],
)
def test_5_3_ipchains_says_why_not(old: Old, line: str, said: str, status: int) -> None:
    done = old.run(f"ipchains {line}")
    assert (done.stderr.splitlines()[0], done.returncode) == (f"ipchains: {said}", status)


def test_5_3_a_chain_with_rules_is_not_deleted(old: Old) -> None:
    old.lines("ipchains -N vpn")
    old.lines("ipchains -A vpn -j DENY")
    assert old.run("ipchains -X vpn").stderr == "ipchains: Chain is not empty\n"


def test_a1_a31_single_commands_are_tolerant_on_demand(old: Old) -> None:
    assert old.run("ipfwadm -0 -a accept").returncode == 2
    done = old.run("ipfwadm --tolerant -0 -a accept")
    assert (done.returncode, done.stderr) == (
        *(0, "ipfwadm: warning: -0 (the digit) is no option; taken as -O, the output rules\n"),
    )
    assert old.run("ipchains --tolerant -A input -j accept").returncode == 0
    assert old.lines("ipchains -L input -n")[2].startswith("ACCEPT ")


def test_c20_timeouts_of_the_running_forwarder(old: Old) -> None:
    net = old.net
    net.echo_tcp()
    session = net.connect("inside", (SERVER_ADDRESS, ECHO_PORT), port=6000)
    assert round_trip(session, None, b"?")
    old.lines("ipchains -M -S 600 0 0")
    assert round_trip(session, None, b"!")
    assert 590 < net.sessions(protocol="tcp")[0]["expires_s"] <= 601
    old.lines("ipfwadm -M -s 0 10 60")
    assert round_trip(session, None, b"!")
    assert 590 < net.sessions(protocol="tcp")[0]["expires_s"] <= 601


def test_5_2_5_3_the_masquerade_table(old: Old) -> None:
    net = old.net
    net.echo_tcp()
    assert round_trip(net.connect("inside", (SERVER_ADDRESS, ECHO_PORT), port=6000), None, b"?")
    header, titles, row = old.lines("ipfwadm -M -l -n")
    assert (header, titles) == (
        "IP masquerading entries",
        "prot expire   source               destination          ports",
    )
    fields = row.split()
    assert [fields[0], *fields[2:]] == ["tcp", INSIDE_ADDRESS, SERVER_ADDRESS, "6000", "(6000)", "->", str(ECHO_PORT)]
    assert old.lines("ipchains -M -L -n")[2].startswith("TCP  ")


def test_5_3_save_and_restore(old: Old) -> None:
    for line in ("-P input DENY", "-N vpn", "-A input -i eth0 -j ACCEPT", "-A vpn -p 47 -j MASQ"):
        old.lines(f"ipchains {line}")
    saved = old.run("ipchains-save")
    assert saved.stdout.splitlines() == [
        ":input DENY",
        ":forward ACCEPT",
        ":output ACCEPT",
        ":vpn -",
        "-A input -s 0.0.0.0/0.0.0.0 -d 0.0.0.0/0.0.0.0 -i eth0 -j ACCEPT",
        "-A vpn -s 0.0.0.0/0.0.0.0 -d 0.0.0.0/0.0.0.0 -p 47 -j MASQ",
    ]
    assert saved.stderr.splitlines()[0] == "Saving `input'."
    for line in ("-F", "-P input ACCEPT", "-A vpn -j DENY"):
        old.lines(f"ipchains {line}")
    restored = old.run("ipchains-restore -f", saved.stdout)
    assert (restored.returncode, restored.stderr.splitlines()[-1]) == (0, "Restoring `vpn'.")
    assert old.run("ipchains-save").stdout == saved.stdout


def test_without_a_forwarder_there_is_one_clear_line(net: Network, tmp_path: Path) -> None:
    missing = tmp_path / "none.sock"
    for program in ("ipfwadm -F -f", "ipchains -L", "ipchains-save"):
        name, *words = program.split()
        done = net.lab.exec(
            "gateway",
            [str(PROGRAMS / name), *words],
            capture_output=True,
            text=True,
            env={"FASTMASQ_SOCKET": str(missing)},
            timeout=30,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            f"{name}: no fastmasq is running at {missing}; start `fastmasq run`, or name its socket in FASTMASQ_SOCKET"
        ]


def test_h32_rule_files_are_run_at_start(net: Network, tmp_path: Path) -> None:
    second = tmp_path / "rc.local"
    second.write_text("echo 5 > /proc/sys/net/ipv4/ip_dynaddr\nipchains -M -S 600 0 0\n")
    net.start(f'[rules]\nfiles = ["{RULE_SETS / "3.6-ipchains-tight-ppp0.rules"}", "{second}"]')
    old = Old(net)
    assert call(str(net.fastmasq.socket), "timeouts") == {"tcp": 600, "tcp_fin": 240, "udp": 300}
    lines = old.lines("ipchains -L forward -n")
    assert lines[0] == "Chain forward (policy DENY):"
    assert [line.split()[1] for line in lines[2:]] == ["udp", "50", "tcp", "47"]
    packet = f"-p tcp -s {INSIDE_ADDRESS} 1025 -d 199.0.0.1 1723 -i ppp0"
    assert old.lines(f"ipchains -C forward {packet}") == ["masqueraded"]
    assert old.lines(f"ipchains -C forward {packet.replace('1723', '80')}") == ["denied"]


def test_h43_a_script_without_a_word_about_forward_routes(net: Network, tmp_path: Path) -> None:
    """As on a kernel of 1999: with a private address, if need be."""
    script = tmp_path / "rc.firewall"
    script.write_text("ipfwadm -I -a accept -W eth1\n")
    net.start(f'[rules]\nfiles = ["{script}"]')
    server, client = net.udp("server"), net.udp("inside")
    remote = (SERVER_ADDRESS, server.getsockname()[1])
    outside = net.sniff("router", "eth0")
    client.sendto(b"routed", remote)
    eventually(lambda: outside.of(source=INSIDE_ADDRESS, destination_port=remote[1]))
    assert net.sessions() == []
    script.write_text("ipfwadm -F -a m -S 10.0.0.0/8 -D 0.0.0.0/0\n")
    net.fastmasq.run_command("reload")
    net.echo_udp()
    assert round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"masqueraded")


def test_a15_rule_load_takes_a_script_with_its_arguments(old: Old, tmp_path: Path) -> None:
    script = tmp_path / "ip-up.local"
    script.write_text("ipfwadm -I -f\nipfwadm -I -a deny -W $1 -V ${4}\nipfwadm -M -s 600 0 0\nroute add x\n")
    command = [sys.executable, "-m", "fastmasq", "rule", "load", "--socket", str(old.net.fastmasq.socket), str(script)]
    for words, status, said in (
        (["ppp0"], 2, f"fastmasq: {script}:2: depends on argument 4, which is not given; write it out\n"),
        (
            ["ppp0", "ttyS0", "115200", "200.200.200.200"],
            *(0, f"warning: {script}:4: ignored: 'route add x', a line of another program\n"),
        ),
    ):
        done = old.net.lab.exec("gateway", [*command, *words], capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (status, said)
    assert done.stdout == f"{script}: 3 changes made\n"
    assert old.lines("ipfwadm -I -l -n -e")[2].split()[7:9] == ["ppp0", "200.200.200.200"]


def test_rule_load_does_all_of_a_script_or_nothing(old: Old, tmp_path: Path) -> None:
    lines = [
        "ipchains -A input -p tcp -d 0/0 77 -j DENY",
        "ipportfw -A -t200.200.200.200/7777 -R 10.0.0.2/80",
        "ipmasqadm autofw -A -r tcp 7000 7010 -c tcp 7070",
        "ipmasqadm mfw -A -m 1 -r 10.0.0.2 80",
        "ipfwd --masq 10.0.0.2 47",
    ]
    script = tmp_path / "script"
    command = [sys.executable, "-m", "fastmasq", "rule", "load", "--socket", str(old.net.fastmasq.socket), str(script)]

    def load(last: str, *options: str) -> tuple[int, str, str]:
        script.write_text("\n".join([*lines, last, ""]))
        done = old.net.lab.exec("gateway", [*command, *options], capture_output=True, text=True, timeout=30)
        return done.returncode, done.stdout, done.stderr

    missing = f"{script}:6: tcp 200.200.200.200:80: no such forward; see `fastmasq forward list`\n"
    assert load("ipportfw -D -t200.200.200.200/80", "--strict") == (2, "", f"fastmasq: {missing}")
    assert old.lines("ipchains -L input -n") == ["Chain input (policy ACCEPT):"]
    assert len(old.lines("ipmasqadm portfw -l -n")) == 1
    assert load("ipportfw -D -t200.200.200.200/7777") == (0, f"{script}: 6 changes made\n", "")
    left_out = missing.replace(":6: ", ":6: left out: ")
    said = f"warning: {left_out}"
    assert load("ipportfw -D -t200.200.200.200/80") == (0, f"{script}: 5 changes made\n", said)
    assert len(old.lines("ipmasqadm portfw -l -n")) == 2


def test_a_line_that_only_the_running_forwarder_refuses_undoes_the_whole_script(net: Network, tmp_path: Path) -> None:
    """The last line's port is forwarded already, by the name of the link: the script's rule and forward go again."""
    net.start('[[forward]]\nprotocol = "tcp"\nlisten = "eth1:8080"\nto = "10.0.0.2:80"\n')
    script = tmp_path / "script"
    script.write_text(
        "ipchains -A input -p tcp -d 0/0 77 -j DENY\n"
        "ipportfw -A -t200.200.200.200/7777 -R 10.0.0.2/80\n"
        "ipmasqadm autofw -A -r tcp 7000 7010 -c tcp 7070\n"
        "ipchains -M -S 600 0 0\n"
        "ipportfw -A -t200.200.200.200/8080 -R 10.0.0.3/80\n"
    )

    def everything() -> list[object]:
        return [call(str(net.fastmasq.socket), method) for method in ("rules", "forwards", "triggers", "timeouts")]

    before = everything()
    with pytest.raises(FastmasqError, match=r"ended with 2: .*:8080: the same address and port as tcp eth1:8080"):
        net.fastmasq.run_command("rule", "load", str(script))
    assert everything() == before


def test_a_mistake_in_a_rule_file_leaves_the_host_as_it_was(net: Network, tmp_path: Path) -> None:
    rules = tmp_path / "rc.firewall"
    rules.write_text("ipfwadm -F -p deny\nipfwadm -F -a nonsense\n")
    forwarding = net.sysctl("gateway", "net.ipv4.ip_forward")
    with pytest.raises(KernelError, match=r"status 2 before it forwarded: .*rc\.firewall:2: ipfwadm: invalid policy"):
        net.start(f'[rules]\nfiles = ["{rules}"]')
    assert net.sysctl("gateway", "net.ipv4.ip_forward") == forwarding
