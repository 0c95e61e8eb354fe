"""PPTP control messages against octets written by hand and against scapy, which knows them independently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import pptp as scapy_pptp

from fastmasq.wire.pptp import (
    CONTROL,
    HEADER_LENGTH,
    LAYOUTS,
    MAGIC,
    CallReply,
    Header,
    Start,
    Type,
    message,
    outgoing_call_request,
    result_in_words,
    start_request,
)

SCAPY = {
    Type.START_REQUEST: scapy_pptp.PPTPStartControlConnectionRequest,
    Type.START_REPLY: scapy_pptp.PPTPStartControlConnectionReply,
    Type.STOP_REQUEST: scapy_pptp.PPTPStopControlConnectionRequest,
    Type.STOP_REPLY: scapy_pptp.PPTPStopControlConnectionReply,
    Type.ECHO_REQUEST: scapy_pptp.PPTPEchoRequest,
    Type.ECHO_REPLY: scapy_pptp.PPTPEchoReply,
    Type.OUTGOING_CALL_REQUEST: scapy_pptp.PPTPOutgoingCallRequest,
    Type.OUTGOING_CALL_REPLY: scapy_pptp.PPTPOutgoingCallReply,
    Type.INCOMING_CALL_REQUEST: scapy_pptp.PPTPIncomingCallRequest,
    Type.INCOMING_CALL_REPLY: scapy_pptp.PPTPIncomingCallReply,
    Type.INCOMING_CALL_CONNECTED: scapy_pptp.PPTPIncomingCallConnected,
    Type.CALL_CLEAR_REQUEST: scapy_pptp.PPTPCallClearRequest,
    Type.CALL_DISCONNECT_NOTIFY: scapy_pptp.PPTPCallDisconnectNotify,
    Type.WAN_ERROR_NOTIFY: scapy_pptp.PPTPWANErrorNotify,
    Type.SET_LINK_INFO: scapy_pptp.PPTPSetLinkInfo,
}


@pytest.mark.parametrize("kind", Type, ids=str)
def test_lengths_and_types_are_scapys(kind: Type) -> None:
    octets = bytes(SCAPY[kind]())
    assert len(octets) == LAYOUTS[kind].length
    assert Header.parse(octets)[1:] == (CONTROL, kind)
    if kind is not Type.INCOMING_CALL_REPLY:  # scapy announces 148 octets for its 24
        assert Header.parse(octets).length == len(octets)


@pytest.mark.parametrize("kind", Type, ids=str)
@pytest.mark.parametrize(("ours", "theirs", "width"), [
    ("call_id", "call_id", 2), ("peer_call_id", "peer_call_id", 2), ("result", "result_code", 1),
])  # fmt: skip
def test_p1_offsets_are_scapys(kind: Type, ours: str, theirs: str, width: int) -> None:
    """A field is where scapy puts it, and is missing where scapy has none."""
    offset = getattr(LAYOUTS[kind], ours)
    if theirs not in [field.name for field in SCAPY[kind].fields_desc]:
        assert offset is None
        return
    value = 0xABCD >> 16 - 8 * width
    octets = bytes(SCAPY[kind](**{theirs: value}))
    assert octets[offset : offset + width] == value.to_bytes(width, "big")
    assert value.to_bytes(width, "big") not in bytes(SCAPY[kind](**{theirs: 0}))[offset : offset + width]


def test_a_set_link_info_by_hand() -> None:
    octets = bytes.fromhex("0018 0001 1a2b3c4d 000f 0000 eded 0000 ffffffff ffffffff".replace(" ", ""))
    assert message(Type.SET_LINK_INFO, bytes.fromhex("eded0000ffffffffffffffff")) == octets
    assert str(Header.parse(octets)) == "PPTP Set link info, 24 octets"


@pytest.mark.parametrize("kind", Type, ids=str)
def test_emit_and_parse_are_inverse(kind: Type) -> None:
    header = Header(LAYOUTS[kind].length, CONTROL, kind)
    assert Header.parse(header.emit()) == header
    assert header.layout is LAYOUTS[kind]
    assert message(kind)[:HEADER_LENGTH] == header.emit()
    with pytest.raises(ValueError, match="do not fit"):
        message(kind, bytes(LAYOUTS[kind].length))


@pytest.mark.parametrize(("header", "why"), [
    (Header(16, CONTROL, 99), "an unknown type"),
    (Header(16, 2, Type.CALL_CLEAR_REQUEST), "a management message"),
    (Header(13, CONTROL, Type.CALL_CLEAR_REQUEST), "no room for its Call ID"),
    (Header(16, CONTROL, Type.OUTGOING_CALL_REPLY), "no room for its result"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_no_layout_for(header: Header, why: str) -> None:
    assert header.layout is None


@given(st.binary(max_size=40))
def test_whatever_comes_is_a_header_or_none(octets: bytes) -> None:
    header = Header.parse(octets)
    whole = len(octets) >= HEADER_LENGTH
    assert (header is not None) == (
        whole and octets[4:8] == MAGIC.to_bytes(4, "big") and int.from_bytes(octets[:2], "big") >= HEADER_LENGTH
    )


# --- what a client writes and reads ------------------------------------------------------------------------------


def test_a_start_request_is_what_scapy_reads() -> None:
    """RFC 2637 section 2.1."""
    read = scapy_pptp.PPTPStartControlConnectionRequest(start_request("gateway", "fastmasq"))
    assert (read.len, read.type, read.ctrl_msg_type, read.magic_cookie) == (156, 1, 1, MAGIC)
    assert (read.protocol_version, read.maximum_channels) == (0x0100, 0)
    assert read.framing_capabilities.value == read.bearer_capabilities.value == 3
    assert (read.host_name.rstrip(b"\0"), read.vendor_string.rstrip(b"\0")) == (b"gateway", b"fastmasq")


def test_a_start_reply_of_scapy_is_read() -> None:
    """RFC 2637 section 2.2."""
    octets = bytes(
        scapy_pptp.PPTPStartControlConnectionReply(
            result_code=4, error_code=6, firmware_revision=258, host_name=b"vpn\x07", vendor_string="MoretonBay"
        )
    )
    assert Start.parse(octets) == (0x0100, 4, 6, 258, "vpn?", "MoretonBay")
    assert Start.parse(octets[:-1]) is None


def test_names_that_are_too_long_are_cut_and_foreign_letters_replaced() -> None:
    read = Start.parse(start_request("x" * 100, "Größe"))
    assert (read.host, read.vendor) == ("x" * 63, "Gr??e")


def test_an_outgoing_call_request_is_what_scapy_reads() -> None:
    """RFC 2637 section 2.7."""
    read = scapy_pptp.PPTPOutgoingCallRequest(outgoing_call_request(0xABCD, serial=7))
    assert (read.len, read.call_id, read.call_serial_number) == (168, 0xABCD, 7)
    assert (read.minimum_bps, read.maximum_bps) == (2_400, 1_000_000_000)
    assert read.bearer_type == read.framing_type == 3
    assert (read.pkt_window_size, read.pkt_proc_delay, read.phone_number_len) == (3, 0, 0)


def test_an_outgoing_call_reply_of_scapy_is_read() -> None:
    """RFC 2637 section 2.8."""
    octets = bytes(
        scapy_pptp.PPTPOutgoingCallReply(
            call_id=1, peer_call_id=2, result_code=7, error_code=4, cause_code=5, connect_speed=64_000
        )
    )
    assert CallReply.parse(octets) == (1, 2, 7, 4, 5, 64_000)
    assert CallReply.parse(octets[:20]) is None


@pytest.mark.parametrize(("kind", "result", "error", "said"), [
    (Type.START_REPLY, 1, 0, "accepted"),
    (Type.START_REPLY, 3, 0, "refused: there is a control connection from this address already"),
    (Type.OUTGOING_CALL_REPLY, 2, 4, "refused: out of resources"),
    (Type.OUTGOING_CALL_REPLY, 2, 99, "refused: error 99"),
    (Type.OUTGOING_CALL_REPLY, 200, 0, "result 200, which has no meaning"),
    (Type.CALL_DISCONNECT_NOTIFY, 0, 0, "ended"),
    (99, 1, 0, "result 1, which has no meaning"),
])  # fmt: skip
def test_results_in_words(kind: int, result: int, error: int, said: str) -> None:
    assert result_in_words(kind, result, error) == said
