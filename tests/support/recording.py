"""Scripts run by dash, with stand-ins for our programs that write down how they are called; and the same read by us."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from msgspec import Struct

from fastmasq.legacy.script import READERS, parse
from tests.support.legacy import NAMES

SECONDS = 20  # for a script; nothing in one waits


class Call(Struct):
    """What a reader returns that takes any words."""

    words: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def _recorder(program: str):
    return lambda words, names, **_: Call((program, *words))


class Dash:
    """A folder with the five programs, which only record."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = folder / "calls"
        programs = folder / "bin"
        programs.mkdir()
        stand_in = programs / "stand-in"
        stand_in.write_text(f'#!/bin/dash\nprintf "%s\\0" "$#" "${{0##*/}}" "$@" >>{self._calls}\n')
        stand_in.chmod(0o755)
        for program in READERS:
            (programs / program).symlink_to(stand_in)

    def calls(self, script: str, arguments: Sequence[str] = ()) -> list[str]:
        """Return how dash calls our programs when it runs a script, each call as a shell would write it."""
        self._calls.write_bytes(b"")
        file = self._folder / "script"
        file.write_bytes(script.encode())
        command = ["dash", str(file), *arguments]
        environment = {"PATH": f"{self._folder}/bin:/usr/bin:/bin"}
        subprocess.run(
            command, env=environment, cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS
        )  # fmt: skip
        fields = iter(self._calls.read_bytes().decode().split("\0")[:-1])
        return [shlex.join(next(fields) for _ in range(int(count) + 1)) for count in fields]


def calls_read(script: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return the calls that we read in a script, in the same form. Raises ConfigurationError."""
    with mock.patch.dict(READERS, {program: _recorder(program) for program in READERS}):
        return [shlex.join(item.request.words) for item in parse(script, "f", NAMES, arguments=arguments).items]
