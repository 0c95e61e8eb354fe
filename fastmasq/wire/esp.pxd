# ESP (RFC 4303 section 2): the two words that are not encrypted.

from libc.stdint cimport uint8_t, uint32_t

from fastmasq.wire.octets cimport load32

cdef enum:
    MINIMUM = 8                 # octets
    SPI = 0                     # chosen by the receiver; 0 never appears on the wire (section 2.1)
    SEQUENCE = 4                # 1 in the first packet of an SA (section 2.2)


cdef inline uint32_t spi(const uint8_t *esp) noexcept nogil:
    return load32(esp + SPI)


cdef inline uint32_t sequence(const uint8_t *esp) noexcept nogil:
    return load32(esp + SEQUENCE)
