"""What is measured in the lab's gateway, behind one interface: kernel masquerade, fastmasq, and what bounds them."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from fastmasq.config.schema import Offload, Settings
from fastmasq.control import client
from fastmasq.daemon import offload
from fastmasq.kernel import netlink
from fastmasq.lab import hosts
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.kernel_masquerade import KernelMasquerade
from fastmasq_bench.lab import limit
from fastmasq_bench.lab.network import SOURCE_PROCESSOR, Network

SESSIONS = 1_000_000
CONNTRACK_ENTRIES = 4_000_000
CONNTRACK_BUCKETS = 1_048_576

_CONNTRACK_MAXIMUM = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_CONNTRACK_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_EVERYTHING = bytes(4)  # struct nfgenmsg, and no attribute that would limit it
_CPUCLOCK_SCHED = 2
_SLABS = Path("/proc/slabinfo")
_CONNTRACK_HASH_SIZE = Path("/sys/module/nf_conntrack/parameters/hashsize")

# Without the limit on new sessions, which is for the good of other hosts: the kernel has none, and here all are loads.
_CONFIGURATION = f'[limits]\nsessions = {SESSIONS}\nnew_sessions_per_host = "0/s"\n'
_OFFLOAD = f'[offload]\nmode = "auto"\nsessions = {SESSIONS}\n'
_SMALL_TABLE = "[limits]\nsessions = 1000\n"


class Forwarder(ABC):
    """One of the programs compared. It is started anew for every figure, so that it begins with an empty table."""

    name: str
    steerings: tuple[str, ...] = ("off",)
    "The receive packet steering to try on the gateway's interfaces; see steering_mask."
    rules = 0
    "How many rules of the forward chain a packet passes before it is masqueraded; counts from the next start on."

    def why_not(self) -> str:
        """Return why there is no such forwarder on this machine; "" if there is."""
        return ""

    def is_told_by(self, measurement: str) -> bool:
        """Return whether the measurement of this name says something of it."""
        return True

    @abstractmethod
    def start(self) -> None:
        """Forward, with an empty session table. Raises FastmasqError if it does not come up."""

    @abstractmethod
    def stop(self) -> None:
        """Stop forwarding; nothing to stop is fine."""

    def empty(self) -> None:
        """Forget all sessions."""
        self.stop()
        self.start()

    @contextmanager
    def ruled(self, rules: int) -> Iterator[None]:
        """Start anew with so many rules."""
        self.stop()
        self.rules = rules
        try:
            self.start()
            yield
        finally:
            self.rules = 0

    @abstractmethod
    def memory(self) -> int:
        """Return a number of bytes that grows by what it uses for its sessions."""

    def memory_without_sessions(self) -> int:
        """Return what memory() is without the sessions; they are forgotten."""
        self.empty()
        return self.memory()

    def processor_seconds(self) -> float | None:
        """Return the processor time its process has used; None for the kernel, which has none of its own."""
        return None

    def ring_drops(self) -> int:
        """Return the packets that its receive rings, if it has any, had no room for since the start."""
        return 0


class Kernel(Forwarder):
    """nftables masquerade, with its connection table as large as the loads need."""

    name = "kernel"
    steerings = ("off", "others", "all")

    carries = False

    def __init__(self, network: Network) -> None:
        self._network = network
        self._masquerade = KernelMasquerade(network.lab, carries=self.carries)

    def start(self) -> None:
        self.empty()
        self._masquerade = KernelMasquerade(self._network.lab, _absent_hosts(self.rules), carries=self.carries)
        self._masquerade.install()

    def stop(self) -> None:
        self._masquerade.remove()
        self.empty()

    def empty(self) -> None:
        self._network.enter("gateway", _flush_connections)

    def memory(self) -> int:
        # All slabs: a connection is more than its nf_conntrack object, its extensions lie in slabs of general use.
        # Objects in use, not pages: pages stay for a while when their objects are gone.
        rows = (line.split() for line in _SLABS.read_text().splitlines()[2:])
        return sum(int(active) * int(octets) for _, active, _, octets, *_ in rows)


class Flowtable(Kernel):
    """The same with established flows in a flow table, past most of the kernel's own way."""

    name = "flowtable"
    carries = True

    def why_not(self) -> str:
        return self._masquerade.complaint()


