"""A folder that is, or will be, the root of a host: paths in it, as they are seen from within."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path, PurePosixPath

from fastmasq.errors import KernelError

_MOST_LINKS = 40  # on the way to a file, as path_resolution(7) has it


class Root:
    """The host's own root, or that of an image; absolute symbolic links in an image stay within it."""

    def __init__(self, folder: str = "/") -> None:
        """Raises KernelError if there is no such folder."""
        self.folder = Path(folder).resolve()
        self.is_this_host = self.folder == Path("/")
        if not self.folder.is_dir():
            raise KernelError(f"{folder}: no such folder; make it, or name the root of the host to install for")

    def at(self, path: str) -> Path:
        """Return where an absolute path of the host is here. Its last part is not followed if it is a link."""
        parent, name = os.path.split(path)
        return self._follow(parent) / name

    def exists(self, path: str) -> bool:
        """Return whether something is there, or a link that leads to nothing."""
        return os.path.lexists(self.at(path))

    def is_folder(self, path: str) -> bool:
        return self._follow(path).is_dir()

    def is_program(self, path: str) -> bool:
        """Return whether a file of the host may be run there."""
        place = self._follow(path)
        return place.is_file() and os.access(place, os.X_OK)

    def within(self, path: str) -> str | None:
        """Return the host's own name of a file at `path` of the running system; None if it is not in this root."""
        if self.is_this_host:
            return path
        place = Path(os.path.abspath(path))
        return "/" + str(place.relative_to(self.folder)) if place.is_relative_to(self.folder) else None

    def _follow(self, path: str) -> Path:
        """Return where a path leads when every link on its way is read as the host itself would."""
        rest = [part for part in reversed(PurePosixPath(path).parts) if part != "/"]
        place, links = self.folder, 0
        while rest:
            part = rest.pop()
            if part == "..":
                place = place if place == self.folder else place.parent
                continue
            place = place / part
            if place.is_symlink():
                links += 1
                if links > _MOST_LINKS:
                    raise KernelError(f"{place}: too many symbolic links")
                target = PurePosixPath(os.readlink(place))
                place = self.folder if target.is_absolute() else place.parent
                rest += [part for part in reversed(target.parts) if part != "/"]
        return place


def state_of(place: Path) -> str | None:
    """Return what is at a place in one line that is another for every other content; None for nothing.

    "link TARGET", "file SHA256" or "other". Raises KernelError for a file that cannot be read.
    """
    try:
        mode = place.lstat().st_mode
        if stat.S_ISLNK(mode):
            return state_of_link(os.readlink(place))
        return state_of_file(place.read_bytes()) if stat.S_ISREG(mode) else "other"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError(f"{place}: {error.strerror}") from None


def state_of_link(target: str) -> str:
    return f"link {target}"


def state_of_file(content: bytes) -> str:
    return f"file {hashlib.sha256(content).hexdigest()}"
