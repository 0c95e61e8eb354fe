"""Missing privileges are named in one line."""

from __future__ import annotations

import os

from fastmasq.errors import KernelError
from fastmasq.kernel import privileges


def status(effective: int) -> str:
    return f"Name:\tpython\nCapPrm:\tffffffffffffffff\nCapEff:\t{effective:016x}\n"


def test_all_there() -> None:
    assert privileges.missing(status(0x1FFFFFFFFFF)) == []
    assert privileges.missing(status(1 << 12 | 1 << 13)) == []


def test_some_missing() -> None:
    assert privileges.missing(status(1 << 12)) == ["CAP_NET_RAW"]
    assert privileges.missing(status(0)) == ["CAP_NET_ADMIN", "CAP_NET_RAW"]


def test_what_it_can_go_without() -> None:
    assert privileges.wanting(status(1 << 12 | 1 << 13)) == ["CAP_BPF", "CAP_PERFMON"]
    assert privileges.wanting(status(1 << 39)) == ["CAP_PERFMON"]
    assert privileges.wanting(status(1 << 21)) == [], "before Linux 5.8 one capability stands for both"


def test_an_ordinary_user_is_told_what_to_do() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            privileges.require()
        except KernelError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        lacking = "CAP_NET_ADMIN (settings, guard, next hops) and CAP_NET_RAW (packets)"
        assert said.read().startswith(f"fastmasq lacks {lacking}: run it as root")
    os.waitpid(child, 0)
