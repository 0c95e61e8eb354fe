# Which way a branch mostly goes, for the compiler: what hardly ever happens is not put in line with every packet's way.

cdef extern from * nogil:
    # macros of every module that Cython makes
    bint likely(bint condition)
    bint unlikely(bint condition)
