"""Random rule sets of others, in the kernel and imported: the first packet of a flow and its answer fare alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fastmasq.migrate import iptables_save, nft_json, nft_load
from fastmasq.migrate.carry import carry
from fastmasq.migrate.files import Carried, script, toml
from tests.support import foreign_grammar
from tests.support.foreign_grammar import HOST, OTHER_HOST, OTHER_SERVER, SERVER, TCP_PORTS, UDP_PORTS, Grammar
from tests.support.imported_rules import EXTERNAL, IN, OUT, Fate, ImportedGateway, KernelGateway, Probe
from tests.support.packets import ICMP, TCP, UDP

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"  # else these are fixed examples
CARRIED_WHOLE = 0.8
CALM = settings(
    max_examples=500 if IS_LONG else 20,
    derandomize=not IS_LONG,
    deadline=None,
    phases=[Phase.generate],
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelGateway]:
    gateway = KernelGateway()
    yield gateway
    gateway.close()


def probes() -> list[Probe]:
    """Flows from inside, from outside to the gateway, and from outside straight to an inside host."""
    found = []
    for source in (HOST, OTHER_HOST):
        for destination in (SERVER, OTHER_SERVER):
            found += [(IN, TCP, source, destination, port) for port in TCP_PORTS]
            found += [(IN, UDP, source, destination, port) for port in UDP_PORTS]
            found.append((IN, ICMP, source, destination, 0))
    for source in (SERVER, OTHER_SERVER):
        for destination in (EXTERNAL, HOST):
            found += [(OUT, TCP, source, destination, port) for port in (22, 80, 443, 2222, 8080)]
            found += [(OUT, UDP, source, destination, port) for port in (53, 5000)]
            found.append((OUT, ICMP, source, destination, 0))
    return [
        Probe(side, protocol, source, 20000 + number, destination, port)
        for number, (side, protocol, source, destination, port) in enumerate(found)
    ]


PROBES = probes()


def compare(carried: Carried, kernels: list[tuple[Fate, Fate | None]], ours: list[tuple[Fate, Fate | None]]) -> None:
    """Assert that nothing passes that did not, and that all else fares alike where nothing was left out.

    Always so (migration.md): what the kernel lets through straight to an inside host may be stopped; so may a flow
    whose answer the kernel stops. What is for the host comes to its own rules, in the kernel; so does what is sent to a
    port that was translated and not let pass, or whose answer is stopped.
    """
    assumed = {note.text for note in carried.notes if "taken for all that there is inside" in note.why}
    rules = "\n".join(script(carried))
    for probe, expected, got in zip(PROBES, kernels, ours, strict=True):
        shown = f"{probe}\nkernel {expected}\nours {got}\n{toml(carried)}\n{rules}\n{carried.notes}"
        is_straight = probe.side == OUT and probe.destination != EXTERNAL
        if got == expected:
            continue
        gets_stuck = expected[1] is not None and expected[1].kind != "passed"
        if got[0].kind == "host":
            assert probe.destination == EXTERNAL and (gets_stuck or not expected[1]), shown
            continue
        assert got[0].kind in ("stopped", "refused"), shown
        assert carried.missing or is_straight or assumed or gets_stuck, shown


def imported(program: str, path: Path) -> Carried:
    chains = nft_json.read(*nft_load.load(str(path))) if program == "nft" else iptables_save.read(path.read_text())
    return carry(chains, inside=("eth0",))


def test_imported_rules_do_what_the_kernel_did(kernel: KernelGateway, tmp_path: Path) -> None:
    """And most of them do so whole."""
    whole: list[bool] = []
    path = tmp_path / "rules"

    @CALM
    @given(grammar=foreign_grammar.rule_sets(), program=st.sampled_from(("nft", "iptables")))
    def probe(grammar: Grammar, program: str) -> None:
        path.write_text(getattr(foreign_grammar, program)(grammar))
        kernel.load(program, path)
        carried = imported(program, path)
        ours = ImportedGateway(carried, tmp_path)
        try:
            compare(carried, kernel.fates(PROBES), ours.fates(PROBES))
        finally:
            ours.close()
        whole.append(not carried.missing)

    probe()
    assert sum(whole) >= CARRIED_WHOLE * len(whole), f"{sum(whole)} of {len(whole)}"
