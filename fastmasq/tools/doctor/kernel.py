"""What this kernel lacks of what fastmasq wants of it, what that costs, and what is done instead."""

from __future__ import annotations

import platform

from msgspec import Struct

from fastmasq.kernel import features, probes


class Lack(Struct, frozen=True, kw_only=True):
    """One use that this kernel does not allow. `since` names the features that it needs, each with its version."""

    use: str
    reason: str
    instead: str
    cost: str
    since: tuple[str, ...]


class Report(Struct, frozen=True, kw_only=True):
    """What was found; `uses` is how many were asked for."""

    release: str
    uses: int
    lacking: tuple[Lack, ...]


def examine() -> Report:
    """Ask for everything that fastmasq uses, and change nothing. Raises KernelError without the rights to ask."""
    return Report(
        release=platform.release(),
        uses=len(features.USES),
        lacking=tuple(
            Lack(
                use=use,
                reason=reason,
                instead=features.USES[use].instead,
                cost=features.USES[use].cost,
                since=tuple(f"{each.name} ({each.since})" for each in features.FEATURES if use in each.uses),
            )
            for use, reason in probes.lacking().items()
        ),
    )
