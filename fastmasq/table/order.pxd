# The order in which rows are written that another process may read when this one has been killed (table.pxd says which).

cdef extern from * nogil:
    void __atomic_signal_fence(int order)
    int __ATOMIC_SEQ_CST


cdef inline void keep_order() noexcept nogil:
    """Have the compiler write to memory what comes before this ahead of what comes after it. No instruction."""
    __atomic_signal_fence(__ATOMIC_SEQ_CST)
