"""The control method `timeouts`: 0 keeps (rule C-20), and FIN counts for connections that close."""

from __future__ import annotations

import pytest

from fastmasq.daemon.timeouts import changed, describe
from fastmasq.errors import ConfigurationError
from fastmasq.table.rows import STATES
from fastmasq.table.timeouts import SECOND, Timeouts


@pytest.mark.parametrize(
    ("params", "now"),
    [
        ({"tcp": 7200, "tcp_fin": 10, "udp": 60}, {"tcp": 7200, "tcp_fin": 10, "udp": 60}),
        ({"tcp": 0, "tcp_fin": 10, "udp": 0}, {"tcp": 7440, "tcp_fin": 10, "udp": 300}),
        ({"udp": 1}, {"tcp": 7440, "tcp_fin": 240, "udp": 1}),
        ({}, {"tcp": 7440, "tcp_fin": 240, "udp": 300}),
    ],
)
def test_c20_zero_keeps_the_present_value(params, now):
    assert describe(changed(Timeouts(), params)) == now


def test_c20_fin_is_for_connections_with_a_fin_in_both_directions():
    before, after = Timeouts().by_state(), changed(Timeouts(), {"tcp_fin": 10}).by_state()
    assert {STATES[state] for state, (old, new) in enumerate(zip(before, after, strict=True)) if old != new} == {
        "closing"
    }
    assert after[STATES.index("closing")] == 10 * SECOND


@pytest.mark.parametrize("params", [{"tcp": -1}, {"tcp": "1h"}, {"icmp": 3}, {"udp": 1 << 31}])
def test_other_parameters_are_refused(params):
    with pytest.raises(ConfigurationError, match=r"timeouts: .*; name tcp, tcp_fin, udp in seconds"):
        changed(Timeouts(), params)
