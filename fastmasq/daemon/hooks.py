"""Programs of the user's that are run when something has happened ([hooks]), with what it was in their environment.

A thread of its own starts them, one after the other, and waits for each as long as it may take: packets, commands and
what the kernel says never wait for a program. They are given nothing that we may do and others may not, but that root's
are root's where no user is named. What they print is in the log.
"""

from __future__ import annotations

import logging
import os
import pwd
import queue
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from fastmasq import files
from fastmasq.clock import now_ns
from fastmasq.config.schema import Hooks as Settings
from fastmasq.errors import ConfigurationError
from fastmasq.kernel import privileges
from fastmasq.mishaps import Mishaps
from fastmasq.trackers.vpn.events import Event, dotted
from fastmasq.units import NS_PER_SECOND, format_duration

log = logging.getLogger("fastmasq.hooks")

MOST_WAITING = 32  # happenings
MOST_LINES = 50  # of what one program prints
LONGEST_LINE = 400  # octets
LOOK_S = 0.1  # between looks whether a program has ended
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VPN = {  # kinds of events, and what they tell
    "call_established": ("pptp", "begins"),
    "call_ended": ("pptp", "ends"),
    "call_lost": ("pptp", "ends"),
    "ipsec_begins": ("ipsec", "begins"),
    "ipsec_ends": ("ipsec", "ends"),
}


class Happening(NamedTuple):
    """What has happened: the name of its hook, and what its program is told of it."""

    name: str
    variables: dict[str, str]


class Hooks:
    """Runs the programs that the settings in force name; `interface` is the outside link's name."""

    def __init__(self, settings: Callable[[], Settings], interface: str) -> None:
        self._settings = settings
        self._interface = interface
        self._mishaps = Mishaps(log)
        self._address: int | None = None  # the outside one, as was told last
        self._former: int | None = None  # the last one that there was
        self._waiting: queue.Queue[Happening | None] = queue.Queue(MOST_WAITING)
        self._running: subprocess.Popen | None = None
        self._thread: threading.Thread | None = None
        self._is_over = False  # what waits is not run any more

    def know(self, address: int | None) -> None:
        """Take an outside address for told: that of a run whose place we take."""
        self._address = self._former = address

    def follow(self, address: int | None) -> None:
        """Tell it if the outside address is another one, or there is one again, or none any more."""
        before, self._address = self._address, address
        if address == before:
            return
        if address is None:
            self._tell("down", address=before)
            return
        if before is None:
            self._tell("up", address=address)
        if address != self._former:
            self._tell("address_changed", address=address, old_address=self._former)
        self._former = address

    def tell_of_vpns(self, events: Iterable[Event]) -> None:
        """Tell of the tunnels that begin and end."""
        for event in events:
            if event.kind in _VPN:
                protocol, change = _VPN[event.kind]
                ends = {"inside": dotted(event.inside), "remote": dotted(event.remote)}
                self._tell("vpn", protocol=protocol, change=change, **ends)

    def close(self) -> None:
        """Tell that there is no way outside any more, and end when the programs have, or their time is over."""
        self.follow(None)
        if self._thread is None:
            return
        self._put(None)
        self._thread.join(self._settings().timeout / NS_PER_SECOND + LOOK_S)
        self._is_over = True
        if self._thread.is_alive() and (running := self._running) is not None:
            _kill(running)
            self._thread.join(LOOK_S)

    def _tell(self, name: str, **facts: int | str | None) -> None:
        if not getattr(self._settings(), name):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run_programs, name="hooks", daemon=True)
            self._thread.start()
        variables = {f"FASTMASQ_{key.upper()}": _spelled(value) for key, value in facts.items()}
        self._put(Happening(name, {"FASTMASQ_EVENT": name, "FASTMASQ_INTERFACE": self._interface, **variables}))

    def _put(self, happening: Happening | None) -> None:
        try:
            self._waiting.put_nowait(happening)
        except queue.Full:
            what = happening.name if happening else "the end"
            self._mishaps.warn(f"hook {what}: left out, since {MOST_WAITING} others wait to be run", now_ns())

    # -- in the thread ---------------------------------------------------------------------------------------------

    def _run_programs(self) -> None:
        privileges.hand_nothing_down()
        while (happening := self._waiting.get()) is not None and not self._is_over:
            try:
                self._run(happening, self._settings())
            except Exception as error:
                self._mishaps.report(f"hook {happening.name} has not been run", error, now_ns())

    def _run(self, happening: Happening, settings: Settings) -> None:
        path = getattr(settings, happening.name)
        if not path:  # since a reload
            return
        try:
            user = options_of(settings.user)
            path = checked(path)
            self._running = subprocess.Popen(
                [path], env={"PATH": PATH, "LANG": "C", **user.variables, **happening.variables}, cwd="/",
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                **user.options,
            )  # fmt: skip
        except (OSError, ConfigurationError, subprocess.SubprocessError) as error:
            log.error("hook %s: %s: %s", happening.name, path, getattr(error, "strerror", None) or error)
            return
        with self._running as process:
            status = self._hear(happening.name, process, time.monotonic() + settings.timeout / NS_PER_SECOND)
            if status is None:
                _kill(process)
                said = f"did not end within {format_duration(settings.timeout)}, and was killed"
            else:
                said = f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"
        self._running = None
        if status != 0:
            log.warning("hook %s: %s %s", happening.name, path, said)

    def _hear(self, name: str, process: subprocess.Popen, until: float) -> int | None:
        """Log what a program prints, until it ends; return its status, None if it has not ended in time."""
        output, lines, rest = process.stdout.fileno(), 0, b""
        os.set_blocking(output, False)
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while time.monotonic() < until and not self._is_over:
            status = process.poll()
            if poll.poll(0 if status is not None else LOOK_S * 1000):
                piece = _read(output)
                *whole, rest = (rest + piece).split(b"\n")
                rest = rest[:LONGEST_LINE]
                for line in whole[: MOST_LINES - lines]:
                    log.info("hook %s: %s", name, _shown(line))
                lines += len(whole)
                if piece:
                    continue
                poll.unregister(output)  # it has closed it
            if status is not None:
                if rest and lines < MOST_LINES:
                    log.info("hook %s: %s", name, _shown(rest))
                return status
        return None


