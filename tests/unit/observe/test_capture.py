"""Captures: pcapng files, read back by scapy, and one line for each way to fail."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.observe.capture import Capture

LINKS = ("eth0", "ppp0", "a-long-name-too")
PACKET = st.tuples(
    st.integers(0, 2**63 - 1), st.sampled_from(LINKS), st.booleans(), st.binary(min_size=20, max_size=90)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PACKET, max_size=6))
def test_h_81_what_is_written_is_read(tmp_path: Path, packets: list[tuple[int, str, bool, bytes]]) -> None:
    path = tmp_path / "capture"
    with Capture(str(path), LINKS) as capture:
        for packet in packets:
            capture.add(*packet)
    read = [
        ((meta.tshigh << 32) + meta.tslow, meta.ifname.decode(), meta.direction == 2, octets)
        for octets, meta in RawPcapNgReader(str(path))
    ]
    assert read == packets


def test_h_81_every_block_says_its_length_twice(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    with Capture(str(path), LINKS[:2]) as capture:
        for length in range(20, 28):
            capture.add(1_000_000_001, "ppp0", False, bytes(length))
    octets, kinds = path.read_bytes(), []
    while octets:
        kind, length = struct.unpack_from("=II", octets)
        assert length % 4 == 0 and octets[length - 4 : length] == octets[4:8]
        kinds.append(kind)
        octets = octets[length:]
    assert kinds == [0x0A0D0D0A, 1, 1, *[6] * 8]


def test_h_81_it_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    with Capture(str(path), LINKS) as capture:
        capture.add(1, "eth0", True, bytes(20))
        capture.flush()
        assert [octets for octets, _ in RawPcapNgReader(str(path))] == [bytes(20)]


def test_a_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere/capture: No such file or directory; name a file"):
        Capture(str(tmp_path / "nowhere" / "capture"), LINKS)
    with pytest.raises(ConfigurationError, match="Is a directory; name a file"):
        Capture(str(tmp_path), LINKS)


def test_a_full_disk_is_one_line() -> None:
    full = "/dev/full: No space left on device; the capture ends here"
    with pytest.raises(KernelError, match=full), Capture("/dev/full", LINKS) as capture:
        capture.add(1, "eth0", True, bytes(20))
        capture.flush()
    with pytest.raises(KernelError, match=full), Capture("/dev/full", LINKS):
        pass
