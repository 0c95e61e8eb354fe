"""Listings, byte for byte: every column and flag of both programs (original-systems 5.2 and 5.3)."""

from __future__ import annotations

import pytest

from fastmasq.legacy import ipchains_listing, ipfwadm_listing
from fastmasq.legacy.listing import Shown, count, session_lines
from tests.support.legacy import NAMES, chains_after, read

NAMED, NUMERIC = Shown(NAMES, numeric=False), Shown(NAMES, numeric=True)

IPFWADM_RULES = (
    "ipfwadm -I -a accept -P tcp -S lan/8 -D 10.0.0.1 20:21 www 8080 -W eth0 -V 10.0.0.1 -b -k -y -o -t 01 10",
    "ipfwadm -I -a accept -P udp -D 1.2.3.4/255.0.255.0 -r domain",
    "ipfwadm -I -a accept -P tcp -r",
    "ipfwadm -I -a reject -P icmp -S any/0 8",
    "ipfwadm -I -a deny -P icmp",
    "ipfwadm -I -a deny",
)


def ipfwadm_listed(*lines: str, chain: str = "input", shown: Shown = NAMED, counters=(0, 0), **flags) -> list[str]:
    """Return the listing of a chain after these lines, each rule having counted so many packets and bytes."""
    one = chains_after(*lines).chain(chain)
    for counted in one.rules:
        counted.packets, counted.bytes = counters
    return ipfwadm_listing.chain_lines(one, shown, **{"extended": False, "exact": False, **flags})


def ipchains_listed(*lines: str, chain: str = "input", shown: Shown = NAMED, counters=(0, 0), **flags) -> list[str]:
    """The same for ipchains."""
    rules = chains_after(*lines)
    one = rules.chain(chain)
    for counted in one.rules:
        counted.packets, counted.bytes = counters
    flags = {"verbose": False, "exact": False, "line_numbers": False, **flags}
    return ipchains_listing.chain_lines(one, rules.references(chain), shown, **flags)


# -- ipfwadm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "chain", "said"),
    [
        ("ipfwadm -F -p deny", "forward", "IP firewall forward rules, default policy: deny"),
        ("ipfwadm -F -p masq", "forward", "IP firewall forward rules, default policy: accept/masquerade"),
        ("ipfwadm -O -p reject", "output", "IP firewall output rules, default policy: reject"),
        ("ipfwadm -F -f", "acct", "IP accounting rules"),
    ],
)
def test_5_2_an_empty_chain_is_one_line(line, chain, said):
    assert ipfwadm_listed(line, chain=chain) == [said]


def test_5_2_the_sample_row():
    line = "ipfwadm -F -a accept -m -P udp -S 10.0.0.2/32 500 -D 199.0.0.1/32 500 -W ppp0"
    assert ipfwadm_listed(line, chain="forward")[1:] == [
        "type  prot source               destination          ports",
        "acc/m udp  10.0.0.2             199.0.0.1            500 -> 500",
    ]


def test_5_2_plain_listing():
    assert ipfwadm_listed(*IPFWADM_RULES) == [
        "IP firewall input rules, default policy: accept",
        "type  prot source               destination          ports",
        "acc   tcp  lan/8                gate                 any -> 20:21,www,8080",
        "acc/r udp  anywhere             1.0.3.0/255.0.255.0  any -> any => domain",
        "acc/r tcp  anywhere             anywhere             any -> any => any",
        "rej   icmp anywhere             anywhere             8",
        "deny  icmp anywhere             anywhere             any",
        "deny  all  anywhere             anywhere             n/a",
    ]


def test_5_2_numeric_listing():
    assert ipfwadm_listed(*IPFWADM_RULES, shown=NUMERIC)[2:5] == [
        "acc   tcp  10.0.0.0/8           10.0.0.1             * -> 20:21,80,8080",
        "acc/r udp  0.0.0.0/0            1.0.3.0/255.0.255.0  * -> * => 53",
        "acc/r tcp  0.0.0.0/0            0.0.0.0/0            * -> * => *",
    ]


