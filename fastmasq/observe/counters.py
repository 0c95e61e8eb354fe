"""The manual's page of counters, made from the one table of verdicts and drop reasons; run it to write the page."""

from __future__ import annotations

from pathlib import Path

from fastmasq.path.verdict import DROP_REASONS, NOTES, VERDICTS

PAGE = Path(__file__).parents[1] / "manual" / "counters.md"

_VERDICT_SENTENCES = {
    "forward": "the packet was sent on, translated or routed",
    "deliver": "the packet is for the host itself: its kernel has it already, we leave it alone",
    "reply": "an ICMP error of our own was sent (the packet it answers is counted under its drop reason)",
    "punt": "the packet waits for its next hop, its first fragment or a tracker's word; it is counted anew then",
    "drop": "the packet ends here; exactly one of the reasons below is counted with it",
}
NOTE_SENTENCES = {
    "replies_suppressed": "an ICMP error that was not sent: the rate limit, or RFC 1812 section 4.3.2.7 forbids it",
    "stateless_inbound": "a packet from outside that came in through a mapping without a session of its own",
    "batches": "batches of frames taken off a ring; received packets divided by this is the batch size",
    "tx_calls": "batches given to the kernel to send",
    "held": "packets that had to wait for a next hop's link address",
    "segmented": "large sends cut into segments by us, for a link without the virtio header",
    "fragmented": "packets cut into fragments because the next link's MTU is smaller",
    "gathered": "segments of TCP streams that left together with their neighbours, as one large send",
    "answers_to_host": "while only observing: a packet from outside that answers the host or its own NAT (delivered)",
    "private_untranslated": "a packet that left outside with a private source (RFC 1918, RFC 6598), as rules want it",
}
_HEAD = """# Counters

Every packet received ends in exactly one verdict, except that fragments and answers of our own are extra. Every drop
has one reason. `fastmasq status` shows what has counted anything; `fastmasq status --json` has the same for programs.

This page is made from the program's own table by `scripts/dev docs`.
"""


def page() -> str:
    """Return the page as Markdown: verdicts, drop reasons and notes, each with its sentence."""
    parts = [
        _HEAD,
        _table("Verdicts", "verdict", [(name, _VERDICT_SENTENCES[name]) for name in VERDICTS]),
        _table("Drop reasons", "reason", DROP_REASONS),
        _table("Notes", "note", [(name, NOTE_SENTENCES[name]) for name in NOTES]),
    ]
    return "\n".join(parts)


def _table(title: str, kind: str, rows: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    lines = [f"| `{symbol}` | {sentence} |" for symbol, sentence in rows]
    return "\n".join([f"## {title}", "", f"| {kind} | meaning |", "|---|---|", *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
