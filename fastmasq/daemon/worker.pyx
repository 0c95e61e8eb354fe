"""Worker: the one thread that moves packets, from wake-up to sleep, without the GIL and apart from everything slow.

The loop takes turns at the path for as long as there are frames, looks at the rings a little longer (busy_poll) since an
answer is often near, and then sleeps in ppoll until a ring has something. This is the only hot loop that reads a clock.
While it sleeps nothing is spent: it wakes four times a second if sessions are to be timed out, else once a second.
"""

import os

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmasq.path.forward cimport Forwarder
from fastmasq.path.state cimport LINKS
from fastmasq.ring.abi cimport SOL_SOCKET, SO_ERROR, getsockopt

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *time)
    enum:
        CLOCK_MONOTONIC

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int milliseconds)
    enum:
        POLLIN
        POLLERR
        POLLNVAL

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int fd, void *buffer, size_t length)
    ssize_t write(int fd, const void *buffer, size_t length)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from * nogil:
    """
    #if defined(__x86_64__) || defined(__i386__)
    #define RELAX() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define RELAX() __asm__ __volatile__("yield")
    #else
    #define RELAX() ((void) 0)
    #endif
    #define LOAD_INT(word) __atomic_load_n(word, __ATOMIC_ACQUIRE)
    #define STORE_INT(word, value) __atomic_store_n(word, value, __ATOMIC_RELEASE)
    """
    void RELAX()
    int LOAD_INT(const int *word)
    void STORE_INT(int *word, int value)

cdef enum:
    SLEEP_IDLE_MS = 1000
    SLEEP_TIMERS_MS = 250
    SLEEP_HELD_MS = 100
    LOOKS_BETWEEN_CLOCKS = 32


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef class Worker:
    """Runs a Forwarder until told to stop. `notify` is an eventfd that becomes readable when a next hop is wanted."""

    cdef Forwarder forwarder
    cdef uint64_t busy_poll_ns
    cdef int stopping
    cdef int wake_fd
    cdef readonly int notify

    def __init__(self, Forwarder forwarder, busy_poll_ns=50_000):
        self.forwarder = forwarder
        self.busy_poll_ns = busy_poll_ns
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.notify = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def run(self):
        """Move packets until `stop`; meant for a thread of its own."""
        with nogil:
            self.loop()

    def wake(self):
        """Have the worker look at its links anew: one was attached or detached."""
        os.eventfd_write(self.wake_fd, 1)

    def stop(self):
        STORE_INT(&self.stopping, 1)
        self.wake()

    def close(self):
        """Close the descriptors; the thread must have ended."""
        os.close(self.wake_fd)
        os.close(self.notify)

    cdef void loop(self) noexcept nogil:
        cdef uint64_t now = clock_ns()
        cdef uint64_t busy_until = 0
        while not LOAD_INT(&self.stopping):
            now = clock_ns()
            if self.forwarder.turn(now):
                busy_until = now + self.busy_poll_ns
                self.tell()
                continue
            self.tell()
            if now < busy_until and self.look(busy_until):
                continue
            self.sleep()

    cdef void tell(self) noexcept nogil:
        """Ask the daemon for next hops that packets wait for."""
        cdef uint64_t one = 1
        if self.forwarder.path.hops_wanted:
            write(self.notify, &one, sizeof(one))

    cdef bint look(self, uint64_t until) noexcept nogil:
        """Watch the rings until one has a frame (True) or the time is up."""
        cdef int i
        while True:
            for i in range(LOOKS_BETWEEN_CLOCKS):
                if self.forwarder.pending():
                    return True
                RELAX()
            if clock_ns() >= until or LOAD_INT(&self.stopping):
                return False

    cdef int descriptors(self, pollfd *fds) noexcept nogil:
        cdef int count = 1
        cdef int link
        fds[0].fd = self.wake_fd
        fds[0].events = POLLIN
        self.forwarder.lock()
        for link in range(self.forwarder.path.link_count):
            if self.forwarder.path.rings[link] != NULL and self.forwarder.path.rings[link].fd >= 0:
                fds[count].fd = self.forwarder.path.rings[link].fd
                fds[count].events = POLLIN
                count += 1
        self.forwarder.unlock()
        return count

    cdef void sleep(self) noexcept nogil:
        cdef pollfd fds[LINKS + 1]
        cdef int count = self.descriptors(fds)
        cdef int milliseconds = SLEEP_IDLE_MS
        cdef int i
        cdef int error
        cdef uint32_t length
        cdef uint64_t drained
        if self.forwarder.path.held_count:
            milliseconds = SLEEP_HELD_MS
        elif self.forwarder.path.table.active:
            milliseconds = SLEEP_TIMERS_MS
        if poll(fds, count, milliseconds) <= 0:
            return
        if fds[0].revents & POLLIN:
            read(self.wake_fd, &drained, sizeof(drained))
        for i in range(1, count):
            if fds[i].revents & (POLLERR | POLLNVAL):
                # the link went down: taking the error off the socket lets it sleep again
                length = sizeof(error)
                getsockopt(fds[i].fd, SOL_SOCKET, SO_ERROR, &error, &length)
