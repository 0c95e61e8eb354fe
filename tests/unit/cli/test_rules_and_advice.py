"""`rule template`, `advise`, `import`, `proc` and the lint in `check`, as commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib

import pytest

from fastmasq.advice.templates import NAMES, text_of
from tests.support.foreign_rules import IPTABLES


@pytest.mark.parametrize("group", ["rule", "rules"])
def test_h5_templates_are_listed_and_printed(run, group):
    listed = run(group, "templates").stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == list(NAMES)
    assert run(group, "template", "3.6-ipchains-tight-ppp0").stdout == text_of("3.6-ipchains-tight-ppp0")
    filled = run(group, "template", "3.8-ipfwd", "--host", "10.1.0.5")
    assert filled.stdout.splitlines()[0] == "/sbin/ipfwd --masq 10.1.0.5 50 &"


def test_an_unknown_template(run):
    result = run("rule", "template", "3.6-tight")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean" in result.stderr


def test_h21_advise_writes_toml_to_stdout_and_reasons_to_stderr(run):
    result = run("advise", "--host", "10.0.0.2", "--role", "server", "--vpn", "ipsec", "--outside", "ppp0")
    table = tomllib.loads(result.stdout)
    assert table["forward"][0]["listen"] == "ppp0:500"
    assert "masquerade" in result.stderr


def test_h21_advise_writes_the_file_of_rules_that_the_toml_names(run):
    asked = ("advise", "--host", "222.0.0.2", "--role", "client", "--peer", "199.0.0.1")
    assert tomllib.loads(run(*asked).stdout)["rules"]["files"]
    rules = run(*asked, "--format", "rules").stdout
    assert "ipchains -P forward ACCEPT" in rules and "portfw" not in rules
    assert "ipfwadm -F -p accept" in run(*asked, "--format", "ipfwadm").stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--host"),
        (("--host", "10.0.0.2"), "--role"),
        (("--host", "10.0.0.2", "--role", "client", "--peer", "x"), "'x'"),
    ],
)
def test_advise_without_answers_and_without_a_terminal(run, options, said):
    result = run("advise", *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_import_writes_toml_rules_and_remarks(run, tmp_path):
    file = tmp_path / "saved"
    file.write_text(IPTABLES)
    result = run("import", "iptables-save", file)
    assert tomllib.loads(result.stdout)["forward"] == [
        {"protocol": "tcp", "listen": "eth1:1723", "to": "10.0.0.2:1723"}
    ]
    assert result.exit_code == 3
    assert "line 10: left out:" in result.stderr and "#   line 10: left out:" in result.stdout
    rules = run("import", "iptables-save", file, "--format", "rules").stdout
    assert "ipchains -P forward DENY" in rules


def test_import_of_all_that_there_is_ends_well(run, tmp_path):
    file = tmp_path / "rules"
    chain = "chain p { type nat hook postrouting priority 100; oif != lo oifname $wan masquerade; }"
    file.write_text(f"define wan = eth1\ntable ip n {{ {chain}; }}\n")
    result = run("import", "nft", file, "--inside", "eth0")
    assert (result.exit_code, result.stderr) == (0, "")
    assert tomllib.loads(result.stdout) == {"interfaces": {"inside": ["eth0"], "outside": "eth1"}}


def test_import_takes_what_is_behind_a_link(run, tmp_path):
    file = tmp_path / "rules"
    forward = "chain f { type filter hook forward priority 0; iifname wg0 oifname eth1 drop; }"
    file.write_text(f"table ip n {{ chain p {{ type nat hook postrouting priority 100; masquerade; }}; {forward}; }}\n")
    asked = ("import", "nft", file, "--outside", "eth1", "--format", "rules", "--inside", "eth0=10.0.0.0/24")
    result = run(*asked, "--inside", "wg0=10.8.0.0/24,10.9.0.0/24")
    assert result.exit_code == 0 and "-s 10.9.0.0/255.255.255.0" in result.stdout
    assert run(*asked, "--inside", "wg0").exit_code == 3
    result = run(*asked, "--inside", "wg0=10.8.0.0/33")
    assert result.exit_code == 2 and "'10.8.0.0/33' is not an IPv4 network" in result.stderr


def test_import_says_that_rules_of_iptables_cannot_be_read_as_json(run, tmp_path):
    file = tmp_path / "rules.json"
    xt = {"xt": {"type": "target", "name": "MASQUERADE"}}
    chain = {"family": "ip", "table": "nat", "name": "POSTROUTING", "type": "nat", "hook": "postrouting", "prio": 100}
    rule = {"family": "ip", "table": "nat", "chain": "POSTROUTING", "handle": 3, "expr": [xt]}
    table = {"family": "ip", "name": "nat", "handle": 1}
    file.write_text(json.dumps({"nftables": [{"table": table}, {"chain": chain}, {"rule": rule}]}))
    result = run("import", "nft", file)
    assert result.exit_code == 2 and "import what iptables-save prints" in result.stderr


def _bytes(text, form):
    return {"marked": b"\xef\xbb\xbf" + text.encode(), "dos": text.replace("\n", "\r\n").encode(),
            "latin-1": text.replace("CAFE", "caf\xe9").encode("latin-1")}[form]  # fmt: skip


@pytest.mark.parametrize("form", ["marked", "dos", "latin-1"])
def test_import_reads_files_of_any_editor(run, tmp_path, form):
    masquerading = '-m comment --comment "CAFE" -o eth1 -j MASQUERADE'
    saved = f"*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING {masquerading}\nCOMMIT\n"
    chain = 'type nat hook postrouting priority 100; oifname eth1 masquerade comment "CAFE"; '
    for program, text in (("iptables-save", saved), ("nft", f"table ip n {{\n chain p {{ {chain} }}\n}}\n")):
        file = tmp_path / program
        file.write_bytes(_bytes(text, form))
        result = run("import", program, file, "--inside", "eth0")
        assert (result.exit_code, result.stderr) == (0, "")
        file.write_bytes(text.encode("utf-16"))
        result = run("import", program, file, "--inside", "eth0")
        assert (result.exit_code, result.stdout) == (2, "") and "save it as UTF-8" in result.stderr


def test_import_refuses_what_it_cannot_read(run, tmp_path):
    file = tmp_path / "saved"
    file.write_text("hello\n")
    for form in ("iptables-save", "nft"):
        result = run("import", form, file)
        assert (result.exit_code, result.stdout) == (2, "")
    assert f"nft refuses {file}:" in result.stderr and f"{file}:1:6-6: Error: syntax error" in result.stderr


@pytest.mark.parametrize("file", ["/dev/zero", "/dev/urandom"])
@pytest.mark.parametrize("form", ["iptables-save", "nft"])
def test_import_of_what_has_no_end_ends(run, form, file):
    result = run("import", form, file)
    said = f"fastmasq: {file}: has more than 33554432 octets; name a file of rules\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", said)


def test_import_of_what_a_pipe_brings(run, tmp_path):
    """As `fastmasq import nft <(ssh gateway nft list ruleset)` has it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    chain = 'chain p { type nat hook postrouting priority 100; oifname "eth1" masquerade; }'
    writer = threading.Thread(target=pipe.write_text, args=(f"table ip n {{\n{chain}\n}}\n",))
    writer.start()
    result = run("import", "nft", pipe, "--inside", "eth0")
    writer.join()
    assert (result.exit_code, result.stderr) == (0, "")
    assert tomllib.loads(result.stdout) == {"interfaces": {"inside": ["eth0"], "outside": "eth1"}}


