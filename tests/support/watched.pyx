"""WatchedMemory: every write into a piece of memory, whoever makes it, in the order in which the processor makes them.

The memory is made read-only, so a write into it faults. The handler notes what is there, opens the memory, and has the processor
stop again after this one instruction; then it notes which octets have become others, and closes the memory. So what is watched
is the machine code that runs elsewhere as well. (A build that calls somebody before each write is another: as no compiler moves
a write past such a call, it could not show in which order the writes are really made.)

One piece at a time, by one thread, on x86-64. A system call that is to write there fails with EFAULT.
"""

from libc.signal cimport SIGSEGV, SIGTRAP
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.mman cimport PROT_READ, PROT_WRITE, mprotect
from posix.signal cimport SA_SIGINFO, sigaction, sigaction_t, siginfo_t, sigemptyset

import mmap

import numpy as np

cdef extern from * nogil:
    """
    #include <ucontext.h>

    #ifdef __x86_64__
    #define KNOWS_HOW_TO_STOP 1
    #define TRAP_FLAG 0x100         /* of the flags: trap after the next instruction */
    static void stop_after_next(void *context, int wanted)
    {
        greg_t *flags = &((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL];
        *flags = wanted ? *flags | TRAP_FLAG : *flags & ~TRAP_FLAG;
    }
    #else
    #define KNOWS_HOW_TO_STOP 0
    static void stop_after_next(void *context, int wanted) {}
    #endif
    """
    bint KNOWS_HOW_TO_STOP
    void stop_after_next(void *context, bint wanted)

cdef enum:
    PAGE = 4096                 # octets, on x86-64
    WIDEST = 64                 # octets that one instruction writes at the most (AVX-512); it may fault at any of them
    AROUND = 2 * WIDEST         # of where it faulted: what it may write

cdef struct Write:
    # the octets from the first to the last that a write has changed
    uint32_t offset
    uint32_t count
    uint8_t octets[AROUND]

cdef struct Watch:
    uint8_t *first
    uint8_t *stop
    Write *writes
    uint32_t room
    uint32_t count
    uint8_t *at                 # while a write is let through: what it may change, and what was there
    uint8_t *until
    uint8_t before[AROUND]
    sigaction_t on_fault        # what was done about signals
    sigaction_t on_trap

cdef Watch watch                # as there is one handler of a signal


cdef void protect(const uint8_t *first, const uint8_t *stop, int protection) noexcept nogil:
    """Protect the pages of these octets."""
    cdef size_t page = <size_t>first & ~<size_t>(PAGE - 1)
    mprotect(<void *>page, <size_t>stop - page, protection)


cdef void let_through(int signal, siginfo_t *info, void *context) noexcept nogil:
    """Let one write into the memory be made; any other fault is for whoever handled them before."""
    cdef uint8_t *address = <uint8_t *>info.si_addr
    if not watch.first <= address < watch.stop:
        sigaction(signal, &watch.on_fault, NULL)
        return
    watch.at = max(watch.first, address - WIDEST)
    watch.until = min(watch.stop, address + WIDEST)
    memcpy(watch.before, watch.at, watch.until - watch.at)
    protect(watch.at, watch.until, PROT_READ | PROT_WRITE)
    stop_after_next(context, True)


cdef void note(int signal, siginfo_t *info, void *context) noexcept nogil:
    """Note what the write has changed, if anything, and watch for the next."""
    cdef uint32_t first = 0
    cdef uint32_t stop = <uint32_t>(watch.until - watch.at)
    cdef Write *write
    stop_after_next(context, False)
    protect(watch.at, watch.until, PROT_READ)
    while first < stop and watch.at[first] == watch.before[first]:
        first += 1
    while stop > first and watch.at[stop - 1] == watch.before[stop - 1]:
        stop -= 1
    if first == stop:
        return
    if watch.count < watch.room:
        write = &watch.writes[watch.count]
        write.offset, write.count = <uint32_t>(watch.at + first - watch.first), stop - first
        memcpy(write.octets, &watch.at[first], stop - first)
    watch.count += 1


cdef void handle(int signal, void handler(int, siginfo_t *, void *) noexcept nogil, sigaction_t *before) noexcept:
    cdef sigaction_t action
    action.sa_sigaction = handler
    action.sa_flags = SA_SIGINFO
    sigemptyset(&action.sa_mask)
    sigaction(signal, &action, before)


cdef class WatchedMemory:
    """A context in which writes into `memory` are noted: those that change it, `room` of them at the most.

    memory: whole pages, writable. writes: what was noted the last time, as (offset, octets) in order.
    Raises OSError where a write cannot be watched, ValueError about such memory, BufferError when there were more.
    """
    cdef object _octets
    cdef Write *_writes
    cdef uint32_t _room
    cdef readonly list writes

    def __cinit__(self, memory, uint32_t room=65536):
        if not KNOWS_HOW_TO_STOP:
            raise OSError("writes are watched on x86-64 only")
        self._octets = np.frombuffer(memory, "u1")
        if self._octets.ctypes.data % mmap.PAGESIZE or len(self._octets) % mmap.PAGESIZE:
            raise ValueError(f"memory that is watched must be whole pages of {mmap.PAGESIZE} octets")
        self._room = room
        self._writes = <Write *>calloc(room, sizeof(Write))
        if self._writes == NULL:
            raise MemoryError
        self.writes = []

    def __dealloc__(self):
        free(self._writes)

    def __enter__(self):
        if watch.first != NULL:
            raise RuntimeError("other memory is being watched")
        watch.first = <uint8_t *><size_t>self._octets.ctypes.data
        watch.stop = watch.first + <size_t>len(self._octets)
        watch.writes, watch.room, watch.count = self._writes, self._room, 0
        handle(SIGSEGV, let_through, &watch.on_fault)
        handle(SIGTRAP, note, &watch.on_trap)
        protect(watch.first, watch.stop, PROT_READ)
        return self

    def __exit__(self, kind, error, _traceback):
        cdef uint32_t number
        cdef Write *write
        protect(watch.first, watch.stop, PROT_READ | PROT_WRITE)
        sigaction(SIGSEGV, &watch.on_fault, NULL)
        sigaction(SIGTRAP, &watch.on_trap, NULL)
        watch.first = NULL
        self.writes = []
        for number in range(min(watch.count, watch.room)):
            write = &watch.writes[number]
            self.writes.append((write.offset, write.octets[:write.count]))
        if watch.count > watch.room and error is None:
            raise BufferError(f"{watch.count} writes: there is room for {watch.room}")
