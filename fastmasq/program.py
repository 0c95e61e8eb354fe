"""Which program this is, how it was called, and how it is started once more: from Python, or as a bundle.

A bundle is a program with its own Python in it, as scripts/build-binary makes it. It is one program for all names: the
name it is called by decides, where a wheel has a script for each.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

NAME = "fastmasq"
SUPERVISOR = "fastmasq-supervisor"
"""What a bundle calls itself while it is the small process of `run --supervise`."""

FILE_VARIABLE = "FASTMASQ_FILE"
"""Of a bundle's environment: the file that it was unpacked from."""
LEGACY = {
    "ipfwadm": "fastmasq.legacy.command:ipfwadm",
    "ipchains": "fastmasq.legacy.command:ipchains",
    "ipchains-save": "fastmasq.legacy.command:ipchains_save",
    "ipchains-restore": "fastmasq.legacy.command:ipchains_restore",
    "ipportfw": "fastmasq.legacy.forwarding:main_ipportfw",
    "ipmasqadm": "fastmasq.legacy.forwarding:main_ipmasqadm",
    "ipfwd": "fastmasq.legacy.forwarding:main_ipfwd",
}
"""The names of 1999, and the console script that each is; pyproject.toml has the same for wheels."""


def is_bundle() -> bool:
    """Return whether this is a bundle; sys.executable is then the program itself, not a Python."""
    return getattr(sys, "frozen", False)


def is_one_file() -> bool:
    """Return whether this is a bundle that unpacks itself somewhere else each time it is started."""
    return is_bundle() and os.path.dirname(sys._MEIPASS) != os.path.dirname(sys.executable)


def command(*arguments: str) -> list[str]:
    """Return the command line that starts this very `fastmasq` with other arguments."""
    start = [sys.executable] if is_bundle() else [sys.executable, "-m", NAME]
    return [*start, *arguments]


def start_anew(name: str, arguments: Sequence[str]) -> NoReturn:
    """Have this process of a bundle become one called `name`, which has imported nothing yet. Does not return.

    It stays where it is unpacked, and has that removed at its end.
    """
    environment = os.environ | ({FILE_VARIABLE: sys.executable} if is_one_file() else {})
    os.execve(os.path.join(os.path.dirname(sys._MEIPASS), NAME), [name, *arguments], environment)


def called_as() -> str:
    """Return the name this process was called by, without folders: "fastmasq", or one of LEGACY."""
    name = os.path.basename(sys.argv[0])
    return NAME if name == "__main__.py" else name


def main() -> None:
    """Run what a bundle was called as: a program of 1999 by its name, `fastmasq` by every other."""
    names = {**LEGACY, SUPERVISOR: "fastmasq.cli.supervisor:main"}
    module, _, function = names.get(called_as(), "fastmasq.cli.main:main").partition(":")
    getattr(importlib.import_module(module), function)()
