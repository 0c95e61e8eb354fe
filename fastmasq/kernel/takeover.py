"""The kernel stands aside and is put back: every change is journalled, and undone in reverse, also by another process.

After a crash everything stays as it was while running: the guard is in force and `ip_forward` is 0, so that nothing
leaks with a private source. `release` undoes it. A new start adopts the journal instead: the old values recorded there
go on to count as the old ones, and there is no moment in which the kernel forwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastmasq.errors import KernelError
from fastmasq.kernel import local_link, offloads, sysctl
from fastmasq.kernel.guard.backends import BACKENDS, make_guard, open_guard
from fastmasq.kernel.guard.specification import Guard, GuardSpec
from fastmasq.kernel.host_rules.chains import asks_nothing
from fastmasq.kernel.host_rules.match import Addresses
from fastmasq.kernel.host_rules.ruleset import HostRules
from fastmasq.kernel.host_rules.unsolicited import Gate
from fastmasq.kernel.identity import network_namespace
from fastmasq.kernel.journal import Entry, Journal, shown
from fastmasq.kernel.run_folder import FOLDER, STATE_KINDS, Lock, RunFolder, file_of
from fastmasq.policy.chains import RuleSet

IP_FORWARD = "net.ipv4.ip_forward"
_FORWARDING = "forwarding"
_ACCEPT_REDIRECTS = "net.ipv4.conf.all.accept_redirects"

_HOST_RULES: Entry = {"host_rules": "nftables"}
_LOCAL_LINK: Entry = {"link": local_link.HOST_END}


class Restored(NamedTuple):
    """A line for each thing that was put back, and one for each that was not."""

    done: list[str]
    left: list[str]


class Takeover:
    """What one running forwarder has changed. Only one can exist in a network namespace.

    Journal entries are {"sysctl": name, "old": value, "new": value, "dependents": {name: old value}} and
    {"guard": backend, "memory": what its removal needs to know}, {"host_rules": backend}, {"link": name},
    {"offloads": interface, "features": [name that was on]} and {"state": path}.
    """

    def __init__(
        self, folder: Path = FOLDER, former_journal: Path | None = None, lock: int | None = None
    ) -> None:  # fmt: skip
        """Claim this network namespace; adopt the journal of a predecessor that died, if there is one.

        Lock and journal lie in `folder`; the journal of a version before lay at `former_journal`. With `lock`, the
        descriptor by which a predecessor holds the lock, it hands everything over to us instead. Raises KernelError if
        another fastmasq runs here, or if the journal cannot be read or written.
        """
        self.host_rules_refused = ""  # why the host's own packets are judged by no chain, though they should be
        self._folder = RunFolder(folder)
        self._open = contextlib.ExitStack()
        self._open.callback(self._folder.close)
        with contextlib.ExitStack() as undo:
            undo.push(self._open)
            self._lock = _claim_namespace(self._folder) if lock is None else self._folder.lock_by(_lock_name(), lock)
            self._open.callback(self._lock.close)
            self._journal = Journal.load(self._folder, former_journal)
            self._journal.save()
            undo.pop_all()
        self.adopted = bool(self._journal.entries)
        self.remarks = self._journal.remarks
        self.host_rules = HostRules()
        self._is_gated = False  # what is for the host: only some of it is open to the outside
        self._local_mtu = 0  # of the link to programs of this host; 0 without one

    def set_sysctl(self, name: str, value: str) -> None:
        """Record the value that a setting has, then change it. Raises KernelError."""
        self._record(name, value, {})
        sysctl.write(name, value)

    def original(self, name: str) -> str:
        """Return the value that a setting had before we, or a predecessor, changed it."""
        known = self._known(name)
        return sysctl.read(name) if known is None else known["old"]

    def has_set(self, name: str) -> bool:
        """Return whether we, or a predecessor, have set a setting."""
        return self._known(name) is not None

    def stop_forwarding(self) -> None:
        """Set ip_forward to 0. Raises KernelError.

        Writing it overwrites `forwarding` of every interface, and `accept_redirects`, if it changes anything: so these
        are recorded with it. If it was 0 already, single interfaces may still forward.
        """
        switches = sysctl.of_interfaces(_FORWARDING)
        dependents = {name: sysctl.read(name) for name in (_ACCEPT_REDIRECTS, *switches)}
        self._record(IP_FORWARD, "0", dependents)
        sysctl.write(IP_FORWARD, "0")
        for name in switches:
            sysctl.write_if_present(name, "0")

    def hold_links(self, links: Iterable[str]) -> None:
        """Set `forwarding` of these links alone to 0, so that others may go on.

        The value recorded, which `restore` puts back, is what whoever set ip_forward meanwhile has given them. Raises
        KernelError.
        """
        for name in (sysctl.of_interface(link, _FORWARDING) for link in links):
            if sysctl.path(name).exists() and sysctl.read(name) != "0":
                self._record(name, "0", {})
                sysctl.write_if_present(name, "0")

    def holds_links(self) -> bool:
        """Return whether this run or a predecessor has come to hold single links instead of ip_forward."""
        return any(_is_forwarding(entry) and entry["sysctl"] != IP_FORWARD for entry in self._journal.entries)

    def guard(self, backend: str, spec: GuardSpec) -> Guard:
        """Put a guard in force, in place of the one that a predecessor may have left. Raises KernelError.

        "auto" takes the first that can be put in force, not only checked; why those before it cannot is in `refused`.
        """
        left_behind = [entry for entry in self._journal.entries if "guard" in entry]
        guard = open_guard(backend, lambda name: self._install_guard(name, left_behind, spec))
        self.host_rules.behind_raw = guard.backend == "iptables"
        for entry in left_behind:
            if entry["guard"] != guard.backend:
                _remove_guard(entry)
                self._journal.remove(entry)
        return guard

    def _install_guard(self, backend: str, left_behind: Sequence[Entry], spec: GuardSpec) -> Guard:
        """Put the guard of a backend in force. Raises KernelError, and then it has left nothing behind."""
        mine = next((entry for entry in left_behind if entry["guard"] == backend), None)
        # what a predecessor's remembers, the present state no longer tells
        guard = make_guard(backend, mine["memory"] if mine else None)
        guard.check()
        entry = mine or {"guard": backend, "memory": guard.memory()}
        if not mine:
            self._journal.append(entry)
        try:
            guard.install(spec)
        except KernelError:
            if not mine:
                with contextlib.suppress(KernelError, OSError):  # there may be nothing to take away
                    guard.remove()
                self._journal.remove(entry)
            raise
        return guard

    def switch_off(self, interface: str, features: Iterable[str]) -> list[str]:
        """Switch off features of a link, those that are on and may be; return which. They are journalled.

        A link that goes takes its features with it: one of the same name is a new one. Raises KernelError.
        """
        off = offloads.switched_on(interface, features)
        if not off:
            return []
        entry = {"offloads": interface, "features": off}
        is_new = entry not in self._journal.entries
        if is_new:
            self._journal.append(entry)
        try:
            return offloads.switch(interface, off, on=False)
        except KernelError:
            if is_new:
                self._journal.remove(entry)
            raise

    def set_host_rules(self, rule_set: RuleSet, addresses: Addresses, gate: Gate | None = None) -> list[str]:
        """Have the chains input and output judge the host's own packets, in place of what a predecessor may have left.

        gate: what of the host is open to the outside, unless all is. Returns one line for each thing that cannot be
        enforced; without nftables that is everything, but a gate that cannot be is an error. Raises KernelError or
        ConfigurationError; then what was in force stays.
        """
        known = _HOST_RULES in self._journal.entries
        if asks_nothing(rule_set) and gate is None:
            self.host_rules_refused = ""
            if known:
                self.host_rules.remove()
                self._journal.remove(_HOST_RULES)
            self._is_gated = False
            return []
        if not known or (gate is not None and not self._is_gated):
            try:
                self.host_rules.check(gated=gate is not None)
            except KernelError as error:
                if gate is not None:
                    raise KernelError(f'[host] unsolicited = "drop" needs nftables: {error}') from None
                self.host_rules_refused = str(error)
                return [
                    f"the chains input and output do not protect the host itself, only what fastmasq handles: {error}"
                ]
            if not known:
                self._journal.append(_HOST_RULES)
        not_enforced = self.host_rules.update(rule_set, addresses, gate)
        self._is_gated = gate is not None
        return not_enforced

    def keep_state(self, path: Path) -> None:
        """Have a file with rows of sessions go when everything is put back, not before."""
        entry = {"state": str(path)}
        if entry not in self._journal.entries:
            self._journal.append(entry)

    def make_local_link(self, mtu: int) -> bool:
        """Have the link to programs of this host, made once, or a predecessor's; return whether it is new to us.

        Raises KernelError.
        """
        if self._local_mtu:
            return False
        if _LOCAL_LINK not in self._journal.entries:
            self._journal.append(_LOCAL_LINK)
        local_link.make(mtu)
        self._local_mtu = mtu
        return True

    def remove_local_link(self) -> None:
        """Take away the link that `make_local_link` has made. Raises KernelError."""
        local_link.remove()
        self._journal.remove(_LOCAL_LINK)
        self._local_mtu = 0

    def put_back_host_rules(self) -> str:
        """Put back what somebody has made of the rules for the host itself; say so if it was so. Raises KernelError."""
        if not self.host_rules.put_back():
            return ""
        return "somebody removed or changed the nftables table ip fastmasq; it is back"

    def put_back_local_link(self) -> str:
        """Do the same for the link to programs of this host, once it was made."""
        if not self._local_mtu or not local_link.put_back(self._local_mtu):
            return ""
        return f"somebody changed the link {local_link.HOST_END}, its routes or its rule; it is back"

    def concede(self, name: str) -> bool:
        """Take what somebody has set a setting to since we did for the value it is to have after us.

        Return whether that was so: ours has to be set anew then. Raises KernelError.
        """
        known = self._known(name)
        if known is None or (now := sysctl.read(name)) == known["new"]:
            return False
        self._journal.replace(known, {**known, "old": now})
        return True

    def restore(self) -> Restored:
        """Undo everything, the last change first and the guard at the end, and give up the namespace.

        A second call does nothing. What could not be undone stays in the journal, for `fastmasq release`.
        """
        if not self._lock.is_held:
            return Restored([], [])
        with self._open:
            return _undo_all(self._journal)

    def leave(self) -> None:
        """Give up the namespace and leave everything as it is, for a successor or for `fastmasq release`."""
        self._open.close()

    @property
    def lock(self) -> int:
        """The descriptor by which we hold the namespace, to be handed over."""
        return self._lock.fileno()

    def go_on(self) -> None:
        """Have lock, journal and settings be as they were before a successor began to take over that has failed.

        What it has made besides is undone, now or with all the rest; guard, rules and links are put back by those who
        look after them. Raises KernelError.
        """
        self._lock.name_us()
        for entry in Journal.peek(self._folder):
            if entry in self._journal.entries:
                continue
            ours = self._known(entry["sysctl"]) if "sysctl" in entry else None
            try:
                if ours is not None:
                    sysctl.write(ours["sysctl"], ours["new"])
                else:
                    _undo(entry)
            except (KernelError, OSError):
                self._journal.entries.append(entry)
        self._journal.save()

    def _record(self, name: str, new: str, dependents: dict[str, str]) -> None:
        """Journal a setting's present value; if a predecessor did, that value stays the old one."""
        known = self._known(name)
        if known is None:
            self._journal.append({"sysctl": name, "old": sysctl.read(name), "new": new, "dependents": dependents})
        elif known["new"] != new:
            self._journal.replace(known, {**known, "new": new})

    def _known(self, name: str) -> Entry | None:
        """Return the journal's entry about a setting."""
        return next((entry for entry in self._journal.entries if entry.get("sysctl") == name), None)


