"""GRE, ESP and ISAKMP headers against octets written by hand and against scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.ipsec import ESP
from scapy.layers.isakmp import ISAKMP
from scapy.layers.l2 import GRE_PPTP

from fastmasq.wire import tunnels

# --- GRE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("octets", "length", "sequence", "acknowledgment"), [
    ("2001880b 0000 1234", 8, None, None),
    ("3001880b 0010 1234 00000007", 12, 7, None),
    ("2081880b 0000 1234 00000007", 12, None, 7),
    ("3081880b 0010 1234 00000008 00000007", 16, 8, 7),
])  # fmt: skip
def test_gre_lengths(octets: str, length: int, sequence: int | None, acknowledgment: int | None) -> None:
    """RFC 2637 section 4.1, and the first words seen in practice."""
    header = bytes.fromhex(octets)
    payload = int(octets.split()[1], 16)
    assert tunnels.read_gre(header) == (payload, 0x1234, length, sequence, acknowledgment)
    assert tunnels.read_gre(header[:-1]) is None


@pytest.mark.parametrize("first", ["2000880b", "20010800", "0000880b", "3001880c", "a001880b", "2201880b", "2009880b"])
def test_p10_other_gre_is_not_pptp(first: str) -> None:
    """Version 0, another payload, no key, a checksum, recursion or flags: none can be told apart by Call ID."""
    assert tunnels.read_gre(bytes.fromhex(first) + bytes(12)) is None


@given(st.integers(0, 0xFFFF), st.booleans(), st.booleans())
def test_gre_against_scapy(call_id: int, has_sequence: bool, has_acknowledgment: bool) -> None:
    packet = GRE_PPTP(
        call_id=call_id, seqnum_present=has_sequence, acknum_present=has_acknowledgment, sequence_number=5,
        ack_number=6,
    )  # fmt: skip
    header = bytes(packet)
    read = tunnels.read_gre(header)
    assert (read.call_id, read.header_length) == (call_id, len(header))


# --- ESP ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_esp_against_scapy(spi: int, sequence: int) -> None:
    assert tunnels.read_esp(bytes(ESP(spi=spi, seq=sequence, data=b"xxxx"))) == (spi, sequence)


def test_esp_too_short() -> None:
    assert tunnels.read_esp(bytes(7)) is None
    assert tunnels.read_esp(b"") is None


# --- ISAKMP ------------------------------------------------------------------------------------------------------


@given(
    st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8), st.integers(0, 255), st.integers(0, 2**32 - 1)
)
def test_isakmp_against_scapy(initiator: bytes, responder: bytes, exchange: int, message_id: int) -> None:
    octets = bytes(ISAKMP(init_cookie=initiator, resp_cookie=responder, exch_type=exchange, id=message_id, flags=1))
    read = tunnels.read_isakmp(octets)
    assert (read.initiator, read.responder) == (initiator, responder)
    assert (read.version, read.exchange, read.flags, read.message_id) == (0x10, exchange, 1, message_id)
    assert read.length == 28


@pytest.mark.parametrize("ports", [(501, 500), (500, 501), (4500, 4500)])
def test_k1_both_ports_are_500(ports: tuple[int, int]) -> None:
    octets = bytes(ISAKMP(init_cookie=b"12345678"))
    assert tunnels.read_isakmp(octets, *ports) is None
    assert tunnels.read_isakmp(octets, 500, 500) is not None


@given(st.binary(max_size=40))
def test_any_payload_is_isakmp_or_nothing(payload: bytes) -> None:
    assert (tunnels.read_isakmp(payload) is None) == (len(payload) < 28)


@pytest.mark.parametrize(("payload", "name"), [
    (b"\xff", "keepalive"),
    (b"\x00", "other"),
    (b"", "other"),
    (b"\xff\xff", "other"),
    (bytes(4) + bytes(28), "ike"),
    (bytes(4) + bytes(27), "other"),
    (b"\x00\x00\x01\x00" + bytes(4), "esp"),
    (b"\x00\x00\x01\x00" + bytes(3), "other"),
])  # fmt: skip
def test_rfc3948_what_port_4500_carries(payload: bytes, name: str) -> None:
    assert tunnels.name_natt(payload) == name
