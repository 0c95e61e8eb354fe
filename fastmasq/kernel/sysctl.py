"""Kernel settings by their dotted names, in the current network namespace."""

from __future__ import annotations

from pathlib import Path

from fastmasq.errors import KernelError

_ROOT = Path("/proc/sys")


def path(name: str) -> Path:
    """Return the file behind "net.ipv4.ip_forward"; a "/" in a name stands for a dot within an interface's name."""
    return _ROOT.joinpath(*(part.replace("/", ".") for part in name.split(".")))


def read(name: str) -> str:
    """Return the value without its line end; numbers in a row are separated by one blank. Raises OSError."""
    return " ".join(path(name).read_text().split())


def write(name: str, value: str) -> None:
    """Raises KernelError."""
    try:
        path(name).write_text(value + "\n")
    except OSError as error:
        raise KernelError(f"sysctl {name} = {value}: {error.strerror}") from None


def write_if_present(name: str, value: str) -> bool:
    """Write a value that may be a vanished interface's; return whether that changed anything. Raises KernelError."""
    try:
        if read(name) == value:
            return False
    except FileNotFoundError:
        return False
    write(name, value)
    return True


def of_interfaces(setting: str) -> list[str]:
    """Return the names of net.ipv4.conf.*.SETTING: all, default, and one for each interface."""
    folder = _ROOT / "net/ipv4/conf"
    return [of_interface(each.name, setting) for each in sorted(folder.iterdir())]


def of_interface(interface: str, setting: str) -> str:
    """Return the name of one interface's setting, net.ipv4.conf.INTERFACE.SETTING."""
    return f"net.ipv4.conf.{interface.replace('.', '/')}.{setting}"
