"""Which guard there is to be: the backends by name, and the first of them that works here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fastmasq.errors import KernelError
from fastmasq.kernel.guard.iptables import IptablesGuard
from fastmasq.kernel.guard.nftables import NftablesGuard
from fastmasq.kernel.guard.specification import Guard, GuardSpec
from fastmasq.kernel.guard.tc import TcGuard


class NoGuard(Guard):
    """The host sees everything: for hosts that have no other, and for measurements."""

    backend = "none"

    def check(self) -> None:
        pass

    def update(self, spec: GuardSpec) -> None:
        pass

    def remove(self) -> bool:
        return False

    def _altered(self) -> Collection[str]:
        return ()

    def describe(self) -> str:
        return "none: the host sees our packets too and may answer them with RST or port unreachable"


# In the order in which "auto" tries them. Sending 60-byte UDP packets that are ours over veth costs about
# 660-880 ns of CPU a packet without a guard, 570-710 with nftables and 500-550 with tc; one that passes to the host
# costs some 280 ns more with nftables and 80 more with tc (Linux 6.18, a busy virtual machine, lowest of 3 runs each,
# outliers left out). An update takes 16-28 ms with nftables and 1-6 ms with tc.
_BACKENDS: dict[str, Callable[[Mapping[str, Any]], Guard]] = {
    "tc": TcGuard,
    "nftables": lambda memory: NftablesGuard(),
    "iptables": lambda memory: IptablesGuard(),
    "none": lambda memory: NoGuard(),
}
BACKENDS: Sequence[str] = tuple(_BACKENDS)


def make_guard(backend: str, memory: Mapping[str, Any] | None = None) -> Guard:
    """Return the guard of that backend, unchecked; with its `memory`, what another process installed can be removed."""
    return _BACKENDS[backend](memory or {})


def candidates(backend: str) -> Sequence[str]:
    """Return the backends to try in turn: one that is named, or all for "auto", of which "none" always works."""
    return BACKENDS if backend == "auto" else (backend,)


def _make_checked(backend: str) -> Guard:
    guard = make_guard(backend)
    guard.check()
    return guard


def open_guard(backend: str = "auto", begin: Callable[[str], Guard] = _make_checked) -> Guard:
    """Return the guard of a named backend; of "auto" that of the first by which `begin` makes one.

    By default it is one that works here as far as can be told before it is in force. What was refused before is in its
    `refused`. Raises KernelError if the named backend does not work.
    """
    refused: dict[str, str] = {}
    for name in candidates(backend):
        try:
            guard = begin(name)
        except KernelError as error:
            if name == backend:
                raise
            refused[name] = str(error)
            continue
        guard.refused = refused
        return guard
    raise AssertionError("the guard that does nothing always works")


def will_mark(backend: str) -> bool:
    """Return whether taps are to stand behind the guard, as far as can be told before it is in force.

    Raises KernelError if the named backend does not work.
    """
    expected = open_guard(backend)
    expected.close()
    return expected.marks
