"""Rules of nftables and iptables that import is tried on; the tests let nft and iptables themselves print them."""

NFT = """\
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "eth1" ip saddr 10.0.0.0/8 counter masquerade
    }
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        iifname "eth1" tcp dport 8080 dnat to 10.0.0.2:80
        iifname "eth1" udp dport 5000-5010 dnat to 10.0.0.5
        iifname "eth1" ip protocol gre dnat to 10.0.0.3
        iifname "eth1" ip saddr 199.0.0.9 tcp dport 22 dnat to 10.0.0.9
        iifname "eth0" tcp dport 80 redirect to :3128
    }
}
table inet filter {
    set bad { type ipv4_addr; elements = { 1.2.3.4, 5.6.7.8 } }
    chain extra {
        ip daddr { 1.1.1.1, 8.8.8.8 } udp dport 53 accept
        limit rate 5/second accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "eth0" oifname "eth1" tcp dport { 80, 443 } ct state new accept
        ip saddr @bad meta l4proto tcp drop
        jump extra
        iifname "eth1" oifname "eth0" ip daddr 10.0.0.2 tcp dport 80 accept
        iifname "eth1" ct status dnat accept
        log prefix "x: " counter reject with icmp type host-unreachable
    }
    chain input {
        type filter hook input priority filter; policy drop;
        iifname "lo" accept
        iifname "eth0" tcp dport 3128 accept
        ct state invalid drop
        icmp type { echo-request, destination-unreachable } accept
        tcp flags & (fin|syn|rst|ack) == syn tcp dport 22 ip saddr != 10.0.0.9 accept
        meta l4proto { tcp, udp } th dport 53 iifname "eth0" accept
        ct state related,established accept comment "hi there"
    }
}
"""

IPTABLES = """\
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 10.0.0.0/8 -o eth1 -j MASQUERADE
-A PREROUTING -i eth1 -p tcp -m tcp --dport 1723 -j DNAT --to-destination 10.0.0.2:1723
-A PREROUTING -i eth1 -p gre -j DNAT --to-destination 10.0.0.2
COMMIT
*mangle
:FORWARD ACCEPT [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:vpn-clients - [0:0]
-A vpn-clients -d 199.0.0.1 -p udp -m udp --sport 500 --dport 500 -j ACCEPT
-A vpn-clients -d 199.0.0.1 -p esp -j ACCEPT
-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth0 -j vpn-clients
-A FORWARD -i eth0 -o eth1 -p tcp -m multiport --dports 80,443 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -d 10.0.0.2/32 -i eth1 -p tcp -m tcp --dport 1723 -j ACCEPT
-A FORWARD -m limit --limit 5/min -j LOG --log-prefix "x y"
-A FORWARD -p tcp -m tcp ! --syn -m mac --mac-source 00:11:22:33:44:55 -j DROP
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT ! -s 10.0.0.9/32 -p tcp -m tcp --dport 22 --syn -j ACCEPT
COMMIT
"""
