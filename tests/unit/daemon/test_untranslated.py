"""What is said of inside hosts that leave outside with their private sources: once a minute each, and in `status`."""

from __future__ import annotations

import pytest

from fastmasq.daemon.untranslated import LINES_PER_SECOND, MOST_HOSTS, MOST_SHOWN, REPEAT_NS, Untranslated
from fastmasq.policy.chains import RuleSet
from fastmasq.units import NS_PER_SECOND
from tests.support.harness import Harness
from tests.support.packets import udp
from tests.support.path_network import INSIDE, OTHER_HOST, THERE, query

SECOND = NS_PER_SECOND


class Leaky:
    """A path whose rules let all leave as it is, and who reports it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.harness = Harness()
        self.forward("ACCEPT")
        self.reported = Untranslated(self.harness.forwarder, "eth1")
        self.caplog = caplog

    def forward(self, policy: str) -> None:
        rule_set = RuleSet(default_forward=False)
        rule_set.set_policy("forward", policy)
        self.harness.set_rule_set(rule_set)

    def leave(self, source: str, packets: int = 1) -> None:
        for _ in range(packets):
            assert self.harness.send(INSIDE, udp((source, 4000), THERE))

    def said(self, now: int) -> list[str]:
        self.caplog.clear()
        self.reported.every_second(now)
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def leaky(caplog) -> Leaky:
    return Leaky(caplog)


def line(source: str, packets: int) -> str:
    return (
        f"{source}, a private address, leaves by eth1 untranslated, as the rules say: last to {THERE[0]}, "
        f"{packets} packets; no answer can come"
    )


def test_each_host_is_in_the_log_once_a_minute(leaky):
    leaky.leave("10.0.0.2", 3)
    assert leaky.said(0) == [line("10.0.0.2", 3)]
    assert leaky.said(SECOND) == []
    leaky.leave("10.0.0.2", 2)
    leaky.leave("10.0.0.3")
    assert leaky.said(2 * SECOND) == [line("10.0.0.3", 1)]
    leaky.leave("10.0.0.2", 1)
    assert leaky.said(REPEAT_NS) == [line("10.0.0.2", 3)]
    assert leaky.said(2 * REPEAT_NS) == []


def test_status_has_the_hosts_heard_of_last(leaky):
    assert leaky.reported.describe() == {"packets": 0, "hosts": []}
    for source in ("10.0.0.2", "10.0.0.3", "10.0.0.2"):
        leaky.leave(source, 2)
        leaky.reported.every_second(0)
    last = {"source": "10.0.0.2", "destination": THERE[0], "packets": 4}
    assert leaky.reported.describe() == {
        "packets": 6,
        "hosts": [last, {"source": "10.0.0.3", "destination": THERE[0], "packets": 2}],
    }


def test_many_hosts_are_neither_many_lines_nor_much_memory(leaky):
    for network in range(2 * MOST_HOSTS // 64):
        for number in range(1, 65):
            leaky.leave(f"10.1.{network}.{number}")
        said = leaky.said(network * SECOND)
        assert 0 < len(said) <= LINES_PER_SECOND + 1
    assert "more lines about private sources that leave untranslated were suppressed" in said[0]
    assert len(leaky.reported.describe()["hosts"]) == MOST_SHOWN
    assert len(leaky.reported._hosts) == MOST_HOSTS


def test_masquerading_is_nothing_to_report(leaky):
    leaky.forward("MASQ")
    assert leaky.harness.send(INSIDE, query(17, (OTHER_HOST, 4000)))
    assert leaky.said(0) == []
    assert leaky.reported.describe() == {"packets": 0, "hosts": []}