def _read(output: int) -> bytes:
    try:
        return os.read(output, 65536)
    except BlockingIOError:
        return b""


def _shown(line: bytes) -> str:
    text = line[:LONGEST_LINE].decode(errors="replace")
    return "".join(each if each.isprintable() else "?" for each in text)


def _kill(process: subprocess.Popen) -> None:
    """Kill a program with all that it has started and not sent away."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()


def _spelled(value: int | str | None) -> str:
    if value is None:
        return ""
    return str(IPv4Address(value)) if isinstance(value, int) else value


# -- whose a program is, and who runs it -------------------------------------------------------------------------------


class User(NamedTuple):
    """Who runs programs: options of Popen, and what the environment says of it."""

    options: dict[str, Any]
    variables: dict[str, str]


def options_of(name: str) -> User:
    """Return how to run programs as a user, "" for the one that we are. Raises ConfigurationError."""
    try:
        entry = pwd.getpwnam(name) if name else pwd.getpwuid(os.geteuid())
    except KeyError:
        if name:
            raise ConfigurationError(f"[hooks] user: this host has no user {name}") from None
        return User({}, {})
    variables = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    if entry.pw_uid == os.geteuid():
        return User({}, variables)
    if os.geteuid() != 0:
        raise ConfigurationError(f"[hooks] user: only root can run programs as {name}; leave it out")
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return User({"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}, variables)


def checked(path: str) -> str:
    """Return the path of a program that nobody else can have written. Raises OSError."""
    owners = files.trusted_owners()
    place = files.judged(path, owners)
    files.judge(place, os.stat(place), owners)
    if not os.access(place, os.X_OK) or not os.path.isfile(place):
        raise OSError(0, "it is no program (chmod +x)")
    return path


def complaints(settings: Settings) -> Iterator[str]:
    """Yield what keeps the programs of the settings from being run."""
    named = {name: getattr(settings, name) for name in ("address_changed", "up", "down", "vpn")}
    if not any(named.values()):
        return
    try:
        options_of(settings.user)
    except ConfigurationError as error:
        yield str(error)
    for name, path in named.items():
        try:
            if path:
                checked(path)
        except OSError as error:
            yield f"[hooks] {name}: {path}: {error.strerror}"
