# The IPv4 header (RFC 791 section 3.1): offsets, flags and the checks every packet passes at the door.

from libc.stdint cimport uint8_t

from fastmasq.wire.octets cimport load16

cdef enum:
    MINIMUM = 20                # octets
    LEAST_MTU = 68              # every link must carry it whole: the longest header, and 8 octets (section 3.2)
    TOS = 1
    TOTAL_LENGTH = 2
    ID = 4
    FRAGMENT = 6                # flags and offset in units of 8 octets
    TTL = 8
    PROTOCOL = 9
    CHECKSUM = 10
    SOURCE = 12
    DESTINATION = 16

    ONE_LINK = 0x0100           # of the TTL, in one word with the protocol
    DONT_FRAGMENT = 0x4000
    MORE_FRAGMENTS = 0x2000
    OFFSET_MASK = 0x1FFF

    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_LSRR = 131           # loose source and record route
    OPTION_SSRR = 137           # strict source and record route
    OPTION_COPIED = 0x80        # bit: the option is copied into every fragment


cdef enum OptionsCheck:
    OPTIONS_PLAIN = 0
    OPTIONS_SOURCE_ROUTE = 1
    OPTIONS_MALFORMED = 2


cdef inline bint is_fragment(const uint8_t *ip) noexcept nogil:
    return load16(ip + FRAGMENT) & (MORE_FRAGMENTS | OFFSET_MASK) != 0


cdef inline bint may_be_cut(const uint8_t *ip) noexcept nogil:
    return not ip[FRAGMENT] & DONT_FRAGMENT >> 8


cdef inline OptionsCheck check_options(const uint8_t *ip, unsigned int header_length) noexcept nogil:
    """Walk the options of a header of `header_length` octets: source routes are refused (RFC 7126 section 4.3)."""
    cdef unsigned int at = MINIMUM
    cdef unsigned int length
    while at < header_length:
        if ip[at] == OPTION_END:
            return OPTIONS_PLAIN
        if ip[at] == OPTION_NOP:
            at += 1
            continue
        if at + 1 >= header_length:
            return OPTIONS_MALFORMED
        length = ip[at + 1]
        if length < 2 or at + length > header_length:
            return OPTIONS_MALFORMED
        if ip[at] == OPTION_LSRR or ip[at] == OPTION_SSRR:
            return OPTIONS_SOURCE_ROUTE
        at += length
    return OPTIONS_PLAIN
