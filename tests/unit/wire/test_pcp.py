"""PCP messages against octets written by hand, and any octets at all: RFC 6887 sections 7, 8, 11 and 13."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.wire import pcp
from fastmasq.wire.pcp import Code, Filter, Mapping, Opcode, Option, Refused, Request, Result

CLIENT, NONCE = pcp.mapped(0x0A000002), bytes(range(12))
ANY = bytes(16)
HEADER = "02 01 0000 00000e10 00000000000000000000ffff0a000002"
MAP = "000102030405060708090a0b 06 000000 1f90 2328 00000000000000000000ffff00000000"
ASKED = Request(Opcode.MAP, 3600, CLIENT, Mapping(NONCE, 6, 8080, 9000, pcp.mapped(0)))

ADDRESSES = st.binary(min_size=16, max_size=16)
PORTS = st.integers(0, 0xFFFF)
TIMES = st.integers(0, 0xFFFFFFFF)
MAPPINGS = st.builds(
    Mapping, st.binary(min_size=12, max_size=12), st.integers(0, 255), PORTS, PORTS, ADDRESSES
)  # fmt: skip
FILTERS = st.builds(Filter, st.integers(0, 32), st.integers(0, 0xFFFFFFFF), PORTS)
OPTIONS = st.lists(FILTERS.map(lambda one: Option(Code.FILTER, one.data())), max_size=4).map(tuple)


def refused(octets: bytes) -> Result:
    with pytest.raises(Refused) as caught:
        pcp.parse(octets)
    return caught.value.result


def test_pcp_a_map_request_as_the_rfc_draws_it() -> None:
    octets = bytes.fromhex(HEADER + MAP)
    assert pcp.parse(octets) == ASKED
    assert ASKED.emit() == octets
    with_option = ASKED._replace(options=(Option(Code.PREFER_FAILURE),))
    assert pcp.parse(octets + bytes.fromhex("02 00 0000")) == with_option


def test_pcp_answers_as_the_rfc_draws_them() -> None:
    granted = ASKED.mapping._replace(outside_port=9001, outside_address=pcp.mapped(0xC8C8C8C8))
    assert pcp.answer(ASKED, 1800, 5, granted) == bytes.fromhex(
        "02 81 00 00 00000708 00000005 000000000000000000000000"
        "000102030405060708090a0b 06 000000 1f90 2329 00000000000000000000ffffc8c8c8c8"
    )
    assert pcp.announcement(5) == bytes.fromhex("02 80 00 00 00000000 00000005 000000000000000000000000")
    request = bytes.fromhex(HEADER + MAP)
    assert pcp.refusal(request, Result.NOT_AUTHORIZED, 5) == bytes.fromhex(
        "02 81 00 02 00000708 00000005 000000000000000000000000" + MAP
    )


@pytest.mark.parametrize(("octets", "result"), [
    ("01 01", Result.UNSUPP_VERSION),
    ("03 01 0000", Result.UNSUPP_VERSION),
    ("02 01", Result.MALFORMED_REQUEST),
    (HEADER, Result.MALFORMED_REQUEST),
    (HEADER + MAP + "0000", Result.MALFORMED_REQUEST),
    (HEADER.replace("02 01", "02 03") + MAP, Result.UNSUPP_OPCODE),
    (HEADER.replace("02 01", "02 02") + MAP, Result.MALFORMED_REQUEST),
    (HEADER + MAP + "01 00 0010" + ANY.hex(), Result.UNSUPP_OPTION),
    (HEADER + MAP + "07 00 0000", Result.UNSUPP_OPTION),
    (HEADER + MAP + "02 00 0004 00000000", Result.MALFORMED_OPTION),
    (HEADER + MAP + "02 00 0000 02 00 0000", Result.MALFORMED_OPTION),
    (HEADER + MAP + "02 00 0008 00000000", Result.MALFORMED_OPTION),
    (HEADER.replace("02 01", "02 00") + "02 00 0000", Result.MALFORMED_OPTION),
])  # fmt: skip
def test_pcp_what_is_wrong_has_its_result(octets: str, result: Result) -> None:
    assert refused(bytes.fromhex(octets)) is result


def test_pcp_a_message_that_is_too_long_is_malformed_and_its_answer_cut() -> None:
    octets = bytes.fromhex(HEADER + MAP) + bytes(pcp.LARGEST)
    assert refused(octets) is Result.MALFORMED_REQUEST
    assert len(pcp.refusal(octets, Result.MALFORMED_REQUEST, 0)) == pcp.LARGEST


def test_pcp_options_that_may_be_ignored_are() -> None:
    assert pcp.parse(bytes.fromhex(HEADER + MAP + "80 00 0003 01020300")).options == ()


def test_pcp_filters() -> None:
    octets = bytes.fromhex(HEADER + MAP + "03 00 0014 00 78 0050 00000000000000000000ffffc7000000")
    assert pcp.parse(octets).filters() == [Filter(24, 0xC7000000, 80)]
    nothing = ASKED._replace(options=(Option(Code.FILTER, Filter(None).data()),))
    assert pcp.parse(nothing.emit()).filters() == [Filter(None)]
    for prefix in (95, 129):
        data = Filter(24, 1).data()[:1] + bytes((prefix,)) + Filter(24, 1).data()[2:]
        with pytest.raises(Refused):
            ASKED._replace(options=(Option(Code.FILTER, data),)).filters()


@given(st.builds(Request, st.just(Opcode.MAP), TIMES, ADDRESSES, MAPPINGS, OPTIONS, st.none()))
def test_pcp_what_is_emitted_is_read(request: Request) -> None:
    assert pcp.parse(request.emit()) == request
    assert len(request.filters()) == len(request.options)


@given(st.builds(Request, st.just(Opcode.PEER), TIMES, ADDRESSES, MAPPINGS, st.just(()), st.tuples(PORTS, ADDRESSES)))
def test_pcp_what_is_emitted_of_a_peer_is_read(request: Request) -> None:
    assert pcp.parse(request.emit()) == request


@given(st.one_of(st.binary(max_size=1200), st.binary(max_size=200).map(lambda rest: b"\2\1" + rest)))
def test_pcp_any_octets_are_a_request_or_refused_by_an_answer_of_no_greater_length(octets: bytes) -> None:
    if not pcp.is_request(octets):
        return
    try:
        request = pcp.parse(octets)
    except Refused as refused:
        answer = pcp.refusal(octets, refused.result, 7)
        assert answer[1] == octets[1] | 0x80
        assert answer[3] == refused.result
        assert len(answer) % 4 == 0
        assert len(answer) <= max(24, len(octets) + 3)
    else:
        assert len(pcp.answer(request, 0, 7, request.mapping)) <= len(octets)