def test_5_2_extended_listing():
    assert ipfwadm_listed(*IPFWADM_RULES, extended=True, counters=(12, 345))[1:4] == [
        " pkts bytes type  prot opt  tosa tosx ifname  ifaddress       source               destination          ports",
        "   12   345 acc   tcp  bkyo 0x01 0x10 eth0    10.0.0.1        lan/8                gate                 "
        "any -> 20:21,www,8080",
        "   12   345 acc/r udp  ---- 0xFF 0x00 any     any             anywhere             1.0.3.0/255.0.255.0  "
        "any -> any => domain",
    ]


def test_5_2_extended_numeric_exact_listing():
    lines = ipfwadm_listed(IPFWADM_RULES[-1], shown=NUMERIC, extended=True, exact=True, counters=(123456, 9876543210))
    assert lines[1:] == [
        "    pkts      bytes type  prot opt  tosa tosx ifname  ifaddress       "
        "source               destination          ports",
        "  123456 9876543210 deny  all  ---- 0xFF 0x00 *       0.0.0.0         "
        "0.0.0.0/0            0.0.0.0/0            n/a",
    ]


def test_5_2_accounting_shows_directions_and_counters():
    lines = ("ipfwadm -A in -a -P tcp", "ipfwadm -A out -a", "ipfwadm -A -a -W eth0")
    assert ipfwadm_listed(*lines, chain="acct", counters=(1, 40)) == [
        "IP accounting rules",
        " pkts bytes dir prot source               destination          ports",
        "    1    40 in  tcp  anywhere             anywhere             any -> any",
        "    1    40 out all  anywhere             anywhere             n/a",
        "    1    40 i/o all  anywhere             anywhere             n/a",
    ]
    assert ipfwadm_listed(lines[2], chain="acct", extended=True)[1:] == [
        " pkts bytes dir prot opt  ifname  ifaddress       source               destination          ports",
        "    0     0 i/o all  ---- eth0    any             anywhere             anywhere             n/a",
    ]


def test_5_2_rules_of_ipchains_have_their_words_as_far_as_they_go():
    lines = ("ipchains -N vpn", "ipchains -A input -p gre -j vpn", "ipchains -A input")
    assert ipfwadm_listed(*lines)[2:] == [
        "vpn   gre  anywhere             anywhere             n/a",
        "-     all  anywhere             anywhere             n/a",
    ]
    assert ipfwadm_listed(*lines, shown=NUMERIC)[2] == "vpn   47   0.0.0.0/0            0.0.0.0/0            n/a"


def test_5_2_verbose_says_the_rule():
    (change,) = read("ipfwadm -F -a accept -m -P tcp -S 10.0.0.0/8 -D any/0 80 -W ppp0").changes
    assert ipfwadm_listing.rule_line(change.rule, NUMERIC, is_accounting=False) == (
        "acc/m tcp opt ---- tos 0xFF 0x00 via ppp0 0.0.0.0   10.0.0.0/8 -> 0.0.0.0/0   * -> 80"
    )
    (counted,) = read("ipfwadm -A in -a").changes
    assert ipfwadm_listing.rule_line(counted.rule, NUMERIC, is_accounting=True) == (
        "in all opt ---- tos 0xFF 0x00 via * 0.0.0.0   0.0.0.0/0 -> 0.0.0.0/0   n/a"
    )


def test_5_2_verbose_says_the_packet_checked():
    (rule,) = read("ipfwadm -I -c -P tcp -S 199.0.0.1 1723 -D 10.0.0.2 61000 -V 10.0.0.1 -W eth1").rules
    assert ipfwadm_listing.packet_line(rule, NUMERIC) == (
        "tcp via eth1 10.0.0.1   199.0.0.1 -> 10.0.0.2   1723 -> 61000"
    )


# -- ipchains ----------------------------------------------------------------------------------------------------------