class FastmasqForwarder(Forwarder):
    """`fastmasq run` as a user starts it; command may start that of another tree."""

    name = "fastmasq"
    head = _CONFIGURATION

    def __init__(self, network: Network, command: Sequence[str] = ()) -> None:
        self._network = network
        self._command = command
        self._program = self._make(self.head)
        self._rule_file = network.lab.directory / "rc.firewall"

    def start(self) -> None:
        configuration = self.head
        if self.rules:
            lines = [f"ipchains -A forward -s {address} -j DENY\n" for address in _absent_hosts(self.rules)]
            self._rule_file.write_text("".join([*lines, "ipchains -A forward -i eth1 -j MASQ\n"]))
            configuration += f'[rules]\nfiles = ["{self._rule_file}"]\n'
        self._program = self._make(configuration)
        self._program.install()

    def stop(self) -> None:
        self._program.remove()

    def memory(self) -> int:
        return psutil.Process(self._program.process.pid).memory_info().rss

    def memory_without_sessions(self) -> int:
        # Its table has a fixed size, and may or may not be in memory from the start: compare with hardly any table.
        self.stop()
        with self._make(_SMALL_TABLE) as small:
            without = psutil.Process(small.process.pid).memory_info().rss
        self.start()
        return without

    def processor_seconds(self) -> float:
        # The clock of another process, see clock_getcpuclockid(3): nanoseconds, where /proc has hundredths of a second.
        return time.clock_gettime(~self._program.process.pid << 3 | _CPUCLOCK_SCHED)

    def ring_drops(self) -> int:
        status = client.call(str(self._program.socket), "status")
        return sum(link["ring_drops"] for link in status["links"])

    def _make(self, configuration: str) -> Fastmasq:
        return Fastmasq(self._network.lab, configuration, command=self._command)


class Offloaded(FastmasqForwarder):
    """The same with established sessions carried by its program in the kernel."""

    name = "offload"
    head = _CONFIGURATION + _OFFLOAD

    def why_not(self) -> str:
        return offload.complaint(Settings(offload=Offload(mode="auto", sessions=16)))

    def is_told_by(self, measurement: str) -> bool:
        return "memory" not in measurement  # all of it is there from the start


class Limit(Forwarder):
    """What the gateway's kernel can carry if nothing is looked up and nothing translated: see `limit`."""

    name = "limit"

    def __init__(self, network: Network) -> None:
        self._network = network
        self._undo = ExitStack()

    def is_told_by(self, measurement: str) -> bool:
        return not any(word in measurement for word in ("sessions", "rules", "memory", "first"))

    def start(self) -> None:
        network = self._network
        for interface, out, host in (("eth0", "eth1", "server"), ("eth1", "eth0", "inside")):
            network.enter("gateway", limit.attach, interface, out, network.mac(host), network.mac("gateway", out))
            self._undo.callback(network.enter, "gateway", limit.detach, interface)
        network.show_inside()
        self._undo.callback(network.hide_inside)

    def stop(self) -> None:
        self._undo.close()

    def memory(self) -> int:
        raise NotImplementedError("it has no sessions")


FORWARDERS = {kind.name: kind for kind in (Kernel, Flowtable, FastmasqForwarder, Offloaded, Limit)}


def busy_seconds() -> float:
    """Return the time that all processors together have been busy, whoever had them; it goes on by 10 ms."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def _absent_hosts(count: int) -> list[str]:
    """Return addresses that no load has: rules about them are all looked at, and none matches."""
    return [f"172.16.{number >> 8}.{number & 255}" for number in range(count)]


def steering_mask(steering: str) -> int:
    """Return the processors as a bit mask: none, all but the source's, or all."""
    every = (1 << (os.cpu_count() or 1)) - 1
    return {"off": 0, "others": every & ~(1 << SOURCE_PROCESSOR), "all": every}[steering]


@contextmanager
def large_connection_table() -> Iterator[None]:
    """Give the kernel's connection table, one for all namespaces, the room the loads need; restore it at the end."""
    if not _CONNTRACK_MAXIMUM.exists():
        hosts.checked(["modprobe", "nf_conntrack"])
    settings = {_CONNTRACK_MAXIMUM: CONNTRACK_ENTRIES, _CONNTRACK_HASH_SIZE: CONNTRACK_BUCKETS}
    with ExitStack() as restore:
        for path, value in settings.items():
            before = path.read_text()
            path.write_text(str(value))
            restore.callback(path.write_text, before)
        yield


def _flush_connections() -> None:
    conntrack = netlink.RequestSocket(netlink.NETLINK_NETFILTER)
    try:
        conntrack.ask(_CONNTRACK_DELETE, 0, _EVERYTHING)
    finally:
        conntrack.close()
