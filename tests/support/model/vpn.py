"""What the ESP rules E-1 to E-21 and the call rules P-40 to P-47 say, as slow and obvious Python over lists."""

from __future__ import annotations

from dataclasses import dataclass

SECOND = 1_000_000_000
MINUTE = 60 * SECOND


@dataclass
class Row:
    """An ESP entry as section 4.4 has it."""

    inside: int
    remote: int
    masq: int
    ospi: int
    ispi: int = 0
    state: str = "outstanding"
    blocking: bool = False
    retries: int = 0
    expires: int = 0


class EspRules:
    """The serialiser of 1999, without evidence; all remotes are reached through one address."""

    def __init__(self, lifetime: int, init: int, retries: int, squelch: int, margin: int, most: int) -> None:
        self.lifetime, self.init, self.retries, self.squelch = lifetime, init, retries, squelch
        self.margin, self.most = margin, most
        self.rows: list[Row] = []
        self.isakmp: dict[tuple[int, int], int] = {}  # (inside, remote): last packet
        self.lost: dict[tuple[int, int], int] = {}  # (inside, remote) that has lost its turn: until when
        self.waiting: dict[tuple[int, int, int], int] = {}  # (inside, remote, spi): until when

    def expire(self, now: int) -> None:
        self.rows = [row for row in self.rows if row.expires > now]
        self.lost = {key: until for key, until in self.lost.items() if until > now}
        self.waiting = {key: until for key, until in self.waiting.items() if until > now}

    def outbound(self, inside: int, masq: int, remote: int, spi: int, now: int) -> str:
        """Return "sent" or the reason to drop."""
        self.expire(now)
        if spi == 0:
            return "esp_zero_spi"
        for row in self.rows:
            if (row.inside, row.remote, row.ospi) == (inside, remote, spi):
                return self._known(row, now)
        pending = [row for row in self.rows if row.remote == remote and row.state == "outstanding"]
        if pending:
            pending[0].blocking = True
            self.waiting[inside, remote, spi] = now + self.init
            own = pending[0].inside == inside
            return "esp_squelched" if own and self._has_lost_its_turn(pending[0], now) else "esp_blocked"
        others = any(one != inside for one, wanted, _ in self.waiting if wanted == remote)
        if (inside, remote) in self.lost and others:
            return "esp_squelched"
        self.waiting.pop((inside, remote, spi), None)
        self.rows.append(Row(inside, remote, masq, spi, expires=now + self.init))
        return "sent"

    def _known(self, row: Row, now: int) -> str:
        if row.state == "squelched":
            return "esp_squelched"
        if row.state == "established":
            row.expires = now + self.lifetime
            return "sent"
        if row.blocking and self._has_lost_its_turn(row, now):
            return "esp_squelched"
        row.expires = now + self.init
        return "sent"

    def _has_lost_its_turn(self, row: Row, now: int) -> bool:
        """Count a packet of a host whose start others wait for, with whatever SPI."""
        row.retries += 1
        if row.retries <= self.retries:
            return False
        row.state, row.expires = "squelched", now + self.squelch
        self.lost[row.inside, row.remote] = row.expires
        return True

    def inbound(self, remote: int, masq: int, spi: int, now: int) -> tuple[int, ...] | str:
        """Return the hosts that get it, none for the gateway itself, or the reason to drop."""
        self.expire(now)
        if spi == 0:
            return "esp_zero_spi"
        here = [row for row in self.rows if (row.remote, row.masq) == (remote, masq)]
        known = [row for row in here if row.ispi == spi]
        pending = [row for row in here if row.state == "outstanding"]
        for row in known or pending:
            row.ispi, row.state, row.expires = spi, "established", now + self.lifetime
            return (row.inside,)
        alive = {host: at for (host, one), at in self.isakmp.items() if one == remote}
        recent = sorted((at, host) for host, at in alive.items() if at + self.lifetime - now > self.margin)
        return tuple(host for _, host in reversed(recent))[: self.most]


class CallRules:
    """External Call IDs of one masquerade address: who has which, and until when."""

    def __init__(self, closing: int) -> None:
        self.closing = closing
        self.rows: dict[tuple[int, int], dict] = {}  # (control, local id)

    def expire(self, now: int) -> None:
        self.rows = {key: row for key, row in self.rows.items() if row["ends"] is None or row["ends"] > now}

    def taken(self, remote: int) -> set[int]:
        return {row["external"] for row in self.rows.values() if row["remote"] == remote}

    def opened(self, control: int, inside: int, remote: int, local: int, external: int) -> None:
        """Check an external id that was given, and note it."""
        row = self.rows.get((control, local))
        if row is not None:
            assert external == row["external"], "P-41: the same id again"
            row["ends"] = None
            return
        mine = [
            key for key, one in self.rows.items()
            if (one["inside"], key[1], one["remote"], one["external"]) == (inside, local, remote, local)
            and one["ends"] is not None
        ]  # fmt: skip
        for key in mine:
            del self.rows[key]  # the host's own number, of a call that is over
        taken = self.taken(remote)
        assert external not in taken, "P-40: unique by remote"
        assert external == local or local in taken, "P-40: the own id if it is free"
        assert external == local or 61000 <= external <= 65095, "P-40: else of the classic range"
        self.rows[control, local] = {"inside": inside, "remote": remote, "external": external, "ends": None}

    def retired(self, control: int, local: int, now: int) -> None:
        row = self.rows[control, local]
        row["ends"] = now + self.closing if row["ends"] is None else row["ends"]
