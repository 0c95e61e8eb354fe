# Numbers of protocols (IANA), of their ports, and of the classes of ports; `numbers.py` has them for Python.

cdef enum:
    PROTOCOL_ICMP = 1
    PROTOCOL_IPIP = 4           # IPv4 in IPv4 (RFC 2003)
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    PROTOCOL_DCCP = 33
    PROTOCOL_IPV6 = 41          # IPv6 in IPv4 (RFC 4213)
    PROTOCOL_GRE = 47
    PROTOCOL_ESP = 50
    PROTOCOL_AH = 51            # its check covers the addresses (RFC 4302 section 3.3.3)
    PROTOCOL_SCTP = 132
    PROTOCOL_UDP_LITE = 136

    DNS_PORT = 53
    WEB_PORT = 80
    ISAKMP_PORT = 500           # of both ends, or it is plain UDP (rule K-1)
    PPTP_PORT = 1723            # of the server's end of a control connection (RFC 2637 section 3)
    NATT_PORT = 4500            # RFC 3947 section 4
