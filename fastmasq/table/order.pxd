# The order in which rows are written that others read: another process when this one has been killed (table.pxd says which
# they are), or a program on another processor at the same time (carried.pxd).

cdef extern from * nogil:
    void __atomic_signal_fence(int order)
    void __atomic_thread_fence(int order)
    int __ATOMIC_SEQ_CST
    int __ATOMIC_RELEASE


cdef inline void keep_order() noexcept nogil:
    """Have the compiler write to memory what comes before this ahead of what comes after it. No instruction."""
    __atomic_signal_fence(__ATOMIC_SEQ_CST)


cdef inline void show_in_order() noexcept nogil:
    """Have other processors see what comes before this ahead of what comes after it. No instruction where they do anyhow."""
    __atomic_thread_fence(__ATOMIC_RELEASE)
