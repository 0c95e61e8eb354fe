# Token buckets: so much a second, and so much at once.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    TOKEN = 1000                # tokens are counted in thousandths: a rate a second is one a millisecond


cdef struct Bucket:
    uint32_t tokens             # in thousandths
    uint32_t stamp_ms


cdef inline void fill(Bucket *bucket, uint32_t now_ms, uint32_t burst) noexcept nogil:
    bucket.tokens, bucket.stamp_ms = burst * TOKEN, now_ms


cdef inline bint take_token(Bucket *bucket, uint32_t now_ms, uint32_t rate, uint32_t burst) noexcept nogil:
    """Take a token, of which there are `rate` more a second and `burst` at the most; False when there is none."""
    cdef uint64_t tokens = bucket.tokens + <uint64_t>(now_ms - bucket.stamp_ms) * rate
    if tokens > <uint64_t>burst * TOKEN:
        tokens = <uint64_t>burst * TOKEN
    bucket.stamp_ms = now_ms
    bucket.tokens = <uint32_t>tokens
    if tokens < TOKEN:
        return False
    bucket.tokens -= TOKEN
    return True
