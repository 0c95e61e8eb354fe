# Enhanced GRE, version 1 (RFC 2637 section 4.1): PPTP's data packets. No checksum covers the key.

from libc.stdint cimport uint8_t, uint16_t

from fastmasq.wire.octets cimport load16, load32, store16

cdef enum:
    MINIMUM = 8                 # octets: flags, protocol, key
    FLAGS = 0
    VERSION = 1                 # lower three bits; the upper one says that there is an acknowledgment
    PROTOCOL = 2
    PAYLOAD_LENGTH = 4          # key, high half: octets behind the header; 0 is a bare acknowledgment
    CALL_ID = 6                 # key, low half: the number that the receiver of the packet chose

    SEQUENCE_PRESENT = 0x10     # of octet 0
    ACKNOWLEDGMENT_PRESENT = 0x80  # of octet 1
    PPP = 0x880B

    PPTP_MASK = 0xEF7FFFFF      # of the first word: everything but the two presence bits is fixed
    PPTP_VALUE = 0x2001880B     # key present, version 1, PPP


cdef inline bint is_pptp(const uint8_t *gre) noexcept nogil:
    """Whether 8 octets at `gre` begin a PPTP data packet; version 0 and other payloads (rule P-10) do not."""
    return (load32(gre) & PPTP_MASK) == PPTP_VALUE


cdef inline unsigned int header_length(const uint8_t *gre) noexcept nogil:
    """Return 8, 12 or 16 octets for a header that `is_pptp`."""
    return (MINIMUM + (4 if gre[FLAGS] & SEQUENCE_PRESENT else 0)
            + (4 if gre[VERSION] & ACKNOWLEDGMENT_PRESENT else 0))


cdef inline uint16_t call_id(const uint8_t *gre) noexcept nogil:
    return load16(gre + CALL_ID)


cdef inline void set_call_id(uint8_t *gre, uint16_t value) noexcept nogil:
    store16(gre + CALL_ID, value)
