# The external ports (or ICMP identifiers) of one address and class: the same if free, else same range and parity, random.
#
# RFC 4787 REQ-3 (no overloading), REQ-3a (port range), REQ-4 (parity); RFC 6056 section 3.3 (unpredictable choice).
# One bit a port; the search reads 64 ports at a time, so that a nearly full pool costs no more than an empty one.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    int __builtin_ctzll(uint64_t value)

cdef enum:
    POOL_WORDS = 1024           # 64 ports each
    LOW_PORTS = 1024            # ports under this are a class of their own
    NO_PORT = -1


cdef struct PortPool:
    uint64_t *free              # [POOL_WORDS], bit set: may be taken
    uint64_t *allowed           # [POOL_WORDS], bit set: may be given at all; some belong to the host itself
    uint32_t free_count
    uint32_t free_low           # of these, under LOW_PORTS
    uint32_t allowed_count      # not under LOW_PORTS


cdef inline bint is_free(const PortPool *pool, uint16_t port) noexcept nogil:
    return (pool.free[port >> 6] >> (port & 63)) & 1


cdef inline bint is_allowed(const PortPool *pool, uint16_t port) noexcept nogil:
    return (pool.allowed[port >> 6] >> (port & 63)) & 1


cdef inline void take_port(PortPool *pool, uint16_t port) noexcept nogil:
    pool.free[port >> 6] &= ~(<uint64_t>1 << (port & 63))
    pool.free_count -= 1
    pool.free_low -= port < LOW_PORTS


cdef inline void give_back_port(PortPool *pool, uint16_t port) noexcept nogil:
    """Let a port that nobody has be taken again, if it is an allowed one."""
    if is_allowed(pool, port):
        pool.free[port >> 6] |= <uint64_t>1 << (port & 63)
        pool.free_count += 1
        pool.free_low += port < LOW_PORTS


cdef inline int search_words(const PortPool *pool, unsigned int first, unsigned int stop, uint64_t wanted,
                             uint64_t random) noexcept nogil:
    """Return a free port among words [first, stop) whose bit is in `wanted`, from a random start; or NO_PORT."""
    cdef unsigned int count = stop - first
    cdef unsigned int start = <unsigned int>((random >> 32) % count)
    cdef unsigned int turn = random & 63
    cdef unsigned int i, word
    cdef uint64_t bits
    for i in range(count):
        word = first + (start + i) % count
        bits = pool.free[word] & wanted
        if bits:
            if turn:
                bits = (bits >> turn) | (bits << (64 - turn))
            return <int>(word * 64 + ((__builtin_ctzll(bits) + turn) & 63))
    return NO_PORT


cdef inline int choose_port(const PortPool *pool, uint16_t wanted, bint keep_parity, uint64_t random) noexcept nogil:
    """Return a port for an endpoint that would like `wanted`; NO_PORT when none is left. Does not take it."""
    cdef uint64_t parity
    cdef int port = NO_PORT
    cdef unsigned int low = LOW_PORTS // 64
    if pool.free_count == 0:
        return NO_PORT
    if is_free(pool, wanted):
        return wanted
    parity = 0xAAAAAAAAAAAAAAAAULL if wanted & 1 else 0x5555555555555555ULL
    if not keep_parity:
        return search_words(pool, 0, POOL_WORDS, ~<uint64_t>0, random)
    if wanted < LOW_PORTS:
        port = search_words(pool, 0, low, parity, random)
        if port == NO_PORT:
            port = search_words(pool, 0, low, ~<uint64_t>0, random)
    if port == NO_PORT:
        port = search_words(pool, low, POOL_WORDS, parity, random)
    if port == NO_PORT:
        port = search_words(pool, low, POOL_WORDS, ~<uint64_t>0, random)
    return port


cdef inline int choose_next_port(const PortPool *pool, uint32_t *counter) noexcept nogil:
    """Return the next free port in ascending order, round and round, as in 1999; NO_PORT when none is left.

    One counter serves all pools, and moves on with every port given (rule C-2).
    """
    cdef unsigned int i
    cdef uint16_t port
    if pool.free_count == 0:
        return NO_PORT
    for i in range(65536):
        port = <uint16_t>(counter[0] + i)
        if is_free(pool, port):
            counter[0] = <uint16_t>(port + 1)
            return port
    return NO_PORT
