"""A list of changes that is on disk before each of them is made: what a successor, or `fastmasq release`, undoes.

A journal belongs to a network namespace. It is a JSON file of mode 0600 in /run/fastmasq, named by the namespace's
inode and replaced as a whole, durably. One of a namespace that no longer exists is set aside and never obeyed.

    {"version": 2, "namespace": 4026531840, "cookie": 1, "boot": "5b3e...", "entries": [ENTRY, ...]}

Entries are those of `KINDS`. They name only what fastmasq ever changes, and each is judged by itself: one that is not
understood, of another version or damaged, is kept and left to people, and those around it are undone all the same.
Version 1 lay beside the control socket, where other users might write; it is believed only where they cannot.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from fastmasq import files
from fastmasq.errors import KernelError
from fastmasq.kernel import local_link
from fastmasq.kernel.identity import Namespace, network_namespace, start_time
from fastmasq.kernel.run_folder import LARGEST_FILE, RunFolder, file_of

Entry = dict[str, Any]

VERSION = 2

_INTERFACE = r"(?!/{1,2}(\.|$))[^.\s\x00]{1,15}"  # a slash stands for a dot, see kernel/sysctl.py
_SETTING = (
    r"^net\.ipv4\.(ip_forward|ip_local_(reserved_ports|port_range)|"
    rf"conf\.{_INTERFACE}\.(forwarding|accept_redirects))$"
)

Setting = Annotated[str, Meta(pattern=_SETTING)]
Value = Annotated[str, Meta(pattern=r"^([0-9,-]*|[0-9]+ [0-9]+)$")]
LinkName = Annotated[str, Meta(pattern=r"^(?!\.{1,2}$)[^\s/]{1,15}$")]
Feature = Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,40}$")]
Word = Annotated[str, Meta(pattern=r"^[a-z]{1,20}$")]


class SettingEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A setting of the kernel that we changed; writing it changes its `dependents`, too."""

    sysctl: Setting
    old: Value
    new: Value
    dependents: dict[Setting, Value] = {}


class GuardEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A guard of ours, with what its removal needs to know: names of links."""

    guard: Word
    memory: dict[Word, list[LinkName]] = {}


class HostRulesEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """Rules for the host itself."""

    host_rules: Word


class LinkEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The link to programs of this host, which we made."""

    link: Annotated[str, Meta(pattern=f"^{local_link.HOST_END}$")]


class OffloadsEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """Features of a link that were on before us."""

    offloads: LinkName
    features: list[Feature]


class StateEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """The file that the sessions outlive us in."""

    state: Annotated[str, Meta(pattern=r"^/([^/\x00]+/)*net-[0-9]+\.state$")]


KINDS: dict[str, type[Struct]] = {
    "sysctl": SettingEntry,
    "guard": GuardEntry,
    "host_rules": HostRulesEntry,
    "link": LinkEntry,
    "offloads": OffloadsEntry,
    "state": StateEntry,
}
"""What an entry is, by the key that only its kind has."""


class Content(Struct, frozen=True):
    """What a file says; `namespace` of version 1 has the device before the inode, and its writer is named."""

    version: int
    namespace: int | list[int]
    boot: str
    entries: list[Any]
    cookie: int = 0
    pid: int = 0
    started: int | None = None

    def place(self) -> Namespace:
        return Namespace(
            self.namespace if isinstance(self.namespace, int) else self.namespace[-1], self.cookie, self.boot
        )


