"""What well-known programs write, in our own words: the shape of their chains for a gateway with one forward.

The inside is eth0 (10.0.0.0/24), or the bridge that the program makes; the outside is eth1 with 203.0.113.5. TCP port
8080 leads to port 80 of an inside host, where the program has such a thing.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A rule set, how it is read, and what should come of it.

    outside: the outside link, where it has to be asked for; by_route: whether only routes tell the inside link.
    lan: the inside link; host: an inside host that reaches everything; forwards: the ports that lead inside, with their
    targets; missing: words of what is left out.
    """

    form: str
    text: str
    lan: str = "eth0"
    host: str = "10.0.0.9"
    outside: str = ""
    by_route: bool = False
    forwards: tuple[tuple[str, str, str], ...] = ()
    missing: tuple[str, ...] = ()


UFW = """
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -i eth1 -p tcp --dport 8080 -j DNAT --to-destination 10.0.0.5:80
-A POSTROUTING -s 10.0.0.0/24 -o eth1 -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-before-forward - [0:0]
:ufw-user-forward - [0:0]
:ufw-user-input - [0:0]
:ufw-after-forward - [0:0]
:ufw-after-logging-forward - [0:0]
:ufw-reject-forward - [0:0]
:ufw-not-local - [0:0]
:ufw-logging-deny - [0:0]
-A INPUT -j ufw-before-input
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-forward
-A FORWARD -j ufw-after-logging-forward
-A FORWARD -j ufw-reject-forward
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -j ufw-user-input
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-user-forward -i eth0 -o eth1 -j ACCEPT
-A ufw-user-forward -i eth1 -d 10.0.0.5/32 -p tcp -m tcp --dport 80 -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m addrtype --dst-type BROADCAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN
-A ufw-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "blocked "
-A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "blocked "
COMMIT
"""

FIREWALLD = """
table inet firewalld {
    chain nat_PREROUTING {
        type nat hook prerouting priority dstnat + 10; policy accept;
        jump nat_PREROUTING_ZONES
    }
    chain nat_PREROUTING_ZONES {
        iifname "eth1" goto nat_PRE_external
        iifname "eth0" goto nat_PRE_internal
        goto nat_PRE_external
    }
    chain nat_PRE_external { jump nat_PRE_external_allow; }
    chain nat_PRE_external_allow { meta nfproto ipv4 tcp dport 8080 dnat ip to 10.0.0.5:80; }
    chain nat_PRE_internal { return; }
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
        jump nat_POSTROUTING_ZONES
    }
    chain nat_POSTROUTING_ZONES {
        oifname "eth1" goto nat_POST_external
        oifname "eth0" goto nat_POST_internal
        goto nat_POST_internal
    }
    chain nat_POST_external { jump nat_POST_external_allow; }
    chain nat_POST_external_allow { meta nfproto ipv4 oifname != "lo" masquerade; }
    chain nat_POST_internal { return; }
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        iifname "lo" accept
        ct state invalid drop
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96 } reject with icmpv6 addr-unreachable
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_ZONES {
        iifname "eth0" goto filter_FWD_internal
        iifname "eth1" goto filter_FWD_external
        goto filter_FWD_external
    }
    chain filter_FWD_internal {
        oifname "eth1" jump filter_FWD_internal_allow
        oifname "eth0" accept
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_internal_allow { accept; }
    chain filter_FWD_external { reject with icmpx admin-prohibited; }
}
"""

LIBVIRT = """
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 -d 255.255.255.255/32 -j RETURN
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -p udp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE
COMMIT
*mangle
:POSTROUTING ACCEPT [0:0]
:LIBVIRT_PRT - [0:0]
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -o virbr0 -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWO - [0:0]
:LIBVIRT_FWX - [0:0]
:LIBVIRT_INP - [0:0]
-A INPUT -j LIBVIRT_INP
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
-A LIBVIRT_FWO -i virbr0 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 67 -j ACCEPT
COMMIT
"""

