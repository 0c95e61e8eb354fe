"""A packet source faster than the forwarders it is for: prebuilt frames out of an AF_XDP transmit ring.

The ring is used in copy mode, so it works on every interface and needs no program there. It costs the kernel clearly
less per packet than sendmmsg() on a packet socket (figures in NOTES.md), which matters where the source shares two
processors with what it measures. A descriptor names a chunk of our memory (UMEM); the kernel copies the chunk into a
packet and gives that to the driver within sendto(), past every queueing discipline. The chunk is ours again when its
number comes back in the completion ring.
"""

import os
import socket
import time

from libc.errno cimport EAGAIN, EBUSY, ENOBUFS, errno as c_errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastmasq.errors import KernelError

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    ssize_t sendto(int descriptor, const void *data, size_t length, int flags, const sockaddr *to, uint32_t to_length)
    int setsockopt(int descriptor, int level, int name, const void *value, uint32_t length)
    int getsockopt(int descriptor, int level, int name, void *value, uint32_t *length)
    int bind(int descriptor, const sockaddr *address, uint32_t length)
    int MSG_DONTWAIT
    int SOL_SOCKET
    int SO_SNDBUFFORCE

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int descriptor, int64_t offset)
    int munmap(void *address, size_t length)
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    int MAP_POPULATE
    void *MAP_FAILED

cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *remain)
    int TIMER_ABSTIME

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    int PR_SET_TIMERSLACK

cdef extern from "<linux/if_xdp.h>" nogil:
    int XDP_COPY
    int XDP_TX_RING
    int XDP_UMEM_REG
    int XDP_UMEM_FILL_RING
    int XDP_UMEM_COMPLETION_RING
    int XDP_MMAP_OFFSETS
    int64_t XDP_PGOFF_TX_RING
    int64_t XDP_UMEM_PGOFF_COMPLETION_RING

    struct xdp_desc:
        uint64_t addr
        uint32_t len
        uint32_t options

    struct xdp_umem_reg:
        uint64_t addr
        uint64_t len
        uint32_t chunk_size

    struct xdp_ring_offset:
        uint64_t producer
        uint64_t consumer
        uint64_t desc

    struct xdp_mmap_offsets:
        xdp_ring_offset tx
        xdp_ring_offset cr

    struct sockaddr_xdp:
        uint16_t sxdp_family
        uint16_t sxdp_flags
        uint32_t sxdp_ifindex
        uint32_t sxdp_queue_id

cdef extern from *:
    """
    #define load_acquire(word) __atomic_load_n((word), __ATOMIC_ACQUIRE)
    #define store_release(word, value) __atomic_store_n((word), (value), __ATOMIC_RELEASE)
    """
    uint32_t load_acquire(uint32_t *word) nogil
    void store_release(uint32_t *word, uint32_t value) nogil

cdef enum:
    AF_XDP = 44
    SOL_XDP = 283
    CHUNKS = 4096                   # a power of two; also the number of entries in each ring
    CHUNK_OCTETS = 2048
    BATCH = 32                      # what the kernel sends for one sendto() in copy mode
    BURST_NS = 100_000              # a paced source sends what is due in this time at once, at most a batch
    SLEEP_FROM_NS = 60_000          # shorter waits are spun, longer ones are slept for the most part
    WAKE_EARLY_NS = 30_000
    DEBT_NS = 2_000_000             # a paced source that is later than this forgets what it owes


cdef int64_t monotonic_ns() noexcept nogil:
    cdef timespec moment
    clock_gettime(CLOCK_MONOTONIC, &moment)
    return <int64_t>moment.tv_sec * 1_000_000_000 + moment.tv_nsec


cdef void wait_until(int64_t deadline_ns) noexcept nogil:
    """Return at the deadline: asleep while it is far, spinning for the rest."""
    cdef timespec moment
    cdef int64_t wake_ns = deadline_ns - WAKE_EARLY_NS
    if deadline_ns - monotonic_ns() > SLEEP_FROM_NS:
        moment.tv_sec = wake_ns // 1_000_000_000
        moment.tv_nsec = wake_ns % 1_000_000_000
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL)
    while monotonic_ns() < deadline_ns:
        pass


