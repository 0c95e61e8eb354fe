"""Frame, block and page arithmetic of packet rings: sizes that the kernel will accept, or the reason why not."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from fastmasq.errors import ConfigurationError

FRAME_ALIGNMENT = 16  # TPACKET_ALIGNMENT
CACHE_LINE = 64
SLOT_HEADROOM = 128  # octets: tpacket header, sockaddr_ll, reserve, virtio header
V3_BLOCK = 1 << 19  # octets: several packets of 64 KiB, packed


@dataclass(frozen=True)
class RingGeometry:
    """Sizes for PACKET_RX_RING, in octets and counts; `struct tpacket_req` in packet(7)."""

    block_size: int
    block_count: int
    frame_size: int
    frame_count: int

    @property
    def length(self) -> int:
        return self.block_size * self.block_count

    @property
    def frames_per_block(self) -> int:
        return self.block_size // self.frame_size


def check(geometry: RingGeometry) -> RingGeometry:
    """Return the geometry, or raise ConfigurationError with the arithmetic that fails."""
    page = mmap.PAGESIZE
    block, frame = geometry.block_size, geometry.frame_size
    if frame <= 0 or frame % FRAME_ALIGNMENT:
        nearest = max(FRAME_ALIGNMENT, round(frame / FRAME_ALIGNMENT) * FRAME_ALIGNMENT)
        raise ConfigurationError(f"frame of {frame} octets is not a multiple of {FRAME_ALIGNMENT}; nearest {nearest}")
    if block <= 0 or block % page:
        nearest = max(page, round(block / page) * page)
        raise ConfigurationError(f"block of {block} octets is not a multiple of the page ({page}); nearest {nearest}")
    if block < frame:
        raise ConfigurationError(f"block of {block} octets does not hold one frame of {frame}")
    if geometry.block_count < 1 or geometry.frame_count != geometry.block_count * geometry.frames_per_block:
        raise ConfigurationError(
            f"{geometry.frame_count} frames do not fill {geometry.block_count} blocks"
            f" of {geometry.frames_per_block} frames"
        )
    return geometry


def v2_geometry(frames: int, mtu: int) -> RingGeometry:
    """Return a TPACKET_V2 ring of at least `frames` slots, each for one packet of `mtu` octets and its link header.

    Packets over 9216 octets have no slot of their size, whatever the link says: they are read as copies.
    The slot size is an odd number of cache lines, so that the headers of neighbouring slots fall into different sets.
    Larger ones (offloads) do not fit and are marked by the kernel to be read as a copy.
    """
    _check_frames(frames)
    lines = -(-(SLOT_HEADROOM + 14 + min(mtu, 9216)) // CACHE_LINE) | 1
    frame_size = lines * CACHE_LINE
    block_size = 1 << 18
    per_block = block_size // frame_size
    blocks = -(-frames // per_block)
    return check(RingGeometry(block_size, blocks, frame_size, blocks * per_block))


def v3_geometry(frames: int) -> RingGeometry:
    """Return a TPACKET_V3 ring with room for about `frames` packets of 2 KiB, at least four blocks."""
    _check_frames(frames)
    blocks = max(4, frames * 2048 // V3_BLOCK)
    return check(RingGeometry(V3_BLOCK, blocks, 2048, blocks * (V3_BLOCK // 2048)))


def _check_frames(frames: int) -> None:
    if not 64 <= frames <= 65536:
        raise ConfigurationError(f"a ring of {frames} frames ([rings] frames): choose between 64 and 65536")
