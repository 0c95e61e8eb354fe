"""What belongs on a host: which files and links, by what the host has and by how this program was built."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from fastmasq import program
from fastmasq.deploy import completion, configuration, links, man_pages
from fastmasq.deploy.entries import Entry, File, Link
from fastmasq.deploy.manifest import Manifest
from fastmasq.deploy.root import Root, state_of
from fastmasq.errors import KernelError
from fastmasq.kernel import features

TEMPLATES = Path(__file__).parents[1] / "templates" / "system"
SYSUSERS = "/usr/lib/sysusers.d/fastmasq.conf"
INIT_SCRIPT = "/etc/init.d/fastmasq"

_SEARCHED = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/sbin")
_LEGACY_FOLDERS = ("/sbin", "/usr/sbin")  # which may be one
_MODULE_PROGRAMS = ("depmod", "modprobe", "insmod")
_FIRST_WITH_CAP_BPF = (5, 8)


class Program(NamedTuple):
    """This program, as the host that it is installed on will find it: paths are the host's."""

    argv: tuple[str, ...]  # what starts it
    file: str  # what is called `fastmasq`
    legacy: dict[str, str]  # the names of 1999, and the file of each
    notes: tuple[str, ...] = ()


class Plan(NamedTuple):
    """What is to be there, and lines about what is not."""

    entries: list[Entry]
    notes: list[str]


def this_program(root: Root) -> Program:
    """Return how this program is started on the host whose root that is. Raises KernelError if it is incomplete."""
    argv = program.command()
    notes = []
    if not root.is_this_host and root.within(argv[0]) is None:
        notes.append(f"this program is not within {root.folder}: bring it there, as {argv[0]}")
    if homes := [path for path in (argv[0], os.path.realpath(argv[0]), str(TEMPLATES)) if _in_a_home(path)]:
        notes.append(f"{homes[0]} is in a home, where systemd's service may not look; install the program in /opt")
    argv[0] = root.within(argv[0]) or argv[0]
    if program.is_bundle():
        is_one_file = program.is_one_file()
        if is_one_file:
            notes.append(
                "the names of 1999 are not linked to a program of one file, which unpacks itself for each line of a "
                "script: they want the folder build"
            )
        legacy = {} if is_one_file else dict.fromkeys(program.LEGACY, argv[0])
        return Program(tuple(argv), argv[0], legacy, tuple(notes))
    scripts = Path(sys.executable).parent
    if missing := [name for name in (program.NAME, *program.LEGACY) if not os.access(scripts / name, os.X_OK)]:
        raise KernelError(f"{scripts} has no {', '.join(missing)}; install fastmasq with pip, so that they are there")
    within = {name: root.within(str(scripts / name)) or str(scripts / name) for name in program.LEGACY}
    file = root.within(str(scripts / program.NAME)) or str(scripts / program.NAME)
    return Program(tuple(argv), file, within, tuple(notes))


def _in_a_home(path: str) -> bool:
    """Return whether a path of the running system is hidden from services by ProtectHome."""
    return path.startswith(("/home/", "/root/", "/run/user/"))


def make(root: Root, this: Program, commands: click.Group, known: Manifest) -> Plan:
    """Return what belongs on the host whose root that is; `known` is what was installed there before."""
    notes = list(this.notes)
    sample, remark = _configuration(root)
    notes += [remark] if remark and not root.exists(sample.path) else []
    entries: list[Entry] = [
        *_service(root, this),
        sample,
        *_names(root, this),
        *_modules(root, known),
        *(File(f"/usr/share/man/man{page.section}/{page.name}.{page.section}", page.text)
          for page in man_pages.pages(commands)),
        *(Link(f"/usr/share/man/man8/{name}.8", f"{other}.8")
          for name, other in man_pages.SAME_PAGE.items()),
        *(File(path, text) for path, text in completion.scripts(root, commands)),
    ]  # fmt: skip
    return Plan(entries, notes)


def _template(name: str, this: Program | None = None) -> str:
    text = (TEMPLATES / name).read_text()
    return text if this is None else text.replace("@PROGRAM@", shlex.join(this.argv))


def _service(root: Root, this: Program) -> Iterator[Entry]:
    """Yield what starts it: for systemd, for System V's init, or for both where neither is to be seen."""
    units = next((folder for folder in ("/usr/lib/systemd", "/lib/systemd") if root.is_folder(folder)), None)
    has_init = root.is_folder(os.path.dirname(INIT_SCRIPT))
    if units or not has_init:
        folder = f"{units or '/usr/lib/systemd'}/system"
        yield File(f"{folder}/fastmasq.service", _template("fastmasq.service", this))
        if root.is_this_host and features.release() < _FIRST_WITH_CAP_BPF:
            yield File(f"{folder}/fastmasq.service.d/old-kernel.conf", _template("old-kernel.conf"))
    if has_init or not units:
        yield File(INIT_SCRIPT, _template("fastmasq.init", this), mode=0o755)
    yield File(SYSUSERS, _template("sysusers.conf"))


def _configuration(root: Root) -> tuple[File, str]:
    """Return the sample for this host, and what is to be said if it takes the place of none."""
    found = links.candidates() if root.is_this_host else []
    outside = links.default_outside(found) if found else ""
    inside = links.default_inside(found, outside)
    text = configuration.compose(inside, outside) if inside and outside else configuration.compose()
    remark = (
        f"{configuration.PATH}: inside {', '.join(inside)}, outside {outside}, as it seems; look whether that is right"
        if inside and outside
        else f"{configuration.PATH}: name your links in [interfaces]"
    )
    return File(configuration.PATH, text, once=True), remark


def _names(root: Root, this: Program) -> Iterator[Link]:
    """Yield the links by which the program is found: by its own name, and by those of 1999."""
    if os.path.dirname(this.file) not in _SEARCHED:
        yield Link("/usr/bin/fastmasq", this.file)
    seen = set()
    for folder in _LEGACY_FOLDERS:
        place = root.at(f"{folder}/.")
        if place in seen:
            continue
        seen.add(place)
        for name, target in this.legacy.items():
            if root.at(f"{folder}/{name}") != root.at(target):
                yield Link(f"{folder}/{name}", target)


def _modules(root: Root, known: Manifest) -> Iterator[File]:
    """Yield what answers `modprobe ip_masq_ftp`: a word to the host's modprobe, or programs where it has none."""
    paths = [f"{folder}/modprobe" for folder in _LEGACY_FOLDERS]
    if any(root.is_program(path) and not known.is_ours(path, state_of(root.at(path))) for path in paths):
        yield File("/etc/modprobe.d/fastmasq.conf", _template("modprobe.conf"))
        return
    for name in _MODULE_PROGRAMS:
        yield File(f"/sbin/{name}", _template("modprobe"), mode=0o755)
