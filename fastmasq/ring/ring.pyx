"""RxRing and TxBatch: frames from the kernel seen in place, and frames given to it in one call per batch.

Theory of operation. A receiving ring is memory that the kernel writes and we own frame by frame: a status word says
whose it is, read with acquire and given back with release ordering (packet(7)). The path rewrites a frame where it
lies and sends it straight from there, so the only copies are the kernel's own. Frames are given back after the batch
has been flushed.

* V2: one slot per packet, and the reader may see each at once: the low-latency mode, and the default. A packet that
  does not fit its slot (offloads) is marked TP_STATUS_COPY and read whole with recvmsg, in order.
* V3: packets packed into blocks; cheaper for a flood of small packets, but a block is handed over only when it is full
  or after a millisecond.
* socket: recvmmsg into our own buffers, for kernels without rings.
* memory: no kernel at all; for tests and benchmarks.

Every frame has HEADROOM writable octets before it, so a longer link header or the virtio header can be put there, and
a frame with its virtio header is one contiguous piece for sendmmsg.
"""

import mmap

import numpy as np

from libc.errno cimport EAGAIN, EINVAL, ENOBUFS, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from fastmasq.ring.abi cimport (
    CMSG_DATA, CMSG_FIRSTHDR, MSG_DONTWAIT, MSG_TRUNC, PACKET_AUXDATA, PACKET_HOST, PACKET_OTHERHOST,
    PACKET_QDISC_BYPASS, SOL_PACKET, TP_STATUS_COPY, TP_STATUS_CSUMNOTREADY, TP_STATUS_KERNEL, TP_STATUS_USER,
    TP_STATUS_VLAN_VALID, V2_ADDRESS, V3_ADDRESS, VNET_LENGTH, GSO_NONE, VNET_NEEDS_CSUM, VnetHeader, cmsghdr, iovec,
    load_acquire, mmsghdr, msghdr, recvmmsg, recvmsg, sendmmsg, setsockopt, sockaddr_ll, store_release, tpacket2_hdr,
    tpacket3_hdr, tpacket_auxdata, tpacket_block_desc,
)

from fastmasq.ring.packet_socket import OTHERS_OCTETS

cdef extern from "<errno.h>" nogil:
    enum:
        ENETDOWN
        ENXIO
        ENODEV

cdef enum:
    CONTROL_LENGTH = 64         # octets: one cmsghdr with a tpacket_auxdata


# -- receiving -------------------------------------------------------------------------------------------------------

cdef inline uint8_t *big_buffer(Ring *ring, int slot) noexcept nogil:
    return ring.big + <size_t>slot * (HEADROOM + BIG_FRAME) + HEADROOM


cdef inline void describe(const Ring *ring, Frame *frame, uint8_t *data, uint32_t length, uint32_t snapped,
                          const sockaddr_ll *address, uint32_t status) noexcept nogil:
    """Fill in a frame from what the kernel says of it; without a virtio header a missing checksum is noted in its place.

    Behind the guard that is "another station's" of whatever is ours: of what really is, less has come.
    """
    frame.data = data
    frame.length = snapped
    frame.packet_type = address.sll_pkttype
    if ring.others and frame.packet_type == PACKET_OTHERHOST and snapped > ring.others:
        frame.packet_type = PACKET_HOST
    frame.truncated = snapped < length
    frame.tagged = (status & TP_STATUS_VLAN_VALID) != 0
    if ring.vnet:
        memcpy(&frame.vnet, data - VNET_LENGTH, VNET_LENGTH)
    else:
        memset(&frame.vnet, 0, sizeof(VnetHeader))
        if status & TP_STATUS_CSUMNOTREADY:
            frame.vnet.flags = VNET_NEEDS_CSUM


cdef void read_copy(Ring *ring, Frame *frame, int slot) noexcept nogil:
    """Replace a truncated frame by its whole copy, which the kernel has queued (PACKET_COPY_THRESH)."""
    cdef msghdr message
    cdef iovec vector
    cdef uint32_t front = VNET_LENGTH if ring.vnet else 0
    cdef uint8_t *data = big_buffer(ring, slot)
    cdef ssize_t got
    memset(&message, 0, sizeof(message))
    vector.iov_base = data - front
    vector.iov_len = BIG_FRAME + front
    message.msg_iov = &vector
    message.msg_iovlen = 1
    got = recvmsg(ring.fd, &message, MSG_DONTWAIT)
    if got < <ssize_t>front or message.msg_flags & MSG_TRUNC:
        return
    frame.data = data
    frame.length = <uint32_t>(got - front)
    frame.truncated = False
    if ring.vnet:
        memcpy(&frame.vnet, data - front, VNET_LENGTH)


