"""The one table of verdicts and drop reasons: symbol, counter and sentence; documentation and status come from it."""

from fastmasq.path.verdict cimport (
    DROP_REASON_COUNT, NOTE_COUNT, VERDICT_COUNT,
    TRUNCATED, NOT_FOR_US, VLAN_TAGGED, TOO_SHORT, NOT_IPV4, BAD_HEADER_LENGTH, BAD_TOTAL_LENGTH, BAD_IP_CHECKSUM,
    SOURCE_ROUTE, BAD_IP_OPTIONS, BAD_TRANSPORT_HEADER,
    FRAGMENT_BAD, FRAGMENT_TINY, FRAGMENT_OVERLAP, FRAGMENT_DUPLICATE, FRAGMENT_ORPHAN, FRAGMENT_REFUSED,
    FRAGMENT_TOO_LONG, MARTIAN_SOURCE, MARTIAN_DESTINATION, NO_ROUTE,
    TTL_EXCEEDED, FRAGMENTATION_NEEDED, NEIGHBOUR_UNRESOLVED, NEIGHBOUR_FAILED, POLICY_REFUSED,
    PROTOCOL_NOT_MASQUERADED, NO_SESSION, FILTERED, TCP_RST_OUT_OF_WINDOW, ICMP_TYPE_REFUSED, BAD_ICMP_CHECKSUM,
    BAD_QUOTED_HEADER, BAD_MTU_IN_ICMP, NO_EXTERNAL_ADDRESS, HOST_SESSION_LIMIT, HOST_PORT_LIMIT, HOST_RATE_LIMIT,
    HOST_TABLE_FULL, TABLE_FULL, PORTS_EXHAUSTED, NEIGHBOUR_TABLE_FULL, LINK_DOWN, TX_REFUSED, TX_NO_BUFFER,
    CANNOT_SEGMENT, INPUT_DENIED, INPUT_REJECTED, FORWARD_DENIED, FORWARD_REJECTED, OUTPUT_DENIED, OUTPUT_REJECTED,
    ENDPOINT_CLASH, AH_NOT_MASQUERADED,
)

VERDICTS = ("forward", "deliver", "reply", "punt", "drop")

NOTES = ("replies_suppressed", "stateless_inbound", "batches", "tx_calls", "held", "segmented", "fragmented", "gathered")

