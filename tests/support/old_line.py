"""A run on an old kernel in a lab: fastmasq with rules that ask for all it can do, and what must hold of its status."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from fastmasq import program
from fastmasq.kernel import features
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import Lab
from tests.support import old_kernel
from tests.support.old_kernel import OldKernel

RULES = """ipchains -A input -i eth0 -p tcp -d 199.0.0.77 8080 -j REDIRECT 3128
ipchains -A input -i eth0 -p tcp -d 10.0.0.1 9 -j DENY
ipchains -A forward -i eth1 -s 10.0.0.0/8 -j MASQ
"""


@contextlib.contextmanager
def running(lab: Lab, line: str, command: Sequence[str] = ()) -> Iterator[tuple[OldKernel, Fastmasq]]:
    """Have fastmasq forward in a lab's gateway on a kernel of a line, by any command that starts it."""
    rules = lab.directory / "old.rules"
    rules.write_text(RULES)
    extra = f'[rules]\nfiles = ["{rules}"]'
    with (
        OldKernel(lab.directory, line) as kernel,
        Fastmasq(lab, extra, command=(*kernel.command, *(command or program.command()))) as fastmasq,
    ):
        yield kernel, fastmasq


def expected_uses(line: str) -> set[str]:
    """Return the uses that a kernel of a line lacks something for: rules and links ask for all of them."""
    lacks = old_kernel.lacking(line)
    return {use for each in features.FEATURES if each.name in lacks for use in each.uses}


def assert_told(kernel: OldKernel, fastmasq: Fastmasq, line: str) -> None:
    """The kernel was asked and has refused, for every use; `status` and one line of the log name all of these."""
    named = {each["use"]: each for each in fastmasq.ask("status")["fallbacks"]}
    assert named.keys() == expected_uses(line)
    for use in named:
        of_use = [each.name for each in features.FEATURES if use in each.uses]
        assert any(kernel.answers[name] for name in of_use), f"{use}: nobody asked for {of_use}: {kernel.answers}"
        assert named[use]["reason"] and named[use]["instead"] == features.USES[use].instead
    (said,) = [text for text in fastmasq.errors().splitlines() if "does without" in text]
    assert all(use in said for use in named)


def expected_ring(line: str) -> tuple[str, bool]:
    """Return ring mode and virtio header of a kernel of a line."""
    return ("socket" if features.RING_HEADER in expected_uses(line) else "v2"), True


def expected_guard(line: str) -> str:
    """Return the first guard that a kernel of a line has all for."""
    guards = {features.GUARD_TC: "tc", features.GUARD_NFTABLES: "nftables", features.GUARD_IPTABLES: "iptables"}
    return next(backend for use, backend in guards.items() if use not in expected_uses(line))
