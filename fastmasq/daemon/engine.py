"""Engine: the life of one running forwarder, from taking the host over to putting everything back, and its loop.

Two threads. The worker moves packets and never waits for the other. The main thread sleeps in its loop and reacts: to
netlink (links, addresses, routes, neighbours), to the worker's wish for a next hop, to the control socket, to signals,
and once a second to time. What it changes in the path it changes under the path's lock, a little at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmasq.clock import now_ns
from fastmasq.config.load import Loaded
from fastmasq.config.schema import PortMapping, Settings
from fastmasq.control.endpoints import Endpoint
from fastmasq.control.keys import KeyFile
from fastmasq.control.lines import LineServer
from fastmasq.control.server import Server, StatusServer
from fastmasq.daemon import priority, resets
from fastmasq.daemon.confirmation import Confirmation
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.handover import Handed, Predecessor, Word, failure_told
from fastmasq.daemon.hooks import Hooks
from fastmasq.daemon.hops import Hops, QuietHops
from fastmasq.daemon.host import Host, UntouchedHost
from fastmasq.daemon.kept_policy import KeptPolicy
from fastmasq.daemon.leases import Leases
from fastmasq.daemon.links import Links
from fastmasq.daemon.log_levels import LogLevels
from fastmasq.daemon.methods import Handler, Methods, serve_reading
from fastmasq.daemon.notify import Notifier
from fastmasq.daemon.offload import Offload, capacity
from fastmasq.daemon.path import make_path
from fastmasq.daemon.policy import declare
from fastmasq.daemon.preload import Preload
from fastmasq.daemon.reload import Reload
from fastmasq.daemon.state import State, adoptable
from fastmasq.daemon.status import Status
from fastmasq.daemon.targets import why_not_inside
from fastmasq.daemon.upgrade import Succession, Upgrade, signals_held
from fastmasq.daemon.vpn import followable
from fastmasq.daemon.watchdog import Watchdog
from fastmasq.daemon.worker import Worker
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.kernel import local_link, privileges
from fastmasq.kernel.alterations import Alterations
from fastmasq.kernel.forwarding import Forwarding
from fastmasq.kernel.identity import end_with, start_time
from fastmasq.kernel.key import read_key
from fastmasq.kernel.run_folder import RunFolder
from fastmasq.kernel.takeover import Takeover
from fastmasq.kernel.watch import Watch
from fastmasq.mishaps import Mishaps
from fastmasq.path.rows import LINKS
from fastmasq.scarcity import descriptors_left
from fastmasq.units import NS_PER_SECOND

if TYPE_CHECKING:
    from fastmasq.control.inside import InsideServer
    from fastmasq.daemon.mapping_server import MappingServer
    from fastmasq.daemon.upnp_server import UpnpServer

log = logging.getLogger("fastmasq.engine")

SPARE_DESCRIPTORS = 10  # for a link's ring and sender, or a program that we start, with its pipes
LOOK_EVERY = 2  # seconds between looks at the host's own sockets and settings
LOOK_OFTEN_S = 0.25  # the same for its sockets, where nobody tells of those that are bound
BINDS_S = 0.01  # between giving up ports of ours, when many are bound
PROBE_EVERY = 15  # seconds between asking the kernel to confirm the next hops in use
RESETS_NS = 5 * NS_PER_SECOND  # at most, for telling inside hosts that their sessions end
PARENT_S = 0.05  # between looks whether a supervisor has become our parent
SETTLE_S = 0.1  # for packets of theirs that are under way then: the guard still drops them


def run_forever(
    settings: Settings,
    announce: Callable[[str], None],
    read_again: Callable[[], Loaded] | None = None,
    *,
    observed: Callable[[dict[str, Any]], None] | None = None,
    keep: bool = False,
    places: Mapping[str, str] | None = None,
    predecessor: Predecessor | None = None,
    succession: Succession | None = None,
) -> None:
    """Forward until SIGTERM or SIGINT; `announce` is called with one line once it does.

    With a predecessor we take its place, or end without a trace. A succession says how another takes ours.

    Then everything is put back; with `keep` guard, journal and ip_forward stay as a kill would leave them. SIGHUP
    reloads what `read_again` returns; without that it ends us, too. With `observed` nothing is forwarded, sent or
    changed, only judged: in the end it is called with what `status` says. places: those of forwards and redirects in
    their file, for messages. Raises FastmasqError when it cannot start, and nothing on the host has changed then; and
    when something could not be put back.
    """
    engine = Engine(
        settings, read_again, observes=observed is not None, keep=keep, places=places, predecessor=predecessor,
        succession=succession,
    )  # fmt: skip
    try:
        with failure_told(predecessor):
            engine.start()
        announce(engine.status.summary())
        engine.serve()
        if observed is not None:
            observed(engine.status.status({}))
    finally:
        engine.stop()


class Engine:
    """One running fastmasq: `start` makes its parts, `serve` is its loop, `stop` undoes what start came to.

    One that only observes takes nothing over.
    """

    def __init__(
        self,
        settings: Settings,
        read_again: Callable[[], Loaded] | None = None,
        *,
        observes: bool = False,
        keep: bool = False,
        places: Mapping[str, str] | None = None,
        predecessor: Predecessor | None = None,
        succession: Succession | None = None,
    ) -> None:
        self.observes = observes
        self._places = places
        self.settings = settings
        self.read_again = read_again
        self.keep = keep
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._report_mistake)
        self.notifier = Notifier()
        self.mishaps = Mishaps(log)
        self.log_levels = LogLevels()
        self.inside_server: InsideServer | None = None
        self.mapping_server: MappingServer | None = None
        self.upnp_server: UpnpServer | None = None
        self.status_server: StatusServer | None = None
        self.links: Links | None = None
        self.forwarding: Forwarding | None = None  # the kernel's, unless we only observe
        self.alterations: Alterations | None = None  # likewise
        self.takeover: Takeover | None = None  # likewise
        self.offload: Offload | None = None  # likewise
        self.state: State | None = None  # likewise
        self.kept_policy: KeptPolicy | None = None  # likewise
        self.upgrade = Upgrade(self, succession) if succession is not None else None
        self._predecessor = predecessor
        self._supervisor = succession.supervisor if succession is not None else 0
        self._working = ExitStack()  # ends worker and watchdog
        self._seconds = 0
        self._bound: set[tuple[int, int]] = set()  # protocols and ports that programs of the host have bound just now
        self._has_missed_binds = False
        self._gives_up_at = 0.0  # such ports, and not before
        self._will_give_up = False
        self._timers: dict[str, asyncio.TimerHandle] = {}  # by the name of what is to be done then
        self._listens_since = -1  # generation of the kernel's snapshot that servers of inside hosts were told
        self._undo = ExitStack()
        self._undo.callback(self.loop.close)
        self._ending = self._undo.enter_context(ExitStack())  # of what goes on until all has been put back

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take over and begin to forward. Raises FastmasqError; `stop` then undoes what was done."""
        privileges.require(to_observe=self.observes)
        privileges.hand_down()
        settings = self.settings
        declared = declare(settings, places=self._places)
        for warning in declared.warnings:
            log.warning("%s", warning)
        if not self.observes:
            RunFolder().close()  # it may be where the sockets go
        links = len(settings.interfaces.inside) + 1
        if links >= LINKS:
            raise KernelError(f"{links} links: at most {LINKS - 1} ([interfaces])")
        self._catch_signals()
        inside, outside = list(map(str, settings.interfaces.inside)), str(settings.interfaces.outside)
        self.watch = Watch(inside, outside, local_link.OUR_END)
        self._undo.callback(self.watch.close)
        for complaint in self.watch.complaints():
            raise KernelError(complaint)
        built_on = followable(self.settings, observes=self.observes)
        keys = KeyFile(built_on.vpn.preload_keys) if built_on.vpn.preload else None
        handed = self._wait_for_host()
        methods: dict[str, Callable[[dict[str, Any]], object]] = {}  # none until there are parts; nobody is served yet
        control = settings.control.socket
        self.server = Server(control, methods, self.loop, handed.sockets.pop(str(control), None))
        self._undo.callback(self._drain)
        self._undo.callback(self.server.close)
        host = UntouchedHost(self.watch) if self.observes else self._claim_host(handed.lock)
        started_ns = now_ns()
        if not self.observes:
            self.offload = Offload(settings, host)
            self._undo.callback(self.offload.close)
            is_shared = self.offload.arrays is not None
            self.state = State(Path(settings.state.directory), capacity(settings, is_shared=is_shared))
            self._undo.callback(self.state.close)
        key = None if self.observes else read_key()
        arrays = self.offload.arrays if self.offload else None
        forwarder = make_path(settings, started_ns, self.state, key, observes=self.observes, arrays=arrays)
        has_time = (os.cpu_count() or 1) > 1 and not self.observes
        self.worker = Worker(forwarder, settings.rings.busy_poll if has_time else 0)
        self._undo.callback(self.worker.close)
        self._undo.callback(host.close)
        is_deaf = self._predecessor is not None
        self.links = Links(settings, forwarder, self.worker, behind=host.guard_marks(), deaf=is_deaf)
        self._undo.callback(self.links.close)
        self.links.prepare(self.watch.snapshot())
        self.gateway = Gateway(built_on, declared, forwarder, self.worker, self.watch, host, self.links)
        self.hooks = Hooks(lambda: self.gateway.settings.hooks, outside)
        self.hops = (QuietHops if self.observes else Hops)(self.watch, self.links, forwarder, self.worker)
        self.confirmation = Confirmation(self.gateway)
        folder = self.state.folder if self.state is not None else None
        self.leases = Leases(folder, self.gateway, settings.port_mapping, started_ns)
        adopted = (self.state.adopted, self.state.dropped) if self.state else ({}, {})
        self.status = Status(self.gateway, self.confirmation, self.leases, self.offload, started_ns, *adopted)
        self.reload = Reload(self.gateway, self.read_again, self.confirmation)
        preload = Preload(self.gateway.vpn, lambda host: why_not_inside(self.watch.snapshot(), host))
        methods |= self._handlers(preload)
        if keys is not None:
            from fastmasq.control.inside import InsideServer  # and cryptography with it

            self.inside_server = InsideServer(built_on.vpn.preload, keys, preload.inside_handlers(), self.loop)
            self._undo.callback(self.inside_server.close)
        if not self.observes:
            self._serve_mappings(settings.port_mapping)
        if not self.observes:
            self._serve_status(methods, handed)
        if self.state is not None:
            self._go_on(self.state, handed)
        self.gateway.begin()
        self.hops.expect()
        self._follow_inside()
        self._relieve(handed)
        self._begin_state()
        self._follow_offload()
        self._watch()
        self._start_worker()
        self._begin_hooks()
        if line := self.status.fallbacks.line():
            log.warning("%s", line)

    def _wait_for_host(self) -> Handed:
        """Return what a predecessor hands over, once we are ready, and it is; nothing without one. KernelError."""
        if self._predecessor is None:
            return Handed(None, {}, 0)
        self._undo.callback(self._predecessor.close)
        file, why_not = adoptable(Path(self.settings.state.directory))
        return self._predecessor.ready(str(file), why_not)

    def _wait_for_table(self, handed: Handed) -> int | None:
        """Have a predecessor move packets no more: those that come from now on wait for us.

        What can be done before is. Returns how many of its rows were used; None without a predecessor.
        """
        if self._predecessor is None:
            return None
        self.gateway.table.make_ready(handed.sessions)
        self.gateway.open_links()
        used = self._predecessor.take_table()
        self.links.hear()
        return used

    def _relieve(self, handed: Handed) -> None:
        """Have a predecessor end: nothing stands in our way any more. What we have no use for goes with it."""
        if self._predecessor is None:
            return
        self._predecessor.begins(self._supervisor)
        for path, listener in handed.sockets.items():
            listener.close()
            Path(path).unlink(missing_ok=True)

    def _claim_host(self, lock: int | None) -> Host:
        """Return the host, taken over: from now on its kernel forwards nothing of our links. Raises KernelError.

        lock: what a predecessor holds it by, to be ours.
        """
        takeover = self.takeover = Takeover(former_journal=self.settings.control.former_journal, lock=lock)
        self._undo.callback(self._restore, takeover)
        for remark in takeover.remarks:
            log.warning("%s", remark)
        if takeover.adopted:
            is_meant = self.keep or self._predecessor is not None
            log.log(logging.INFO if is_meant else logging.WARNING, "the journal of the run before is adopted")
        for name in privileges.wanting():
            log.warning("without %s: %s", name, privileges.WANTED[name])
        links = self.settings.interfaces
        self.forwarding = Forwarding(takeover, (*map(str, links.inside), str(links.outside)))
        self._undo.callback(self.forwarding.close)
        self.forwarding.stop()
        self.alterations = Alterations()
        self._undo.callback(self.alterations.close)
        return Host(self.settings, takeover, self.watch)

    def _go_on(self, state: State, handed: Handed) -> None:
        """Go on with what a run before has left, policy, sessions and tunnels, before anything begins."""
        self.kept_policy = KeptPolicy(state.folder, self.gateway, self.confirmation)
        self.kept_policy.take_up()
        self.leases.take_up(now_ns(), goes_on=self.gateway.host.goes_on)
        used = self._wait_for_table(handed)
        if state.former is not None:
            state.adopt(self.gateway.table, now_ns(), used)
            if used is None:
                self.gateway.table.make_ready()
            self.gateway.go_on(state.former.externals)
            self.gateway.application_gateways.go_on(state.former.followers())
        if self.gateway.vpn is not None:
            state.adopt_tunnels(self.gateway.vpn, now_ns())

    def _begin_state(self) -> None:
        """Have our sessions and our policy be those that the next run goes on with. Raises KernelError."""
        if self.state is not None:
            if self.state.place is not None:
                self.gateway.host.keep_state(self.state.place)
            self.state.begin(self.gateway.vpn)
        self._keep_policy()

    def _keep_policy(self) -> None:
        if self.kept_policy is not None:
            self.kept_policy.follow()

    def _serve_status(self, methods: Mapping[str, Callable[[dict[str, Any]], object]], handed: Handed) -> None:
        control = self.settings.control
        listener = handed.sockets.pop(str(control.status_socket), None)
        self.status_server = serve_reading(control, methods, self.loop, listener)
        if self.status_server is not None:
            self._undo.callback(self.status_server.close)

    def _serve_mappings(self, settings: PortMapping) -> None:
        """Have inside hosts ask for ports, in the ways that the settings say. Raises KernelError."""

        def why_not(host: int) -> str | None:
            return why_not_inside(self.watch.snapshot(), host)

        if settings.pcp:
            from fastmasq.daemon.mapping_server import MappingServer
            from fastmasq.daemon.port_mapping import Requests

            self.mapping_server = MappingServer(Requests(self.leases, why_not), self.loop)
            self._undo.callback(self.mapping_server.close)
        if settings.upnp:
            try:
                from fastmasq.daemon.upnp_server import UpnpServer
            except ImportError as error:
                raise KernelError(
                    f"[port_mapping] upnp: there is no {error.name} here; binaries are without it, else it comes by "
                    "pip install 'fastmasq[upnp]'"
                ) from None
            inside = (link for link in self.watch.snapshot().links if link.role == "inside")
            name = "".join((link.mac or b"").hex() for link in inside)
            self.upnp_server = UpnpServer(self.leases, name, why_not, self.loop)
            self._undo.callback(self.upnp_server.close)

    def _handlers(self, preload: Preload) -> dict[str, Callable[[dict[str, Any]], object]]:
        vpn = self.gateway.vpn
        return {
            "ping": lambda _: "pong",
            "status": self.status.status,
            "sessions": self.status.sessions,
            "reload": self._kept(self._reload),
            **{
                name: self._kept(each)
                for name, each in Methods(self.gateway, self.confirmation, self.leases).handlers().items()
            },
            **self.log_levels.handlers(),
            **(vpn.handlers() if vpn is not None else {}),
            **self.gateway.application_gateways.handlers(),
            **preload.handlers(),
            **(self.upgrade.handlers() if self.upgrade is not None else {}),
        }

    def _kept(self, handler: Handler) -> Handler:
        """Return a method that answers when what it has changed outlives us."""

        def answer(params: dict[str, Any]) -> object:
            result = handler(params)
            self._keep_policy()
            return result

        return answer

    def _start_worker(self) -> None:
        self._work()
        self.links.has_begun = True
        self._undo.callback(self._end_sessions)
        self._undo.callback(self._working.close)
        if self.upgrade is not None:
            self._undo.callback(self.upgrade.abandon)

    def _begin_hooks(self) -> None:
        """Tell programs of the user's from now on what happens; who goes on for another has no news in that."""
        if self.observes:
            return
        if self._predecessor is not None:
            self.hooks.know(self.gateway.ports.external)
        self._ending.callback(self.hooks.close)
        self._tell_hooks()

    def _tell_hooks(self) -> None:
        if self.observes:
            return
        self.hooks.follow(self.gateway.ports.external)
        if self.gateway.vpn is not None:
            self.hooks.tell_of_vpns(self.gateway.vpn.take_news())

    def _work(self) -> None:
        """Have a thread move packets until `rest`, and another look after it."""
        thread = threading.Thread(target=self._move_packets, name="worker", daemon=True)
        self.watchdog = Watchdog(lambda: self.worker.turns, lambda: thread.native_id or 0)
        with signals_held():
            thread.start()
            self.watchdog.start()
        self._working.callback(self.gateway.table.keep_carried, exactly=True)
        self._working.callback(self.watchdog.stop)
        self._working.callback(thread.join)
        self._working.callback(self.worker.stop)
        self._working.callback(self.gateway.forwarder.carry, False)

    def _move_packets(self) -> None:
        if not self.observes:
            priority.go_first()
        self.worker.run()

    def stop(self) -> None:
        """End the worker and put everything back, whatever `start` came to. A second call does nothing.

        Raises KernelError when something could not be put back.
        """
        self._undo.close()

    def _follow_offload(self) -> None:
        """Have the kernel carry sessions by the links that there are."""
        if self.offload is not None:
            self.offload.follow(self.gateway.forwarder, self.links)

    def _end_sessions(self) -> None:
        """Reset the inside ends of open TCP sessions, unless they go on: nobody is to send for them untranslated."""
        if self.keep or self.observes:
            return
        told, left = resets.end_all(self.gateway.table, self.gateway.forwarder, now_ns() + RESETS_NS)
        if left:
            log.warning("%d inside ends of TCP sessions were not reset: there was no time", left)
        if told:
            time.sleep(SETTLE_S)

    def _restore(self, takeover: Takeover) -> None:
        has_begun = self.links is not None and self.links.has_begun
        if self.keep and (has_begun or takeover.adopted):
            takeover.leave()
            log.info("guard and ip_forward stay as they are; `fastmasq release` gives the host back")
            return
        restored = takeover.restore()
        for line in restored.done:
            log.log(logging.INFO if has_begun else logging.DEBUG, "%s", line)
        if restored.left:
            raise KernelError("\n".join(["could not put back everything:", *restored.left]))

    # -- an upgrade ------------------------------------------------------------------------------------------------

    def finish(self, seconds: float) -> None:
        """See `upgrade.Running`, as for the next three."""
        for server in self._servers():
            server.wait(seconds)

    def stand_still(self) -> tuple[Word, list[int]]:
        self._keep_policy()
        for inside in self._inside_servers():
            inside.follow(())
        servers = [server for server in (self.server, self.status_server) if server is not None]
        sockets = dict(server.to_hand_over() for server in servers)
        word = Word("host", sockets=[*sockets], sessions=self.gateway.table.counts()["active"])
        return word, [self.takeover.lock, *sockets.values()]

    def rest(self) -> Word:
        self._working.close()
        return Word("table", rows=self.gateway.table.fresh)

    def go_on(self) -> None:
        self.rest()
        self._work()
        self._listens_since = -1
        self.gateway.host.forget()
        for step in (
            *(self.takeover.go_on, self.gateway.follow, self.gateway.look_after_host, self._follow_inside),
            self._follow_offload,
            self.alterations.read,  # of what has just been put back
        ):
            self._attempt(step)

    def _note_relief(self) -> None:
        """Be who our predecessor was, now that it has ended: for the service manager, and with our supervisor."""
        self.loop.remove_reader(self._predecessor.fileno())
        self.notifier.ready(self.status.summary())
        self._end_with_supervisor()

    def _end_with_supervisor(self) -> None:
        """Have us end when it does, as soon as it is our parent: a little after the end of our predecessor."""
        if not self._supervisor:
            return
        try:
            if os.getppid() == self._supervisor:
                end_with(self._supervisor)
            elif start_time(self._supervisor) is None:
                self.loop.stop()
            else:
                self._later(PARENT_S, self._end_with_supervisor)
        except KernelError:
            self.loop.stop()

    # -- the loop --------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """React to events until stopped."""
        self._later(1, self._pass_second)
        if self._predecessor is None:
            self.notifier.ready(self.status.summary())
        else:
            self.loop.add_reader(self._predecessor.fileno(), self._note_relief)
        try:
            self.loop.run_forever()
        finally:
            for timer in self._timers.values():  # the loop runs once more when all has been put back
                timer.cancel()
            self.notifier.stopping()

    def _later(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something later, while there is something to serve; of each action one waits at a time."""
        self._timers[action.__name__] = self.loop.call_later(seconds, action)

    def _drain(self) -> None:
        """Have the loop close the connections that were dropped, also those that it was about to begin."""
        for _ in range(3):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def _catch_signals(self) -> None:
        end = self.loop.stop
        hang_up = self._hang_up if self.read_again else end
        actions = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: hang_up}
        if self.upgrade is not None:
            actions[signal.SIGUSR2] = self.upgrade.react
        for number, action in actions.items():
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                if self.read_again:
                    log.info("SIGHUP is ignored, as nohup wants it; `fastmasq reload` reads the configuration again")
                continue  # the terminal may go, we stay
            self.loop.add_signal_handler(number, action)
            self._undo.callback(signal.signal, number, before)
            self._undo.callback(self.loop.remove_signal_handler, number)

    def _hang_up(self) -> None:
        try:
            self._reload({})
        except FastmasqError:
            pass  # it is in the log
        except Exception as error:
            self.mishaps.report("not reloaded", error, now_ns())

    def _reload(self, params: dict[str, Any]) -> dict[str, Any]:
        self.notifier.reloading()
        try:
            return self.reload.handle(params)
        finally:
            self.notifier.ready(self.status.summary())

    def _watch(self) -> None:
        wakes = [(self.watch.fileno(), self.read_kernel), (self.worker.notify, self._answer_path)]
        if self.forwarding is not None:
            wakes.append((self.forwarding.fileno(), self._hold_forwarding))
        if self.gateway.host.binds is not None:
            wakes.append((self.gateway.host.binds.fileno(), self._note_bind))
        elif not self.observes:
            self._look_often()
        if self.alterations is not None:
            wakes.append((self.alterations.fileno(), self._look_after_host))
        for descriptor, action in wakes:
            self.loop.add_reader(descriptor, self._attempt, action)
            self._undo.callback(self.loop.remove_reader, descriptor)

    def _note_bind(self) -> None:
        """Give up the ports that programs have just bound: at once, but BINDS_S apart from the last time."""
        news = self.gateway.host.binds.take()
        if news is None:
            self._has_missed_binds = True
        else:
            self._bound |= news
        if not self._will_give_up:
            self._will_give_up = True
            self._later(self._gives_up_at - self.loop.time(), self._give_up)

    def _give_up(self) -> None:
        bound, self._bound = self._bound, set()
        has_missed, self._has_missed_binds = self._has_missed_binds, False
        self._will_give_up = False
        self._gives_up_at = self.loop.time() + BINDS_S
        self._attempt(*((self.gateway.look,) if has_missed else (self.gateway.give_up, bound)))

    def _look_often(self) -> None:
        """Look at the host's ports every LOOK_OFTEN_S, where nobody tells of those that are bound."""
        self._later(LOOK_OFTEN_S, self._look_often)
        self._attempt(self.gateway.look)

    def _attempt(self, action: Callable[..., object], *arguments: object) -> None:
        """React, and go on when the kernel refuses something meanwhile, or by a mistake of ours: it is tried again."""
        try:
            action(*arguments)
        except Exception as error:
            self.mishaps.report("what was to be done has not been", error, now_ns())

    def _report_mistake(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(context["message"])
        self.mishaps.report(context["message"], error, now_ns())

    def read_kernel(self) -> None:
        """Follow what the kernel has announced."""
        for step in (
            *(self.gateway.read_kernel, self._follow_offload, self._follow_inside, self._follow_leases),
            *(self.hops.follow, self._tell_hooks),
        ):
            self._attempt(step)

    def _follow_inside(self) -> None:
        """Listen to inside hosts on the addresses that inside links have, if the kernel has said anything new."""
        snapshot = self.watch.snapshot()
        if snapshot.generation == self._listens_since:
            return
        endpoints = [
            Endpoint(link.name, link.ifindex, each.address)
            for link in snapshot.links
            if link.role == "inside" and link.ifindex
            for each in link.addresses
        ]
        for server in self._inside_servers():
            server.follow(endpoints)
        self._listens_since = snapshot.generation

    def _inside_servers(self) -> list[InsideServer | MappingServer | UpnpServer]:
        return [each for each in (self.inside_server, self.mapping_server, self.upnp_server) if each is not None]

    def _follow_leases(self) -> None:
        """End leases that are over, and have inside hosts know of another epoch."""
        self.leases.follow(now_ns())
        if self.mapping_server is not None:
            self.mapping_server.announce_news()

    def _answer_path(self) -> None:
        """Do what the path waits for: a tracker's word on a packet, then next hops, then more memory."""
        os.eventfd_read(self.worker.notify)
        self._attempt(self._answer_trackers)
        self._attempt(self.hops.resolve)
        if self.gateway.table.wants_memory:
            self._attempt(self.gateway.table.make_ready)

    def _answer_trackers(self) -> None:
        if self.gateway.punts.answer_waiting(now_ns()):
            os.eventfd_write(self.worker.notify, 1)

    def _hold_forwarding(self) -> None:
        """Have the kernel go on forwarding nothing of ours, whoever wants it to."""
        if self.forwarding is not None and (news := self.forwarding.read(now_ns())):
            log.warning("%s", news)

    def _look_after_host(self) -> None:
        """Put back what somebody has altered."""
        if self.alterations is not None and self.alterations.read():
            self.gateway.look_after_host()

    def _make_way(self) -> None:
        """Have clients go when hardly a descriptor is left: what has to be opened again needs them more."""
        if not descriptors_left(SPARE_DESCRIPTORS):
            for server in self._servers():
                server.make_way()

    def _servers(self) -> list[LineServer]:
        return [each for each in (self.server, self.status_server, self.inside_server) if each is not None]

    def _pass_second(self) -> None:
        """Do what time asks for; a step that fails takes nothing from those after it."""
        self._later(1, self._pass_second)
        self._seconds += 1
        if self.watchdog.is_alive():
            self.notifier.alive()
        for step in self._steps():
            self._attempt(step)

    def _steps(self) -> Iterator[Callable[[], object]]:
        yield self._make_way
        yield self.status.every_second
        yield lambda: self.log_levels.every_second(now_ns())
        yield lambda: self.confirmation.every_second(now_ns())
        yield self._follow_leases
        yield lambda: self.leases.every_second(now_ns())
        yield self._keep_policy
        yield from self.gateway.every_second()
        yield self._follow_offload
        yield self.gateway.table.keep_carried
        yield self._follow_inside  # a change of policy may have read of other addresses, and of neighbours
        yield self.hops.follow
        yield self._tell_hooks
        yield self.server.every_second
        if self.upnp_server is not None:
            yield self.upnp_server.every_second
        if self.status_server is not None:
            yield self.status_server.every_second
        if self.inside_server is not None:
            yield lambda: self.inside_server.every_second(now_ns())
        if self._seconds % LOOK_EVERY == 0:
            yield from (self.gateway.look_after_host, self.gateway.check_host, self.gateway.look)
            if self.forwarding is not None:
                yield self._hold_forwarding
        if self._seconds % PROBE_EVERY == 0:
            yield self.hops.probe
