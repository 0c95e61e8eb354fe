# ICMP (RFC 792): offsets, and which types are queries, replies, errors, or neither.

from libc.stdint cimport uint8_t

cdef enum:
    LENGTH = 8                  # octets before the data or the quoted packet
    TYPE = 0
    CODE = 1
    CHECKSUM = 2
    IDENTIFIER = 4              # of a query or reply
    MTU = 6                     # of a destination unreachable, code 4 (RFC 1191 section 4)

    ECHO_REPLY = 0
    DESTINATION_UNREACHABLE = 3
    SOURCE_QUENCH = 4
    REDIRECT = 5
    ECHO = 8
    TIME_EXCEEDED = 11
    PARAMETER_PROBLEM = 12
    TIMESTAMP = 13
    TIMESTAMP_REPLY = 14
    INFORMATION = 15
    INFORMATION_REPLY = 16
    ADDRESS_MASK = 17
    ADDRESS_MASK_REPLY = 18

    NET_UNREACHABLE = 0         # codes of destination unreachable
    HOST_UNREACHABLE = 1
    PORT_UNREACHABLE = 3
    FRAGMENTATION_NEEDED = 4
    ADMINISTRATIVELY_PROHIBITED = 13


cdef inline bint is_query(uint8_t type) noexcept nogil:
    """A request that carries an identifier (RFC 5508 section 3, rule C-46)."""
    return type == ECHO or type == TIMESTAMP or type == INFORMATION or type == ADDRESS_MASK


cdef inline bint is_reply(uint8_t type) noexcept nogil:
    return type == ECHO_REPLY or type == TIMESTAMP_REPLY or type == INFORMATION_REPLY or type == ADDRESS_MASK_REPLY


cdef inline uint8_t query_of(uint8_t type) noexcept nogil:
    """Return the request type that a query or its reply belongs to."""
    if type == ECHO_REPLY:
        return ECHO
    if type == TIMESTAMP_REPLY or type == INFORMATION_REPLY or type == ADDRESS_MASK_REPLY:
        return type - 1
    return type


cdef inline bint is_error(uint8_t type) noexcept nogil:
    """An error whose quoted packet can be translated (rule C-45; 12 by RFC 5508 REQ-10)."""
    return (type == DESTINATION_UNREACHABLE or type == SOURCE_QUENCH or type == TIME_EXCEEDED
            or type == PARAMETER_PROBLEM)