cdef int receive_v2(Ring *ring, Frame *frames, int most) noexcept nogil:
    cdef int count = 0
    cdef uint32_t status
    cdef uint8_t *at
    cdef tpacket2_hdr *header
    while count < most:
        at = ring.base + <size_t>ring.block * ring.block_size + ring.in_block * ring.frame_size
        header = <tpacket2_hdr *>at
        status = load_acquire(&header.tp_status)
        if not status & TP_STATUS_USER:
            break
        describe(ring, &frames[count], at + header.tp_mac, header.tp_len, header.tp_snaplen,
                 <sockaddr_ll *>(at + V2_ADDRESS), status)
        if status & TP_STATUS_COPY:
            read_copy(ring, &frames[count], count)
        count += 1
        ring.in_block += 1
        if ring.in_block == ring.frames_per_block:
            ring.in_block = 0
            ring.block += 1
            if ring.block == ring.block_count:
                ring.block = 0
    ring.unreleased += count
    return count


cdef void release_v2(Ring *ring) noexcept nogil:
    cdef tpacket2_hdr *header
    while ring.unreleased:
        header = <tpacket2_hdr *>(ring.base + <size_t>ring.free_block * ring.block_size
                                  + ring.free_in_block * ring.frame_size)
        store_release(&header.tp_status, TP_STATUS_KERNEL)
        ring.unreleased -= 1
        ring.free_in_block += 1
        if ring.free_in_block == ring.frames_per_block:
            ring.free_in_block = 0
            ring.free_block += 1
            if ring.free_block == ring.block_count:
                ring.free_block = 0


cdef int receive_v3(Ring *ring, Frame *frames, int most) noexcept nogil:
    """Receive from the block in hand; never from two blocks in one batch, so that releasing is one store."""
    cdef tpacket_block_desc *block = <tpacket_block_desc *>(ring.base + <size_t>ring.block * ring.block_size)
    cdef tpacket3_hdr *header
    cdef uint8_t *at
    cdef int count = 0
    if ring.next_packet == NULL:
        if not load_acquire(&block.hdr.bh1.block_status) & TP_STATUS_USER:
            return 0
        ring.packets_left = block.hdr.bh1.num_pkts
        ring.next_packet = <uint8_t *>block + block.hdr.bh1.offset_to_first_pkt
    while count < most and ring.packets_left:
        at = ring.next_packet
        header = <tpacket3_hdr *>at
        describe(ring, &frames[count], at + header.tp_mac, header.tp_len, header.tp_snaplen,
                 <sockaddr_ll *>(at + V3_ADDRESS), header.tp_status)
        ring.next_packet = at + header.tp_next_offset
        ring.packets_left -= 1
        count += 1
    return count


cdef void release_v3(Ring *ring) noexcept nogil:
    cdef tpacket_block_desc *block
    if ring.next_packet != NULL and ring.packets_left == 0:
        block = <tpacket_block_desc *>(ring.base + <size_t>ring.block * ring.block_size)
        store_release(&block.hdr.bh1.block_status, TP_STATUS_KERNEL)
        ring.next_packet = NULL
        ring.block += 1
        if ring.block == ring.block_count:
            ring.block = 0


cdef int receive_socket(Ring *ring, Frame *frames, int most) noexcept nogil:
    cdef int i, count
    cdef uint32_t front = VNET_LENGTH if ring.vnet else 0
    cdef uint32_t status
    cdef uint32_t length
    cdef cmsghdr *control
    for i in range(most):
        ring.vectors[i].iov_base = big_buffer(ring, i) - front
        ring.vectors[i].iov_len = BIG_FRAME + front
        ring.messages[i].msg_hdr.msg_name = &ring.addresses[i]
        ring.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_ll)
        ring.messages[i].msg_hdr.msg_iov = &ring.vectors[i]
        ring.messages[i].msg_hdr.msg_iovlen = 1
        ring.messages[i].msg_hdr.msg_control = ring.controls + i * CONTROL_LENGTH
        ring.messages[i].msg_hdr.msg_controllen = CONTROL_LENGTH
        ring.messages[i].msg_hdr.msg_flags = 0
    count = recvmmsg(ring.fd, ring.messages, most, MSG_DONTWAIT, NULL)
    if count <= 0:
        if count < 0 and errno == EINVAL:
            ring.unreadable += 1
        return 0
    for i in range(count):
        status = 0
        control = CMSG_FIRSTHDR(&ring.messages[i].msg_hdr)
        if control != NULL and control.cmsg_level == SOL_PACKET and control.cmsg_type == PACKET_AUXDATA:
            status = (<tpacket_auxdata *>CMSG_DATA(control)).tp_status
        length = ring.messages[i].msg_len - front if ring.messages[i].msg_len > front else 0
        describe(ring, &frames[i], big_buffer(ring, i), length, length, &ring.addresses[i], status)
        frames[i].truncated = (ring.messages[i].msg_hdr.msg_flags & MSG_TRUNC) != 0
    return count


