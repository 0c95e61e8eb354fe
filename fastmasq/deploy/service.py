"""What an installation asks of a running host's own programs: the service's user, and that systemd looks again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from fastmasq import files
from fastmasq.errors import KernelError

USER = files.SERVICE_USER

_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S = 90
_SYSTEMD_RUNS = "/run/systemd/system"  # see sd_booted(3)
_MAKERS = ("systemd-sysusers", "useradd", "adduser")


def has_user() -> bool:
    return bool(files.service_user())


def why_no_user() -> str | None:
    """Return why the user that is missing cannot be made here, or None."""
    if has_user() or any(map(_find, _MAKERS)):
        return None
    return f"there is none of {', '.join(_MAKERS)}; make the user and the group {USER} by hand"


def make_user(sysusers: str) -> None:
    """Make the service's user, unless it is there; `sysusers` is the file for systemd. Raises KernelError."""
    if has_user():
        return
    if program := _find("systemd-sysusers"):
        _run([program, sysusers])
    elif program := _find("useradd"):
        shell = "/usr/sbin/nologin"
        _run([program, "--system", "--user-group", "--no-create-home", "--home-dir", "/", "--shell", shell, USER])
    elif program := _find("adduser"):  # busybox
        _run([_find("addgroup") or "addgroup", "-S", USER])
        _run([program, "-S", "-D", "-H", "-h", "/", "-s", "/sbin/nologin", "-G", USER, USER])


def remove_user() -> None:
    """Remove the user that `make_user` has made, and its group with it. Raises KernelError."""
    program = _find("userdel") or _find("deluser")
    if has_user() and program:
        _run([program, USER])


def look_again() -> bool:
    """Have systemd read its units; return whether systemd runs this host. Raises KernelError."""
    if not _is_systemd():
        return False
    _run(["systemctl", "daemon-reload"])
    return True


def stop(script: str) -> None:
    """Stop the service, whoever has started it, and have it not start again. Raises KernelError."""
    if _is_systemd():
        _run(["systemctl", "disable", "--now", "--quiet", "fastmasq.service"])
    elif os.access(script, os.X_OK):
        _run([script, "stop"])
        if program := _find("update-rc.d"):
            _run([program, "-f", "fastmasq", "remove"])
        elif program := _find("chkconfig"):
            _run([program, "--del", "fastmasq"])


def _is_systemd() -> bool:
    return os.path.isdir(_SYSTEMD_RUNS) and _find("systemctl") is not None


def _find(program: str) -> str | None:
    return shutil.which(program, path=_FOLDERS)


def _run(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{argv[0]}: {error}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise KernelError(f"{' '.join(argv)} ended with status {done.returncode}: {said or 'no message'}")
