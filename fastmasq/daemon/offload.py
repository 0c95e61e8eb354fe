"""Sessions that the kernel carries: by its program at the links of one gateway; or why it carries none."""

from __future__ import annotations

import logging
from typing import Any

from fastmasq.config.schema import Settings
from fastmasq.daemon.host import Host
from fastmasq.daemon.links import Links
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.kernel.guard.backends import will_mark
from fastmasq.offload.arrays import Arrays
from fastmasq.offload.attachment import Attachment
from fastmasq.path.forwarder import Forwarder

log = logging.getLogger("fastmasq.engine")

SWITCHED_OFF = '[offload] mode is "off"'
NO_PLACE = "only behind a guard of tc or nftables is a tap that sees nothing of what the kernel carries"
NO_LINK = "there is no link that it could stand at"
BY_POLICY = "triggers or marks want to see every packet"


def capacity(settings: Settings, *, is_shared: bool) -> int:
    """Return how many sessions a table may have."""
    most = settings.limits.sessions
    return min(most, settings.offload.sessions) if is_shared else most


def complaint(settings: Settings) -> str:
    """Return why the kernel would carry no sessions, though it is to; "" if it would. Nothing is left behind."""
    if settings.offload.mode == "off":
        return ""
    try:
        _attach(settings, will_mark(settings.takeover.guard)).close()
    except FastmasqError as error:
        return str(error)
    return ""


def _attach(settings: Settings, guard_marks: bool) -> Attachment:
    """Return the program, at no link yet. Raises KernelError if it cannot be had, or has no place."""
    if not guard_marks:
        raise KernelError(NO_PLACE)
    return Attachment(capacity(settings, is_shared=True))


class Offload:
    """What carries sessions; without `arrays` nothing ever does. Why not is in the log, and in `describe`."""

    def __init__(self, settings: Settings, host: Host) -> None:
        self._host = host
        self._attachment: Attachment | None = None
        self._why_not = ""
        self._is_placed = False
        try:
            if settings.offload.mode == "off":
                self._why_not = SWITCHED_OFF
            else:
                self._attachment = _attach(settings, host.guard_marks())
        except KernelError as error:
            self._give_up(error)

    @property
    def arrays(self) -> Arrays | None:
        return self._attachment.arrays if self._attachment else None

    def follow(self, forwarder: Forwarder, links: Links) -> None:
        """Have the program at the links that are attached, if their taps stand where it can."""
        if self._attachment is None or self._why_not:
            return
        interfaces = {
            number: attached.ifindex
            for number, attached in links.attached.items()
            if attached.is_behind and links.links[number].role != "local" and self._host.guard_marks()
        }
        try:
            self._attachment.follow(interfaces)
        except KernelError as error:
            self._attachment.follow({})
            interfaces = {}
            self._give_up(error)
        self._is_placed = bool(interfaces)
        with forwarder.locked():
            for number in links.links:
                forwarder.carry_by(number, interfaces.get(number, 0))
            forwarder.carry(self._is_placed)

    def describe(self, forwarder: Forwarder) -> dict[str, Any]:
        """Return what `status` shows: what has been carried, of how many packets; whether, and why not."""
        packets, octets = forwarder.table.carried()
        why_not = self._why_not or ("" if forwarder.is_carrying else self._why_idle())
        return {
            "carries": not why_not,
            "why_not": why_not,
            "packets": packets,
            "octets": octets,
            "forwarded": forwarder.verdicts()["forward"],
        }

    def _why_idle(self) -> str:
        if self._is_placed:
            return BY_POLICY
        return NO_LINK if self._host.guard_marks() else NO_PLACE

    def _give_up(self, error: KernelError) -> None:
        self._why_not = str(error)
        log.warning("the kernel carries no sessions: %s", error)

    def close(self) -> None:
        if self._attachment is not None:
            self._attachment.close()