def test_c80_proc_shows_the_sessions(run, forwarder):
    lines = run("proc", "ip_masquerade", "--socket", forwarder.path).stdout.splitlines()
    assert lines[0].rstrip().endswith(f"(free={60416 - 1},{60416 - 1},{60416 - 1})")
    assert lines[1].startswith("TCP 0A000002:9C40 C7000001:0050 9C40 ")
    assert run("proc", "ip_masq/udp", "--socket", forwarder.path).exit_code == 0


def test_s54_s55_proc_shows_the_forwards(run, forwarder):
    web = {"protocol": "tcp", "listen": "ppp0", "first": 8080, "last": 8081, "address": "200.200.200.200"}
    web["targets"] = [{"address": "10.0.0.2", "port": 80, "preference": 10, "left": 7}]
    isakmp = {"protocol": "udp", "listen": "ppp1", "first": 500, "last": 500, "address": None}
    isakmp["targets"] = [{"address": "10.0.0.3", "port": 500, "preference": 10}]

    def shown(name: str, *forwards: dict) -> list[str]:
        forwarder.forwards = list(forwards)
        return [line.rstrip() for line in run("proc", name, "--socket", forwarder.path).stdout.splitlines()[1:]]

    assert shown("portfw", web, isakmp) == [
        "UDP  00000000   500 > 0A000003   500    10    10",
        "TCP  C8C8C8C8  8080 > 0A000002    80     7    10",
        "TCP  C8C8C8C8  8081 > 0A000002    81     7    10",
    ]
    assert shown("ip_portfw", web)[1] == "TCP  200.200.200.200/8081 > 10.0.0.2/81"


