"""Runs the programs of iptables for kernels without nftables, and reads what they list."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from fastmasq.errors import KernelError

_TIMEOUT_S = 30
_ATTEMPTS = 5  # another program may hold the lock, or have changed the table since it was read
_TABLES = Path("/proc/net/ip_tables_names")
_FOLDERS = ":/usr/sbin:/sbin"


def has_table(table: str) -> bool:
    """Return whether this network namespace has a table already; to list one would make it."""
    try:
        return table in _TABLES.read_text().split()
    except OSError:
        return False


def chains_and_rules(purpose: str, table: str) -> list[str]:
    """Return a table as the commands that make it (iptables -S). Raises KernelError that begins with `purpose`."""
    return _run(purpose, [_program(purpose, ""), "-t", table, "-S"], None).splitlines()


def restore(purpose: str, table: str, lines: Iterable[str], *, test: bool = False) -> None:
    """Do these commands in one step; what they do not name stays as it is. With `test` nothing is changed.

    Raises KernelError that begins with `purpose`.
    """
    script = "\n".join([f"*{table}", *lines, "COMMIT", ""])
    arguments = [_program(purpose, "-restore"), "--noflush", *(["--test"] if test else [])]
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _run(purpose, arguments, script)
        except KernelError:
            if attempt == _ATTEMPTS:
                raise
        else:
            return


@functools.cache
def _program(purpose: str, kind: str) -> str:
    """Return the program "" or "-restore" that talks to the kernel's own iptables, not to nftables."""
    path = os.environ.get("PATH", "") + _FOLDERS
    legacy = shutil.which(f"iptables-legacy{kind}", path=path)
    if legacy:
        return legacy
    plain = shutil.which(f"iptables{kind}", path=path)
    if plain and "nf_tables" not in _run(purpose, [shutil.which("iptables", path=path) or plain, "--version"], None):
        return plain
    raise KernelError(f"{purpose}: the program iptables-legacy is not installed; install the package iptables")


def _run(purpose: str, argv: list[str], text: str | None) -> str:
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except OSError as error:
        raise KernelError(f"{purpose}: {argv[0]} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{purpose}: {argv[0]} did not end within {_TIMEOUT_S} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise KernelError(f"{purpose}: {lines[0] if lines else f'{argv[0]} ended with status {done.returncode}'}")
    return done.stdout
