"""The program that a release is tried with: this checkout, or the one that FASTMASQ_PROGRAM names, such as a binary."""

from __future__ import annotations

import os

from fastmasq import program

VARIABLE = "FASTMASQ_PROGRAM"


def command() -> list[str]:
    """Return the command line that starts it."""
    named = os.environ.get(VARIABLE)
    return [os.path.abspath(named)] if named else program.command()