def test_s55_proc_shows_autoforwards_and_marks(run, forwarder):
    row = {"kind": "range", "protocol": "udp", "first": 6970, "last": 7170, "host": "", "hidden": 0, "is_timed": True}
    row |= {"control_protocol": "tcp", "control_port": 7070, "peer_only": True}
    forwarder.triggers = [{**row, "contact": "10.0.0.7", "peer": "199.0.0.1", "left_s": 12.5}]
    forwarder.marks = [{"mark": 1, "address": "10.0.0.2", "port": 80, "preference": 10, "left": 7}]
    for name, line in (
        ("autofw", "   1   11 1B3A-1C02/0000 0000 0A000007 C7000001 0006 1B9E   1250    7"),
        ("mfw", "0x1 > 0A000002    80     7    10"),
    ):
        done = run("proc", name, "--socket", forwarder.path)
        assert done.exit_code == 0
        assert done.stdout.splitlines()[1].rstrip() == line


def test_c82_h28_proc_ksyms_has_the_symbols_of_a_running_forwarder(run, forwarder):
    shown = run("proc", "ksyms", "--socket", forwarder.path).stdout
    assert "ip_masq_new" in shown and "gre" not in shown and "esp" not in shown
    forwarder.handlers["vpn"] = lambda params: {"pptp": True, "ipsec": False}
    shown = run("proc", "ksyms", "--socket", forwarder.path).stdout
    assert "ip_masq_pptp" in shown and "esp" not in shown
    assert run("proc", "ksyms", "--socket", "/nowhere/else.sock").exit_code == 1


def test_proc_knows_its_files(run, forwarder):
    result = run("proc", "cpuinfo", "--socket", forwarder.path)
    assert result.exit_code == 2
    assert "ip_fwchains" in result.stderr


def test_a10_check_lints_the_rule_files(run, tmp_path, stand_in):
    stand_in("fastmasq.daemon.preflight", findings=lambda settings: [])
    script = tmp_path / "rc.firewall"
    script.write_text(text_of("3.6-ipchains-tight-ppp0"))
    config = tmp_path / "f.toml"
    config.write_text(f'[interfaces]\ninside = ["eth0"]\noutside = "ppp0"\n[rules]\nfiles = ["{script}"]\n')
    result = run("check", "-c", config)
    assert result.exit_code == 0
    assert "warning: rules: chain input: ICMP 3/4" in result.stdout
    assert "[loopback-blocked]" in result.stdout


SERVER = '[[forward]]\nprotocol = "tcp"\nlisten = "{}:1723"\nto = "10.0.0.2:1723"\n'


def test_h67_check_lints_forwards_without_any_rule_file(run, tmp_path, stand_in):
    stand_in("fastmasq.daemon.preflight", findings=lambda settings: [])
    config = tmp_path / "f.toml"

    def said(*parts: str, pptp: str = "false") -> str:
        links = '[interfaces]\ninside = ["lo"]\noutside = "ppp0"\n'
        config.write_text(f"{links}[vpn]\npptp = {pptp}\n" + "".join(parts))
        result = run("check", "-c", config)
        assert result.exit_code == 0
        return result.stdout

    for listen in ("ppp0", "200.200.200.200"):
        assert "[vpn-half]" in said(SERVER.format(listen))
        assert "[vpn-half]" not in said(SERVER.format(listen), pptp="true")
    redirect = '[[redirect]]\nprotocol = 47\nto = "10.0.0.2"\n'
    assert said(SERVER.format("ppp0"), redirect) == f"{config}: ready to run\n"
    for listen in ("lo", "127.0.0.1"):
        assert "[vpn-half]" not in said(SERVER.format(listen))  # nobody outside gets there


def test_h67_t6_check_lints_the_forwards_of_rule_files(run, tmp_path, stand_in):
    stand_in("fastmasq.daemon.preflight", findings=lambda settings: [])
    script, config = tmp_path / "rc.firewall", tmp_path / "f.toml"
    config.write_text(
        f'[interfaces]\ninside = ["eth0"]\noutside = "ppp0"\n[vpn]\npptp = false\n[rules]\nfiles = ["{script}"]\n'
    )
    script.write_text("ipportfw -A -t 200.200.200.200/1723 -R 10.0.0.2/1723\n")
    result = run("check", "-c", config)
    assert "[vpn-half]" in result.stdout
    assert "[forward-without-masquerade]" in result.stdout
    with script.open("a") as more:
        more.write("ipfwadm -F -p deny\nipfwadm -F -a m -W ppp0\nipfwd --masq 10.0.0.2 47 &\n")
    result = run("check", "-c", config)
    assert "vpn-half" not in result.stdout and "forward-without" not in result.stdout


def test_h21_advise_asks_on_a_terminal():
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "fastmasq", "advise", "--vpn", "pptp", "--inside", "eth0", "--outside", "ppp0"]
    try:
        asking = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True)
        os.write(ours, b"10.0.0.2\nserver\nn\n")
        written = asking.communicate(timeout=120)[0]
    finally:
        os.close(ours)
        os.close(theirs)
    assert tomllib.loads(written)["forward"][0]["to"] == "10.0.0.2:1723"
