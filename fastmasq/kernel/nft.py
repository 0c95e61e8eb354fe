"""Runs the program nft, and spells names so that it accepts them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from fastmasq.errors import KernelError

_TIMEOUT_S = 30


def run(purpose: str, *arguments: str, script: str | None = None) -> str:
    """Return nft's output; a script, on its standard input, is one transaction.

    Raises KernelError that begins with `purpose`.
    """
    nft = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if nft is None:
        raise KernelError(f"{purpose}: the program nft is not installed; install the package nftables")
    if script is not None:
        arguments = (*arguments, "-f", "-")
    done = subprocess.run(
        [nft, *arguments], input=script, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        reason = next(iter(done.stderr.splitlines()), f"nft ended with status {done.returncode}")
        raise KernelError(f"{purpose}: {reason.strip()}")
    return done.stdout


def escaped(name: str) -> str:
    """Return a part of a name, a different one for each `name`: eth0.10 becomes eth0_2e10."""
    return re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match[0]):02x}", name)
