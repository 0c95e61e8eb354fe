# The TCP header (RFC 9293 section 3.1): offsets, flags, and the options of a SYN: MSS (section 3.7.1), window scale (RFC 7323).

from libc.stdint cimport uint8_t

cdef enum:
    MINIMUM = 20                # octets
    SOURCE = 0
    DESTINATION = 2
    SEQUENCE = 4
    ACKNOWLEDGMENT = 8
    DATA_OFFSET = 12            # upper four bits, in units of 4 octets
    FLAGS = 13
    WINDOW = 14
    CHECKSUM = 16
    URGENT = 18

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    CWR = 0x80

    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_MSS = 2
    MSS_LENGTH = 4
    OPTION_WINDOW_SCALE = 3
    WINDOW_SCALE_LENGTH = 3
    OPTION_SACK = 5             # RFC 2018 section 3
    SACK_BLOCK = 8
    MAXIMUM_SCALE = 14          # RFC 7323 section 2.3


cdef inline unsigned int header_length(const uint8_t *tcp) noexcept nogil:
    return (tcp[DATA_OFFSET] >> 4) * 4


cdef inline bint is_impossible(uint8_t flags) noexcept nogil:
    """Whether no stack sends these flags together: all but the first SYN and some resets acknowledge (section 3.10)."""
    if flags & SYN:
        return flags & (FIN | RST) != 0
    return flags & ACK == 0 and (flags & FIN != 0 or flags & RST == 0)


cdef inline unsigned int find_option(const uint8_t *tcp, unsigned int length, uint8_t kind, uint8_t wanted) noexcept nogil:
    """Return where the first option of a kind with the `wanted` octets (0: any) is in a header of `length` octets, or 0.

    Reads no further than `length`, and not behind what contradicts itself.
    """
    cdef unsigned int at = MINIMUM
    cdef unsigned int size
    while at < length:
        if tcp[at] == OPTION_END:
            return 0
        if tcp[at] == OPTION_NOP:
            at += 1
            continue
        if at + 1 >= length:
            return 0
        size = tcp[at + 1]
        if size < 2 or at + size > length:
            return 0
        if tcp[at] == kind and (size == wanted or wanted == 0):
            return at
        at += size
    return 0


cdef inline int window_scale(const uint8_t *tcp, unsigned int length) noexcept nogil:
    """Return the shift count of a SYN of `length` header octets, -1 without the option."""
    cdef unsigned int at = find_option(tcp, length, OPTION_WINDOW_SCALE, WINDOW_SCALE_LENGTH)
    if at == 0:
        return -1
    return tcp[at + 2] if tcp[at + 2] <= MAXIMUM_SCALE else MAXIMUM_SCALE
