"""The manual's page of kernels, made from the table of features and uses; run it to write the page."""

from __future__ import annotations

from pathlib import Path

from fastmasq.kernel.features import FEATURES, USES

PAGE = Path(__file__).parents[2] / "manual" / "kernels.md"

_HEAD = """# Old kernels, and kernels built without something

fastmasq runs on Linux 3.2 and later, the oldest that the C library of a Debian of today starts on. Whatever it wants
of a kernel beyond that it asks for where it is used, and goes on without it where it is refused. No version number
decides that but one, said below: distributions carry features back, and leave others out.

* `fastmasq doctor kernel` asks this kernel for everything, and says what it lacks, what that costs and what is done
  instead; `--json` for programs. It changes nothing.
* `fastmasq status` names what the running fastmasq does without just now, and on which links; one line of the log
  says it at the start. Nothing is named that no rule and no link asks for: without a REDIRECT nobody needs `original
  destinations`.
* `fastmasq check` says what rings and guards refuse before a start.

Made from the program's own table by `scripts/dev docs`.
"""

_RINGS = """## Rings and the virtio header

`[rings] mode = "auto"` takes the first of these that the kernel grants: ring v2, ring v3, plain sockets, each with
the virtio header; then the same without it. Before 4.6 a ring cannot have the header, so plain sockets are taken.
They copy each packet once more, but large sends and unfinished checksums pass whole. On Linux 6.18 plain sockets
carried 377 000 datagrams of 60 bytes a second in 1000 flows where rings carried 417 000 (0.84 as many, 95 %
confidence 0.64-1.15: the machine had other work), and bulk TCP as fast: 11.7 and 11.4 Gbit/s. `fastmasq run --ring
socket` takes them where rings can be had, to compare.

A ring v2 with the header has a fault in all kernels from 5.6 on (and older ones that took over 61fad6816fc1): a
packet that the header cannot describe is lost, and the kernel keeps the slot it had for it, so that the ring receives
nothing more. Before 6.2 every burst of UDP is such a packet; so plain sockets are taken there, whatever the mode's
order. Since 6.2 only rare ones are, such as UDP fragments that a virtual machine sends as one (UFO) into a link of
ours: a ring that is seen to have stopped is opened anew within two seconds, as a plain socket.

Without the header (`vnet_header = "off"`, or where it is refused) fastmasq completes checksums and cuts large sends
of TCP itself, by a size that fits the way. For UDP the size of the pieces is what the sender meant, and nothing tells
it: a burst that arrives as one packet is dropped, as `segment_size_unknown`. So on links with such a tap, and on the
ports of a bridge that is one, what merges UDP is switched off: `rx-gro-list`, `rx-udp-gro-forwarding`, `rx-gro-hw`
and `rx-lro`, as far as they were on, and `tx-udp-segmentation` of the link to proxies. It is in the journal and put
back at the end, or by `fastmasq release`. GRO of TCP stays on. The same is done before 6.2.

What a neighbour on the same machine sends as one packet no feature of ours changes: the other end of a veth pair (a
container), or a virtual machine. Before 6.2 the tap loses it, and counts it (`Lost by ring` in `fastmasq status`).
Switch it off there: `ethtool -K eth0 tx-udp-segmentation off`.
"""

_GUARDS = """## Guards

`[takeover] guard = "auto"` takes the first that can be put in force: `tc` (eBPF), `nftables`, `iptables` (rules of
the table `raw`, by the program iptables-legacy), none. What needs eBPF here is not bpf(2) alone but what came with
5.1 and 5.2; kernels from 4.5 on have what nftables needs at ingress. These two mark what is ours, and taps stand behind
them. The guard `iptables` drops the same packets, only later: after the kernel's IP has begun with them; taps stand
before the ingress hooks then. The chains input and output for the host's own packets need nftables; without it a line
says so, and these packets are not judged.
"""

_PROOF = """## How it is tested

Tests run fastmasq under a supervisor that answers its system calls as an old kernel would (seccomp user
notification): the lines 3.2, 3.10, 3.16, 4.9 and 4.19, each with what is newer than it refused. Each test asserts
that the answer was really given and that `status` names what is done instead, and lets real programs talk through it.
What such a kernel does *without being asked* is not tested by that: its own bugs, and how it moves packets.
"""


def page() -> str:
    """Return the page as Markdown: what is done without each use, and what the kernel has since when."""
    uses = [(name, use.instead, use.cost) for name, use in USES.items()]
    features = [(each.name, each.since, ", ".join(each.uses), each.lacking, each.source) for each in FEATURES]
    return "\n".join(
        [
            _HEAD,
            _table("What is done without", ("what", "instead", "cost"), uses),
            _table(
                "What a kernel has since when",
                ("feature", "since", "needed by", "a kernel without it answers", "source: commit, page"),
                features,
            ),
            _RINGS,
            _GUARDS,
            _PROOF,
        ]
    )


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"## {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
