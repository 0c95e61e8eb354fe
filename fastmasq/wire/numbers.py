"""The numbers of `numbers.pxd` for Python: protocols, ports of protocols, and the classes of ports by name."""

from __future__ import annotations

ICMP, IPIP, TCP, UDP, DCCP, IPV6, GRE, ESP, AH, SCTP, UDP_LITE = 1, 4, 6, 17, 33, 41, 47, 50, 51, 132, 136
DNS_PORT, WEB_PORT, ISAKMP_PORT, PPTP_PORT, NATT_PORT = 53, 80, 500, 1723, 4500

BY_NAME = {"icmp": ICMP, "tcp": TCP, "udp": UDP, "gre": GRE, "esp": ESP, "ah": AH}
CLASSES = ("tcp", "udp", "icmp")  # by the numbers of the next line
CLASS_TCP, CLASS_UDP, CLASS_ICMP = range(3)
