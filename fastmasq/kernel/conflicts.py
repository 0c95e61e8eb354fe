"""What on this host would fight a masquerading gateway in user space, as sentences for `fastmasq check`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from fastmasq.kernel import sysctl
from fastmasq.kernel.links import IFF_LOOPBACK, IFF_UP, list_interfaces

_TRANSLATIONS = {"masquerade", "snat"}
_XT_TRANSLATIONS = {"MASQUERADE", "SNAT"}
_TIMEOUT_S = 30


def conflicts(inside: Sequence[str], outside: str) -> list[str]:
    """Return one sentence for each conflict found; an empty list is good news. Changes nothing."""
    return [*_forwarding(inside, outside), *_nftables(inside, outside)]


def _forwarding(inside: Sequence[str], outside: str) -> Iterator[str]:
    if sysctl.read("net.ipv4.ip_forward") != "1":
        return
    others = [
        each.name
        for each in list_interfaces()
        if each.flags & IFF_UP and not each.flags & IFF_LOOPBACK and each.name not in (*inside, outside)
    ]
    if others:
        yield (
            f"net.ipv4.ip_forward is 1 and {', '.join(others)} may depend on it: fastmasq sets it to 0 while it runs, "
            "and the kernel then forwards nothing between any interfaces"
        )


def _nftables(inside: Sequence[str], outside: str) -> Iterator[str]:
    nft = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if nft is None:
        return
    done = subprocess.run([nft, "-j", "list", "ruleset"], capture_output=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        return
    yield from judge_ruleset(json.loads(done.stdout)["nftables"], inside, outside)


def judge_ruleset(objects: Sequence[dict[str, Any]], inside: Sequence[str], outside: str) -> Iterator[str]:
    """Yield a sentence for each conflict in nft's JSON description of a rule set (also that of iptables-nft)."""
    for entry in objects:
        if (rule := entry.get("rule")) and _translates(rule["expr"]) and _may_leave_by(rule["expr"], outside):
            yield (
                f"nftables table {rule['family']} {rule['table']}, chain {rule['chain']}, handle {rule['handle']} "
                f"translates sources on {outside}: the host's own packets may get ports of fastmasq; delete that rule"
            )
        if flow_table := entry.get("flowtable"):
            devices = flow_table.get("dev", [])
            shared = {devices} if isinstance(devices, str) else set(devices)
            if taken := sorted(shared & {*inside, outside}):
                yield (
                    f"nftables flow table {flow_table['family']} {flow_table['table']} {flow_table['name']} takes "
                    f"packets from {', '.join(taken)}: remove these from its devices"
                )


def _translates(expressions: Sequence[Any]) -> bool:
    for expression in expressions:
        if not isinstance(expression, dict):
            continue
        if _TRANSLATIONS & expression.keys():
            return True
        xt = expression.get("xt")
        if isinstance(xt, dict) and xt.get("type") == "target" and xt.get("name") in _XT_TRANSLATIONS:
            return True
    return False


def _may_leave_by(expressions: Sequence[Any], outside: str) -> bool:
    """Tell whether no comparison of the rule's with an outgoing interface excludes `outside`."""
    for expression in expressions:
        match = expression.get("match") if isinstance(expression, dict) else None
        if not match or match.get("left") not in ({"meta": {"key": "oifname"}}, {"meta": {"key": "oif"}}):
            continue
        named = match["right"]
        names = named["set"] if isinstance(named, dict) and "set" in named else [named]
        if any(not isinstance(name, str) for name in names):
            continue
        fits = any(outside == name or (name.endswith("*") and outside.startswith(name[:-1])) for name in names)
        if fits == (match["op"] == "!="):
            return False
    return True