cdef int receive_memory(Ring *ring, Frame *frames, int most) noexcept nogil:
    cdef int count = most if ring.queued > <uint32_t>most else <int>ring.queued
    memcpy(frames, ring.queue, count * sizeof(Frame))
    ring.unreleased = count
    return count


cdef void release_memory(Ring *ring) noexcept nogil:
    cdef uint32_t i
    ring.queued -= ring.unreleased
    for i in range(ring.queued):
        ring.queue[i] = ring.queue[i + ring.unreleased]
    ring.unreleased = 0


cdef int ring_receive(Ring *ring, Frame *frames, int most) noexcept nogil:
    """Describe up to `most` (at most BATCH) waiting frames; they stay ours until ring_release. Never waits."""
    if ring.mode == MODE_V2:
        return receive_v2(ring, frames, most)
    if ring.mode == MODE_V3:
        return receive_v3(ring, frames, most)
    if ring.mode == MODE_SOCKET:
        return receive_socket(ring, frames, most)
    if ring.mode == MODE_MEMORY:
        return receive_memory(ring, frames, most)
    return 0


cdef void ring_release(Ring *ring) noexcept nogil:
    """Give back to the kernel all frames received so far."""
    if ring.mode == MODE_V2:
        release_v2(ring)
    elif ring.mode == MODE_V3:
        release_v3(ring)
    elif ring.mode == MODE_MEMORY:
        release_memory(ring)


cdef uint64_t ring_next_ns(const Ring *ring) noexcept nogil:
    """Return when the next frame that waits came, in nanoseconds of the wall clock; NO_FRAME if none waits.

    Only V2 tells, before a frame is received: it is 0 in other modes, whether one waits or not.
    """
    cdef const tpacket2_hdr *header
    if ring.mode != MODE_V2:
        return 0
    header = <const tpacket2_hdr *>(ring.base + <size_t>ring.block * ring.block_size + ring.in_block * ring.frame_size)
    if not load_acquire(&header.tp_status) & TP_STATUS_USER:
        return NO_FRAME
    return <uint64_t>header.tp_sec * 1000000000 + header.tp_nsec


cdef bint ring_pending(const Ring *ring) noexcept nogil:
    """Whether a frame waits, without a system call; unknown (False) in socket mode."""
    if ring.mode == MODE_V2:
        return (load_acquire(&(<tpacket2_hdr *>(ring.base + <size_t>ring.block * ring.block_size
                                                + ring.in_block * ring.frame_size)).tp_status)
                & TP_STATUS_USER) != 0
    if ring.mode == MODE_V3:
        return ring.next_packet != NULL or (
            load_acquire(&(<tpacket_block_desc *>(ring.base + <size_t>ring.block * ring.block_size)).hdr.bh1.block_status)
            & TP_STATUS_USER) != 0
    return ring.queued != 0


