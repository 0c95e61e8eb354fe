"""What a tracker has to say: events as data, and the line that each becomes, in the words of the 1999 kernels.

Trackers never log. They return events; whoever drives them prints `event.level` and `event.text`, and limits the rate.
"""

from __future__ import annotations

from msgspec import Struct

INFO, WARNING, DEBUG = "info", "warning", "debug"

# kind: (level, line); {inside} {remote} {other} {old} {new} are addresses, the rest numbers as they are in listings.
LINES: dict[str, tuple[str, str]] = {
    # PPTP control connections and calls: P-21 to P-25, P-42, P-46
    "call_asked": (INFO, "ip_masq_pptp(): Req call PPTP sess {inside} -> {remote} Call ID {id:X} -> {new_id:X}."),
    "call_established": (
        INFO,
        "ip_masq_pptp(): Estab call PPTP sess {inside} -> {remote} Call ID {id:X} peer {new_id:X}.",
    ),
    "call_refused": (INFO, "ip_masq_pptp(): PPTP call {inside} -> {remote} Call ID {id:X} refused, result {count}."),
    "call_ended": (INFO, "ip_masq_pptp(): Disconnect PPTP sess {inside} -> {remote} Call ID {id:X} ({why})."),
    "call_lost": (WARNING, "ip_masq_pptp(): Lost GRE masq table entry ({why}), {remote} -> {inside} Call ID {id:X}."),
    "call_denied": (WARNING, "ip_masq_pptp(): no row for a PPTP call {inside} -> {remote} Call ID {id:X}: {why}."),
    "control_denied": (WARNING, "PPTP control connection {inside} -> {remote} is not followed: {why}."),
    "control_lost_sync": (
        WARNING,
        "PPTP control connection {inside} - {remote}: {why}; it is passed on untranslated from here.",
    ),
    "control_split": (
        WARNING,
        "PPTP control connection {inside} - {remote}: a Call ID split in two was not translated.",
    ),
    "gre_outbound_unknown": (WARNING, "Outbound GRE to {remote} has no masq table entry ({inside}; {other} has it)."),
    "gre_inbound_unknown": (
        WARNING,
        "ip_fw_demasq_gre(): Inbound from {remote} has no masq table entry (Call ID {id:X}).",
    ),
    "gre_passthrough": (INFO, "GRE between {inside} and {remote} is passed through without a call ({why})."),
    "gre_wrong_source": (WARNING, "GRE from {remote} names Call ID {id:X}, which belongs to {other}: dropped."),
    # ISAKMP: K-5, K-7 to K-10
    "isakmp_zero_cookie_out": (INFO, "ip_masq_out_get_isakmp(): zero cookie from {inside}"),
    "isakmp_zero_cookie_in": (INFO, "ip_masq_in_get_isakmp(): zero cookie from {remote}"),
    "isakmp_collision": (
        WARNING,
        "ISAKMP {inside} -> {remote} dropped: its initiator cookie is that of an unanswered exchange of {other}.",
    ),
    "isakmp_guessed": (INFO, "ISAKMP from {remote} with unknown cookies sent to {inside}, which talked to it last."),
    "isakmp_unknown": (INFO, "ISAKMP from {remote} with unknown cookies belongs to no inside host."),
    "isakmp_forgotten": (
        WARNING,
        "ISAKMP from {remote} finds the masq table entry of {inside} timed out: if its VPN dies periodically, raise "
        "[vpn] ipsec_lifetime above the rekey interval.",
    ),
    "isakmp_denied": (WARNING, "ISAKMP {inside} -> {remote} dropped: {why}."),
    "parallel_disabled": (
        WARNING,
        "{why} {inside} -> {remote} blocked: parallel sessions disabled, {other} has one.",
    ),
    # ESP: E-1 to E-21
    "esp_zero_out": (WARNING, "ip_fw_masq_esp(): zero SPI from {inside} discarded"),
    "esp_zero_in": (WARNING, "ip_fw_demasq_esp(): zero SPI from {remote} discarded"),
    "esp_started": (DEBUG, "ip_fw_masq_esp(): init {inside} -> {remote} SPI {id:X}"),
    "esp_blocked": (
        WARNING,
        "ip_fw_masq_esp(): init {inside} -> {remote} temporarily blocked by pending {other} init",
    ),
    "esp_blocked_self": (
        WARNING,
        "ip_fw_masq_esp(): init {inside} -> {remote} SPI {id:X} temporarily blocked by pending init w/ SPI {new_id:X}",
    ),
    "esp_squelched": (
        WARNING,
        "init {inside} -> {remote} SPI {id:X} no response after {count} tries, unblocking & squelching",
    ),
    "esp_associated": (DEBUG, "resp from {remote} SPI {id:X} routed to {inside} (SPI {new_id:X}; {why})."),
    "esp_disputed": (INFO, "resp from {remote} SPI {id:X} fits {count} hosts; each gets a copy."),
    "esp_settled": (INFO, "from {remote} SPI {id:X} belongs to {inside} ({why})."),
    "esp_guess_one": (INFO, "guessing from {remote} SPI {id:X} sent to {inside} ({count} cand)"),
    "esp_guess_many": (INFO, "guessing from {remote} SPI {id:X} sent to {count} hosts ({count} cand)"),
    "esp_unknown": (INFO, "Inbound from {remote} SPI {id:X} has no masq table entry."),
    "ipsec_begins": (DEBUG, "IPsec between {inside} and {remote} begins: SPI {id:X}."),
    "ipsec_ends": (DEBUG, "IPsec between {inside} and {remote} has ended: its last SA, SPI {id:X}, is over."),
    "esp_table_full": (WARNING, "Couldn't create masq table entry. ESP {inside} -> {remote} SPI {id:X}: {why}."),
    "esp_same_spi": (
        WARNING,
        "{remote} seems to use SPI {id:X} for {inside} and for {other}: both negotiated the same number; "
        "{inside} keeps it until it is rekeyed.",
    ),
    "maddr_changed": (INFO, "change maddr from {old} to {new}"),
    "path_full": (
        WARNING,
        "no row of the path is free for the tunnel {inside} -> {remote}: each of its packets waits for its tracker",
    ),
}


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing worth a line. Addresses and numbers in host order; `id` and `new_id` are Call IDs or SPIs."""

    kind: str
    inside: int = 0
    remote: int = 0
    other: int = 0  # another inside host, or the other remote
    id: int = 0
    new_id: int = 0
    count: int = 0
    why: str = ""
    old: int = 0
    new: int = 0

    @property
    def level(self) -> str:
        return LINES[self.kind][0]

    @property
    def text(self) -> str:
        """Return the line for the log."""
        addresses = {name: dotted(getattr(self, name)) for name in ("inside", "remote", "other", "old", "new")}
        numbers = {name: getattr(self, name) for name in ("id", "new_id", "count", "why")}
        return LINES[self.kind][1].format(**addresses, **numbers)


def dotted(address: int) -> str:
    return ".".join(str(octet) for octet in address.to_bytes(4, "big"))
