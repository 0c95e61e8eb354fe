"""What becomes of one packet that a tracker was asked about, with every reason to drop it by name."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fastmasq.vpn.events import Event

# Reasons to drop, with the sentence that the manual and the counters give them.
DROPS: dict[str, str] = {
    "gre_no_row": "GRE that no call, control connection or redirect explains",
    "gre_other_host": "GRE without a call from an inside host, while another one has the remote",
    "gre_wrong_source": "GRE whose Call ID belongs to another remote",
    "pptp_out_of_order": "a PPTP control segment behind a hole in the stream; the sender will repeat it",
    "calls_full": "no row is free for another call or pair of GRE speakers",
    "isakmp_collision": "ISAKMP whose initiator cookie another inside host uses in an unanswered exchange",
    "isakmp_full": "no row is free for another ISAKMP exchange",
    "isakmp_host_limit": "the inside host has all the ISAKMP exchanges it may have",
    "parallel_disabled": "IPsec to a remote that another inside host uses, while parallel sessions are off",
    "esp_zero_spi": "ESP with SPI zero",
    "esp_blocked": "the first ESP packet of an SA, while another start to the same remote is pending",
    "esp_squelched": "ESP of a start that got no answer and lost its turn",
    "esp_full": "no row is free for another SA",
    "esp_host_limit": "the inside host has all the SAs it may have",
}


class Decision(Struct, frozen=True, kw_only=True):
    """Exactly one of three things: send, drop by name, or (neither) leave it to the gateway itself.

    to: outbound the new source address; inbound the inside hosts, each of which gets a copy.
    id: the Call ID to write into the GRE key, None leaves it.
    row: the row that explains the packet; the path may take its flow over. None: ask again for the next packet.
    """

    to: tuple[int, ...] = ()
    drop: str = ""
    id: int | None = None
    row: Any = None
    events: tuple[Event, ...] = ()

    @property
    def local(self) -> bool:
        return not self.to and not self.drop


def dropped(reason: str, *events: Event) -> Decision:
    """Return the decision to drop for a reason of DROPS."""
    assert reason in DROPS, reason
    return Decision(drop=reason, events=events)
