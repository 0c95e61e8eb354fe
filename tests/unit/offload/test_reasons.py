"""Why the kernel carries no sessions: each reason that can be had without a network, forced."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from fastmasq.config.schema import Settings
from fastmasq.daemon.offload import NO_PLACE, SWITCHED_OFF, Offload, complaint
from fastmasq.kernel.bpf import calls
from fastmasq.offload import program

WANTED = replace(Settings(), offload=replace(Settings().offload, mode="auto", sessions=16))


@dataclass
class SomeHost:
    marks: bool = True

    def guard_marks(self) -> bool:
        return self.marks


def why_not(settings: Settings = WANTED, *, marks: bool = True) -> str:
    """Return what is said at a start, and see that there are arrays only where nothing is."""
    offload = Offload(settings, SomeHost(marks))
    reason = offload._why_not
    assert (offload.arrays is None) == bool(reason)
    offload.close()
    return reason


def refusing(code: int):
    def refuse(*_args, **_named):
        raise OSError(code, os.strerror(code))

    return refuse


def test_nothing_is_in_its_way() -> None:
    assert why_not() == ""
    assert complaint(WANTED) == ""


def test_it_is_not_asked_for() -> None:
    assert why_not(Settings()) == SWITCHED_OFF
    assert complaint(Settings()) == ""


def test_no_place_without_a_guard_that_marks() -> None:
    assert why_not(marks=False) == NO_PLACE
    assert complaint(replace(WANTED, takeover=replace(WANTED.takeover, guard="none"))) == NO_PLACE


def test_the_program_was_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    read = program.read
    monkeypatch.setattr(program, "read", lambda: read(tmp_path / "flow.bpf.o"))
    assert why_not() == complaint(WANTED) == "the program was not built: there was no compiler for it (gcc-bpf)"


def test_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert why_not() == complaint(WANTED) == "processors of aarch64 show their writes to others in any order"


def test_a_kernel_without_such_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.5 the flag is unknown."""
    monkeypatch.setattr(calls, "make_array", refusing(errno.EINVAL))
    assert why_not() == complaint(WANTED) == "the kernel has no arrays for 16 sessions: Invalid argument"


def test_a_kernel_that_refuses_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verifier, here of code that begins with what nobody has written: r0 = r9."""
    code = program.read()
    monkeypatch.setattr(program, "read", lambda: code._replace(code=b"\xbf\x90" + bytes(6) + code.code[8:]))
    assert why_not().startswith("the kernel refused the program: bpf: Permission denied")


def test_a_kernel_without_a_place_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "attach_to_interface", refusing(errno.EINVAL))
    assert why_not() == "the program cannot be put at a link (since Linux 6.6): Invalid argument"


def test_without_capabilities() -> None:
    asked = "from tests.unit.offload.test_reasons import why_not; print(why_not())"
    dropped = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", sys.executable, "-c", asked]
    done = subprocess.run(dropped, capture_output=True, text=True, check=True)
    assert done.stdout == "fastmasq lacks CAP_BPF and CAP_PERFMON\n"
