"""A UDP client that times round trips and the echo server for it, without Python between the system calls."""

import numpy as np

from libc.errno cimport EINTR, errno as c_errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *remain)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    int PR_SET_TIMERSLACK

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    ssize_t send(int descriptor, const void *data, size_t length, int flags)
    ssize_t recv(int descriptor, void *data, size_t length, int flags)
    ssize_t sendto(int descriptor, const void *data, size_t length, int flags, const sockaddr *to, uint32_t to_length)
    ssize_t recvfrom(int descriptor, void *data, size_t length, int flags, sockaddr *sender, uint32_t *sender_length)

cdef enum:
    SENDER_OCTETS = 128             # sockaddr_storage
    DATAGRAM_OCTETS = 2048
    MOST_UNANSWERED = 10            # each costs a whole receive timeout


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec moment
    clock_gettime(CLOCK_MONOTONIC, &moment)
    return <int64_t>moment.tv_sec * 1_000_000_000 + moment.tv_nsec


cdef class Echo:
    """Returns every datagram of a UDP socket to its sender; the socket needs a receive timeout, or stop() is not seen."""

    cdef object socket
    cdef bint stopping

    def __init__(self, socket) -> None:
        self.socket = socket
        self.stopping = False

    def stop(self) -> None:
        """End run() after the next datagram or timeout."""
        self.stopping = True

    def run(self) -> None:
        """Answer until stop()."""
        cdef int descriptor = self.socket.fileno()
        cdef uint8_t[DATAGRAM_OCTETS] datagram
        cdef uint8_t[SENDER_OCTETS] sender
        cdef uint32_t sender_length
        cdef ssize_t length
        with nogil:
            while not self.stopping:
                sender_length = SENDER_OCTETS
                length = recvfrom(descriptor, datagram, DATAGRAM_OCTETS, 0, <sockaddr *>sender, &sender_length)
                if length >= 0:
                    sendto(descriptor, datagram, length, 0, <sockaddr *>sender, sender_length)


def time_round_trips(socket, int64_t count, int64_t pause_ns=0):
    """Send count datagrams one after the other over a connected UDP socket with a receive timeout.

    Before each this thread sleeps for the pause, in which everything on the way may fall asleep, too.

    Return the round trips in nanoseconds as an int64 array, -1 for a datagram without an answer before the timeout. It
    is shorter than count if too many had none.
    """
    times = np.empty(count, dtype=np.int64)
    cdef int64_t[::1] view = times
    cdef int64_t sent = 0
    cdef int64_t unanswered = 0
    cdef int descriptor = socket.fileno()
    cdef timespec pause
    pause.tv_sec = pause_ns // 1_000_000_000
    pause.tv_nsec = pause_ns % 1_000_000_000
    with nogil:
        prctl(PR_SET_TIMERSLACK, 1)
        while sent < count and unanswered < MOST_UNANSWERED:
            if pause_ns:
                clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL)
            view[sent] = _round_trip(descriptor, sent)
            if view[sent] < 0:
                unanswered += 1
            sent += 1
    return times[:sent]


cdef int64_t _round_trip(int descriptor, int64_t number) noexcept nogil:
    """Return the nanoseconds until the datagram with this number is back, -1 if the receive timeout came first."""
    cdef int64_t answer = -1
    cdef int64_t start_ns = monotonic_ns()
    if send(descriptor, &number, sizeof(number), 0) < 0:
        return -1
    while answer != number:                 # an older one is an answer that came after its timeout
        if recv(descriptor, &answer, sizeof(answer), 0) < 0 and c_errno != EINTR:
            return -1
    return monotonic_ns() - start_ns
