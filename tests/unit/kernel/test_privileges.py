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
        assert said.read().startswith("fastmasq lacks CAP_NET_ADMIN and CAP_NET_RAW: run it as root")
    os.waitpid(child, 0)
