"""Protocol and port numbers: those for Python are those for Cython, and those of the kernel."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import fastmasq
from fastmasq.table import rows
from fastmasq.wire import numbers, tunnels

WIRE = Path(fastmasq.__file__).parent / "wire"
PREFIX = "PROTOCOL_"


def declared(pxd: str) -> dict[str, int]:
    """Return the numbers that an enumeration declares."""
    return {
        name: int(value) for name, value in re.findall(r"^ {4}(\w+) = (\d+)", (WIRE / pxd).read_text(), re.MULTILINE)
    }


def test_python_and_cython_have_the_same() -> None:
    for_python = {name: value for name, value in vars(numbers).items() if isinstance(value, int)}
    assert for_python == {name.removeprefix(PREFIX): value for name, value in declared("numbers.pxd").items()}
    assert tunnels.IKE_PORT == numbers.ISAKMP_PORT, "what is compiled is what is written"


def test_the_kernel_has_the_same_protocols() -> None:
    protocols = [name.removeprefix(PREFIX) for name in declared("numbers.pxd") if name.startswith(PREFIX)]
    kernel = {"UDP_LITE": "IPPROTO_UDPLITE", "IPIP": "IPPROTO_IPIP", "DCCP": None}
    assert len(protocols) == 11
    for name in protocols:
        known = kernel.get(name, f"IPPROTO_{name}")
        assert known is None or getattr(numbers, name) == getattr(socket, known)


def test_names() -> None:
    assert {name: getattr(numbers, name.upper()) for name in numbers.BY_NAME} == numbers.BY_NAME
    assert rows.CLASSES == numbers.CLASSES