def release(folder: Path = FOLDER, former_journal: Path | None = None) -> Restored:
    """Undo what a fastmasq left behind that has ended in this network namespace; see `Takeover` for the parameters.

    Without a journal, rules and a guard that are still in force are removed all the same. Raises KernelError if
    fastmasq still runs here, or if the journal cannot be read.
    """
    with RunFolder(folder) as opened, contextlib.closing(_claim_namespace(opened)):
        journal = Journal.load(opened, former_journal)
        restored = _undo_all(journal)
        done = restored.done or _remove_unknown()
        if journal.is_damaged:
            return Restored(done, [*journal.remarks, *restored.left])
        return Restored([*journal.remarks, *done], restored.left)


def left_behind(folder: Path = FOLDER) -> str:
    """Return a sentence about what a fastmasq that has ended holds of this network namespace still; empty if nothing.

    Nothing is changed. What cannot be read is not known.
    """
    if not folder.is_dir():
        return ""
    try:
        with RunFolder(folder) as opened:
            entries = [] if opened.is_locked(_lock_name()) else Journal.peek(opened)
    except KernelError:
        return ""
    held = [f"its guard ({entry['guard']})" for entry in entries if "guard" in entry]
    held += [f"{entry['sysctl']} = {entry['new']}" for entry in entries if _is_forwarding(entry)]
    held += ["its rules for the host itself"] if _HOST_RULES in entries else []
    if not held:
        return ""
    return (
        f"a fastmasq that has ended has left {', '.join(held)}: nothing is forwarded. Start it again, "
        "or give the host back with `fastmasq release`"
    )


