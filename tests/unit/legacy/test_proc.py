"""The files of /proc/net, byte for byte as far as their formats are known (original-systems 2.13, 5.2 to 5.5)."""

from __future__ import annotations

import pytest

from fastmasq.legacy import proc
from fastmasq.policy.chains import Match, Rule
from tests.support.harness import address
from tests.support.scripts import rules_of

SESSION = {
    "protocol": "tcp",
    "state": "established",
    "inside": "10.0.0.2:1025",
    "external": "200.200.200.200:61000",
    "remote": "199.0.0.1:1723",
    "expires_s": 898.31,
    "idle_s": 1.0,
    "packets_out": 3,
    "packets_in": 0,
}
QUERY = {
    **SESSION,
    "protocol": "icmp",
    "state": "active",
    "inside": "10.0.0.2:7",
    "remote": "199.0.0.1",
    "packets_in": 1,
}


def test_c80_ip_masquerade():
    lines = list(proc.ip_masquerade([SESSION, QUERY], {"udp": 4096, "tcp": 4095, "icmp": 4095}))
    assert {len(line) for line in lines} == {127}
    assert lines[0].rstrip() == (
        "Prc FromIP   FPrt ToIP     TPrt Masq Init-seq  Delta PDelta Expires (free=4096,4095,4095)"
    )
    assert lines[1].rstrip() == "TCP 0A000002:0401 C7000001:06BB EE48 00000000      0      0   89831"
    assert lines[2].startswith("ICMP0A000002:0007 C7000001:0800 EE48 ")


def test_c81_one_protocol():
    lines = list(proc.ip_masq("tcp", [SESSION, QUERY], 4095))
    assert len(lines) == 2
    assert lines[0].split()[:10] == ["Prot", "SrcIP", "SPrt", "DstIP", "DPrt", "MAddr", "MPrt", "State", "Flgs", "Ref"]
    assert lines[0].rstrip().endswith("HRow HCol (free=4095)")
    assert lines[1].split()[:9] == [
        "TCP",
        "0A000002",
        "0401",
        "C7000001",
        "06BB",
        "C8C8C8C8",
        "EE48",
        "ESTABLISHED",
        "0080",
    ]
    assert list(proc.ip_masq("icmp", [QUERY], 1))[1].split()[8] == "0000"
    assert {len(line) for line in lines} == {127}


def test_s53_ip_fwchains_and_ip_fwnames(tmp_path):
    script = "ipchains -N vpn\nipchains -A vpn -p 47 -j MASQ\nipchains -A forward -i ppp+ -j vpn\n"
    script += "ipchains -A input -p tcp ! -y -s 199.0.0.1 1723 -d ! 10.0.0.0/8 61000:65095 -i eth1 -l -m 5 -j ACCEPT\n"
    rules = rules_of(script, tmp_path)
    rules.chains["input"].rules[0].bytes = (1 << 32) + 7
    chains = list(rules.chains.values())
    assert list(proc.ip_fwchains(chains)) == [
        "    input C7000001/FFFFFFFF->0A000000/FF000000 eth1 B 42 6 0 0 1 7 1723-1723 61000-65095 "
        "AFF X00 00000000 5 0 ACCEPT",
        "  forward 00000000/00000000->00000000/00000000 ppp 10 0 0 0 0 0 0 0-65535 0-65535 AFF X00 00000000 0 0 vpn",
        "      vpn 00000000/00000000->00000000/00000000 - 10 0 47 0 0 0 0 0-65535 0-65535 AFF X00 00000000 0 0 MASQ",
    ]
    names = list(proc.ip_fwnames(chains, {"vpn": 1}))
    assert names == ["input ACCEPT 0 0 0 0 0", "forward ACCEPT 0 0 0 0 0", "output ACCEPT 0 0 0 0 0", "vpn - 1 0 0 0 0"]


@pytest.mark.parametrize(("policy", "number"), [("deny", 0), ("accept", 4), ("reject", 256), ("masquerade", 516)])
def test_s52_policies_of_2_0(policy, number, tmp_path):
    chain = rules_of(f"ipfwadm -F -p {policy}\n", tmp_path).chains["forward"]
    assert list(proc.ip_firewall(chain)) == [f"IP firewall forward rules, default {number}"]


