"""A soak fails for what it is to fail for, one thing at a time, and not for what the machine has done."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.soak.ordinary import Ping, Talk
from tests.soak.place import CONTROL
from tests.soak.plan import Act
from tests.soak.verdict import Findings, Sample, judge, losses

HOSTS = ("10.0.0.11", "172.20.0.11")
SECONDS = 100
MB = 1_000_000


def good() -> Findings:
    """A soak of two hosts without a mistake, and one fault at 50 s."""
    acts = [Act(0, 100, "inside", "sweep", 1), Act(50, 51, "fault", "guard", 2)]
    pings = [Ping(host, tenth / 10, 0.001) for tenth in range(10 * SECONDS) for host in (*HOSTS, CONTROL)]
    talks = [Talk(HOSTS[0], "UDP", tenth / 10, tenth / 10 + 0.01, True) for tenth in range(10 * SECONDS)]
    samples = [Sample(second, 40 * MB, 30, second * 0.01) for second in range(SECONDS)]
    return Findings(1, SECONDS, acts, pings, talks, samples, log="fastmasq: warning: said once\n")


def lose(found: Findings, host: str, first: float, until: float) -> None:
    """Have no ping of a host answered in this time."""
    found.pings = [
        ping._replace(after=None) if ping.host == host and first <= ping.at < until else ping for ping in found.pings
    ]


def broken(found: Findings) -> list[str]:
    return [bar.title for bar in judge(found) if not bar.is_kept]


def test_all_is_well() -> None:
    assert broken(good()) == []
    assert losses(good()) == []


def spoil_talks(found: Findings) -> None:
    found.talks = [talk._replace(is_good=talk.at > 1) for talk in found.talks]


def grow(found: Findings) -> None:
    found.samples[-1] = found.samples[-1]._replace(resident=42 * MB + 1)


def keep_a_descriptor(found: Findings) -> None:
    found.samples[-1] = found.samples[-1]._replace(descriptors=31)


def lose_one_in_a_hundred(found: Findings) -> None:
    for second in range(0, 100, 10):
        lose(found, HOSTS[0], second, second + 0.2)


def starve(found: Findings) -> None:
    for second in range(30):
        lose(found, CONTROL, second, second + 0.1)


def trace(found: Findings) -> None:
    found.log += "Traceback (most recent call last):\n"


def leak(found: Findings) -> None:
    found.leaks.append("10.0.0.11 to 199.0.0.1")


def stumble(found: Findings) -> None:
    found.mishaps.append("fastmasq ended after 3 s")


@pytest.mark.parametrize(
    ("spoil", "title"),
    [
        (lose_one_in_a_hundred, "pings lost"),
        (spoil_talks, "conversations failed"),
        (grow, "memory"),
        (keep_a_descriptor, "descriptors"),
        (trace, "tracebacks"),
        (leak, "private sources outside"),
        (starve, "seconds without a verdict"),
        (stumble, "the soak itself"),
    ],
)
def test_one_thing_is_enough(spoil: Callable[[Findings], None], title: str) -> None:
    found = good()
    spoil(found)
    assert broken(found) == [title]


def test_one_host_that_hears_nothing_for_long() -> None:
    """Of many: it is not the rate that tells."""
    found = good()
    crowd = [Ping(f"10.0.1.{host}", second + 0.5, 0.001) for second in range(SECONDS) for host in range(100)]
    found.pings = sorted([*found.pings, *crowd], key=lambda ping: ping.at)
    lose(found, HOSTS[1], 20, 22.2)
    assert broken(found) == ["longest gap"]
    assert losses(found)[0] == "20 s: lost 10 pings; sweep"


def test_what_is_lost_while_a_fault_is_fresh_does_not_count() -> None:
    found = good()
    lose(found, HOSTS[0], 50, 54)
    assert broken(found) == []
    lose(found, HOSTS[0], 54, 57)
    assert broken(found) == ["pings lost", "longest gap"]


def test_what_the_control_pair_has_lost_in_the_same_second_does_not_count() -> None:
    found = good()
    lose(found, HOSTS[0], 20, 25)
    for second in range(20, 25):
        lose(found, CONTROL, second + 0.5, second + 0.6)
    assert broken(found) == []


def test_what_is_lost_while_the_worker_waits_for_a_processor_does_not_count() -> None:
    found = good()
    lose(found, HOSTS[0], 20, 22)
    found.samples = [each._replace(waited=each.waited + 0.5 * min(3, max(0, each.at - 19))) for each in found.samples]
    assert broken(found) == []