def _remove_unknown() -> list[str]:
    """Remove rules and guards that no journal knows of, by every backend that works here."""
    done = []
    for entry in (_LOCAL_LINK, _HOST_RULES, *({"guard": backend, "memory": {"qdiscs": []}} for backend in BACKENDS)):
        with contextlib.suppress(KernelError):
            done += _undo(entry)
    return done


def _undo_all(journal: Journal) -> Restored:
    """Undo each entry by itself; the journal then has what is left, and is deleted when nothing is."""
    restored = Restored([], [])
    for entry in list(_in_order(journal.entries)):
        try:
            restored.done.extend(_undo(entry))
        except (KernelError, OSError) as error:
            restored.left.append(str(error))
        else:
            journal.entries.remove(entry)
    restored.left.extend(
        f"{journal.path} has an entry that this version does not know: {shown(entry)}; put that back by hand, "
        "and delete the file"
        for entry in journal.strange
    )
    if restored.left:
        journal.save()
    else:
        journal.delete()
    return restored


def _in_order(entries: list[Entry]) -> Iterator[Entry]:
    """Yield the entries in the order in which they are undone.

    Guards come last: nothing that is to be translated reaches the host while it begins to forward by itself again.
    """
    yield from (entry for entry in reversed(entries) if "guard" not in entry)
    yield from (entry for entry in reversed(entries) if "guard" in entry)


