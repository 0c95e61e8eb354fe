"""The lab's networks as data, and the Lab that makes one of them out of network namespaces.

A network is a set of hosts (addresses per interface, routes) and of wires (veth pairs) between their interfaces.
Each host becomes the namespace `PREFIX-HOST`; what is up is read back from these names, so that every invocation of
the command line, and every test, sees the same lab. Only the kind of network is kept in a file, in
`/run/fastmasq-lab/PREFIX/`, beside the temporary files of the services that run in the lab.

    masquerade   inside  10.0.0.2 -+- lan (bridge) -- 10.0.0.1 gateway 200.200.200.200 -- router -- server
                 inside2 10.0.0.3 -+                              200.200.200.1  199.0.0.254  199.0.0.1-3
    registered   the same with 222.0.0.0/24 inside; the gateway and the router forward it untranslated
    direct       inside --- gateway --- server: neither bridge nor router, for measuring
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.kernel.run_folder import FOLDER, RunFolder
from fastmasq.lab import hosts

RUN_DIRECTORY = Path("/run/fastmasq-lab")
DEFAULT_PREFIX = "fm"

SERVER_ADDRESS = "199.0.0.1"
EXTERNAL_ADDRESS = "200.200.200.200"

_PREFIX = re.compile(r"[a-z][a-z0-9-]{0,31}")
_OFFLOADS = ("tx", "tso", "gso")


@dataclass(frozen=True)
class Host:
    """One host: its interfaces with their addresses, its routes, and what its kernel does: forward, bridge, IPv6."""

    interfaces: dict[str, tuple[str, ...]]
    routes: tuple[str, ...] = ()
    forwards: bool = False
    bridges: bool = False
    ipv6: bool = False


@dataclass(frozen=True)
class Network:
    """Hosts by name, and the wires between (host, interface) and (host, interface)."""

    hosts: dict[str, Host]
    wires: tuple[tuple[str, str, str, str], ...]


def _behind_router(inside: str, prefix_length: int, gateway_forwards: bool) -> Network:
    """Return the HOWTO's network with the given inside prefix, written as "10.0.0."."""
    lan = f"{inside}0/{prefix_length}"
    return Network(
        hosts={
            "inside": Host({"eth0": (f"{inside}2/{prefix_length}",)}, (f"default via {inside}1",)),
            "inside2": Host({"eth0": (f"{inside}3/{prefix_length}",)}, (f"default via {inside}1",)),
            "lan": Host({"inside": (), "inside2": (), "gateway": ()}, bridges=True),
            "gateway": Host(
                {"eth0": (f"{inside}1/{prefix_length}",), "eth1": (f"{EXTERNAL_ADDRESS}/24",)},
                ("default via 200.200.200.1",),
                forwards=gateway_forwards,
            ),
            "router": Host(
                {"eth0": ("200.200.200.1/24",), "eth1": ("199.0.0.254/24",)},
                (f"{lan} via {EXTERNAL_ADDRESS}",) if gateway_forwards else (),
                forwards=True,
            ),
            "server": Host({"eth0": ("199.0.0.1/24", "199.0.0.2/24", "199.0.0.3/24")}, ("default via 199.0.0.254",)),
        },
        wires=(
            ("inside", "eth0", "lan", "inside"),
            ("inside2", "eth0", "lan", "inside2"),
            ("gateway", "eth0", "lan", "gateway"),
            ("gateway", "eth1", "router", "eth0"),
            ("router", "eth1", "server", "eth0"),
        ),
    )


NETWORKS = {
    "masquerade": _behind_router("10.0.0.", 8, gateway_forwards=False),
    "registered": _behind_router("222.0.0.", 24, gateway_forwards=True),
    "direct": Network(
        hosts={
            "inside": Host({"eth0": ("10.0.0.2/8",)}, ("default via 10.0.0.1",)),
            "gateway": Host(
                {"eth0": ("10.0.0.1/8",), "eth1": (f"{EXTERNAL_ADDRESS}/24",)}, ("default via 200.200.200.1",)
            ),
            "server": Host({"eth0": ("200.200.200.1/24", f"{SERVER_ADDRESS}/32")}),
        },
        wires=(("inside", "eth0", "gateway", "eth0"), ("gateway", "eth1", "server", "eth0")),
    ),
}
_HOST_NAMES = tuple(dict.fromkeys(name for network in NETWORKS.values() for name in network.hosts))