IPCHAINS_RULES = (
    "ipchains -A input -p ! tcp -s ! 11.0.0.0/8 -d ! gate -i ! ppp+ -l -j DENY",
    "ipchains -A input -p tcp ! -y -s 0/0 www -d 0/0 ! 1024:5999 -m 7 -j ACCEPT",
    "ipchains -A input -p udp -m +3 -o 64 -t 01 10 -j REDIRECT domain",
    "ipchains -A input -p udp -m -1 -o -j REDIRECT",
    "ipchains -A input -p icmp --icmp-type ping -j REJECT",
    "ipchains -A input -p icmp -s 0/0 3 -d 0/0 8",
    "ipchains -A input ! -f -i eth0",
    "ipchains -A input -p esp -f -j RETURN",
    "ipchains -A input -p 77",
)


def test_5_3_the_sample_rows():
    lines = (
        "ipchains -A forward -j MASQ -s 11.0.0.0/8 -d 0.0.0.0/0",
        "ipchains -A forward -j ACCEPT -p tcp -s 199.0.0.1/32 1723 -d 200.200.200.0/24",
    )
    assert ipchains_listed(*lines, chain="forward") == [
        "Chain forward (policy ACCEPT):",
        "target     prot opt     source                destination           ports",
        "MASQ       all  ------  11.0.0.0/8           anywhere              n/a",
        "ACCEPT     tcp  ------  199.0.0.1            200.200.200.0/24      pptp ->   any",
    ]
    assert ipchains_listed(*lines, chain="forward", shown=NUMERIC)[3] == (
        "ACCEPT     tcp  ------  199.0.0.1            200.200.200.0/24      1723 ->   *"
    )


def test_5_3_plain_listing():
    assert ipchains_listed(*IPCHAINS_RULES)[2:] == [
        "DENY      !tcp  ----l- !11.0.0.0/8           !gate                  any ->   any",
        "ACCEPT     tcp  !y----  anywhere             anywhere              www ->  !1024:5999",
        "REDIRECT   udp  -----o  anywhere             anywhere              any ->   any => domain",
        "REDIRECT   udp  -----o  anywhere             anywhere              any ->   any =>  any",
        "REJECT     icmp ------  anywhere             anywhere              echo-request",
        "-          icmp ------  anywhere             anywhere              3 ->   8",
        "-          all  --!f--  anywhere             anywhere              n/a",
        "RETURN     esp  ---f--  anywhere             anywhere              n/a",
        "-          77   ------  anywhere             anywhere              n/a",
    ]


def test_5_3_numeric_listing_a28():
    assert ipchains_listed(*IPCHAINS_RULES, shown=NUMERIC)[5:] == [
        "REDIRECT   udp  -----o  0.0.0.0/0            0.0.0.0/0             * ->   * =>  *",
        "REJECT     icmp ------  0.0.0.0/0            0.0.0.0/0             8 ->   *",
        "-          icmp ------  0.0.0.0/0            0.0.0.0/0             3 ->   8",
        "-          all  --!f--  0.0.0.0/0            0.0.0.0/0             n/a",
        "RETURN     50   ---f--  0.0.0.0/0            0.0.0.0/0             n/a",
        "-          77   ------  0.0.0.0/0            0.0.0.0/0             n/a",
    ]


def test_5_3_verbose_listing():
    assert ipchains_listed(*IPCHAINS_RULES, verbose=True, counters=(3, 180))[:6] == [
        "Chain input (policy ACCEPT: 0 packets, 0 bytes):",
        " pkts bytes target     prot opt    tosa tosx  ifname     mark       outsize  source                "
        "destination           ports",
        "    3   180 DENY      !tcp  ----l- 0xFF 0x00 !ppp+                          !11.0.0.0/8           "
        "!gate                  any ->   any",
        "    3   180 ACCEPT     tcp  !y---- 0xFF 0x00  any        0x7                   anywhere             "
        "anywhere              www ->  !1024:5999",
        "    3   180 REDIRECT   udp  -----o 0x01 0x10  any        0x3          64       anywhere             "
        "anywhere              any ->   any => domain",
        "    3   180 REDIRECT   udp  -----o 0xFF 0x00  any        0xffffffff            anywhere             "
        "anywhere              any ->   any =>  any",
    ]


