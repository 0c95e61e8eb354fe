# The TCP header (RFC 9293 section 3.1): offsets, flags, and the window scale option of a SYN (RFC 7323).

from libc.stdint cimport uint8_t

cdef enum:
    TCP_MINIMUM = 20            # octets
    TCP_SOURCE = 0
    TCP_DESTINATION = 2
    TCP_SEQUENCE = 4
    TCP_ACKNOWLEDGMENT = 8
    TCP_DATA_OFFSET = 12        # upper four bits, in units of 4 octets
    TCP_FLAGS = 13
    TCP_WINDOW = 14
    TCP_CHECKSUM = 16

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10

    TCP_OPTION_END = 0
    TCP_OPTION_NOP = 1
    TCP_OPTION_WINDOW_SCALE = 3
    MAXIMUM_SCALE = 14          # RFC 7323 section 2.3


cdef inline unsigned int header_length(const uint8_t *tcp) noexcept nogil:
    return (tcp[TCP_DATA_OFFSET] >> 4) * 4


cdef inline int window_scale(const uint8_t *tcp, unsigned int length) noexcept nogil:
    """Return the shift count of a SYN of `length` header octets, -1 without the option. Reads no further than `length`."""
    cdef unsigned int at = TCP_MINIMUM
    cdef unsigned int size
    while at < length:
        if tcp[at] == TCP_OPTION_END:
            return -1
        if tcp[at] == TCP_OPTION_NOP:
            at += 1
            continue
        if at + 1 >= length:
            return -1
        size = tcp[at + 1]
        if size < 2 or at + size > length:
            return -1
        if tcp[at] == TCP_OPTION_WINDOW_SCALE and size == 3:
            return tcp[at + 2] if tcp[at + 2] <= MAXIMUM_SCALE else MAXIMUM_SCALE
        at += size
    return -1
