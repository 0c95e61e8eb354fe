"""Protocol and port numbers: those for Python are those for Cython, and those of the kernel."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import fastmasq
from fastmasq.wire import numbers

WIRE = Path(fastmasq.__file__).parent / "wire"


def declared(pxd: str) -> dict[str, int]:
    """Return the numbers that an enumeration declares."""
    return {
        name: int(value) for name, value in re.findall(r"^ {4}(\w+) = (\d+)", (WIRE / pxd).read_text(), re.MULTILINE)
    }


def test_python_and_cython_have_the_same() -> None:
    for_python = {name: value for name, value in vars(numbers).items() if isinstance(value, int)}
    for_cython = {name: value for name, value in declared("numbers.pxd").items() if name != "CLASS_COUNT"}
    assert for_python == for_cython


def test_the_kernel_has_the_same_protocols() -> None:
    others = {"UDP_LITE": "UDPLITE"}
    protocols = [
        name for name in declared("numbers.pxd") if not name.startswith("CLASS_") and not name.endswith("_PORT")
    ]
    assert len(protocols) == 11
    for name in set(protocols) - {"DCCP"}:  # which socket has no name for
        assert getattr(numbers, name) == getattr(socket, f"IPPROTO_{others.get(name, name)}")


def test_names() -> None:
    assert {name: getattr(numbers, name.upper()) for name in numbers.BY_NAME} == numbers.BY_NAME
    classes = {name: value for name, value in declared("numbers.pxd").items() if name.startswith("CLASS_")}
    assert [f"CLASS_{name.upper()}" for name in numbers.CLASSES] == sorted(classes, key=classes.get)[:-1]
    assert classes["CLASS_COUNT"] == len(numbers.CLASSES)
