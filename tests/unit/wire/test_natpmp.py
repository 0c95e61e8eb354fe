"""NAT-PMP messages against octets written by hand, and any octets at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastmasq.wire import natpmp
from fastmasq.wire.natpmp import MAP_TCP, MAP_UDP, Request, Result

PORTS = st.integers(0, 0xFFFF)
TIMES = st.integers(0, 0xFFFFFFFF)


def test_natpmp_requests_as_the_rfc_draws_them() -> None:
    assert Request.parse(bytes.fromhex("0000")) == Request(natpmp.ADDRESS)
    octets = bytes.fromhex("0001 0000 1f90 2328 00001c20")
    assert Request.parse(octets) == Request(MAP_UDP, 8080, 9000, 7200)
    assert Request(MAP_TCP, 8080, 9000, 7200).emit() == bytes.fromhex("0002 0000 1f90 2328 00001c20")
    assert Request.parse(bytes.fromhex("0009")) == Request(9)


def test_natpmp_what_is_no_request_is_none() -> None:
    for octets in ("", "00", "0080", "0081 0000 00000000", "0200", "0001", "0001 0000 1f90 2328 00001c"):
        assert Request.parse(bytes.fromhex(octets)) is None, octets


def test_natpmp_answers_as_the_rfc_draws_them() -> None:
    assert natpmp.address_answer(Result.SUCCESS, 5, 0xC8C8C8C8) == bytes.fromhex("0080 0000 00000005 c8c8c8c8")
    asked = Request(MAP_TCP, 8080, 9000, 7200)
    granted = bytes.fromhex("0082 0000 00000005 1f90 2329 00000e10")
    assert natpmp.map_answer(asked, Result.SUCCESS, 5, 9001, 3600) == granted
    assert natpmp.refusal(9, Result.UNSUPPORTED_OPCODE, 5) == bytes.fromhex("0089 0005 00000005")


@given(st.builds(Request, st.sampled_from([MAP_UDP, MAP_TCP]), PORTS, PORTS, TIMES), st.binary(max_size=8))
def test_natpmp_what_is_emitted_is_read(request: Request, behind: bytes) -> None:
    assert Request.parse(request.emit() + behind) == request


@given(st.binary(max_size=64))
def test_natpmp_any_octets_are_a_request_or_none(octets: bytes) -> None:
    request = Request.parse(octets)
    assert request is None or octets[:2] == bytes((0, request.opcode))
