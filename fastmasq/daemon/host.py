"""The host that policy needs: its guard, its ports, the rules for itself, and the link to its proxies.

Each call brings one of them to what it is told, and does nothing if it is so already. What somebody else makes of it
meanwhile `look_after` sets right. `Takeover` puts all back in the end. Of the host of one that only observes nothing is
changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastmasq.config.schema import Host as HostItself
from fastmasq.config.schema import Masquerade, Settings
from fastmasq.config.values import PortRanges
from fastmasq.daemon import ports, proxies, resets
from fastmasq.daemon.ports import HostRange
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.kernel import features, ip_rules, offloads
from fastmasq.kernel import ports as kernel_ports
from fastmasq.kernel.bpf import calls
from fastmasq.kernel.bpf.binds import Binds
from fastmasq.kernel.bpf.original_destination import OriginalDestinations
from fastmasq.kernel.guard.backends import NoGuard, will_mark
from fastmasq.kernel.guard.specification import Guard, GuardSpec
from fastmasq.kernel.host_rules.unsolicited import Connection, Gate
from fastmasq.kernel.links import Link, interface_addresses
from fastmasq.kernel.local_link import HOST_END
from fastmasq.kernel.ports import PORT_RANGE, RESERVED_PORTS, PortSet
from fastmasq.kernel.takeover import Takeover
from fastmasq.kernel.watch import Watch
from fastmasq.mishaps import Mishaps
from fastmasq.path.forwarder import Forwarder
from fastmasq.policy.chains import RuleSet
from fastmasq.scarcity import descriptors_left

log = logging.getLogger("fastmasq.engine")

NO_RANGE = "this kernel has no setting for it in a network namespace"


class Host:
    """What one gateway has changed of its host, and asks it. `watch` is told by the kernel what there is."""

    def __init__(self, settings: Settings, takeover: Takeover, watch: Watch) -> None:
        self._interfaces = settings.interfaces
        self._backend = settings.takeover.guard
        self._takeover = takeover
        self._watch = watch
        self.guard: Guard | None = None
        self._will_mark: bool | None = None
        self.is_whole = True  # as of the last look at what was taken over
        self._mishaps = Mishaps(log)
        self._guarded: tuple | None = None  # what the guard was told last
        self._spec: GuardSpec | None = None  # the same in its own words
        self._reserves: Masquerade | None = None  # what the settings of ports were made for
        self._led = np.zeros(65536, bool)  # ports that lead inside, which no program is to connect from
        self._own_range = HostRange(*kernel_ports.ephemeral_range(), NO_RANGE)  # where programs connect from without us
        self._range = self._own_range  # and with us
        self._destinations: OriginalDestinations | None = None
        self._destinations_refused = ""
        self._small: set[tuple[str, int]] = set()  # names and numbers of links that merge no UDP, by our doing
        self._off: dict[str, Sequence[str]] = {}  # what is to be off for that, by the name of a link
        self._out_of_reach: list[str] = []
        self._not_enforced: list[str] = []
        self._is_gated = False  # towards the outside
        self._connections: list[Connection] = []  # of the host, when it came to be so
        thread = ThreadPoolExecutor(1, "binds")  # where no control groups are mounted the kernel takes 15 ms
        self._hearing: Future[tuple[Binds | None, str]] | None = thread.submit(_hear_binds)
        thread.shutdown(wait=False)
        self.goes_on = takeover.adopted  # a run before has ended, and left the host as it was to it

    @property
    def binds(self) -> Binds | None:
        """What tells of ports that programs bind, from when this has returned; None if it is refused, or closed."""
        return self._hearing.result()[0] if self._hearing is not None else None

    def reset(self, rows: Iterable[np.void]) -> int:
        """Reset the inside ends of sessions that were closed; return how many were told."""
        return resets.send_resets(rows)

    def keep_state(self, path: Path) -> None:
        """Have the file with our sessions, and what is beside it, stay until all is put back. Raises KernelError."""
        self._takeover.keep_state(path)

    def close(self) -> None:
        """Give up what ends with this process."""
        for part in (self._destinations, self.binds, self.guard):
            if part is not None:
                part.close()
        self._destinations = self._hearing = None

    def refused(self) -> dict[str, str]:
        """Return what this host does not allow, by its name in `features.USES`, with the reason."""
        found = {f"guard {backend}": reason for backend, reason in (self.guard.refused if self.guard else {}).items()}
        found[features.HOST_RULES] = self._takeover.host_rules_refused
        found[features.BINDS] = self._hearing.result()[1] if self._hearing is not None else ""
        found[features.ORIGINAL_DESTINATIONS] = self._destinations_refused
        return {use: reason for use, reason in found.items() if reason}

    def keep_datagrams_apart(self, links: Iterable[Link]) -> None:
        """Switch off what merges UDP on links, and on the ports of a bridge that is one, where no tap tells its sizes.

        What cannot be switched is said, once: the path drops what comes of it.
        """
        for link in links:
            if (link.name, link.ifindex) in self._small:
                continue
            self._small.add((link.name, link.ifindex))
            ports = [each.name for each in self._watch.interfaces() if each.master == link.ifindex]
            for name in (link.name, *ports):
                self._switch_off(name, offloads.MERGING)
            if link.role == "local":
                self._switch_off(HOST_END, offloads.BURSTS)

    def _switch_off(self, interface: str, names: Sequence[str]) -> None:
        self._off[interface] = names
        try:
            off = self._takeover.switch_off(interface, names)
        except KernelError as error:
            log.warning("%s", error)
            return
        if off:
            log.warning(
                "%s: %s switched off, since no tap tells the sizes of merged datagrams", interface, ", ".join(off)
            )

    def forget(self) -> None:
        """Have the next `keep` put the guard in force anew: a process that is gone may have put another there."""
        self._guarded = None
        if self.guard is not None:
            self.guard.close()

    # -- ports and protocols ---------------------------------------------------------------------------------------

    def reserve(self, masquerade: Masquerade) -> None:
        """Keep the host's programs off our ports, and few ports for them, where the kernel can.

        Raises KernelError, or ConfigurationError if they would have none.
        """
        self._reserves = masquerade
        try:
            own = self._takeover.original(PORT_RANGE)
            given = self._takeover.original(RESERVED_PORTS)
        except FileNotFoundError:
            return
        reserved = kernel_ports.parse_ports(given)
        before = kernel_ports.parse_range(own)
        host = ports.host_range(masquerade, before, reserved)
        value = ports.reservation(masquerade.ports, reserved, host, self._led)
        self._set(PORT_RANGE, f"{host.first} {host.last}", own)
        self._set(RESERVED_PORTS, given if value is None else value, given)
        self._own_range, self._range = HostRange(*before), host

    def keep_off(self, led: PortSet) -> None:
        """Have no program connect from ports that lead inside from now on: answers to it would go there.

        Raises KernelError.
        """
        before, self._led = self._led, led
        first, last = self._range[:2]
        if self._reserves is not None and not np.array_equal(led[first : last + 1], before[first : last + 1]):
            self.reserve(self._reserves)

    def _set(self, name: str, value: str, own: str) -> None:
        """Give a setting a value; `own` is the one it has without us."""
        if value != own or self._takeover.has_set(name):
            self._takeover.set_sysctl(name, value)

    def connects_from(self) -> dict[str, str]:
        """Return the `range` that programs of the host connect from, the one without us, and why both are the same."""
        return {"range": str(self._range), "own": str(self._own_range), "reason": self._range.reason}

    def free_ports(self, ranges: PortRanges) -> np.ndarray:
        """Return which ports of those the settings name the host does not use just now, see daemon/ports.py."""
        _ = self.binds  # what is bound from here on is told
        return ports.allowed_ports(ranges)

    def protocols(self) -> set[int]:
        """Return the protocols without ports that the host itself uses just now."""
        return kernel_ports.host_protocols(self._watch.interfaces())

    def waiting(self, protocol: int) -> list[kernel_ports.Waiting]:
        """Return where programs of the host wait to be asked over TCP or UDP, or for a protocol without ports."""
        return kernel_ports.waiting(protocol)

    def tunnels(self, protocol: int) -> list[str]:
        """Return the names of the host's tunnels that use a protocol just now."""
        return kernel_ports.tunnels(self._watch.interfaces(), protocol)

    def unfollowed(self) -> list[str]:
        """Return the rules of policy routing that packets of our links would meet, see kernel/ip_rules.py."""
        return ip_rules.concerning(self._watch.snapshot())

    # -- guard -----------------------------------------------------------------------------------------------------

    def guard_marks(self) -> bool:
        """Return whether taps are to stand behind the guard, or, before it is in force, whether they will be.

        What a guard that is put in force says may be another thing than what was expected.
        """
        if self.guard is not None:
            return self.guard.marks
        if self._will_mark is None:
            self._will_mark = will_mark(self._backend)
        return self._will_mark

    def keep(self, local: list[int], external: Mapping[int, np.ndarray], protocols: Iterable[int]) -> None:
        """Have the guard keep these ports, by address, and protocols from the host, whose addresses `local` are.

        Raises KernelError; the next call tells the guard anew then.
        """
        snapshot = self._watch.snapshot()
        inside, outside = (
            self._with_macvlans(names) for names in (self._interfaces.inside, [self._interfaces.outside])
        )
        spec = GuardSpec(
            inside=inside,
            outside=outside,
            local_addresses=local,
            external={address: (ports[0], ports[1]) for address, ports in external.items()},
            protocols=sorted(protocols),
            local=[link.name for link in snapshot.links if link.role == "local" and link.ifindex],
        )
        state = (
            tuple(local),
            tuple((address, ports[:2].tobytes()) for address, ports in external.items()),
            tuple(spec.protocols),
            tuple(link.ifindex for link in snapshot.links),
            tuple(inside + outside),
        )
        if state == self._guarded:
            return
        self._guarded = self._spec = None
        if self.guard is None:
            self.guard = self._takeover.guard(self._backend, spec)
            if self.guard.backend == "none":
                log.warning("%s", self.guard.describe())
        else:
            self.guard.update(spec)
        self._guarded, self._spec = state, spec

    def _with_macvlans(self, links: Iterable[str]) -> list[str]:
        """Return these links and the macvlans over them: what comes for those is judged by their names."""
        return [name for link in links for name in (str(link), *(each.name for each in self._watch.macvlans(link)))]

    # -- rules -----------------------------------------------------------------------------------------------------

    def judge(self, rule_set: RuleSet, itself: HostItself) -> None:
        """Have the kernel judge the host's own packets by the rules, then by what of the host is open to the outside.

        What of the rules it cannot is said once. Raises KernelError or ConfigurationError, and what was in force stays.
        """
        gate = self._gate(itself)
        not_enforced = self._takeover.set_host_rules(rule_set, interface_addresses(), gate)
        self._is_gated = gate is not None
        for line in not_enforced:
            if line not in self._not_enforced:
                log.warning("%s", line)
        self._not_enforced = not_enforced

    def _gate(self, itself: HostItself) -> Gate | None:
        """Return what is open where not all is; connections that are older than that go on."""
        if itself.unsolicited != "drop":
            return None
        if not self._is_gated:
            self._connections = kernel_ports.connections()
        found: dict[str, list[tuple[int, int]]] = {}
        for kind, first, last in itself.open:
            found.setdefault(kind, []).append((first, last))
        return Gate(
            interfaces=self._with_macvlans([self._interfaces.outside]),
            tcp=found.get("tcp", ()),
            udp=found.get("udp", ()),
            protocols=[number for number, _ in found.get("protocol", ())],
            ping="ping" in found,
            known=self._connections,
        )

    def count(self, rule_set: RuleSet) -> None:
        """Add to counters what the host's own packets have matched since the last call. Raises KernelError."""
        self._takeover.host_rules.collect(rule_set)

    def reach_proxies(self, rule_set: RuleSet, forwarder: Forwarder) -> bool:
        """Have a link to programs of this host if a rule redirects to them, or sessions with them have been adopted.

        Returns whether it is new. Raises KernelError.
        """
        mtus = (link.mtu for link in self._watch.snapshot().links if link.role == "inside")
        if not (proxies.redirects(rule_set) or forwarder.table.has_adopted_proxied):
            return False
        is_new = self._takeover.make_local_link(max(mtus))
        try:
            if self._destinations is None:
                self._tell_programs(forwarder)
        except KernelError:
            if is_new:
                self._takeover.remove_local_link()
            raise
        return is_new

    def _tell_programs(self, forwarder: Forwarder) -> None:
        """Have programs learn the original destination of what is redirected to them, where the kernel can.

        Raises KernelError when there are no descriptors for it.
        """
        try:
            self._destinations = OriginalDestinations()
        except KernelError as error:
            if not descriptors_left(OriginalDestinations.DESCRIPTORS):
                raise
            if str(error) != self._destinations_refused:
                log.warning("%s", error)
            self._destinations_refused = str(error)
            return
        self._destinations_refused = ""
        with forwarder.locked():
            forwarder.tell_original_destinations(self._destinations.map, self._destinations.cookie, calls.system_call())

    def leave_proxies(self, forwarder: Forwarder) -> None:
        """Take back what `reach_proxies` has made. Raises KernelError."""
        with forwarder.locked():
            forwarder.tell_original_destinations(-1, 0, 0)
        if self._destinations is not None:
            self._destinations.close()
        self._destinations, self._destinations_refused = None, ""
        self._takeover.remove_local_link()

    def check(self, rule_set: RuleSet) -> None:
        """Say it, once, when proxies of the host listen where they are not reached."""
        found = proxies.out_of_reach(rule_set)
        for sentence in found:
            if sentence not in self._out_of_reach:
                log.warning("%s", sentence)
        self._out_of_reach = found

    # -- what others do --------------------------------------------------------------------------------------------

    def look_after(self, now_ns: int) -> None:
        """Put back what somebody has removed or changed of what was taken over, and say so, a line for each.

        Raises KernelError for what cannot be; `is_whole` is False then, and the next look tries again.
        """
        refused = []
        for look in (
            self._put_back_guard,
            self._takeover.put_back_host_rules,
            self._takeover.put_back_local_link,
            self._put_back_ports,
            self._put_back_offloads,
        ):
            try:
                sentence = look()
            except (FastmasqError, OSError) as error:
                is_ours = isinstance(error, FastmasqError)
                refused.append(str(error) if is_ours else f"what was taken over is not looked at: {error.strerror}")
            else:
                if sentence:
                    self._mishaps.warn(sentence, now_ns)
        self.is_whole = not refused
        if refused:
            raise KernelError("; ".join(dict.fromkeys(refused)))

    def _put_back_guard(self) -> str:
        if self.guard is None or self._spec is None:  # not in force yet, or not as it should be: `keep` is to come
            return ""
        altered = self.guard.look()
        if not altered:
            return ""
        self.guard.update(self._spec)
        return f"somebody removed or changed the guard ({self.guard.backend}) at {', '.join(altered)}; it is back"

    def _put_back_ports(self) -> str:
        if self._reserves is None:
            return ""
        altered = [name for name in (PORT_RANGE, RESERVED_PORTS) if self._takeover.concede(name)]
        if not altered:
            return ""
        self.reserve(self._reserves)
        said = {
            PORT_RANGE: f"it stays {self._range}" if self._range.reason else f"it is {self._range} again",
            RESERVED_PORTS: "it has our ports, too, again",
        }
        return "; ".join(f"somebody set {name}; {said[name]}" for name in altered)

    def _put_back_offloads(self) -> str:
        on = {name: self._takeover.switch_off(name, features) for name, features in self._off.items()}
        found = [f"{', '.join(features)} of {name}" for name, features in on.items() if features]
        return f"somebody switched on {' and '.join(found)}: off again" if found else ""


