"""What a forwarder that only observes tells beside what any does: what it would have dropped, opened and led inside."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import numpy as np

from fastmasq.daemon.gateway import Gateway
from fastmasq.path.rows import NO_RULE
from fastmasq.path.verdict import DROP_REASONS

MOST_SHOWN = 20  # dropped flows


def observed(gateway: Gateway) -> dict[str, Any] | None:
    """Return what `status` has of a gateway that only observes, beside what it has of any; None of one that forwards.

    `dropped` are the flows that would have lost most, with the rule that decided, as far as one did; `dropped_others`
    the packets of all others.
    """
    if not gateway.forwarder.observes:
        return None
    with gateway.forwarder.locked():
        flows, others = gateway.forwarder.dropped_flows()
    flows = flows[np.argsort(-flows["packets"].astype("i8"), kind="stable")]
    counts = gateway.table.counts()
    return {
        "answers_to_host": gateway.forwarder.notes()["answers_to_host"],
        "opened": {kind: counts[f"opened_{kind}"] for kind in ("tcp", "udp", "icmp", "other")},
        "forwards": [{"forward": str(one), "sessions": count} for one, count in gateway.forwards.used() if count],
        "dropped": [_describe(gateway, flow) for flow in flows[:MOST_SHOWN]],
        "dropped_others": int(flows["packets"][MOST_SHOWN:].sum()) + others,
    }


def _describe(gateway: Gateway, flow: np.void) -> dict[str, Any]:
    link = gateway.links.links.get(int(flow["link"]))
    return {
        "packets": int(flow["packets"]),
        "reason": DROP_REASONS[flow["reason"]][0],
        "rule": None if flow["rule"] == NO_RULE else gateway.rules.name_of(int(flow["rule"])),
        "link": link.name if link else None,
        "protocol": int(flow["protocol"]),
        "source": str(IPv4Address(int(flow["saddr"]))),
        "destination": str(IPv4Address(int(flow["daddr"]))),
        "port": int(flow["port"]) if flow["has_port"] else None,
    }
