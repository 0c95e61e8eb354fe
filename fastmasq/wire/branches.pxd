# Which way a branch mostly goes, for the compiler: what hardly ever happens is not put in line with every packet's way.

cdef extern from * nogil:
    """
    #if __GNUC__ >= 9
    #define rarely(condition) __builtin_expect_with_probability(!!(condition), 0, 0.9999)
    #else
    #define rarely(condition) __builtin_expect(!!(condition), 0)
    #endif
    """
    # macros of every module that Cython makes
    bint likely(bint condition)
    bint unlikely(bint condition)
    # of a condition that does not hold for whole flows of packets: what follows is kept apart, small rather than quick
    bint rarely(bint condition)
