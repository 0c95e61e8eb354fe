"""The demo's checks on the kernels of every old line that is known: real programs talk through fastmasq there."""

from __future__ import annotations

import pytest

from fastmasq.lab import scenario
from fastmasq.lab.topology import Lab
from tests.support import candidate, old_kernel, old_line


@pytest.mark.parametrize("line", old_kernel.LINES)
def test_the_demo_on_an_old_kernel(lab: Lab, line: str) -> None:
    stage = scenario.set_stage(lab)
    with old_line.running(lab, line, candidate.command()) as (kernel, fastmasq):
        old_line.assert_told(kernel, fastmasq, line)
        status = fastmasq.ask("status")
        assert status["guard"]["backend"] == old_line.expected_guard(line)
        links = [link for link in status["links"] if link["role"] != "local"]
        assert {(link["ring"], link["vnet_header"]) for link in links} == {old_line.expected_ring(line)}
        for check in scenario.CHECKS:
            assert check.run(stage), check.title
        drops = {row["reason"] for row in fastmasq.ask("status")["drops"]}
        assert drops <= scenario.HONEST_DROPS
