"""The case files are worth something: translators with one deliberate fault each are caught by the cases named here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.model import tcp, wire
from tests.support.model.nat import Model
from tests.support.model.state import Mapping, Observed, Reply, Session, Verdict
from tests.support.model.subjects import ModelSubject
from tests.support.model.tcp import Connection, Step
from tests.support.model.wire import Parsed, Refused, Rewriter, Segment
from tests.support.story import Mismatch, play, read_story


class OverloadsPorts(Model):
    """Gives every endpoint the port it wants, taken or not."""

    def external_id(self, protocol: int, host: int, wanted: int) -> int:
        return wanted


class ForgetsParity(Model):
    """Replaces a taken port by the lowest free one."""

    def external_id(self, protocol: int, host: int, wanted: int) -> int:
        free = [port for port in sorted(self.settings.ports) if (protocol, port) not in self.by_external]
        return wanted if wanted in free else free[0]


class MapsByRemote(Model):
    """Symmetric: another port for every remote."""

    def open(self, packet: Parsed) -> Session:
        key = (packet.protocol, packet.source, packet.source_id)
        kept = self.by_inside.pop(key, None)
        session = super().open(packet)
        if kept:
            self.by_inside[(*key, kept.external_id)] = kept
        return session


class AdmitsEverybody(Model):
    """No filtering."""

    def admits(self, mapping: Mapping, remote: int) -> bool:
        return True


class AdmitsNobody(Model):
    """Address-and-port-dependent filtering, whatever the setting."""

    def admits(self, mapping: Mapping, remote: int) -> bool:
        return False


class RefreshesInbound(Model):
    """Lets strangers keep mappings alive."""

    def inbound(self, packet: Parsed, mapping: Mapping, session: Session | None) -> Rewriter:
        for kept in mapping.sessions.values():
            self.refresh(kept)
        return super().inbound(packet, mapping, session)


class NeverRefreshes(Model):
    """Ends a session a fixed time after it was opened."""

    def refresh(self, session: Session) -> None:
        session.expires = session.expires or self.now_ns + self.lifetime(session)


class ErrorsEndSessions(Model):
    """Takes an ICMP error for the end of the session it is about."""

    def inbound_error(self, packet: Parsed, session: Session) -> Rewriter:
        session.mapping.sessions.clear()
        return super().inbound_error(packet, session)


class ForgetsTheQuote(Model):
    """Rewrites only the outside of ICMP errors."""

    def inbound_error(self, packet: Parsed, session: Session) -> Rewriter:
        outer = Rewriter(packet.raw, packet.start, packet.protocol)
        outer.destination(session.inside[0], None)
        return outer


class ReportsAsItself(Model):
    """Lets an inner router's address out in ICMP errors."""

    def outbound_error(self, packet: Parsed) -> Rewriter:
        rewriter = super().outbound_error(packet)
        rewriter.source(packet.source, None)
        return rewriter


class AnswersErrors(Model):
    """Sends errors about errors."""

    def step(self, link: str, packet: bytes, now_ns: int, observed: Observed | None = None) -> Verdict:
        verdict = super().step(link, packet, now_ns, observed)
        if getattr(verdict, "reason", "") == "ttl_exceeded":
            return Reply(link, self.answer(link, wire.parse(packet), 11, 0, 0), "ttl_exceeded")
        return verdict


class ForgetsTtl(Model):
    """Forwards for ever."""

    def check_way(self, packet: Parsed, link: str) -> None:
        pass


class LetsEverythingThrough(Model):
    """Sends what it cannot translate as it is."""

    def outbound(self, packet: Parsed, link: str) -> Rewriter:
        try:
            return super().outbound(packet, link)
        except Refused:
            return Rewriter(packet.raw, packet.start, packet.protocol)


class NoHairpin(Model):
    """Leaves everything for the external address to the host."""

    def to_external_endpoint(self, packet: Parsed) -> Verdict:
        return self.unclaimed(packet)


class TrustsSources(Model):
    """Believes any source address."""

    def may_be_source(self, link: str, address: int) -> bool:
        return True


BROKEN = [
    (OverloadsPorts, "rfc4787-req3-no-overloading"),
    (ForgetsParity, "rfc4787-req4-class-and-parity"),
    (MapsByRemote, "rfc4787-req1-same-port-for-every-remote"),
    (AdmitsEverybody, "rfc4787-req8-filtering-address-dependent"),
    (AdmitsNobody, "rfc4787-req8-filtering-endpoint-independent"),
    (RefreshesInbound, "rfc4787-req6a-inbound-does-not-refresh"),
    (NeverRefreshes, "rfc4787-req6-outbound-refreshes"),
    (ErrorsEndSessions, "rfc5508-req6-errors-refresh-nothing"),
    (ForgetsTheQuote, "C-45-error-from-outside"),
    (ReportsAsItself, "C-45-error-from-inside"),
    (AnswersErrors, "rfc1812-4.3.2.7-never-answered"),
    (ForgetsTtl, "rfc1812-5.3.1-ttl"),
    (LetsEverythingThrough, "C-30-other-protocols"),
    (NoHairpin, "rfc4787-req9-hairpin-udp"),
    (TrustsSources, "rfc1812-5.3.7-martian-sources"),
]


def played_by(model: type[Model], case: str) -> None:
    story = read_story(Path(__file__).parent / f"{case}.case")
    play(story, ModelSubject(story.settings, model(story.settings)))


@pytest.mark.parametrize(("model", "case"), BROKEN, ids=[model.__name__ for model, _ in BROKEN])
def test_fault_is_caught(model: type[Model], case: str) -> None:
    with pytest.raises(Mismatch):
        played_by(model, case)


def no_window(connection: Connection, direction: str, segment: Segment) -> Step:
    """Believe every reset."""
    return Step(Connection(tcp.TRANSITORY, connection.ends), refreshed=True)


def no_correction(checksum: int, old: bytes, new: bytes) -> int:
    """Leave checksums as they are."""
    return checksum


@pytest.mark.parametrize(
    ("module", "name", "fault", "case"),
    [
        (tcp, "reset", no_window, "rfc5961-3.2-blind-resets"),
        (wire, "corrected", no_correction, "rfc3022-4.1-udp-both-ways"),
        (tcp, "fits", lambda *_: True, "rfc5382-forged-segments"),
        (tcp, "window_shift", lambda own, other: 0, "rfc7323-2.2-window-scale-needs-both"),
        (tcp, "LONG_LIVED", (), "rfc5382-req5-established-lives-two-hours"),
        (wire, "check_options", lambda options: None, "rfc7126-ip-options"),
    ],
)
def test_fault_in_a_detail_is_caught(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, fault: Callable, case: str
) -> None:
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(Mismatch):
        played_by(Model, case)
