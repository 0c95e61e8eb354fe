"""Loops around the path's parts without Python between two packets, so that their nanoseconds can be told apart."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmasq.path cimport verdict
from fastmasq.path.forwarder cimport Forwarder
from fastmasq.path.packet cimport Packet
from fastmasq.path.parse cimport take_frame
from fastmasq.path.rewrite cimport rewrite_flow
from fastmasq.path.links cimport Link
from fastmasq.ring.abi cimport PACKET_HOST
from fastmasq.ring.ring cimport BATCH, BIG_FRAME, Frame, HEADROOM, RxRing, TxBatch
from fastmasq.table.rows cimport Flow
from fastmasq.wire.checksum cimport sum_octets


def checksum(const uint8_t[::1] data, int rounds):
    """Sum `data` `rounds` times; return the last sum."""
    cdef uint32_t total = 0
    cdef int _i
    with nogil:
        for _i in range(rounds):
            total += sum_octets(&data[0], data.shape[0])
    return total


def parse(uint8_t[::1] frame, int rounds, int header_length=14):
    """Parse one frame `rounds` times; return how often it was found good."""
    cdef Frame description
    cdef Packet packet
    cdef Link link
    cdef int _i
    cdef int good = 0
    memset(&description, 0, sizeof(Frame))
    memset(&link, 0, sizeof(Link))
    link.header_length = header_length
    link.mtu = 1500
    description.data = &frame[0]
    description.length = frame.shape[0]
    description.packet_type = PACKET_HOST
    with nogil:
        for _i in range(rounds):
            take_frame(&packet, &description, &link, 0)
            good += packet.door == verdict.GOES_ON
    return good


def rewrite(Forwarder forwarder, const uint8_t[::1] frame, int rounds):
    """Rewrite a copy of one TCP or UDP frame `rounds` times with a flow that changes source address and port."""
    cdef uint8_t copy[2048]
    cdef Frame description
    cdef Packet packet
    cdef Link link
    cdef Flow flow
    cdef int _i
    if frame.shape[0] > <Py_ssize_t>sizeof(copy):
        raise ValueError(f"a frame of at most {sizeof(copy)} octets")
    memcpy(copy, &frame[0], frame.shape[0])
    memset(&description, 0, sizeof(Frame))
    memset(&packet, 0, sizeof(Packet))
    memset(&link, 0, sizeof(Link))
    memset(&flow, 0, sizeof(Flow))
    link.header_length = 14
    link.mtu = 1500
    description.data = copy
    description.length = frame.shape[0]
    description.packet_type = PACKET_HOST
    take_frame(&packet, &description, &link, 0)
    if packet.door != verdict.GOES_ON:
        raise ValueError("not a good frame")
    flow.saddr = 0xC8C8C8C8U
    flow.daddr = packet.ends.daddr
    flow.sid = 61000
    flow.did = packet.ends.did
    flow.address_delta = 12345
    flow.transport_delta = 54321
    with nogil:
        for _i in range(rounds):
            rewrite_flow(&forwarder.path, &packet, &flow)


def whole_path(Forwarder forwarder, RxRing ring, TxBatch sender, const uint8_t[:, ::1] frames, int rounds, uint64_t now_ns):
    """Push every row of `frames` through the path `rounds` times, BATCH at a time, over a memory ring.

    Returns the number of frames sent. The copying in and out of memory, once each, is part of the time.
    """
    cdef Py_ssize_t row = 0
    cdef Py_ssize_t count = frames.shape[0]
    cdef Py_ssize_t length = frames.shape[1]
    cdef Py_ssize_t left = count * rounds
    cdef Frame *frame
    cdef uint8_t *at
    cdef int i
    cdef uint64_t before = sender.sender.sent
    with nogil:
        while left > 0:
            for i in range(BATCH):
                frame = &ring.ring.queue[i]
                at = ring.ring.big + <size_t>i * (HEADROOM + BIG_FRAME) + HEADROOM
                memcpy(at, &frames[row, 0], length)
                memset(frame, 0, sizeof(Frame))
                frame.data = at
                frame.length = <uint32_t>length
                row += 1
                if row == count:
                    row = 0
            ring.ring.queued = BATCH
            forwarder.turn(now_ns)
            sender.sender.out_count = 0
            left -= BATCH
    return sender.sender.sent - before
