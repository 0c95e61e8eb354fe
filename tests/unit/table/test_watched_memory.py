"""The tests' eye on memory: it sees every write, whoever makes it, in order, and nothing else is different for it."""

from __future__ import annotations

import ctypes
import mmap
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.support.watched import WatchedMemory

OCTETS = 4 * mmap.PAGESIZE
ELSEWHERE = """
import ctypes, mmap
from tests.support.watched import WatchedMemory
with WatchedMemory(mmap.mmap(-1, mmap.PAGESIZE)):
    ctypes.memset(8, 0, 1)
"""


def test_writes_are_seen_in_their_order() -> None:
    memory = mmap.mmap(-1, OCTETS)
    words = np.frombuffer(memory, "u4")
    with WatchedMemory(memory) as watched:
        words[7] = 0x04030201
        words[3] = 1
        words[3] = 1
        words[7] = 0x04050201
    assert watched.writes == [(28, b"\1\2\3\4"), (12, b"\1"), (30, b"\5")]


def test_wide_writes_over_the_ends_of_pages_are_whole() -> None:
    memory = mmap.mmap(-1, OCTETS)
    octets = np.frombuffer(memory, "u1")
    with WatchedMemory(memory) as watched:
        ctypes.memset(octets.ctypes.data + mmap.PAGESIZE - 99, 0xAA, mmap.PAGESIZE + 199)
        ctypes.memmove(octets.ctypes.data + 3 * mmap.PAGESIZE - 1, b"xy", 2)
    copy = bytearray(OCTETS)
    for offset, changed in watched.writes:
        copy[offset : offset + len(changed)] = changed
    assert copy == memory[:] and copy.count(0xAA) == mmap.PAGESIZE + 199


def test_memory_that_is_not_watched_any_more_is_as_it_was() -> None:
    memory = mmap.mmap(-1, OCTETS)
    handlers = signal.getsignal(signal.SIGSEGV), signal.getsignal(signal.SIGTRAP)
    watched = WatchedMemory(memory)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), watched:
            memory[0] = 1 // 0
        memory[5] += 1
        assert watched.writes == []
    assert handlers == (signal.getsignal(signal.SIGSEGV), signal.getsignal(signal.SIGTRAP))


def test_a_fault_elsewhere_is_fatal_as_ever() -> None:
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, timeout=60)
    assert done.returncode in (-signal.SIGSEGV, -signal.SIGABRT), "by AddressSanitizer's own handler"


def test_more_writes_than_there_is_room_for() -> None:
    memory = mmap.mmap(-1, OCTETS)
    watched = WatchedMemory(memory, room=2)
    with pytest.raises(BufferError, match="3 writes: there is room for 2"), watched:
        for number in range(3):
            memory[number] = 1
    assert memory[:3] == b"\1\1\1"


def test_what_cannot_be_watched() -> None:
    with pytest.raises(ValueError, match="whole pages of 4096 octets"):
        WatchedMemory(bytearray(OCTETS + 1))
    memory = mmap.mmap(-1, OCTETS)
    with WatchedMemory(memory), pytest.raises(RuntimeError, match="other memory"):
        WatchedMemory(memory).__enter__()
