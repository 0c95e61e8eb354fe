"""What a running forwarder does without, because this kernel lacks it: for `status`, and a line at the start."""

from __future__ import annotations

from typing import Any

from fastmasq.daemon.host import Host
from fastmasq.daemon.links import Links
from fastmasq.kernel import features, probes


class Fallbacks:
    """Knows what the parts of one gateway were refused; what they do not notice is asked once, at the start."""

    def __init__(self, links: Links, host: Host) -> None:
        self._links = links
        self._host = host
        self._asked = probes.unnoticed()

    def in_force(self) -> list[dict[str, Any]]:
        """Return each use that is done without: name, links (none: all of them), reason, what instead, and its cost."""
        of_host = self._host.refused() | self._asked
        refused = {use: ([], reason) for use, reason in of_host.items()} | self._of_links()
        return [
            {"use": use, "links": links, "reason": reason, "instead": how.instead, "cost": how.cost}
            for use, how in features.USES.items()
            if use in refused
            for links, reason in (refused[use],)
        ]

    def line(self) -> str:
        """Return the one line for the log, or an empty text."""
        names = [each["use"] for each in self.in_force()]
        if not names:
            return ""
        return f"this kernel lacks what fastmasq does without: {', '.join(names)}; see `fastmasq doctor kernel`"

    def _of_links(self) -> dict[str, tuple[list[str], str]]:
        found: dict[str, tuple[list[str], str]] = {}
        for name, refused in self._links.refused().items():
            for use, reason in refused.items():
                found.setdefault(use, ([], reason))[0].append(name)
        return found
