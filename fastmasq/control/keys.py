"""The keys of the inside hosts that may announce their SPIs: a file of lines `ADDRESS KEY`, for root's eyes only.

Everything after # is a comment. The file is read again when it has changed. One that has a mistake then is reported,
once, and the keys read before stay in force, so that a slip of the pen locks nobody out.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import stat
from collections.abc import Iterator

from fastmasq import files
from fastmasq.errors import ConfigurationError

SHORTEST_KEY = 16  # characters
LARGEST_FILE = 1024 * 1024  # bytes
_MAKE_ONE = "make one with `head -c 24 /dev/urandom | base64`"
_log = logging.getLogger(__name__)


class KeyFile:
    """The keys in the file at `path`. Raises ConfigurationError with what is wrong, where."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._identity = _identity(path)
        self._keys = read_keys(path)

    def key_of(self, address: int) -> bytes | None:
        """Return the key that an inside host has in the file as it is now."""
        identity = _identity(self.path)
        if identity != self._identity:
            self._identity = identity
            try:
                self._keys = read_keys(self.path)
            except ConfigurationError as error:
                _log.error("%s; the keys as they were before stay in force", error)
        return self._keys.get(address)


def read_keys(path: str) -> dict[int, bytes]:
    """Return the keys by address. Raises ConfigurationError with what is wrong, where."""
    try:
        content = files.read(path, LARGEST_FILE, and_of=files.service_user())
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; write a line ADDRESS KEY for each inside host") from None
    if mode & 0o077:
        raise ConfigurationError(f"{path}: others than its owner may read it; `chmod 600 {path}`")
    keys: dict[int, bytes] = {}
    for number, address, key in _lines(path, content):
        if address in keys:
            raise ConfigurationError(f"{path}:{number}: {ipaddress.IPv4Address(address)} has a key already")
        keys[address] = key
    return keys


def _lines(path: str, content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line, address, key). No message quotes a line: it may be a key."""
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise ConfigurationError(f"{path}:{number}: not ADDRESS KEY; write for example 10.0.0.2 and its key")
        try:
            address = int(ipaddress.IPv4Address(words[0].decode("ascii", "replace")))
        except ValueError:
            raise ConfigurationError(f"{path}:{number}: does not begin with an IPv4 address") from None
        if len(words[1]) < SHORTEST_KEY:
            raise ConfigurationError(f"{path}:{number}: a key of less than {SHORTEST_KEY} characters; {_MAKE_ONE}")
        yield number, address, words[1]


def _identity(path: str) -> tuple[int, ...] | None:
    """Return what is different once the file has been written; None when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
