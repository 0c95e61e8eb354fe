# The ISAKMP header (RFC 2408 section 3.1), which IKEv2 keeps (RFC 7296 section 3.1), and what else UDP 4500 carries.

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

from fastmasq.wire cimport numbers
from fastmasq.wire.octets cimport load32

cdef enum:
    MINIMUM = 28                # octets of the header
    INITIATOR = 0               # 8 octets, as the initiator's SPI of IKEv2
    RESPONDER = 8               # 8 octets, zero in the first message
    VERSION = 17                # major version in the upper four bits
    EXCHANGE = 18
    FLAGS = 19
    MESSAGE_ID = 20             # 4 octets, zero in phase 1
    LENGTH = 24                 # 4 octets, header included

    NON_ESP_MARKER = 4          # octets of zero before ISAKMP on port 4500 (RFC 3948 section 2.2)
    KEEPALIVE = 0xFF            # the only octet of a NAT keep-alive (RFC 3948 section 2.3)

cdef enum NattContent:
    NATT_KEEPALIVE, NATT_IKE, NATT_ESP, NATT_OTHER


cdef inline bint is_isakmp(uint16_t sport, uint16_t dport, unsigned int length) noexcept nogil:
    """Whether a UDP payload of `length` octets between these ports is ISAKMP with a whole header (K-1)."""
    return sport == numbers.ISAKMP_PORT and dport == numbers.ISAKMP_PORT and length >= MINIMUM


cdef inline void copy_cookies(const uint8_t *isakmp, uint8_t *cookies) noexcept nogil:
    """Copy the 16 octets of both cookies, initiator's first."""
    memcpy(cookies, isakmp, 16)


cdef inline NattContent natt_content(const uint8_t *payload, unsigned int length) noexcept nogil:
    """Tell what a UDP payload on port 4500 is; for listings only, it is translated as plain UDP whatever it is."""
    if length == 1 and payload[0] == KEEPALIVE:
        return NATT_KEEPALIVE
    if length < 8:
        return NATT_OTHER
    if load32(payload) != 0:
        return NATT_ESP
    return NATT_IKE if length >= NON_ESP_MARKER + MINIMUM else NATT_OTHER