DOCKER = """
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""

FW3 = """
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:prerouting_rule - [0:0]
:zone_wan_prerouting - [0:0]
:zone_lan_prerouting - [0:0]
:zone_wan_postrouting - [0:0]
:zone_lan_postrouting - [0:0]
-A PREROUTING -m comment --comment "custom prerouting" -j prerouting_rule
-A PREROUTING -i br-lan -j zone_lan_prerouting
-A PREROUTING -i eth1 -j zone_wan_prerouting
-A POSTROUTING -o br-lan -j zone_lan_postrouting
-A POSTROUTING -o eth1 -j zone_wan_postrouting
-A zone_lan_postrouting -s 10.0.0.0/24 -d 10.0.0.5/32 -p tcp -m tcp --dport 80 -j SNAT --to-source 10.0.0.1
-A zone_lan_prerouting -s 10.0.0.0/24 -d 203.0.113.5/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.5:80
-A zone_wan_postrouting -j MASQUERADE
-A zone_wan_prerouting -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.5:80
COMMIT
*mangle
:FORWARD ACCEPT [0:0]
-A FORWARD -o eth1 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:forwarding_rule - [0:0]
:reject - [0:0]
:zone_lan_forward - [0:0]
:zone_wan_forward - [0:0]
:zone_lan_dest_ACCEPT - [0:0]
:zone_wan_dest_ACCEPT - [0:0]
:zone_wan_dest_REJECT - [0:0]
-A FORWARD -j forwarding_rule
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i br-lan -j zone_lan_forward
-A FORWARD -i eth1 -j zone_wan_forward
-A FORWARD -j reject
-A reject -p tcp -j REJECT --reject-with tcp-reset
-A reject -j REJECT --reject-with icmp-port-unreachable
-A zone_lan_dest_ACCEPT -o br-lan -j ACCEPT
-A zone_lan_forward -j zone_wan_dest_ACCEPT
-A zone_lan_forward -m conntrack --ctstate DNAT -j ACCEPT
-A zone_lan_forward -j zone_lan_dest_ACCEPT
-A zone_wan_dest_ACCEPT -o eth1 -m conntrack --ctstate INVALID -j DROP
-A zone_wan_dest_ACCEPT -o eth1 -j ACCEPT
-A zone_wan_dest_REJECT -o eth1 -j reject
-A zone_wan_forward -m conntrack --ctstate DNAT -j ACCEPT
-A zone_wan_forward -j zone_wan_dest_REJECT
COMMIT
"""

FW4 = """
table inet fw4 {
    chain input {
        type filter hook input priority filter; policy drop;
        iif "lo" accept
        ct state vmap { established : accept, related : accept }
        iifname "br-lan" accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state vmap { established : accept, related : accept }
        iifname "br-lan" jump forward_lan
        iifname "eth1" jump forward_wan
        jump handle_reject
    }
    chain handle_reject { meta l4proto tcp reject with tcp reset; reject; }
    chain forward_lan { jump accept_to_wan; jump accept_to_lan; }
    chain forward_wan {
        icmpv6 type { echo-request, echo-reply } limit rate 1000/second accept
        ct status dnat accept
        jump reject_to_wan
    }
    chain accept_to_wan {
        meta nfproto ipv4 oifname "eth1" ct state invalid counter drop
        oifname "eth1" counter accept
    }
    chain accept_to_lan { oifname "br-lan" counter accept; }
    chain reject_to_wan { oifname "eth1" counter jump handle_reject; }
    chain dstnat { type nat hook prerouting priority dstnat; policy accept; iifname "eth1" jump dstnat_wan; }
    chain dstnat_wan { meta nfproto ipv4 tcp dport 8080 counter dnat ip to 10.0.0.5:80; }
    chain srcnat { type nat hook postrouting priority srcnat; policy accept; oifname "eth1" jump srcnat_wan; }
    chain srcnat_wan { meta nfproto ipv4 masquerade; }
    chain raw_prerouting { type filter hook prerouting priority raw; policy accept; }
    chain mangle_forward {
        type filter hook forward priority mangle; policy accept;
        oifname "eth1" tcp flags & (fin | syn | rst) == syn tcp option maxseg size set rt mtu
    }
}
"""

SHOREWALL = """
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:net_dnat - [0:0]
:eth1_masq - [0:0]
-A PREROUTING -i eth1 -j net_dnat
-A POSTROUTING -o eth1 -j eth1_masq
-A net_dnat -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.5:80
-A eth1_masq -s 10.0.0.0/24 -j MASQUERADE
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
-A FORWARD -j MARK --set-xmark 0x0/0xff
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
:Broadcast - [0:0]
:dynamic - [0:0]
:loc_frwd - [0:0]
:net_frwd - [0:0]
:loc-net - [0:0]
:net-loc - [0:0]
:reject - [0:0]
:tcpflags - [0:0]
:smurfs - [0:0]
-A FORWARD -i eth0 -j loc_frwd
-A FORWARD -i eth1 -j net_frwd
-A FORWARD -j Broadcast
-A FORWARD -m limit --limit 1/sec -j LOG --log-prefix "FORWARD:REJECT:"
-A FORWARD -g reject
-A Broadcast -m addrtype --dst-type BROADCAST -j DROP
-A Broadcast -m addrtype --dst-type MULTICAST -j DROP
-A loc_frwd -m conntrack --ctstate INVALID,NEW,UNTRACKED -j dynamic
-A loc_frwd -p tcp -j tcpflags
-A loc_frwd -o eth1 -j loc-net
-A net_frwd -m conntrack --ctstate INVALID,NEW,UNTRACKED -j dynamic
-A net_frwd -m conntrack --ctstate INVALID,NEW,UNTRACKED -j smurfs
-A net_frwd -o eth0 -j net-loc
-A loc-net -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A loc-net -p tcp -m tcp --dport 25 -g reject
-A loc-net -j ACCEPT
-A net-loc -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A net-loc -d 10.0.0.5/32 -p tcp -m tcp --dport 80 -j ACCEPT
-A net-loc -j Broadcast
-A net-loc -j DROP
-A reject -m addrtype --src-type BROADCAST -j DROP
-A reject -s 224.0.0.0/4 -j DROP
-A reject -p igmp -j DROP
-A reject -p tcp -j REJECT --reject-with tcp-reset
-A reject -p udp -j REJECT --reject-with icmp-port-unreachable
-A reject -j REJECT --reject-with icmp-host-prohibited
-A smurfs -s 0.0.0.0/32 -j RETURN
-A smurfs -m addrtype --src-type BROADCAST -j DROP
-A tcpflags -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG FIN,PSH,URG -j DROP
-A tcpflags -p tcp -m tcp --tcp-flags FIN,SYN FIN,SYN -j DROP
-A tcpflags -p tcp -m tcp --sport 0 --tcp-flags FIN,SYN,RST,ACK SYN -j DROP
COMMIT
"""

WEB = ("tcp", "eth1:8080", "10.0.0.5:80")
PUBLISHED = {
    "ufw": Published("iptables-save", UFW, forwards=(WEB,)),
    "firewalld": Published("nft", FIREWALLD, forwards=(WEB,)),
    "libvirt": Published("iptables-save", LIBVIRT, lan="virbr0", host="192.168.122.7", outside="eth1", by_route=True),
    "docker": Published(
        "iptables-save", DOCKER, lan="docker0", host="172.17.0.2", outside="eth1",
        forwards=(("tcp", "eth1:8080", "172.17.0.2:80"),),
    ),
    "fw3": Published("iptables-save", FW3, lan="br-lan", forwards=(WEB,), missing=("maximum segment size",)),
    "fw4": Published("nft", FW4, lan="br-lan", forwards=(WEB,), missing=("maximum segment size",)),
    "shorewall": Published("iptables-save", SHOREWALL, forwards=(WEB,)),
}  # fmt: skip
