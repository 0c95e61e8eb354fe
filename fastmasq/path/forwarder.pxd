# The packet path as one object: what the daemon's worker calls, batch by batch, without the GIL.

from libc.stdint cimport uint64_t

from fastmasq.path.rules cimport RuleTable
from fastmasq.path.state cimport Path
from fastmasq.path.triggers_and_marks cimport TriggerTable
from fastmasq.table.masq cimport MasqTable

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef class Forwarder:
    cdef Path path
    cdef pthread_mutex_t mutex
    cdef int waiting            # callers of the lock that are not the worker
    cdef readonly MasqTable table
    cdef readonly RuleTable chains
    cdef readonly TriggerTable triggers
    cdef readonly list rings, senders
    cdef readonly object tunnels    # rows.TUNNEL rows, or None while no tracker is asked
    cdef readonly bint observes     # it sends nothing
    cdef bint carries               # the kernel may carry sessions, if policy lets it
    cdef object _hops, _wants, _hop_index, _held, _datagrams, _route_first, _routes, _tunnel_index, _punts, _live, _image
    cdef object _observation, _dropped, _untranslated, _identifications, _carrier
    cdef _open_carrier(self)
    cdef int turn(self, uint64_t now_ns) noexcept nogil
    cdef bint pending(self) noexcept nogil
    cdef void lock(self) noexcept nogil
    cdef void unlock(self) noexcept nogil