cdef class RxRing:
    """Frames received on one link. `memory` is the ring as a numpy array of octets (None in socket mode)."""

    def __init__(self, tap=None):
        """`tap` is a packet_socket.Tap; without one the ring is a memory ring."""
        # not from malloc, which fills what it gives anew: most of it is never touched
        big = np.frombuffer(mmap.mmap(-1, BATCH * (HEADROOM + BIG_FRAME), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), "u1")
        self._keep = [big]
        self.ring.big = <uint8_t *><size_t>big.ctypes.data
        self.ring.fd = -1
        self.tap = tap
        if tap is None:
            queue = np.zeros((BATCH, sizeof(Frame)), "u1")
            self._keep.append(queue)
            self.ring.queue = <Frame *><size_t>queue.ctypes.data
            self.ring.mode = MODE_MEMORY
            self.memory = big
            return
        self.ring.fd = tap.socket.fileno()
        self.ring.vnet = tap.vnet_header
        self.ring.others = OTHERS_OCTETS if tap.behind else 0
        if tap.mode == "socket":
            self._open_socket()
        else:
            self._open_ring(tap)

    def _open_ring(self, tap):
        self.memory = np.frombuffer(tap.memory, "u1")
        self.ring.base = <uint8_t *><size_t>self.memory.ctypes.data
        self.ring.block_size = tap.geometry.block_size
        self.ring.block_count = tap.geometry.block_count
        self.ring.frame_size = tap.geometry.frame_size
        self.ring.frames_per_block = tap.geometry.frames_per_block
        self.ring.mode = MODE_V2 if tap.mode == "v2" else MODE_V3

    def _open_socket(self):
        messages = np.zeros((BATCH, sizeof(mmsghdr)), "u1")
        vectors = np.zeros((BATCH, sizeof(iovec)), "u1")
        addresses = np.zeros((BATCH, sizeof(sockaddr_ll)), "u1")
        controls = np.zeros((BATCH, CONTROL_LENGTH), "u1")
        self._keep += [messages, vectors, addresses, controls]
        self.ring.messages = <mmsghdr *><size_t>messages.ctypes.data
        self.ring.vectors = <iovec *><size_t>vectors.ctypes.data
        self.ring.addresses = <sockaddr_ll *><size_t>addresses.ctypes.data
        self.ring.controls = <uint8_t *><size_t>controls.ctypes.data
        self.ring.mode = MODE_SOCKET

    def push(self, const uint8_t[::1] data, vnet=None, int packet_type=PACKET_HOST):
        """Memory mode: queue one frame, as if it had arrived; vnet is 10 octets or None. At most BATCH wait."""
        cdef Frame *frame
        cdef uint8_t *at
        if self.ring.mode != MODE_MEMORY:
            raise TypeError("only a memory ring can be pushed to")
        if self.ring.queued == BATCH:
            raise BufferError(f"{BATCH} frames wait already")
        if data.shape[0] > BIG_FRAME:
            raise ValueError(f"a frame of {data.shape[0]} octets is longer than {BIG_FRAME}")
        # slots are used in turn; those of waiting frames are never reached, since no more than BATCH wait
        frame = &self.ring.queue[self.ring.queued]
        at = big_buffer(&self.ring, self.ring.in_block)
        self.ring.in_block = (self.ring.in_block + 1) % BATCH
        if data.shape[0]:
            memcpy(at, &data[0], data.shape[0])
        memset(frame, 0, sizeof(Frame))
        frame.data = at
        frame.length = data.shape[0]
        frame.packet_type = packet_type
        if vnet is not None:
            raw = bytes(vnet)
            if len(raw) != VNET_LENGTH:
                raise ValueError(f"a virtio header has {VNET_LENGTH} octets, not {len(raw)}")
            memcpy(&frame.vnet, <const uint8_t *>raw, VNET_LENGTH)
        self.ring.queued += 1

    def receive(self, int most=BATCH):
        """Return up to `most` waiting frames as bytes with their virtio header, and give them back. For tests."""
        cdef Frame frames[BATCH]
        cdef int count = ring_receive(&self.ring, frames, min(most, BATCH))
        cdef int i
        result = []
        for i in range(count):
            result.append((frames[i].data[:frames[i].length], (<uint8_t *>&frames[i].vnet)[:VNET_LENGTH],
                           frames[i].packet_type, bool(frames[i].truncated)))
        ring_release(&self.ring)
        return result

    @property
    def unreadable(self):
        """How many packets were lost since the kernel could not make their virtio header."""
        return self.ring.unreadable

    def pending(self):
        return bool(ring_pending(&self.ring))

    def fileno(self):
        return self.ring.fd

    def close(self):
        """Close the ring; it receives nothing more."""
        self.ring.mode = MODE_CLOSED
        self.ring.fd = -1
        self.memory = None
        if self.tap is not None:
            self.tap.close()


# -- sending ---------------------------------------------------------------------------------------------------------

cdef uint8_t *sender_scratch(Sender *sender) noexcept nogil:
    """Return a buffer for a packet of our own: SCRATCH_FRAME - HEADROOM octets, HEADROOM before it, until the flush.

    There is room in the batch for it afterwards, so that queueing it flushes nothing.
    """
    if sender.scratch_used == BATCH:
        send_queued(sender)
    sender_reserve(sender, 1)
    sender.scratch_used += 1
    return sender.scratch + (sender.scratch_used - 1) * SCRATCH_FRAME + HEADROOM


