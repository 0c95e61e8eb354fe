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


def become(helper: str, arguments: Sequence[str]) -> NoReturn:
    """Have this process of a bundle become a small program that it brings. Does not return.

    What one file has unpacked is removed: the small program needs nothing of it.
    """
    with open(os.path.join(sys._MEIPASS, helper), "rb") as opened:
        _remove_unpacked()
        os.execve(opened.fileno(), [f"{NAME}-{helper}", *arguments], os.environ)


def leave() -> NoReturn:
    """End this process at once, in the middle of whatever it does, with status 0."""
    _remove_unpacked()
    os._exit(0)


def _remove_unpacked() -> None:
    """Remove what one file has unpacked for this process."""
    if is_one_file():
        import shutil

        shutil.rmtree(os.path.dirname(sys._MEIPASS), ignore_errors=True)


def called_as() -> str:
    """Return the name this process was called by, without folders: "fastmasq", or one of LEGACY."""
    name = os.path.basename(sys.argv[0])
    return NAME if name == "__main__.py" else name


def main() -> None:
    """Run what a bundle was called as: a program of 1999 by its name, `fastmasq` by every other."""
    module, _, function = LEGACY.get(called_as(), "fastmasq.cli.main:main").partition(":")
    getattr(importlib.import_module(module), function)()