def _hear_binds() -> tuple[Binds | None, str]:
    """Return what tells of binds, or why it cannot be had."""
    try:
        return Binds(), ""
    except KernelError as error:
        return None, str(error)


class UntouchedGuard(NoGuard):
    """The guard of a host that is not taken over."""

    def describe(self) -> str:
        return "nothing on this host is changed"


class UntouchedHost(Host):
    """The host of a forwarder that only observes: it is looked at, and whatever policy needs of it is left undone."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._own_range = self._range = HostRange(*kernel_ports.ephemeral_range(), "fastmasq only observes")
        self.guard = UntouchedGuard()
        self.goes_on = False
        self._hearing = None
        self.is_whole = True

    def waiting(self, protocol: int) -> list[kernel_ports.Waiting]:
        return []  # nothing is taken from them

    def tunnels(self, protocol: int) -> list[str]:
        return []

    def refused(self) -> dict[str, str]:
        return {}

    def keep_off(self, led: PortSet) -> None:
        pass

    def keep_datagrams_apart(self, links: Iterable[Link]) -> None:
        pass

    def reset(self, rows: Iterable[np.void]) -> int:
        return 0

    def close(self) -> None:
        pass

    def reserve(self, masquerade: Masquerade) -> None:
        pass

    def keep(self, local: list[int], external: Mapping[int, np.ndarray], protocols: Iterable[int]) -> None:
        pass

    def judge(self, rule_set: RuleSet, itself: HostItself) -> None:
        pass

    def count(self, rule_set: RuleSet) -> None:
        pass

    def reach_proxies(self, rule_set: RuleSet, forwarder: Forwarder) -> bool:
        return False

    def leave_proxies(self, forwarder: Forwarder) -> None:
        pass

    def check(self, rule_set: RuleSet) -> None:
        pass

    def look_after(self, now_ns: int) -> None:
        pass
