"""What an installation consists of: files and symbolic links, by the path they have on the host."""

from __future__ import annotations

import os
from typing import NamedTuple

from fastmasq.deploy.root import state_of_file, state_of_link


class File(NamedTuple):
    """A file of root's. One that is written `once` is never replaced, whoever has written what is there."""

    path: str
    text: str
    mode: int = 0o644
    once: bool = False

    @property
    def state(self) -> str:
        return state_of_file(self.text.encode())


class Link(NamedTuple):
    """A symbolic link; `target` is a path on the host."""

    path: str
    target: str
    once: bool = False

    @property
    def state(self) -> str:
        return state_of_link(self.target)


Entry = File | Link


def is_configuration(path: str) -> bool:
    """Return whether the administrator may change a file, and has it kept then."""
    return os.path.commonpath([path, "/etc"]) == "/etc"
