# The external ports (or ICMP identifiers) of one address and class: the same if free, else one of the same range and parity.
#
# RFC 4787 REQ-3 (no overloading), REQ-3a (port range), REQ-4 (parity). Who cannot have his own is given one below those that
# kernels of clients choose, so that he takes none that another could keep. Which one follows from a keyed hash of his
# endpoint: nobody can foresee it without the key (RFC 6056 section 3.3.3), and who comes back when nothing is known of him any
# more has the same again. One bit a port; the search reads 64 ports at a time, so that a nearly full pool costs no more than
# an empty one.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    int __builtin_ctzll(uint64_t value)

cdef enum:
    POOL_WORDS = 1024           # 64 ports each
    LOW_PORTS = 1024            # ports under this are a class of their own
    CLIENT_PORTS = 32768        # from here on are those that clients' kernels choose: Linux to 60999, Windows from 49152
    NO_PORT = -1
    ANY = -1                    # every bit of a word


cdef struct PortPool:
    uint64_t *free              # [POOL_WORDS], bit set: may be taken
    uint64_t *allowed           # [POOL_WORDS], bit set: may be given at all; some belong to the host itself
    uint32_t free_count
    uint32_t free_low           # of these, under LOW_PORTS
    uint32_t free_middle        # of these, from LOW_PORTS on and under CLIENT_PORTS
    uint32_t allowed_count      # not under LOW_PORTS


cdef inline bint is_free(const PortPool *pool, uint16_t port) noexcept nogil:
    return (pool.free[port >> 6] >> (port & 63)) & 1


cdef inline bint is_allowed(const PortPool *pool, uint16_t port) noexcept nogil:
    return (pool.allowed[port >> 6] >> (port & 63)) & 1


cdef inline bint is_middle(uint16_t port) noexcept nogil:
    return LOW_PORTS <= port < CLIENT_PORTS


cdef inline void take_port(PortPool *pool, uint16_t port) noexcept nogil:
    pool.free[port >> 6] &= ~(<uint64_t>1 << (port & 63))
    pool.free_count -= 1
    pool.free_low -= port < LOW_PORTS
    pool.free_middle -= is_middle(port)


cdef inline void give_back_port(PortPool *pool, uint16_t port) noexcept nogil:
    """Let a port that nobody has be taken again, if it is an allowed one."""
    if is_allowed(pool, port):
        pool.free[port >> 6] |= <uint64_t>1 << (port & 63)
        pool.free_count += 1
        pool.free_low += port < LOW_PORTS
        pool.free_middle += is_middle(port)


cdef inline uint16_t first_choice(uint16_t wanted, bint keep_parity, uint64_t hash) noexcept nogil:
    """Return the port that an endpoint with this hash is given if it is free, when its own, `wanted`, is not.

    The low 32 bits of the hash are left to others.
    """
    cdef unsigned int random = <unsigned int>(hash >> 32)
    cdef unsigned int port
    if not keep_parity:
        return <uint16_t>random
    port = random % LOW_PORTS if wanted < LOW_PORTS else LOW_PORTS + random % (CLIENT_PORTS - LOW_PORTS)
    return <uint16_t>((port & ~<unsigned int>1) | (wanted & 1))


cdef inline int search_words(const PortPool *pool, unsigned int first, unsigned int count, unsigned int least,
                             uint64_t wanted, uint16_t choice, uint64_t hash) noexcept nogil:
    """Return a free port among `count` words from `first` on, but from word `least`, whose bit is in `wanted`; or NO_PORT.

    It is `choice` if that may be; else the next one in an order that the hash decides, so that it is the same whenever the
    same are free. count: a power of two, so that an odd step comes by all words.
    """
    cdef unsigned int at = choice >> 6
    cdef unsigned int turn = choice & 63
    cdef unsigned int step = <unsigned int>(hash >> 55) | 1
    cdef unsigned int _i, word
    cdef uint64_t bits
    for _i in range(count):
        word = first + (at & (count - 1))
        bits = pool.free[word] & wanted
        if bits and word >= least:
            if turn:
                bits = (bits >> turn) | (bits << (64 - turn))
            return <int>(word * 64 + ((__builtin_ctzll(bits) + turn) & 63))
        at += step
    return NO_PORT


cdef inline int search_low(const PortPool *pool, uint64_t wanted, uint16_t choice, uint64_t hash) noexcept nogil:
    return search_words(pool, 0, LOW_PORTS // 64, 0, wanted, choice, hash) if pool.free_low else NO_PORT


cdef inline int search_middle(const PortPool *pool, uint64_t wanted, uint16_t choice, uint64_t hash) noexcept nogil:
    if pool.free_middle == 0:
        return NO_PORT
    return search_words(pool, 0, CLIENT_PORTS // 64, LOW_PORTS // 64, wanted, choice, hash)


cdef inline int search_clients(const PortPool *pool, uint64_t wanted, uint16_t choice, uint64_t hash) noexcept nogil:
    cdef unsigned int first = CLIENT_PORTS // 64
    if pool.free_count == pool.free_low + pool.free_middle:
        return NO_PORT
    return search_words(pool, first, POOL_WORDS - first, first, wanted, choice, hash)


cdef inline int choose_port(const PortPool *pool, uint16_t wanted, bint keep_parity, uint16_t choice,
                            uint64_t hash) noexcept nogil:
    """Return a port for an endpoint that cannot have `wanted`, its first choice if possible; NO_PORT when none is left.

    Does not take it.
    """
    cdef uint64_t parity = 0xAAAAAAAAAAAAAAAAULL if wanted & 1 else 0x5555555555555555ULL
    cdef int port = NO_PORT
    if pool.free_count == 0:
        return NO_PORT
    if not keep_parity:
        return search_words(pool, 0, POOL_WORDS, 0, ANY, choice, hash)
    if wanted < LOW_PORTS:
        port = search_low(pool, parity, choice, hash)
        if port == NO_PORT:
            port = search_low(pool, ANY, choice, hash)
    if port == NO_PORT:
        port = search_middle(pool, parity, choice, hash)
    if port == NO_PORT:
        port = search_clients(pool, parity, choice, hash)
    if port == NO_PORT:
        port = search_middle(pool, ANY, choice, hash)
    if port == NO_PORT:
        port = search_clients(pool, ANY, choice, hash)
    return port


cdef inline int choose_next_port(const PortPool *pool, uint32_t *counter) noexcept nogil:
    """Return the next free port in ascending order, round and round, as in 1999; NO_PORT when none is left.

    One counter serves all pools, and moves on with every port given (rule C-2).
    """
    cdef unsigned int word = (counter[0] & 0xFFFF) >> 6
    cdef uint64_t bits = pool.free[word] & (<uint64_t>ANY << (counter[0] & 63))
    cdef unsigned int _i
    cdef int port
    if pool.free_count == 0:
        return NO_PORT
    for _i in range(POOL_WORDS + 1):        # the first word twice: from the counter on, and at last before it
        if bits:
            port = <int>(word * 64) + __builtin_ctzll(bits)
            counter[0] = <uint16_t>(port + 1)
            return port
        word = (word + 1) & (POOL_WORDS - 1)
        bits = pool.free[word]
    return NO_PORT