_SENTENCES = {
    TRUNCATED: ("truncated", "the frame was longer than its ring slot and no copy of the whole could be had"),
    NOT_FOR_US: ("not_for_us", "the frame was addressed to another station, or is one of our own"),
    VLAN_TAGGED: ("vlan_tagged", "the frame carries a VLAN tag that belongs to another interface"),
    TOO_SHORT: ("too_short", "the frame ends before the IPv4 header does"),
    NOT_IPV4: ("not_ipv4", "the packet says IPv4 in its link header, but not in its version field"),
    BAD_HEADER_LENGTH: ("bad_header_length", "the IPv4 header length is under 20 octets or past the end of the packet"),
    BAD_TOTAL_LENGTH: ("bad_total_length", "the IPv4 total length is shorter than the header or longer than the frame"),
    BAD_IP_CHECKSUM: ("bad_ip_checksum", "the IPv4 header checksum is wrong"),
    SOURCE_ROUTE: ("source_route", "the packet asks to be source-routed, which is refused (RFC 7126)"),
    BAD_IP_OPTIONS: ("bad_ip_options", "an IPv4 option has an impossible length"),
    BAD_TRANSPORT_HEADER: ("bad_transport_header", "the TCP, UDP or ICMP header is cut short or contradicts itself"),
    FRAGMENT_BAD: ("fragment_bad", "a fragment whose offset and length cannot be right (RFC 791 section 3.2)"),
    FRAGMENT_TINY: ("fragment_tiny", "a first fragment without its transport header, or one that could overwrite it (RFC 1858)"),
    FRAGMENT_OVERLAP: ("fragment_overlap", "the fragments of the datagram overlap; nothing more of it is passed on"),
    FRAGMENT_DUPLICATE: ("fragment_duplicate", "the same part of the datagram has come before"),
    FRAGMENT_ORPHAN: ("fragment_orphan", "the first fragment of the datagram did not come in time, or others needed the room"),
    FRAGMENT_REFUSED: ("fragment_refused", "the first fragment of the datagram was dropped, and this one with it"),
    FRAGMENT_TOO_LONG: ("fragment_too_long", "the fragment came before its first, and is too long to be kept"),
    MARTIAN_SOURCE: ("martian_source", "the source address cannot be right on the link the packet came from"),
    MARTIAN_DESTINATION: ("martian_destination", "the destination address must never be forwarded to (RFC 1812)"),
    NO_ROUTE: ("no_route", "no route leads to the destination"),
    TTL_EXCEEDED: ("ttl_exceeded", "the time to live ran out here; the sender was told, within the rate limit"),
    FRAGMENTATION_NEEDED: ("fragmentation_needed",
                           "the packet is larger than the next link and must not be fragmented; the sender was told"),
    NEIGHBOUR_UNRESOLVED: ("neighbour_unresolved", "the next hop's link address did not become known in time"),
    NEIGHBOUR_FAILED: ("neighbour_failed", "the next hop does not answer on its link; the sender was told"),
    POLICY_REFUSED: ("policy_refused", "policy does not let this packet through"),
    PROTOCOL_NOT_MASQUERADED: ("protocol_not_masqueraded", "the protocol cannot be masqueraded; it must not leak either"),
    AH_NOT_MASQUERADED: ("ah_not_masqueraded", "IPsec AH signs the addresses, so no translator can carry it; use ESP"),
    NO_SESSION: ("no_session", "the packet belongs to no session, and may not open one"),
    FILTERED: ("filtered", "the mapping exists, but this remote endpoint was never talked to from it"),
    TCP_RST_OUT_OF_WINDOW: ("tcp_rst_out_of_window", "a TCP reset with a sequence number outside the window"),
    INPUT_DENIED: ("input_denied", "the input chain denies the packet"),
    INPUT_REJECTED: ("input_rejected", "the input chain rejects the packet; the sender was told, within the rate limit"),
    FORWARD_DENIED: ("forward_denied", "the forward chain denies the packet"),
    FORWARD_REJECTED: ("forward_rejected", "the forward chain rejects the packet; the sender was told, within the rate limit"),
    OUTPUT_DENIED: ("output_denied", "the output chain denies the packet, as it would have been sent"),
    OUTPUT_REJECTED: ("output_rejected",
                      "the output chain rejects the packet, as it would have been sent; the sender was told"),
    ICMP_TYPE_REFUSED: ("icmp_type_refused", "the ICMP type is never passed on (redirect, router discovery, unknown)"),
    BAD_ICMP_CHECKSUM: ("bad_icmp_checksum", "the checksum of an ICMP error is wrong (RFC 5508 REQ-3a)"),
    BAD_QUOTED_HEADER: ("bad_quoted_header", "the packet quoted in an ICMP error is cut short or damaged"),
    BAD_MTU_IN_ICMP: ("bad_mtu_in_icmp", "a fragmentation-needed with an MTU under 68"),
    NO_EXTERNAL_ADDRESS: ("no_external_address", "the outside link has no address at the moment"),
    HOST_SESSION_LIMIT: ("host_session_limit", "the inside host already has its share of sessions"),
    HOST_PORT_LIMIT: ("host_port_limit", "the inside host already has its share of external ports"),
    HOST_RATE_LIMIT: ("host_rate_limit", "the inside host opens sessions faster than its share"),
    HOST_TABLE_FULL: ("host_table_full", "more inside hosts are active than there are rows for hosts"),
    TABLE_FULL: ("table_full", "the session table is full"),
    PORTS_EXHAUSTED: ("ports_exhausted", "no external port of that class is free"),
    NEIGHBOUR_TABLE_FULL: ("neighbour_table_full", "more next hops are in use than there are rows for them"),
    LINK_DOWN: ("link_down", "the link to send on is down or missing"),
    TX_REFUSED: ("tx_refused", "the kernel refused to send the packet"),
    TX_NO_BUFFER: ("tx_no_buffer", "the sending queue was full"),
    ENDPOINT_CLASH: ("endpoint_clash",
                     "the inside host of a forward or redirect already has a session with this remote endpoint by another way"),
    CANNOT_SEGMENT: ("cannot_segment", "a large send could not be cut into segments for a link without offloads"),
}

if len(_SENTENCES) != DROP_REASON_COUNT or sorted(_SENTENCES) != list(range(DROP_REASON_COUNT)):
    raise ImportError("a drop reason has no sentence: path/verdict.pxd and path/verdict.pyx disagree")
if len(VERDICTS) != VERDICT_COUNT or len(NOTES) != NOTE_COUNT:
    raise ImportError("path/verdict.pxd and path/verdict.pyx disagree about verdicts or notes")

DROP_REASONS = tuple(_SENTENCES[code] for code in range(DROP_REASON_COUNT))
"""(symbol, sentence) of every drop reason, in the order of their counters."""

DROP_CODE = {symbol: code for code, (symbol, _) in enumerate(DROP_REASONS)}