cdef inline bint is_large(const Sender *sender, int number) noexcept nogil:
    return sender.vnet and (<VnetHeader *>sender.messages[number].msg_hdr.msg_iov.iov_base).gso_type != GSO_NONE


cdef void stop_bypass(Sender *sender) noexcept nogil:
    """Send through the link's queue from now on: past it, the kernel drops what the link cannot cut by itself."""
    cdef int off = 0
    sender.bypass = False
    setsockopt(sender.fd, SOL_PACKET, PACKET_QDISC_BYPASS, &off, sizeof(off))


# A packet that is cut counts once, when its last piece is dealt with: as refused if any of its pieces was.

cdef void count_refused(Sender *sender, int number, uint64_t *counter) noexcept nogil:
    """Count a message that was refused for the reason that `counter` is of."""
    cdef uint16_t weight = sender.weights[number]
    if weight == WEIGHT_NOTICE:
        sender.came.lost_notices += 1
    elif weight == WEIGHT_PIECE:
        if sender.broken == NULL:
            sender.broken = counter
    elif sender.broken != NULL:
        sender.broken[0] += weight
        sender.broken = NULL
    else:
        counter[0] += weight


cdef void count_sent(Sender *sender, int first, int stop) noexcept nogil:
    """Count the messages [first, stop) as sent: a packet that has lost a piece before may end with one of them."""
    cdef int i
    cdef uint64_t packets = 0
    cdef uint64_t notices = 0
    sender.sent += stop - first
    if sender.broken != NULL:
        for i in range(first, stop):
            if sender.weights[i] != WEIGHT_PIECE and sender.weights[i] != WEIGHT_NOTICE:
                sender.broken[0] += sender.weights[i]
                sender.broken = NULL
                sender.weights[i] = WEIGHT_PIECE        # counted
                break
    for i in range(first, stop):
        if sender.weights[i] == WEIGHT_NOTICE:
            notices += 1
        else:
            packets += sender.weights[i]
    sender.came.packets += packets
    sender.came.notices += notices


cdef void refuse_from(Sender *sender, int first, uint64_t *counter) noexcept nogil:
    """Count all messages from `first` on as refused."""
    cdef int i
    for i in range(first, sender.count):
        count_refused(sender, i, counter)


cdef void flush_socket(Sender *sender) noexcept nogil:
    cdef int done = 0
    cdef int sent
    while done < sender.count:
        sent = sendmmsg(sender.fd, sender.messages + done, sender.count - done, MSG_DONTWAIT)
        sender.calls += 1
        if sent > 0:
            count_sent(sender, done, done + sent)
            done += sent
            continue
        # the first message of the rest was refused: count it, and go on with the others
        if errno == ENOBUFS and sender.bypass and is_large(sender, done):
            stop_bypass(sender)
            continue
        if errno == EAGAIN or errno == ENOBUFS or errno == ENOMEM:
            count_refused(sender, done, &sender.came.no_buffer)
        elif errno == ENETDOWN or errno == ENXIO or errno == ENODEV:
            refuse_from(sender, done, &sender.came.down)
            break
        else:
            count_refused(sender, done, &sender.came.refused)
        done += 1


cdef void flush_memory(Sender *sender) noexcept nogil:
    cdef int i, piece
    cdef int first = 0          # of those that were sent since one was refused
    cdef size_t length
    cdef msghdr *message
    for i in range(sender.count):
        message = &sender.messages[i].msg_hdr
        length = 0
        for piece in range(<int>message.msg_iovlen):
            length += message.msg_iov[piece].iov_len
        sender.refusals = (sender.refusals >> 1) | (sender.refusals << 63)
        if sender.refusals >> 63 or sender.out_count == sender.out_slots or length > BIG_FRAME:
            count_sent(sender, first, i)
            count_refused(sender, i, &sender.came.refused if sender.refusals >> 63 else &sender.came.no_buffer)
            first = i + 1
            continue
        length = 0
        for piece in range(<int>message.msg_iovlen):
            memcpy(sender.out + <size_t>sender.out_count * BIG_FRAME + length, message.msg_iov[piece].iov_base,
                   message.msg_iov[piece].iov_len)
            length += message.msg_iov[piece].iov_len
        sender.out_lengths[sender.out_count] = <uint32_t>length
        sender.out_count += 1
    count_sent(sender, first, sender.count)


