"""The list of what has been installed on a host; it is on disk before each file is.

A file of JSON, root's own: for every path the states (see `deploy/root.py`) that are our work. There are two while one
of our versions takes the place of another; `complete` is false until all of them are written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastmasq.deploy.root import Root
from fastmasq.errors import KernelError

PATH = "/var/lib/fastmasq/installed.json"

_VERSION = 1


@dataclass
class Manifest:
    """What we have put there: states by path, folders in the order they were made, and whether the user is ours."""

    entries: dict[str, list[str]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    has_user: bool = False
    is_complete: bool = True

    @classmethod
    def read(cls, root: Root) -> Manifest | None:
        """Return that of a root, or None. Raises KernelError if it cannot be read."""
        place = root.at(PATH)
        try:
            content = json.loads(place.read_text())
            if content["version"] != _VERSION:
                raise KernelError(f"{place} was written by another version of fastmasq; uninstall with that one")
            return cls(content["entries"], content["folders"], content["user"], content["complete"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelError(f"{place}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise KernelError(
                f"{place} is damaged; remove what fastmasq has installed by hand, and then that file"
            ) from None

    def write(self, root: Root) -> None:
        """Raises OSError."""
        content: Mapping[str, object] = {
            "version": _VERSION,
            "complete": self.is_complete,
            "user": self.has_user,
            "folders": self.folders,
            "entries": self.entries,
        }
        write_durably(root.at(PATH), json.dumps(content, indent=1).encode() + b"\n", 0o644)

    def is_ours(self, path: str, state: str | None) -> bool:
        """Return whether what is at a path is as we have left it."""
        return state in self.entries.get(path, ())


def beside(place: Path) -> Path:
    """Return the name under which a new file waits for its place."""
    return place.with_name(f".{place.name}.fastmasq-new")


def write_durably(place: Path, content: bytes, mode: int) -> None:
    """Have a file there, as a whole or not at all, also if the power fails. Raises OSError."""
    new = beside(place)
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    os.replace(new, place)


def link_durably(place: Path, target: str) -> None:
    """Have a symbolic link there, in one step. Raises OSError."""
    new = beside(place)
    new.unlink(missing_ok=True)
    os.symlink(target, new)
    os.replace(new, place)