def test_5_3_line_numbers_and_exact_counters():
    lines = ipchains_listed(*IPCHAINS_RULES[6:8], verbose=True, exact=True, line_numbers=True, counters=(123456, 7))
    assert lines[1].startswith("num      pkts      bytes target     prot opt    tosa tosx ")
    assert lines[2].startswith("1      123456          7 -          all  --!f-- 0xFF 0x00  eth0  ")
    assert ipchains_listed(*IPCHAINS_RULES[7:], line_numbers=True)[1:] == [
        "num  target     prot opt     source                destination           ports",
        "1    RETURN     esp  ---f--  anywhere             anywhere              n/a",
        "2    -          77   ------  anywhere             anywhere              n/a",
    ]


def test_5_3_user_chains_show_their_references():
    lines = ("ipchains -N vpn", "ipchains -A input -j vpn", "ipchains -A forward -j vpn")
    assert ipchains_listed(*lines, chain="vpn") == ["Chain vpn (2 references):"]


def test_5_3_several_ports_of_ipfwadm_are_a_list():
    assert ipchains_listed(IPFWADM_RULES[0])[2] == (
        "ACCEPT     tcp  -y--l-  lan/8                gate                  any ->   20:21,www,8080"
    )


def test_5_3_verbose_says_the_rule():
    (change,) = read(IPCHAINS_RULES[1]).changes
    assert ipchains_listing.rule_line(change.rule, NUMERIC) == (
        "ACCEPT  tcp opt    !y---- tos 0xFF 0x00  via * mark 0x7    0.0.0.0/0 -> 0.0.0.0/0    80 ->  !1024:5999"
    )
    (change,) = read(IPCHAINS_RULES[2]).changes
    assert ipchains_listing.rule_line(change.rule, NUMERIC).endswith(
        "outsize 64    0.0.0.0/0 -> 0.0.0.0/0    * ->   *53"
    )


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "ipfwadm", "ipchains"),
    [
        (0, "    0 ", "    0 "),
        (99_999, "99999 ", "99999 "),
        (100_000, " 100K ", " 100K "),
        (9_999_499, "9999K ", "9999K "),
        (9_999_500, "  10M ", "  10M "),
        (9_999_499_999, "9999M ", "9999M "),
        (9_999_500_000, "10000M ", "  10G "),
    ],
)
def test_counters_get_units(number, ipfwadm, ipchains):
    assert count(number, 8, exact=False, largest_unit="M") == ipfwadm
    assert count(number, 8, exact=False, largest_unit="G") == ipchains
    assert count(number, 10, exact=True, largest_unit="G") == f"{number:10} "


TCP = {
    **{"protocol": "tcp", "inside": "10.0.0.2:1025", "external": "200.200.200.200:61000", "remote": "199.0.0.1:1723"},
    "expires_s": 898.31,
}
ICMP = {
    **{"protocol": "icmp", "inside": "10.0.0.1:77", "external": "200.200.200.200:61001", "remote": "199.0.0.1"},
    "expires_s": 6000.0,
}


def test_5_2_the_masquerade_table():
    assert session_lines([TCP, ICMP], NUMERIC, deltas=False, capitals=False) == [
        "IP masquerading entries",
        "prot expire   source               destination          ports",
        "tcp  14:58.31 10.0.0.2             199.0.0.1            1025 (61000) -> 1723",
        "icmp 100:00.00 10.0.0.1             199.0.0.1            77 (61001) -> 2048",
    ]
    assert session_lines([], NAMED, deltas=False, capitals=False) == ["IP masquerading entries"]


def test_5_3_the_masquerade_table_with_names_and_sequence_numbers():
    assert session_lines([TCP], NAMED, deltas=True, capitals=True)[1:] == [
        "prot expire      initseq delta prevd source               destination          ports",
        "TCP  14:58.31          0     0     0 10.0.0.2             199.0.0.1            1025 (61000) -> pptp",
    ]
