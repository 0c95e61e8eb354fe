"""The one table of what application gateways refuse: name and counter, sentence, and whether they read on afterwards.

Refused is only what a gateway would do beside passing octets on: those pass as they came, and nothing is opened.
"""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """ends: the connection is passed on unread from here on."""

    sentence: str
    ends: bool = True


REFUSALS = {
    "no_greeting": Refusal("the server did not greet in the protocol of the port"),
    "client_first": Refusal("the client spoke before the server had greeted"),
    "not_the_protocol": Refusal("the client said what is no command, as in a request of HTTP or in a body"),
    "line_too_long": Refusal("the client's line is longer than any command"),
    "not_logged_in": Refusal("a port was announced before the client had said who it is"),
    "other_address": Refusal("the address announced is not that of the host that announces it (RFC 2577 section 3)"),
    "low_port": Refusal("the port announced is under 1024"),
    "bad_argument": Refusal("the announcement cannot be read", ends=False),
    "unasked": Refusal("the server announced a port that nobody has asked it for", ends=False),
    "too_many_openings": Refusal("the inside host has as many openings waiting as it may have", ends=False),
    "no_room": Refusal("there is no room, no external port or no external address for an opening", ends=False),
    "too_much": Refusal("more was said within a second than control connections have to say"),
    "out_of_order": Refusal("a hole in the stream is not filled"),
}
