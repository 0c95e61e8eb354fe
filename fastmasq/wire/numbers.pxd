# Numbers of protocols (IANA), of their ports, and of the classes of ports; `numbers.py` has them for Python.

cdef enum:
    ICMP = 1
    IPIP = 4           # IPv4 in IPv4 (RFC 2003)
    TCP = 6
    UDP = 17
    DCCP = 33
    IPV6 = 41          # IPv6 in IPv4 (RFC 4213)
    GRE = 47
    ESP = 50
    AH = 51            # its check covers the addresses (RFC 4302 section 3.3.3)
    SCTP = 132
    UDP_LITE = 136

    DNS_PORT = 53
    WEB_PORT = 80
    ISAKMP_PORT = 500           # of both ends, or it is plain UDP (rule K-1)
    PPTP_PORT = 1723            # of the server's end of a control connection (RFC 2637 section 3)
    NATT_PORT = 4500            # RFC 3947 section 4

    CLASS_TCP = 0               # port spaces: one external port of a class belongs to one internal endpoint
    CLASS_UDP = 1
    CLASS_ICMP = 2
    CLASS_COUNT = 3