cdef class Source:
    """Sends the rows of a uint8 array (one frame each, without FCS) in turn, over and over, out of one interface.

    Make it in a thread that has entered the interface's network namespace; run() may be called from any thread. While
    it runs, other threads may read its counters, which only grow:

        offered   packets given to the driver
        refused   those of them that the driver gave up because the receiver's queue was full
    """

    cdef readonly int64_t offered
    cdef readonly int64_t refused
    cdef object socket
    cdef int descriptor
    cdef const uint8_t[:, ::1] frames
    cdef int64_t next_frame
    cdef bint stopping
    cdef uint8_t *memory
    cdef uint8_t *transmit_ring
    cdef size_t transmit_length
    cdef uint8_t *completion_ring
    cdef size_t completion_length
    cdef uint32_t *transmit_producer
    cdef uint32_t *transmit_consumer
    cdef uint32_t *completion_producer
    cdef uint32_t *completion_consumer
    cdef xdp_desc *descriptors
    cdef uint32_t produced

    def __init__(self, str interface, const uint8_t[:, ::1] frames, uint32_t queue=0) -> None:
        """Open the ring on one transmit queue, which serves one source. Raises KernelError if the kernel refuses."""
        if not 14 <= frames.shape[1] <= CHUNK_OCTETS:
            raise ValueError(f"frames have 14 to {CHUNK_OCTETS} octets, these have {frames.shape[1]}")
        self.frames = frames
        try:
            self.socket = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
        except OSError as error:
            raise KernelError(f"the packet source needs AF_XDP sockets (CONFIG_XDP_SOCKETS) and root: {error}") from None
        self.descriptor = self.socket.fileno()
        self._register_memory()
        self._map_rings()
        self._bind(socket.if_nametoindex(interface), queue)

    def __dealloc__(self) -> None:
        self._unmap()

    def close(self) -> None:
        """Leave the interface, also for another source. No run() may be under way, and none can follow."""
        self._unmap()
        self.socket.close()

    def stop(self) -> None:
        """End the run() in another thread within a batch."""
        self.stopping = True

    def run(self, double seconds, double rate=0, int64_t packets=0, processor=None) -> float:
        """Send for so long, or until so many packets (0: any number) or stop(); return the seconds that it took.

        rate is packets per second, 0 for as many as go. The calling thread is bound to the processor, if one is given.
        """
        cdef int64_t taken_ns
        cdef int64_t length_ns = <int64_t>(seconds * 1e9)
        cdef double gap_ns = 1e9 / rate if rate else 0.0
        if self.memory == NULL:
            raise ValueError("this source is closed")
        if processor is not None:
            os.sched_setaffinity(0, {processor})
        self.stopping = False
        with nogil:
            prctl(PR_SET_TIMERSLACK, 1)
            taken_ns = self._run(length_ns, gap_ns, packets)
        return taken_ns / 1e9

    cdef int64_t _run(self, int64_t length_ns, double gap_ns, int64_t packets) noexcept nogil:
        """Send until one of the ends; gap_ns is the mean time between packets, 0 for none. Return the time taken."""
        cdef int64_t start_ns = monotonic_ns()
        cdef int64_t now_ns = start_ns
        cdef int64_t first = self.offered
        cdef int64_t burst = BATCH
        cdef int64_t count
        cdef double due_ns = <double>start_ns
        if gap_ns > 0:
            burst = max(1, min(BATCH, <int64_t>(BURST_NS / gap_ns)))
        while now_ns - start_ns < length_ns and not self.stopping:
            count = burst
            if packets:
                count = min(burst, packets - (self.offered - first))
                if count == 0:
                    break
            count = self._send(<uint32_t>count)
            if gap_ns > 0:
                due_ns = max(due_ns, <double>(now_ns - DEBT_NS)) + count * gap_ns
                wait_until(<int64_t>due_ns)
            now_ns = monotonic_ns()
        return now_ns - start_ns

    cdef uint32_t _send(self, uint32_t count) noexcept nogil:
        """Give the next frames to the driver; return how many: fewer than count while the kernel still holds chunks."""
        cdef uint32_t length = <uint32_t>self.frames.shape[1]
        cdef uint32_t completed = load_acquire(self.completion_producer)
        cdef uint32_t number
        cdef uint32_t slot
        store_release(self.completion_consumer, completed)
        count = min(count, CHUNKS - (self.produced - completed))
        for number in range(count):
            slot = (self.produced + number) & (CHUNKS - 1)
            memcpy(self.memory + slot * CHUNK_OCTETS, &self.frames[self.next_frame, 0], length)
            self.descriptors[slot].addr = slot * CHUNK_OCTETS
            self.descriptors[slot].len = length
            self.descriptors[slot].options = 0
            self.next_frame += 1
            if self.next_frame == self.frames.shape[0]:
                self.next_frame = 0
        self.produced += count
        store_release(self.transmit_producer, self.produced)
        while load_acquire(self.transmit_consumer) != self.produced and not self.stopping:
            if sendto(self.descriptor, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0:
                if c_errno == EBUSY:        # one packet found the receiver's queue full; the rest waits for us
                    self.refused += 1
                elif c_errno != EAGAIN and c_errno != ENOBUFS:
                    self.stopping = True    # the interface is gone or down: the caller sees that nothing was delivered
        self.offered += count
        return count

    def _register_memory(self) -> None:
        cdef xdp_umem_reg registration
        cdef int entries = CHUNKS
        cdef int send_buffer = 1 << 28
        cdef void *memory = mmap(NULL, CHUNKS * CHUNK_OCTETS, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)
        if memory == MAP_FAILED:
            raise KernelError(f"the packet source got no memory: {os.strerror(c_errno)}")
        self.memory = <uint8_t *>memory
        memset(&registration, 0, sizeof(registration))
        registration.addr = <uint64_t>memory
        registration.len = CHUNKS * CHUNK_OCTETS
        registration.chunk_size = CHUNK_OCTETS
        self._set(SOL_XDP, XDP_UMEM_REG, &registration, sizeof(registration))
        self._set(SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof(entries))
        self._set(SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, sizeof(entries))
        self._set(SOL_XDP, XDP_TX_RING, &entries, sizeof(entries))
        # What waits in a queue counts against the socket's buffer; a slow receiver must lose packets, not slow us down.
        self._set(SOL_SOCKET, SO_SNDBUFFORCE, &send_buffer, sizeof(send_buffer))

    def _map_rings(self) -> None:
        cdef xdp_mmap_offsets offsets
        cdef uint32_t length = sizeof(offsets)
        if getsockopt(self.descriptor, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) < 0:
            raise KernelError(f"the packet source got no ring: {os.strerror(c_errno)}")
        self.transmit_length = offsets.tx.desc + CHUNKS * sizeof(xdp_desc)
        self.completion_length = offsets.cr.desc + CHUNKS * sizeof(uint64_t)
        self.transmit_ring = self._map(self.transmit_length, XDP_PGOFF_TX_RING)
        self.completion_ring = self._map(self.completion_length, XDP_UMEM_PGOFF_COMPLETION_RING)
        self.transmit_producer = <uint32_t *>(self.transmit_ring + offsets.tx.producer)
        self.transmit_consumer = <uint32_t *>(self.transmit_ring + offsets.tx.consumer)
        self.descriptors = <xdp_desc *>(self.transmit_ring + offsets.tx.desc)
        self.completion_producer = <uint32_t *>(self.completion_ring + offsets.cr.producer)
        self.completion_consumer = <uint32_t *>(self.completion_ring + offsets.cr.consumer)

    def _bind(self, uint32_t interface_index, uint32_t queue) -> None:
        """Take the queue. It stays busy for a moment after another source left it, so try for a second."""
        cdef sockaddr_xdp address
        cdef int _attempt
        memset(&address, 0, sizeof(address))
        address.sxdp_family = AF_XDP
        address.sxdp_flags = XDP_COPY
        address.sxdp_ifindex = interface_index
        address.sxdp_queue_id = queue
        for _attempt in range(100):
            if bind(self.descriptor, <sockaddr *>&address, sizeof(address)) == 0:
                return
            if c_errno != EBUSY:
                break
            time.sleep(0.01)
        raise KernelError(f"the packet source cannot bind to its interface: {os.strerror(c_errno)}")

    cdef void _unmap(self) noexcept:
        """Give the memory back; as long as a ring is mapped the kernel keeps the socket bound."""
        if self.transmit_ring != NULL:
            munmap(self.transmit_ring, self.transmit_length)
        if self.completion_ring != NULL:
            munmap(self.completion_ring, self.completion_length)
        if self.memory != NULL:
            munmap(self.memory, CHUNKS * CHUNK_OCTETS)
        self.transmit_ring = self.completion_ring = self.memory = NULL

    cdef uint8_t *_map(self, size_t length, int64_t offset) except NULL:
        cdef void *ring = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, self.descriptor, offset)
        if ring == MAP_FAILED:
            raise KernelError(f"the packet source got no ring: {os.strerror(c_errno)}")
        return <uint8_t *>ring

    cdef int _set(self, int level, int name, const void *value, uint32_t length) except -1:
        if setsockopt(self.descriptor, level, name, value, length) < 0:
            raise KernelError(f"the packet source was refused socket option {name}: {os.strerror(c_errno)}")
        return 0
