"""Opens files that decide what we do: nobody else may have written them, none is waited for, and each has an end."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Collection

SERVICE_USER = "fastmasq"

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_LINKS = 40  # on the way to a file, as path_resolution(7) has it


def trusted_owners() -> set[int]:
    """Return the users whose files we go by: root, our own, and for root whoever has called sudo."""
    return {0, os.geteuid(), _caller()}


def caller_may_see() -> bool:
    """Return whether whoever has called us may be shown what we read: through sudo he might not read it himself."""
    return _caller() == os.geteuid()


def _caller() -> int:
    """Return the user who has called us: through sudo, or ourselves."""
    caller = os.environ.get("SUDO_UID", "")
    return int(caller) if os.geteuid() == 0 and caller.isdecimal() and len(caller) <= 10 else os.geteuid()


def service_user() -> set[int]:
    """Return the user of a forwarder that is a service, if this host has one."""
    try:
        return {pwd.getpwnam(SERVICE_USER).pw_uid}
    except KeyError:
        return set()


def read(path: str | os.PathLike[str], largest: int, *, and_of: Collection[int] = ()) -> bytes:
    """Return the content of a regular file of at most `largest` octets, if nobody else can have written it.

    Links are followed. What they lead to, and each folder on the way, must belong to one of `trusted_owners`, or to
    these further users, and not be open to everybody; a sticky folder may be. A group that may write was chosen by the
    owner. Raises OSError, whose strerror says what is wrong.
    """
    owners = {*trusted_owners(), *and_of}
    descriptor = os.open(judged(os.fspath(path), owners), _FLAGS)
    try:
        return read_open(descriptor, os.fspath(path), largest, owners)
    finally:
        os.close(descriptor)


def read_open(descriptor: int, name: str, largest: int, owners: Collection[int]) -> bytes:
    """Return the content of an open file, as `read` does; `name` is for messages. Raises OSError."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    judge(name, status, owners)
    pieces, room = [], largest + 1  # a file of /proc has no size
    while room and (piece := os.read(descriptor, min(room, 1 << 20))):
        pieces.append(piece)
        room -= len(piece)
    if not room:
        raise OSError(errno.EFBIG, f"it has more than {largest} octets")
    return b"".join(pieces)


def judged(path: str, owners: Collection[int]) -> str:
    """Return a path without links to the same file, having judged the links and folders on the way. Raises OSError."""
    rest = _parts(os.path.join(os.getcwd(), path))
    place, links = "/", 0
    while rest:
        part = rest.pop()
        here = os.path.dirname(place) if part == ".." else os.path.join(place, part)
        status = os.lstat(here)
        if stat.S_ISLNK(status.st_mode):
            _judge_owner(here, status, owners)
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(here)
            place = "/" if target.startswith("/") else place
            rest += _parts(target)
            continue
        if rest or stat.S_ISDIR(status.st_mode):
            judge(here, status, owners)
        place = here
    return place


def judge(name: str, status: os.stat_result, owners: Collection[int]) -> None:
    """Raise OSError if others than these users may write to a file or folder."""
    _judge_owner(name, status, owners)
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & stat.S_IWOTH and not is_sticky:
        raise OSError(errno.EPERM, f"everybody may write to {name} (chmod o-w {name})")


def _judge_owner(name: str, status: os.stat_result, owners: Collection[int]) -> None:
    if status.st_uid not in owners:
        raise OSError(errno.EPERM, f"{name} belongs to {_user(status.st_uid)} (chown root {name})")


def _parts(path: str) -> list[str]:
    """Return the names of a path, the last one first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]


def _user(number: int) -> str:
    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
