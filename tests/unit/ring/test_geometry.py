"""Ring sizes: what the kernel would refuse is refused before, with the arithmetic that fails."""

from __future__ import annotations

import mmap

import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.ring.geometry import CACHE_LINE, SLOT_HEADROOM, RingGeometry, check, v2_geometry, v3_geometry

PAGE = mmap.PAGESIZE
MTUS = (68, 576, 1280, 1492, 1500, 2000, 9000, 65535)
LARGEST_SLOT = 9216  # octets of packet: with a larger MTU (lo, offloads) a slot for each would waste most of the memory
FRAMES = (64, 100, 4096, 65536)


def test_a_geometry_that_fits() -> None:
    geometry = RingGeometry(block_size=4 * PAGE, block_count=8, frame_size=2048, frame_count=8 * (4 * PAGE // 2048))
    assert check(geometry) is geometry
    assert geometry.length == 32 * PAGE
    assert geometry.frames_per_block == 4 * PAGE // 2048


@pytest.mark.parametrize(
    ("frame", "nearest"), [(2047, 2048), (2049, 2048), (2040, 2048), (2039, 2032), (1, 16), (0, 16), (-16, 16)]
)
def test_a_frame_must_be_a_multiple_of_16(frame: int, nearest: int) -> None:
    with pytest.raises(
        ConfigurationError, match=f"frame of {frame} octets is not a multiple of 16; nearest {nearest}$"
    ):
        check(RingGeometry(PAGE, 1, frame, 1))


@pytest.mark.parametrize(
    ("block", "nearest"), [(PAGE + 1, PAGE), (3 * PAGE - 16, 3 * PAGE), (16, PAGE), (0, PAGE), (-PAGE, PAGE)]
)
def test_a_block_must_be_whole_pages(block: int, nearest: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"block of {block} octets is not .* \({PAGE}\); nearest {nearest}$"):
        check(RingGeometry(block, 1, 2048, 1))


def test_a_block_must_hold_a_frame() -> None:
    with pytest.raises(ConfigurationError, match=f"block of {PAGE} octets does not hold one frame of {2 * PAGE}"):
        check(RingGeometry(PAGE, 1, 2 * PAGE, 1))


@pytest.mark.parametrize(("blocks", "frames"), [(2, 3), (2, 5), (0, 0), (-1, -2)])
def test_frames_must_fill_the_blocks(blocks: int, frames: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{frames} frames do not fill {blocks} blocks of 2 frames"):
        check(RingGeometry(PAGE, blocks, PAGE // 2, frames))


@pytest.mark.parametrize("mtu", MTUS)
@pytest.mark.parametrize("frames", FRAMES)
def test_v2_slots_hold_a_packet_and_no_fewer_than_asked(frames: int, mtu: int) -> None:
    geometry = v2_geometry(frames, mtu)
    assert check(geometry) == geometry
    assert geometry.frame_size >= SLOT_HEADROOM + 14 + min(mtu, 9216), "longer packets are read as copies"
    assert frames <= geometry.frame_count < frames + geometry.frames_per_block
    assert geometry.frame_size % CACHE_LINE == 0
    assert geometry.frame_size // CACHE_LINE % 2 == 1, "neighbouring headers would share a cache set"


@pytest.mark.parametrize("mtu", [mtu for mtu in MTUS if mtu <= 9000])
def test_v2_wastes_little(mtu: int) -> None:
    """Less than two cache lines a slot, and less than a slot a block, which is an eighth at the most."""
    geometry = v2_geometry(4096, mtu)
    assert geometry.frame_size < SLOT_HEADROOM + 14 + mtu + 2 * CACHE_LINE
    assert geometry.block_size - geometry.frames_per_block * geometry.frame_size < geometry.frame_size
    assert geometry.frames_per_block >= 8


@pytest.mark.parametrize("frames", FRAMES)
def test_v3_blocks_hold_large_sends(frames: int) -> None:
    geometry = v3_geometry(frames)
    assert check(geometry) == geometry
    assert geometry.block_count >= 4
    assert geometry.block_size >= 4 * 65536
    assert geometry.length >= frames * 2048


@pytest.mark.parametrize("frames", [-1, 0, 63, 65537])
def test_a_ring_of_impossible_length_names_its_setting(frames: int) -> None:
    for make in (lambda: v2_geometry(frames, 1500), lambda: v3_geometry(frames)):
        with pytest.raises(
            ConfigurationError, match=rf"{frames} frames \(\[rings\] frames\): choose between 64 and 65536"
        ):
            make()