cdef void send_queued(Sender *sender) noexcept nogil:
    """Send everything queued, in order. What the kernel refuses is counted by reason and gone."""
    if sender.mode == MODE_SOCKET:
        flush_socket(sender)
    elif sender.mode == MODE_MEMORY:
        flush_memory(sender)
    elif sender.mode == MODE_SILENT:
        count_sent(sender, 0, sender.count)
    else:
        refuse_from(sender, 0, &sender.came.down)
    sender.count = 0
    sender.vector_count = 0
    sender.scratch_used = 0


cdef Sent sender_flush(Sender *sender) noexcept nogil:
    """Send everything queued; return what became of all that was since the last call. A full batch has gone before."""
    cdef Sent came
    send_queued(sender)
    came = sender.came
    memset(&sender.came, 0, sizeof(Sent))
    return came


cdef class TxBatch:
    """Frames to send on one link, batch by batch."""

    def __init__(self, socket=None, bint vnet=True, bint link_header=True, int slots=1024, bint silent=False):
        """`socket` is a packet_socket.SendSocket; without one frames go to memory: `slots` of them until popped.
        Or nowhere at all, if it is to be silent.

        link_header is False for links that start at the IP header (ppp, tun).
        """
        messages = np.zeros((BATCH, sizeof(mmsghdr)), "u1")
        vectors = np.zeros((VECTORS, sizeof(iovec)), "u1")
        weights = np.zeros(BATCH, "u2")
        scratch = np.zeros((BATCH, SCRATCH_FRAME), "u1")
        address = np.zeros(sizeof(sockaddr_ll), "u1")
        self._keep = [messages, vectors, weights, scratch, address]
        self.socket = socket
        self.sender.messages = <mmsghdr *><size_t>messages.ctypes.data
        self.sender.vectors = <iovec *><size_t>vectors.ctypes.data
        self.sender.weights = <uint16_t *><size_t>weights.ctypes.data
        self.sender.scratch = <uint8_t *><size_t>scratch.ctypes.data
        self.sender.address = <sockaddr_ll *><size_t>address.ctypes.data
        if socket is None:
            self.sender.fd = -1
            self.sender.vnet = vnet
            self.sender.mode = MODE_SILENT
            if not silent:
                self._open_memory(slots)
            return
        self.sender.fd = socket.socket.fileno()
        self.sender.vnet = socket.vnet_header
        self.sender.bypass = socket.qdisc_bypass
        self.sender.mode = MODE_SOCKET
        if not link_header:
            self._name_protocol(socket.socket)

    def _open_memory(self, slots):
        self._out = np.zeros((slots, BIG_FRAME), "u1")
        lengths = np.zeros(slots, "u4")
        self._keep.append(lengths)
        self.sender.out = <uint8_t *><size_t>self._out.ctypes.data
        self.sender.out_lengths = <uint32_t *><size_t>lengths.ctypes.data
        self.sender.out_slots = slots
        self.sender.mode = MODE_MEMORY

    def _name_protocol(self, raw):
        """On a link without a header nothing in the frame says IPv4, so every message's address does."""
        import socket as sockets

        cdef int i
        self.sender.address.sll_family = sockets.AF_PACKET
        self.sender.address.sll_protocol = sockets.htons(0x0800)
        self.sender.address.sll_ifindex = sockets.if_nametoindex(raw.getsockname()[0])
        for i in range(BATCH):
            self.sender.messages[i].msg_hdr.msg_name = self.sender.address
            self.sender.messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_ll)

    def pop(self):
        """Memory mode: return and forget what was sent since the last call, as (virtio header or None, frame)."""
        cdef uint32_t i
        sender_flush(&self.sender)
        result = []
        front = VNET_LENGTH if self.sender.vnet else 0
        for i in range(self.sender.out_count):
            piece = self._out[i, :self.sender.out_lengths[i]].tobytes()
            result.append((piece[:front] or None, piece[front:]))
        self.sender.out_count = 0
        return result

    def refuse(self, uint64_t pattern):
        """Memory mode: refuse frames by the bits of `pattern`, from the lowest on, round and round."""
        self.sender.refusals = pattern

    def forget(self):
        """Memory mode: forget what was sent without making objects of it. For benchmarks."""
        self.sender.out_count = 0

    @property
    def sent(self):
        return self.sender.sent

    @property
    def vnet(self):
        """Whether frames have a virtio header before them."""
        return bool(self.sender.vnet)

    @property
    def bypass(self):
        """Whether packets go past the link's queue; given up once a large send has failed that way."""
        return bool(self.sender.bypass)

    @property
    def calls(self):
        return self.sender.calls

    def close(self):
        self.sender.mode = MODE_CLOSED
        if self.socket is not None:
            self.socket.close()
