# Redirects: protocols without ports that policy gives to an inside host.

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    REDIRECTS = 64
    PROTOCOLS = 256


cdef struct Redirect:
    uint32_t host               # inside host that gets the protocol
    uint32_t source_first       # of the remote addresses it gets it from
    uint32_t source_last
    uint8_t protocol
    uint8_t reserved[3]

cdef struct Redirects:
    Redirect rows[REDIRECTS]
    int count
    uint8_t by_address[PROTOCOLS]   # protocols that any inside host may begin


cdef inline const Redirect *find(const Redirects *r, uint8_t protocol, uint32_t remote) noexcept nogil:
    """Return the first redirect that takes a protocol from a remote address, or NULL."""
    cdef int i
    for i in range(r.count):
        if r.rows[i].protocol == protocol and r.rows[i].source_first <= remote <= r.rows[i].source_last:
            return &r.rows[i]
    return NULL
