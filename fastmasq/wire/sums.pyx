"""The checksum functions of `checksum.pxd` for Python: for tests, benchmarks and slow paths."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.wire cimport checksum as c


def internet_checksum(const uint8_t[::1] data, uint32_t initial=0) -> int:
    """Return the RFC 1071 checksum (complemented, host order) of `data`; `initial` is a sum to start from."""
    cdef uint16_t total = c.sum_octets(&data[0], data.shape[0]) if data.shape[0] else 0
    return <uint16_t>~c.fold(<unsigned long long>total + initial)


def pseudo_header_sum(uint32_t saddr, uint32_t daddr, uint8_t protocol, uint16_t length) -> int:
    """Return the folded, uncomplemented sum of the IPv4 pseudo-header."""
    return c.sum_pseudo_header(saddr, daddr, protocol, length)


def delta(old_words, new_words) -> int:
    """Return the folded delta for 16-bit words that change from old to new, pairwise."""
    cdef unsigned long long total = 0
    for old, new in zip(old_words, new_words, strict=True):
        total += c.delta16(old, new)
    return c.fold(total)


def update_full(uint16_t checksum, uint32_t delta) -> int:
    """Return a full checksum after the change that `delta` describes (RFC 1624, eqn. 3)."""
    return c.update_full(checksum, delta)


def update_partial(uint16_t checksum, uint32_t address_delta) -> int:
    """Return a partial checksum after the change of addresses that `address_delta` describes."""
    return c.update_partial(checksum, address_delta)


def update_udp(uint16_t checksum, uint32_t delta) -> int:
    """Return a full UDP checksum after a change; 0 stays 0 and a computed 0 becomes 0xFFFF."""
    cdef uint8_t field[2]
    field[0] = checksum >> 8
    field[1] = checksum & 0xFF
    c.update_udp_at(field, delta)
    return (field[0] << 8) | field[1]