class Lab:
    """One network under one prefix; several labs live side by side under different prefixes.

    network is one of NETWORKS by its name, or one of the caller's own, which nobody finds by its prefix.
    """

    def __init__(self, prefix: str = DEFAULT_PREFIX, network: str | Network = "masquerade") -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"lab prefix {prefix!r}: use up to 32 lower-case letters, digits and dashes, a letter first"
            )
        if isinstance(network, str) and network not in NETWORKS:
            raise ConfigurationError(f"lab network {network!r} is unknown; choose one of {', '.join(NETWORKS)}")
        self.prefix = prefix
        self.kind = network if isinstance(network, str) else "own"
        self.network = NETWORKS[network] if isinstance(network, str) else network
        self.directory = RUN_DIRECTORY / prefix

    @classmethod
    def find(cls, prefix: str = DEFAULT_PREFIX) -> Lab:
        """Return the lab that is up under this prefix. Raises KernelError if there is none."""
        try:
            kind = (RUN_DIRECTORY / prefix / "network").read_text()
        except OSError:
            raise KernelError(f"no lab {prefix!r} is up; make one with: fastmasq lab up --prefix {prefix}") from None
        return cls(prefix, kind)

    @classmethod
    def all_up(cls) -> list[Lab]:
        """Return the labs that are up on this machine, by prefix."""
        found = []
        for file in sorted(RUN_DIRECTORY.glob("*/network")):
            with contextlib.suppress(KernelError):  # it went down while we looked
                found.append(cls.find(file.parent.name))
        return found

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Make the network. Raises KernelError if this prefix is in use or the kernel refuses; then nothing is left."""
        in_use = KernelError(
            f"lab {self.prefix!r} is up already; end it with: fastmasq lab down --prefix {self.prefix}"
        )
        if self._present():
            raise in_use
        try:
            self._make_directory()
        except FileExistsError:
            raise in_use from None
        except PermissionError:
            raise KernelError("the lab needs root: run it with sudo") from None
        try:
            self._make()
            if self.kind in NETWORKS:
                (self.directory / "network").write_text(self.kind)
        except BaseException:
            self.down()
            raise

    def down(self) -> bool:
        """End the processes in the lab's namespaces, remove namespaces and files; return whether there were any."""
        present = self._present()
        was_there = bool(present) or self.directory.exists()
        if present:
            hosts.end_processes(present)
            self._forget(present)
            hosts.configure([f"netns delete {namespace}" for namespace in present])
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):  # other labs are up, or there never was one
            RUN_DIRECTORY.rmdir()
        return was_there

    @staticmethod
    def _forget(namespaces: Iterable[str]) -> None:
        """Remove the journals of forwarders that were killed in these namespaces: there will be nothing to restore."""
        if FOLDER.exists():
            with contextlib.suppress(KernelError, OSError), RunFolder() as folder:
                for namespace in namespaces:
                    folder.forget(hosts.inode(namespace))

    def is_up(self) -> bool:
        """Return whether every host of the network is there."""
        return all(hosts.exists(self.namespace(host)) for host in self.network.hosts)

    def namespace(self, host: str) -> str:
        """Return the name of a host's namespace. Raises ConfigurationError for a host this network does not have."""
        if host not in self.network.hosts:
            known = ", ".join(self.network.hosts)
            raise ConfigurationError(f"the {self.kind} network has no host {host!r}; choose one of {known}")
        return self._name(host)

    def exec(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess:
        """Run argv on a host to its end; options are those of subprocess.run."""
        return hosts.run_in(self.namespace(host), argv, **options)

    def popen(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen:
        """Start argv on a host; options are those of subprocess.Popen."""
        return hosts.start_in(self.namespace(host), argv, **options)

    def processes(self) -> dict[str, list[int]]:
        """Return the process ids that run on each host."""
        found = hosts.processes_in([self.namespace(host) for host in self.network.hosts])
        return {host: found[self.namespace(host)] for host in self.network.hosts}

    def offloads(self, on: bool) -> None:
        """Switch checksum and segmentation offloads of every interface; on is how veth pairs are born."""
        word = "on" if on else "off"
        features = [item for feature in _OFFLOADS for item in (feature, word)]
        for name, host in self.network.hosts.items():
            for interface in host.interfaces:
                hosts.checked(hosts.command_in(self.namespace(name), ["ethtool", "-K", interface, *features]))

    def _present(self) -> list[str]:
        """Return the namespaces of this prefix, whatever network they belong to."""
        names = dict.fromkeys((*_HOST_NAMES, *self.network.hosts))
        return [name for name in map(self._name, names) if hosts.exists(name)]

    def _name(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def _make_directory(self) -> None:
        while True:
            RUN_DIRECTORY.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # the last other lab went down just now
                self.directory.mkdir(mode=0o700)
                return

    def _make(self) -> None:
        names = {host: self.namespace(host) for host in self.network.hosts}
        hosts.configure([f"netns add {name}" for name in names.values()])
        lines = {host: _configuration(spec) for host, spec in self.network.hosts.items()}
        places = list(names)
        for number, (left, left_interface, right, right_interface) in enumerate(self.network.wires):
            # Two ends with one index in their two namespaces look like no pair to the kernel's link watch,
            # which then takes a second to see the carrier.
            ends = [(left, f"{left_interface} index {10 + 2 * number}")]
            ends.append((right, f"{right_interface} index {11 + 2 * number}"))
            (here, near), (there, far) = sorted(ends, key=lambda end: places.index(end[0]))
            lines[here].insert(0, f"link add {near} type veth peer name {far} netns {names[there]}")
        for host, spec in self.network.hosts.items():  # the one of two ends that comes first makes both
            off = {} if spec.ipv6 else {"ipv6__conf__all__disable_ipv6": 1, "ipv6__conf__default__disable_ipv6": 1}
            hosts.set_sysctls(names[host], **off, ipv4__ip_forward=int(spec.forwards))
        for host, name in names.items():
            hosts.configure(lines[host], name)
        for host, spec in self.network.hosts.items():
            hosts.wait_for_links(names[host], [interface for interface in spec.interfaces if interface != "lo"])


def _configuration(host: Host) -> list[str]:
    """Return the lines of `ip` that set up a host whose interfaces exist."""
    lines = ["link set lo up"]
    if host.bridges:
        lines += ["link add bridge type bridge mcast_snooping 0", "link set bridge up"]
        lines += [f"link set {interface} master bridge" for interface in host.interfaces]
    for interface, addresses in host.interfaces.items():
        lines += [f"address add {address} dev {interface}" for address in addresses]
        lines.append(f"link set {interface} up")
    return lines + [f"route add {route}" for route in host.routes]
