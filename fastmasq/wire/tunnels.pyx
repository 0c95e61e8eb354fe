"""The headers of `gre.pxd`, `esp.pxd` and `isakmp.pxd` for Python: what trackers, listings and tests read."""

from libc.stdint cimport uint8_t

from fastmasq.wire cimport esp as e, gre as g, isakmp as i
from fastmasq.wire.numbers cimport ISAKMP_PORT
from fastmasq.wire.octets cimport load16, load32

from typing import NamedTuple

NO_COOKIE = bytes(8)


class Gre(NamedTuple):
    """A PPTP data packet's header: octets of payload announced, Call ID of its receiver, octets of header.

    The numbers of this packet and of the last one received (RFC 2637 section 4.1) are None where they are left out.
    """

    payload_length: int
    call_id: int
    header_length: int
    sequence: int | None = None
    acknowledgment: int | None = None


class Esp(NamedTuple):
    """SPI and sequence number, 32 bits each."""

    spi: int
    sequence: int


class Isakmp(NamedTuple):
    """Cookies of 8 octets, version as major * 16 + minor, exchange type, flags, message id, whole length."""

    initiator: bytes
    responder: bytes
    version: int
    exchange: int
    flags: int
    message_id: int
    length: int


def read_gre(const uint8_t[::1] octets) -> Gre | None:
    """Return the header at the start of `octets`; None if it is not whole or not PPTP's."""
    if octets.shape[0] < g.MINIMUM or not g.is_pptp(&octets[0]):
        return None
    length = g.header_length(&octets[0])
    if octets.shape[0] < length:
        return None
    sequence = load32(&octets[g.MINIMUM]) if octets[g.FLAGS] & g.SEQUENCE_PRESENT else None
    acknowledgment = load32(&octets[length - 4]) if octets[g.VERSION] & g.ACKNOWLEDGMENT_PRESENT else None
    return Gre(load16(&octets[g.PAYLOAD_LENGTH]), g.call_id(&octets[0]), length, sequence, acknowledgment)


def read_esp(const uint8_t[::1] octets) -> Esp | None:
    """Return SPI and sequence number at the start of `octets`; None if they are not whole."""
    if octets.shape[0] < e.MINIMUM:
        return None
    return Esp(e.spi(&octets[0]), e.sequence(&octets[0]))


def read_isakmp(const uint8_t[::1] payload, source_port=ISAKMP_PORT, destination_port=ISAKMP_PORT) -> Isakmp | None:
    """Return the header of a UDP payload; None if the ports are not both 500 (K-1) or the header is not whole."""
    cdef uint8_t cookies[16]
    if not i.is_isakmp(source_port, destination_port, payload.shape[0]):
        return None
    i.copy_cookies(&payload[0], cookies)
    return Isakmp(
        bytes(cookies[:8]), bytes(cookies[8:16]), payload[i.VERSION], payload[i.EXCHANGE],
        payload[i.FLAGS], load32(&payload[i.MESSAGE_ID]), load32(&payload[i.LENGTH]),
    )


def name_natt(const uint8_t[::1] payload) -> str:
    """Return "keepalive", "ike", "esp" or "other" for a UDP payload on port 4500 (RFC 3948 section 2)."""
    if payload.shape[0] == 0:
        return "other"
    return ("keepalive", "ike", "esp", "other")[i.natt_content(&payload[0], payload.shape[0])]