def _undo(entry: Entry) -> list[str]:
    if "host_rules" in entry:
        return ["rules for the host itself removed"] if HostRules().remove() else []
    if "link" in entry:
        return [f"link {entry['link']} removed"] if local_link.remove() else []
    if "state" in entry:
        _remove_state(Path(entry["state"]))
        return []
    if "offloads" in entry:
        back = offloads.switch(entry["offloads"], entry["features"], on=True)
        return [f"{entry['offloads']}: {', '.join(back)} on"] if back else []
    if "guard" in entry:
        return [f"guard ({entry['guard']}) removed"] if _remove_guard(entry) else []
    name, old, new = entry["sysctl"], entry["old"], entry["new"]
    try:
        now = sysctl.read(name)
    except FileNotFoundError:  # of an interface that vanished
        return []
    if now not in (old, new):
        return [f"{name} left at {now}: somebody else changed it meanwhile"]
    done = []
    if now != old:
        sysctl.write(name, old)
        done.append(f"{name} = {old}")
    for dependent, value in entry["dependents"].items():
        if sysctl.write_if_present(dependent, value):
            done.append(f"{dependent} = {value}")
    return done


def _remove_state(path: Path) -> None:
    """Remove a file with rows of sessions, and what lies there beside it. Raises KernelError."""
    if path.parent.is_dir():
        with RunFolder(path.parent) as folder:
            for kind in STATE_KINDS:
                folder.remove(path.with_suffix(f".{kind}").name)


def _is_forwarding(entry: Entry) -> bool:
    """Tell whether an entry is about ip_forward, or about `forwarding` of one link."""
    return entry.get("sysctl", "").rpartition(".")[2] in (_FORWARDING, IP_FORWARD.rpartition(".")[2])


def _remove_guard(entry: Entry) -> bool:
    """Remove the guard of a journal's entry; return whether there was one. Raises KernelError."""
    if entry["guard"] not in BACKENDS:
        raise KernelError(f"this version has no guard {entry['guard']}; remove that with the version that has")
    return make_guard(entry["guard"], entry["memory"]).remove()


def _claim_namespace(folder: RunFolder) -> Lock:
    """Hold the lock of this network namespace. Raises KernelError if another fastmasq does."""
    return folder.lock(_lock_name(), "runs in this network namespace")


def _lock_name() -> str:
    return file_of(network_namespace().inode, "lock")
