"""A path on memory links, and the kernel that carries flows of it: its program is run on packets, without a network.

The kernel runs it as if the frame had come by the loopback device, whose address is all zeros.
"""

from __future__ import annotations

import os
import struct

from fastmasq.offload import program
from fastmasq.offload.arrays import Arrays
from tests.support.classifiers import run_classifier
from tests.support.harness import GATEWAY_MAC, LINKS, STATION_MAC, Harness, Out
from tests.support.model.subjects import PathSubject

CAPACITY = 4096
GO_ON, REDIRECT = -1, 7  # TC_ACT_UNSPEC and TC_ACT_REDIRECT
GSO_SIZE = 176  # offset in struct __sk_buff
COMPLETE = 1 << 2  # BPF_F_TEST_SKB_CHECKSUM_COMPLETE: the kernel knows the sum of all octets, and checks it afterwards
HEADER = 14


class CarriedHarness(Harness):
    """`send` has a packet go the short way if the program takes it, else the long one. `close` gives all back."""

    def __init__(self, capacity: int = CAPACITY, **settings) -> None:
        self.arrays = Arrays(capacity)
        super().__init__(capacity=capacity, arrays=self.arrays, **settings)
        read = program.read()
        self.programs = {name: program.load(read, self.arrays.descriptors, number) for number, name in enumerate(LINKS)}
        for number, _ in enumerate(LINKS):
            self.forwarder.carry_by(number, 100 + number)
        self.forwarder.carry(True)
        self.carried = 0

    def close(self) -> None:
        for descriptor in self.programs.values():
            os.close(descriptor)
        self.arrays.close()

    def take(
        self, link: str, packet: bytes, *, gso_size: int = 0, trailer: bytes = b"", mac: bytes = bytes(6)
    ) -> list[Out]:
        """Return what the program makes of a packet; nothing if that goes on to the tap, as it has come."""
        frame = mac + STATION_MAC[link] + b"\x08\x00" + packet + trailer
        context = bytes(GSO_SIZE) + struct.pack("=I", gso_size) if gso_size else b""
        said, left = run_classifier(self.programs[link], frame, context, COMPLETE)
        if said == GO_ON:
            assert left == frame
            return []
        assert said == REDIRECT, said
        to = next(name for name in LINKS if left[6:12] == GATEWAY_MAC[name])
        assert left[:HEADER] == STATION_MAC[to] + GATEWAY_MAC[to] + b"\x08\x00"
        self.carried += 1
        return [Out(to, left[HEADER:], None)]

    def send(self, link: str, packet: bytes, now_ns: int | None = None, vnet: bytes | None = None) -> list[Out]:
        if now_ns is not None:
            self.now_ns = now_ns
        self.forwarder.step(self.now_ns)
        taken = self.take(link, packet) if vnet is None and len(packet) >= 20 else []
        return taken or super().send(link, packet, vnet=vnet)


class CarriedSubject(PathSubject):
    """The packet path whose flows the kernel carries, each packet by whichever of the two ways takes it."""

    on = CarriedHarness

    def close(self) -> None:
        self.harness.close()
