# Ethernet II: offsets and types of the link header this program reads and writes (IEEE 802.3, RFC 894).

cdef enum:
    LENGTH = 14
    MAC = 6                     # octets of an address
    DESTINATION = 0
    SOURCE = 6
    TYPE = 12                   # offset of the 16-bit type
    ETHERTYPE_IPV4 = 0x0800
