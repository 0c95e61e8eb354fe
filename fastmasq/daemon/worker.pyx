"""Worker: the one thread that moves packets, from wake-up to sleep, without the GIL and apart from everything slow.

The loop takes turns at the path for as long as there are frames, looks at the rings a little longer (at most busy_poll, less
where that was in vain) since an answer is often near, and then sleeps in poll until a ring has something. This is the
only hot loop that reads a clock. While it sleeps nothing is spent: it wakes four times a second if sessions are to be
timed out, else once a second.

Under load it takes its time. Frames that come one by one at a high rate cost a system call, a softirq and often a wake-up
of their receiver each; a pause of PAUSE_NS lets them gather, as interrupt moderation does in a network card, and leaves the
processor to the programs that talk. Where a pause gathers little, as with one question and one answer after the other, none
is made for the next RETRY_NS. A quiet network (fewer than BUSY_FRAMES and BUSY_OCTETS a millisecond) never meets one.

One that only observes is in no hurry. It lets frames get a millisecond old, so that all that came before them are there, too.
"""

import os

from libc.stdint cimport uint32_t, uint64_t

from fastmasq.path.forwarder cimport Forwarder
from fastmasq.path.state cimport LINKS
from fastmasq.ring.abi cimport SOL_SOCKET, SO_ERROR, getsockopt

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *time)
    int nanosleep(const timespec *length, timespec *left)
    enum:
        CLOCK_MONOTONIC
        CLOCK_REALTIME

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

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    enum:
        PR_SET_TIMERSLACK

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
    #define STORE_COUNT(word, value) __atomic_store_n(word, value, __ATOMIC_RELAXED)
    """
    void RELAX()
    int LOAD_INT(const int *word)
    void STORE_INT(int *word, int value)
    void STORE_COUNT(uint64_t *word, uint64_t value)

cdef enum:
    SLEEP_IDLE_MS = 1000
    SLEEP_TIMERS_MS = 250
    SLEEP_HELD_MS = 100
    LOOKS_BETWEEN_CLOCKS = 32
    MILLISECOND_NS = 1000000
    BUSY_FRAMES = 30            # a millisecond, from which on frames are let gather; or
    BUSY_OCTETS = 100000        # so many octets
    ENOUGH_FRAMES = 32          # in one turn, from which on they have gathered already
    SHORTEST_LOOK_NS = 20000
    PAUSE_NS = 50000
    RETRY_NS = 10000000
    WORTH_FRAMES = 8            # gathered by a pause, or
    WORTH_OCTETS = 32768        # so many octets: it was worth it
    OBSERVE_NS = 1000000        # how old frames get before one who only observes looks at them


cdef inline uint64_t read_clock(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline uint64_t clock_ns() noexcept nogil:
    return read_clock(CLOCK_MONOTONIC)


cdef inline void pause(long nanoseconds) noexcept nogil:
    cdef timespec length
    length.tv_sec = 0
    length.tv_nsec = nanoseconds
    nanosleep(&length, NULL)


cdef class Worker:
    """Runs a Forwarder until told to stop. `notify` is an eventfd that becomes readable when packets wait for the daemon."""

    cdef Forwarder forwarder
    cdef uint64_t busy_poll_ns
    cdef int stopping
    cdef int wake_fd
    cdef readonly int notify
    cdef readonly uint64_t turns        # that have ended: a worker that gets on has one a second at least

    def __init__(self, Forwarder forwarder, busy_poll_ns=50_000):
        self.forwarder = forwarder
        self.busy_poll_ns = busy_poll_ns
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.notify = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def run(self):
        """Move packets until `stop`; meant for a thread of its own. It may be called again then."""
        with nogil:
            if self.forwarder.observes:
                self.observe()
            else:
                self.loop()
            STORE_INT(&self.stopping, 0)

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
        cdef uint64_t last = now                # when frames were seen
        cdef uint64_t look_ns = self.busy_poll_ns
        cdef bint slept = False
        cdef uint64_t window_start = now
        cdef uint64_t pause_again = 0
        cdef uint64_t window_octets = 0
        cdef int frames, window_frames = 0
        cdef bint busy = False
        cdef bint paused = False
        prctl(PR_SET_TIMERSLACK, 1)
        while not LOAD_INT(&self.stopping):
            now = clock_ns()
            frames = self.forwarder.turn(now)
            STORE_COUNT(&self.turns, self.turns + 1)
            self.tell()
            window_frames += frames
            window_octets += self.forwarder.path.turn_octets
            if now - window_start >= MILLISECOND_NS:
                busy = window_frames >= BUSY_FRAMES or window_octets >= BUSY_OCTETS
                window_start = now
                window_frames = 0
                window_octets = 0
            if paused and frames < WORTH_FRAMES and self.forwarder.path.turn_octets < WORTH_OCTETS:
                pause_again = now + RETRY_NS
            paused = False
            if frames:
                if slept:
                    look_ns = self.next_look(look_ns, now - last)
                    slept = False
                last = now
                if busy and frames < ENOUGH_FRAMES and now >= pause_again:
                    pause(PAUSE_NS)
                    paused = True
            elif not (now < last + look_ns and self.look(last + look_ns)):
                self.sleep()
                slept = True

    cdef void observe(self) noexcept nogil:
        while not LOAD_INT(&self.stopping):
            self.sleep()
            pause(OBSERVE_NS)
            self.forwarder.path.observation.until_ns = read_clock(CLOCK_REALTIME) - OBSERVE_NS // 2
            while self.forwarder.turn(clock_ns()) and not LOAD_INT(&self.stopping):
                self.tell()
            self.tell()

    cdef uint64_t next_look(self, uint64_t look_ns, uint64_t silence_ns) noexcept nogil:
        """Return how long to watch the rings next time, after a silence that watching for look_ns did not outlast.

        Longer, up to busy_poll, if busy_poll would have been enough; else shorter: it was spent for nothing.
        """
        if silence_ns <= 2 * self.busy_poll_ns:
            return self.busy_poll_ns
        look_ns >>= 1
        if look_ns >= SHORTEST_LOOK_NS or look_ns >= self.busy_poll_ns:
            return look_ns
        return SHORTEST_LOOK_NS if self.busy_poll_ns > SHORTEST_LOOK_NS else self.busy_poll_ns

    cdef void tell(self) noexcept nogil:
        """Ask the daemon for what packets wait for, next hops and the word of a tracker, and for memory."""
        cdef uint64_t one = 1
        if (self.forwarder.path.hops_wanted or self.forwarder.path.punts.is_news
                or self.forwarder.path.table.asks_for_memory):
            self.forwarder.path.punts.is_news = False
            self.forwarder.path.table.asks_for_memory = False
            write(self.notify, &one, sizeof(one))

    cdef bint look(self, uint64_t until) noexcept nogil:
        """Watch the rings until one has a frame (True) or the time is up."""
        cdef int _i
        while True:
            for _i in range(LOOKS_BETWEEN_CLOCKS):
                if self.forwarder.pending():
                    return True
                RELAX()
            if clock_ns() >= until or LOAD_INT(&self.stopping):
                return False
            sched_yield()

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
        if self.forwarder.path.held.count:
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