@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("-F -a accept -m -P udp -S 10.0.0.2/32 500 -D 199.0.0.1/32 500 -W eth1", "eth1 00000000 206 1 1"),
        ("-I -a deny -W eth1 -V 200.200.200.200 -P tcp -o", "eth1 C8C8C8C8 21 0 0"),
        ("-I -a reject -P tcp -D 0/0 20:21 113 -y -k", "- 00000000 591 0 3"),
        ("-I -a accept -P tcp -r 3128 -b", "- 00000000 845 0 0"),
    ],
)
def test_s52_rules_of_2_0(rule, fields, tmp_path):
    rules = rules_of(f"ipfwadm {rule}\n", tmp_path)
    chain = rules.chains["forward" if "-F" in rule else "input"]
    line = list(proc.ip_firewall(chain))[1]
    assert line.partition(" ")[2].startswith(fields + " 0 ")
    ports = line.split()[8:18]
    assert len(ports) == 10
    if "113" in rule:
        assert ports[:4] == ["20", "21", "113", "0"]
    if "3128" in rule:
        assert ports[0] == "3128"


def test_s52_what_ipfwadm_has_no_words_for_is_left_out(tmp_path):
    rules = rules_of("ipchains -A input -p 47 -j ACCEPT\nipchains -A input -s ! 10.0.0.0/8 -j DENY\n", tmp_path)
    rules.append("input", Rule(match=Match(protocol=17), target="DENY"))
    assert len(list(proc.ip_firewall(rules.chains["input"]))) == 2


def test_s54_s55_port_forwards():
    server, public = address("10.0.0.2"), address("200.200.200.200")
    rows = [
        proc.PortForwardRow(protocol=6, address=public, port=1723, to_address=server, to_port=1723),
        proc.PortForwardRow(protocol=17, address=public, port=500, to_address=server, to_port=500),
    ]
    assert list(proc.ip_portfw(rows)) == [
        "Prot Local Addr/Port > Remote Addr/Port",
        "TCP  200.200.200.200/1723 > 10.0.0.2/1723",
        "UDP  200.200.200.200/500 > 10.0.0.2/500",
    ]
    lines = list(proc.portfw(rows))
    assert {len(line) for line in lines} == {63}
    assert [line.rstrip() for line in lines] == [
        "Prot LAddr    LPort > RAddr    RPort PrCnt  Pref",
        "UDP  C8C8C8C8   500 > 0A000002   500    10    10",
        "TCP  C8C8C8C8  1723 > 0A000002  1723    10    10",
    ]


def test_s55_forwards_by_mark_and_by_trigger():
    by_mark = list(proc.mfw([proc.MarkForwardRow(mark=1, to_address=address("10.0.0.2"), to_port=80)]))
    assert by_mark[0].rstrip() == "FwMark > RAddr    RPort PrCnt  Pref"
    assert by_mark[1].split() == ["0x1", ">", "0A000002", "80", "10", "10"]
    idle = proc.AutoForwardRow(
        kind="range", protocol=17, low=6970, high=7170, control_protocol=6, control_port=7070, flags=6
    )
    assert list(proc.autofw([idle])) == [
        "Type Prot Low  High Vis  Hid  Where    Last     CPto CPrt Timer Flags",
        "   1   11 1B3A-1C02/0000 0000 00000000 00000000 0006 1B9E      0    6",
    ]


def test_c82_h28_a17_ksyms():
    every = [line.split()[1] for line in proc.ksyms(pptp=True, ipsec=True)]
    wanted = (
        "ip_masq_out_get_isakmp ip_masq_in_get_isakmp ip_fw_masq_esp ip_fw_demasq_esp ip_fw_masq_gre ip_fw_demasq_gre"
    )
    wanted += " ip_masq_pptp ip_masq_esp ip_demasq_esp ip_masq_pptp_tcp ip_demasq_pptp_tcp"
    assert set(wanted.split()) <= set(every)
    assert not [
        name
        for name in (line.split()[1] for line in proc.ksyms(pptp=False, ipsec=False))
        if "gre" in name or "esp" in name
    ]