class Journal:
    """The entries, oldest first, and the file they are kept in.

    `strange` are entries that are not understood, `remarks` lines about what was found.
    """

    def __init__(self, folder: RunFolder) -> None:
        """Begin an empty journal for this network namespace."""
        self._folder = folder
        self._namespace = network_namespace()
        self._name = file_of(self._namespace.inode, "journal")
        self.entries: list[Entry] = []
        self.strange: list[Any] = []
        self.remarks: list[str] = []
        self.is_damaged = False

    @property
    def path(self) -> Path:
        return self._folder.path / self._name

    @classmethod
    def load(cls, folder: RunFolder, former: Path | None = None) -> Journal:
        """Return the journal that a dead process left for this network namespace, or an empty one.

        `former` is where version 1 would have kept it. Raises KernelError if it cannot be read, or its writer lives.
        """
        journal = cls(folder)
        journal._take_former(former)
        text = folder.read(journal._name)
        if text is not None:
            journal._take(text)
        return journal

    @classmethod
    def peek(cls, folder: RunFolder) -> list[Entry]:
        """Return the entries for this network namespace, as far as they are understood; nothing is changed."""
        journal = cls(folder)
        content = _decoded(folder.read(journal._name) or b"")
        if content is not None and content.place().is_same(journal._namespace):
            journal._add(content.entries)
        return journal.entries

    def append(self, entry: Entry) -> None:
        """Raises msgspec.ValidationError for what would not be believed when it is read."""
        self.entries.append(checked(entry))
        self.save()

    def replace(self, old: Entry, new: Entry) -> None:
        self.entries[self.entries.index(checked(old))] = checked(new)
        self.save()

    def remove(self, entry: Entry) -> None:
        self.entries.remove(checked(entry))
        self.save()

    def save(self) -> None:
        """Write the file. Raises KernelError."""
        content = Content(
            VERSION,
            self._namespace.inode,
            self._namespace.boot,
            [*self.strange, *self.entries],
            cookie=self._namespace.cookie,
            pid=os.getpid(),
        )
        self._folder.write(self._name, msgspec.json.format(msgspec.json.encode(content), indent=1))

    def delete(self) -> None:
        self._folder.remove(self._name)

    def _take(self, text: bytes) -> None:
        """Take over what a file says, if it is about this namespace."""
        content = _decoded(text)
        if content is None:
            self.is_damaged = True
            self.remarks.append(
                f"the journal {self.path} was damaged; it is now {self._folder.set_aside(self._name)}: "
                "look into it, and put back what it names by hand"
            )
            return
        if content.place().is_same(self._namespace):
            self._add(content.entries)
        else:
            self.remarks.append(
                f"the journal {self.path} was about a network namespace that is gone; "
                f"it is now {self._folder.set_aside(self._name)}"
            )

    def _take_former(self, path: Path | None) -> None:
        """Take over what version 1 left at its place, if others cannot have written that; then it lies here."""
        if path is None:
            return
        try:
            content, reason = _decoded(files.read(path, LARGEST_FILE)), "it is damaged"
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            content, reason = None, error.strerror
        if content is None:
            self.remarks.append(f"{path}, a journal of an earlier version, is not gone by: {reason}")
            return
        if not content.place().is_same(self._namespace):
            return
        if content.started is not None and start_time(content.pid) == content.started:
            raise KernelError(f"the journal {path} is in use by fastmasq (pid {content.pid}); stop that first")
        self._add(content.entries)
        self.remarks.append(f"the journal {path} of an earlier version is taken over")
        self.save()
        path.unlink(missing_ok=True)

    def _add(self, entries: Iterable[Any]) -> None:
        for entry in entries:
            try:
                known = checked(entry)
            except msgspec.ValidationError:
                self.strange.append(entry)
            else:
                if known not in self.entries:
                    self.entries.append(known)


def _decoded(text: bytes) -> Content | None:
    """Return what a file says; None for one that is damaged."""
    try:
        return msgspec.json.decode(text, type=Content)
    except (msgspec.DecodeError, RecursionError):
        return None


def checked(entry: Any) -> Entry:
    """Return an entry as its kind has it. Raises msgspec.ValidationError for one that is of none."""
    kinds = [kind for key, kind in KINDS.items() if isinstance(entry, dict) and key in entry]
    if len(kinds) != 1:
        raise msgspec.ValidationError(f"an entry of no known kind: {shown(entry)}")
    return msgspec.to_builtins(msgspec.convert(entry, kinds[0]))


def shown(entry: Any) -> str:
    """Return what an entry says, in a few words."""
    text = re.sub(r"\s+", " ", repr(entry))
    return text if len(text) <= 80 else f"{text[:77]}..."
