"""Puts an installation into a root and takes it out: all of it or nothing, and nothing that is not ours.

What is in the way is found before anything is written. Then the manifest says what is coming, then it comes: an
installation that was interrupted is known as ours, file by file, and the next one completes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastmasq.deploy import manifest
from fastmasq.deploy.entries import Entry, File, is_configuration
from fastmasq.deploy.manifest import Manifest
from fastmasq.deploy.root import Root, state_of
from fastmasq.errors import KernelError
from fastmasq.kernel import key

_FOLDER_MODE = 0o755


def obstacles(root: Root, entries: Sequence[Entry], known: Manifest) -> list[str]:
    """Return one line for each reason why these entries cannot be had."""
    paths = [entry.path for entry in entries]
    return [
        *(line for path in dict.fromkeys([*map(os.path.dirname, paths), os.path.dirname(manifest.PATH)])
          if (line := _unwritable(root, path))),
        *(line for entry in entries if (line := _occupied(root, entry, known))),
    ]  # fmt: skip


def install(root: Root, entries: Sequence[Entry], has_user: bool = False) -> Iterator[str]:
    """Bring a root to have these entries, and no others of ours; yield a line for each change, once it is made.

    `has_user` says that the user was made by us. Raises KernelError, before anything has changed unless the disk fails.
    """
    before = Manifest.read(root) or Manifest()
    if in_the_way := obstacles(root, entries, before):
        raise KernelError("\n".join([*in_the_way, "nothing was installed"]))
    if not before.is_complete:
        yield "an earlier installation was interrupted; completing it"
    wanted = [entry for entry in entries if not _stays(root, entry, before)]
    stays = [entry.path for entry in entries if entry not in wanted]
    yield from (f"{path}: kept as it is" for path in stays if root.exists(path))
    outdated = [path for path in before.entries if path not in {entry.path for entry in entries}]
    coming = Manifest(
        entries={
            **{path: before.entries[path] for path in [*outdated, *stays] if path in before.entries},
            **{entry.path: list({*before.entries.get(entry.path, ()), entry.state}) for entry in wanted},
        },
        folders=list(before.folders),
        has_user=before.has_user or has_user,
        is_complete=False,
    )
    _begin(root, coming)
    try:
        for entry in wanted:
            _make_folders(root, os.path.dirname(entry.path), coming)
            if _put(root, entry):
                yield f"{entry.path}: installed"
        for path in outdated:
            yield from _remove(root, path, coming)
        coming.entries |= {entry.path: [entry.state] for entry in wanted}
        coming.entries = {entry.path: coming.entries[entry.path] for entry in entries if entry.path in coming.entries}
        coming.is_complete = True
        coming.write(root)
    except OSError as error:
        raise KernelError(
            f"{error.filename or root.folder}: {error.strerror}; the next `fastmasq install` completes this one, "
            "`fastmasq uninstall` undoes it"
        ) from None


def uninstall(root: Root) -> Iterator[str]:
    """Remove what the manifest of a root says, and what has changed since only if it is no configuration of the host.

    Yields a line for each change. Raises KernelError if nothing is installed, or if something cannot be removed.
    """
    known = Manifest.read(root)
    if known is None:
        raise KernelError(f"nothing is installed in {root.folder} by `fastmasq install`")
    try:
        for path in reversed(list(known.entries)):
            yield from _remove(root, path, known)
        manifest.beside(root.at(manifest.PATH)).unlink(missing_ok=True)
        root.at(str(key.FOLDER / key.NAME)).unlink(missing_ok=True)  # a run has made it
        root.at(manifest.PATH).unlink()
        for folder in [*reversed(known.folders), str(key.FOLDER)]:
            with contextlib.suppress(OSError):  # others have put something there
                root.at(folder).rmdir()
    except OSError as error:
        raise KernelError(f"{error.filename}: {error.strerror}; `fastmasq uninstall` again goes on") from None


def _unwritable(root: Root, folder: str) -> str | None:
    """Say why a folder cannot be had, or nothing be written to it."""
    place = nearest = root.at(os.path.join(folder, "."))
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is no folder, so there can be no {place}; move it away"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest}: nothing can be written there; install as root"
    return None


def _occupied(root: Root, entry: Entry, known: Manifest) -> str | None:
    """Say what is where an entry belongs, if it is not our work and may not stay."""
    place = root.at(entry.path)
    state = state_of(place)
    if state is None or entry.once or known.is_ours(entry.path, state):
        return None
    if entry.path not in known.entries:
        return f"{place} is there and is not fastmasq's; move it away"
    return None if is_configuration(entry.path) else f"{place} was changed since it was installed; move it away"


def _stays(root: Root, entry: Entry, known: Manifest) -> bool:
    """Whether what is there is not to be replaced: a configuration that the administrator has, or has changed."""
    state = state_of(root.at(entry.path))
    return state is not None and (entry.once or not known.is_ours(entry.path, state))


def _begin(root: Root, coming: Manifest) -> None:
    """Write the manifest of what is coming. Raises KernelError, and has left nothing if there was none before."""
    made = len(coming.folders)
    try:
        _make_folders(root, os.path.dirname(manifest.PATH), coming)
        coming.write(root)
    except OSError as error:
        with contextlib.suppress(OSError):
            manifest.beside(root.at(manifest.PATH)).unlink(missing_ok=True)
            for folder in reversed(coming.folders[made:]):
                root.at(folder).rmdir()
        raise KernelError(f"{error.filename}: {error.strerror}; nothing was installed") from None


def _put(root: Root, entry: Entry) -> bool:
    """Write an entry; return whether there was anything to do. Raises OSError."""
    place = root.at(entry.path)
    if state_of(place) == entry.state:
        return False
    if isinstance(entry, File):
        manifest.write_durably(place, entry.text.encode(), entry.mode)
    else:
        manifest.link_durably(place, entry.target)
    return True


def _make_folders(root: Root, folder: str, coming: Manifest) -> None:
    """Make a folder and those above it, each noted before for the day when it is to go. Raises OSError."""
    above = [str(path) for path in reversed(Path(folder).parents)]
    for path in [*above, folder]:
        place = root.at(os.path.join(path, "."))
        if place.is_dir():
            continue
        if path not in coming.folders:
            coming.folders.append(path)
            if root.exists(manifest.PATH):
                coming.write(root)
        place.mkdir(mode=_FOLDER_MODE)
        place.chmod(_FOLDER_MODE)


def _remove(root: Root, path: str, known: Manifest) -> Iterator[str]:
    """Remove what we have put at a path, and what may wait beside it. Raises OSError."""
    place = root.at(path)
    manifest.beside(place).unlink(missing_ok=True)
    state = state_of(place)
    if state is not None and known.is_ours(path, state):
        place.unlink()
        yield f"{path}: removed"
    elif state is not None:
        yield f"{path}: kept, since it was changed"
    known.entries.pop(path)
    known.write(root)
