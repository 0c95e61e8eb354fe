# Frames in, frames out: the receiving ring in its four modes, and the sending batch; the mode is looked at once a batch.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.ring.abi cimport VnetHeader, iovec, mmsghdr, msghdr, sockaddr_ll
from fastmasq.wire.branches cimport unlikely

cdef enum:
    BATCH = 64                  # frames received, and sent, at a time
    VECTORS = 256               # pieces of the frames sent at a time
    HEADROOM = 64               # writable octets before every frame: virtio header and a longer link header fit
    BIG_FRAME = 65664           # octets: a packet of 64 KiB with its link header, rounded up to cache lines
    SCRATCH_FRAME = 2048        # octets: a packet of our own (ICMP error, fragment, segment), headroom included
    NO_FRAME = 0xFFFFFFFFFFFFFFFFULL    # in place of a time

cdef enum RingMode:
    MODE_CLOSED = 0
    MODE_V2 = 2
    MODE_V3 = 3
    MODE_SOCKET = 4
    MODE_MEMORY = 5
    MODE_SILENT = 6             # of a sender: sends nothing


cdef enum Weight:               # of a message, where it is not a number of packets
    WEIGHT_PIECE = 0            # more of its packet follows
    WEIGHT_NOTICE = 0xFFFF      # a packet of our own


cdef struct Frame:
    uint8_t *data               # first octet of the link header; HEADROOM octets before it may be written
    uint32_t length             # octets from data on
    uint8_t packet_type         # sll_pkttype: PACKET_HOST and so on
    bint truncated
    bint tagged
    VnetHeader vnet             # all zero when there was none


cdef struct Ring:
    RingMode mode
    int fd
    bint vnet
    uint32_t others             # octets that come of a frame that is another station's; 0: all, it is called that
    uint8_t *base
    uint32_t block_size
    uint32_t block_count
    uint32_t frame_size
    uint32_t frames_per_block
    # V2: next frame to look at; first frame not yet given back. V3: block in hand
    uint32_t block
    uint32_t in_block
    uint32_t free_block
    uint32_t free_in_block
    uint32_t unreleased
    uint32_t packets_left       # V3: in the block in hand
    uint8_t *next_packet
    # copies of packets too long for their slot, and all packets of the socket mode
    uint8_t *big                # [BATCH][HEADROOM + BIG_FRAME]
    mmsghdr *messages           # [BATCH], socket mode
    iovec *vectors
    sockaddr_ll *addresses
    uint8_t *controls           # [BATCH][CONTROL_LENGTH]
    uint64_t unreadable         # packets whose virtio header the kernel could not make, socket mode
    # memory mode
    Frame *queue                # frames pushed and not yet received
    uint32_t queued


cdef struct Sent:
    # what became of the packets that were queued
    uint64_t packets            # sent
    uint64_t notices            # of our own that were sent
    # not sent
    uint64_t refused
    uint64_t no_buffer
    uint64_t down
    uint64_t lost_notices


cdef struct Sender:
    RingMode mode               # MODE_SOCKET, MODE_MEMORY, MODE_SILENT or MODE_CLOSED
    int fd
    bint vnet
    bint bypass                 # packets go past the link's queue (PACKET_QDISC_BYPASS)
    int count
    mmsghdr *messages           # [BATCH]
    iovec *vectors              # [VECTORS]
    int vector_count
    uint16_t *weights           # [BATCH], packets that end with each message, or how it counts otherwise (Weight)
    uint64_t *broken            # the counter of the packet in pieces that has lost one already, or NULL
    sockaddr_ll *address        # for links without a header: says IPv4
    uint8_t *scratch            # [BATCH][SCRATCH_FRAME]
    int scratch_used
    uint64_t calls
    uint64_t sent               # messages in all
    Sent came                   # what became of packets since `sender_flush` has said it last
    # memory mode
    uint8_t *out                # [out_slots][BIG_FRAME]
    uint32_t *out_lengths
    uint32_t out_slots
    uint32_t out_count
    uint64_t refusals           # by the lowest bit whether the next frame is refused; they take turns


cdef int ring_receive(Ring *ring, Frame *frames, int most) noexcept nogil
cdef void ring_release(Ring *ring) noexcept nogil
cdef bint ring_pending(const Ring *ring) noexcept nogil
cdef uint64_t ring_next_ns(const Ring *ring) noexcept nogil
cdef uint8_t *sender_scratch(Sender *sender) noexcept nogil
cdef Sent sender_flush(Sender *sender) noexcept nogil
cdef void send_queued(Sender *sender) noexcept nogil


cdef inline void sender_reserve(Sender *sender, int pieces) noexcept nogil:
    """Make room for a frame of at most VECTORS pieces, so that queueing and appending them flushes nothing."""
    if unlikely(sender.count == BATCH or sender.vector_count + pieces > VECTORS):
        send_queued(sender)


cdef inline void sender_queue(Sender *sender, uint8_t *start, uint32_t length, uint16_t weight) noexcept nogil:
    """Add a frame (virtio header first, where the socket has them) to the batch; it must stay until the flush.

    weight is how many packets end with it, should the kernel refuse it, or a Weight.
    """
    cdef msghdr *message
    cdef iovec *vector
    sender_reserve(sender, 1)
    vector = &sender.vectors[sender.vector_count]
    vector.iov_base, vector.iov_len = start, length
    message = &sender.messages[sender.count].msg_hdr
    message.msg_iov, message.msg_iovlen = vector, 1
    sender.weights[sender.count] = weight
    sender.vector_count += 1
    sender.count += 1


cdef inline void sender_append(Sender *sender, void *start, uint32_t length) noexcept nogil:
    """Add a piece to the frame queued last; there must be room for it, see sender_reserve."""
    sender.vectors[sender.vector_count].iov_base = start
    sender.vectors[sender.vector_count].iov_len = length
    sender.messages[sender.count - 1].msg_hdr.msg_iovlen += 1
    sender.vector_count += 1


cdef class RxRing:
    cdef Ring ring
    cdef readonly object tap, memory
    cdef object _keep


cdef class TxBatch:
    cdef Sender sender
    cdef readonly object socket
    cdef object _keep, _out
