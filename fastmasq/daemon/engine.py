"""Engine: the life of one running forwarder, from taking the host over to putting everything back, and its loop.

Two threads. The worker moves packets and never waits for the other. The main thread sleeps in its loop and reacts: to
netlink (links, addresses, routes, neighbours), to the worker's wish for a next hop, to the control socket, to signals,
and once a second to time. What it changes in the path it changes under the path's lock, a little at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from fastmasq.clock import now_ns
from fastmasq.config.load import Loaded
from fastmasq.config.schema import Settings
from fastmasq.control.inside import Endpoint, InsideServer
from fastmasq.control.keys import KeyFile
from fastmasq.control.server import Server
from fastmasq.daemon.gateway import Gateway
from fastmasq.daemon.hops import Hops, QuietHops
from fastmasq.daemon.host import Host, UntouchedHost
from fastmasq.daemon.links import Links
from fastmasq.daemon.log_levels import LogLevels
from fastmasq.daemon.methods import Methods
from fastmasq.daemon.policy import declare
from fastmasq.daemon.ports import is_bound
from fastmasq.daemon.preload import Preload
from fastmasq.daemon.reload import Reload
from fastmasq.daemon.status import Status
from fastmasq.daemon.worker import Worker
from fastmasq.errors import FastmasqError, KernelError
from fastmasq.kernel import local_link, privileges
from fastmasq.kernel.forwarding import Forwarding
from fastmasq.kernel.takeover import Takeover
from fastmasq.kernel.watch import Watch
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import LINKS
from fastmasq.table.masq import MasqTable
from fastmasq.wire.numbers import ISAKMP_PORT

log = logging.getLogger("fastmasq.engine")

LOOK_EVERY = 2  # seconds between looks at the host's own sockets and settings
PROBE_EVERY = 15  # seconds between asking the kernel to confirm the next hops in use
WORKER_NICENESS = -10  # packets before programs; more than -10 starves programs on the same processor
AUTOGROUP = Path("/proc/self/autogroup")  # the session's niceness among sessions, see sched(7)


def run_forever(
    settings: Settings,
    announce: Callable[[str], None],
    read_again: Callable[[], Loaded] | None = None,
    observed: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Forward until SIGTERM or SIGINT; `announce` is called with one line once it does.

    SIGHUP reloads what `read_again` returns; without that it ends us, too. With `observed` nothing is forwarded, sent
    or changed, only judged: in the end it is called with what `status` says. Raises FastmasqError when it cannot start;
    then nothing on the host has changed.
    """
    engine = Engine(settings, read_again, observes=observed is not None)
    try:
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
        self, settings: Settings, read_again: Callable[[], Loaded] | None = None, *, observes: bool = False
    ) -> None:
        self.observes = observes
        self.settings = settings
        self.read_again = read_again
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(_report_mistake)
        self.log_levels = LogLevels()
        self.inside_server: InsideServer | None = None
        self.links: Links | None = None
        self.forwarding: Forwarding | None = None  # the kernel's, unless we only observe
        self._seconds = 0
        self._listens_since = -1  # generation of the kernel's snapshot that the inside server was told
        self._undo = ExitStack()
        self._undo.callback(self.loop.close)

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take over and begin to forward. Raises FastmasqError; `stop` then undoes what was done."""
        privileges.require(to_observe=self.observes)
        settings = self.settings
        declared = declare(settings)
        for warning in declared.warnings:
            log.warning("%s", warning)
        links = len(settings.interfaces.inside) + 1
        if links >= LINKS:
            raise KernelError(f"{links} links: at most {LINKS - 1} ([interfaces])")
        self._catch_signals()
        inside, outside = list(map(str, settings.interfaces.inside)), str(settings.interfaces.outside)
        self.watch = Watch(inside, outside, local_link.OUR_END)
        self._undo.callback(self.watch.close)
        for complaint in self.watch.complaints():
            raise KernelError(complaint)
        methods: dict[str, Callable[[dict[str, Any]], object]] = {}  # none until there are parts; nobody is served yet
        server = Server(settings.control.socket, methods, self.loop)
        self._undo.callback(self._drain)
        self._undo.callback(server.close)
        built_on = self._judge_ipsec()
        keys = KeyFile(built_on.vpn.preload_keys) if built_on.vpn.preload else None
        host = UntouchedHost(self.watch) if self.observes else self._claim_host()
        started_ns = now_ns()
        table, forwarder = _make_path(settings, started_ns, observes=self.observes)
        has_time = (os.cpu_count() or 1) > 1 and not self.observes
        self.worker = Worker(forwarder, settings.rings.busy_poll if has_time else 0)
        self._undo.callback(self.worker.close)
        self._undo.callback(host.close)
        self.links = Links(settings, forwarder, self.worker)
        self._undo.callback(self.links.close)
        self.gateway = Gateway(built_on, declared, table, forwarder, self.worker, self.watch, host, self.links)
        self.hops = (QuietHops if self.observes else Hops)(self.watch, self.links, forwarder, self.worker)
        self.status = Status(self.gateway, started_ns)
        self.reload = Reload(self.gateway, declared, self.read_again)
        preload = Preload(self.gateway.vpn)
        methods |= self._handlers(preload)
        if keys is not None:
            self.inside_server = InsideServer(built_on.vpn.preload, keys, preload.inside_handlers(), self.loop)
            self._undo.callback(self.inside_server.close)
        if self.forwarding is not None:
            self.forwarding.stop()
        self.gateway.begin()
        self._follow_inside()
        self._watch()
        self._start_worker()
        if line := self.status.fallbacks.line():
            log.warning("%s", line)

    def _claim_host(self) -> Host:
        """Return the host, which is to be taken over. Raises KernelError when another has it."""
        takeover = Takeover(self.settings.control.journal)
        self._undo.callback(self._restore, takeover)
        if takeover.adopted:
            log.warning("the last run ended without restoring: its journal is adopted")
        links = self.settings.interfaces
        self.forwarding = Forwarding(takeover, (*map(str, links.inside), str(links.outside)))
        self._undo.callback(self.forwarding.close)
        return Host(self.settings, takeover, self.watch)

    def _judge_ipsec(self) -> Settings:
        """Return the settings without what cannot be. A host with an IKE daemon keeps IPsec itself."""
        wanted = self.settings.vpn
        if wanted.ipsec and is_bound(socket.IPPROTO_UDP, ISAKMP_PORT):
            log.warning("a program of this host has UDP port 500, so IPsec of inside hosts is not followed")
            wanted = replace(wanted, ipsec=False)
        if wanted.preload and not wanted.ipsec:
            log.warning("IPsec is not followed, so nobody is listened to on [vpn] preload = %s", wanted.preload)
            wanted = replace(wanted, preload=0)
        if self.observes:
            wanted = replace(wanted, preload=0)  # nobody is answered
        return replace(self.settings, vpn=wanted)

    def _handlers(self, preload: Preload) -> dict[str, Callable[[dict[str, Any]], object]]:
        vpn = self.gateway.vpn
        return {
            "ping": lambda _: "pong",
            "status": self.status.status,
            "sessions": self.status.sessions,
            "reload": self.reload.handle,
            **Methods(self.gateway).handlers(),
            **self.log_levels.handlers(),
            **(vpn.handlers() if vpn is not None else {}),
            **preload.handlers(),
        }

    def _start_worker(self) -> None:
        thread = threading.Thread(target=self._work, name="worker", daemon=True)
        thread.start()
        self.links.has_begun = True
        self._undo.callback(thread.join)
        self._undo.callback(self.worker.stop)

    def _work(self) -> None:
        if not self.observes:
            self._go_first()
        self.worker.run()

    def _go_first(self) -> None:
        """Have this thread run before other programs; niceness alone does not count against those of other sessions."""
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WORKER_NICENESS)
            if os.getsid(0) == os.getpid():  # else the session is somebody's shell
                AUTOGROUP.write_text(f"{WORKER_NICENESS}\n")
        except OSError as error:
            log.info("the worker has no more than usual priority: %s", error.strerror)

    def stop(self) -> None:
        """End the worker and put everything back, whatever `start` came to. A second call does nothing."""
        self._undo.close()

    def _restore(self, takeover: Takeover) -> None:
        level = logging.DEBUG if self.links is None else self.links.level()
        for line in takeover.restore():
            log.log(level, "%s", line)

    # -- the loop --------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """React to events until stopped."""
        self._next_second = self.loop.call_later(1, self._pass_second)
        try:
            self.loop.run_forever()
        finally:
            self._next_second.cancel()  # the loop runs once more when all has been put back

    def _drain(self) -> None:
        """Have the loop close the connections that were dropped, also those that it was about to begin."""
        for _ in range(3):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def _catch_signals(self) -> None:
        end = self.loop.stop
        hang_up = self._hang_up if self.read_again else end
        for number, action in ((signal.SIGTERM, end), (signal.SIGINT, end), (signal.SIGHUP, hang_up)):
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                continue  # nohup: the terminal may go, we stay
            self.loop.add_signal_handler(number, action)
            self._undo.callback(signal.signal, number, before)
            self._undo.callback(self.loop.remove_signal_handler, number)

    def _hang_up(self) -> None:
        with contextlib.suppress(FastmasqError):  # it is in the log
            self.reload.reload()

    def _watch(self) -> None:
        wakes = [(self.watch.fileno(), self.read_kernel), (self.worker.notify, self._answer_path)]
        if self.forwarding is not None:
            wakes.append((self.forwarding.fileno(), self._hold_forwarding))
        for descriptor, action in wakes:
            self.loop.add_reader(descriptor, self._attempt, action)
            self._undo.callback(self.loop.remove_reader, descriptor)

    def _attempt(self, action: Callable[[], object]) -> None:
        """React, and go on forwarding when the kernel refuses something meanwhile: the next look tries it again."""
        try:
            action()
        except FastmasqError as error:
            log.error("%s", error)
        except Exception:  # a mistake of ours: established traffic goes on all the same
            log.exception("what was to be done has not been")

    def read_kernel(self) -> None:
        """Follow what the kernel has announced."""
        self.gateway.read_kernel()
        self._follow_inside()
        self.hops.follow()

    def _follow_inside(self) -> None:
        """Listen to inside hosts on the addresses that inside links have, if the kernel has said anything new."""
        snapshot = self.watch.snapshot()
        if self.inside_server is None or snapshot.generation == self._listens_since:
            return
        self._listens_since = snapshot.generation
        self.inside_server.follow(
            Endpoint(link.name, link.ifindex, each.address)
            for link in snapshot.links
            if link.role == "inside" and link.ifindex
            for each in link.addresses
        )

    def _answer_path(self) -> None:
        """Do what the path waits for: a tracker's word on a packet, then the next hops it asks for."""
        os.eventfd_read(self.worker.notify)
        vpn = self.gateway.vpn
        if vpn is not None and vpn.answer_waiting(now_ns()):
            os.eventfd_write(self.worker.notify, 1)
        self.hops.resolve()

    def _hold_forwarding(self) -> None:
        """Have the kernel go on forwarding nothing of ours, whoever wants it to."""
        if self.forwarding is not None and (news := self.forwarding.read(now_ns())):
            log.warning("%s", news)

    def _pass_second(self) -> None:
        self._next_second = self.loop.call_later(1, self._pass_second)
        self._seconds += 1
        self._attempt(self._every_second)

    def _every_second(self) -> None:
        self.status.every_second()
        self.log_levels.every_second(now_ns())
        self.gateway.every_second()
        self._follow_inside()  # a change of policy may have read of other addresses, and of neighbours
        self.hops.follow()
        if self.inside_server is not None:
            self.inside_server.every_second(now_ns())
        if self._seconds % LOOK_EVERY == 0:
            self._attempt(self.gateway.look)
            self._attempt(self._hold_forwarding)
        if self._seconds % PROBE_EVERY == 0:
            self.hops.probe()


def _make_path(settings: Settings, now: int, *, observes: bool) -> tuple[MasqTable, Forwarder]:
    """Return the table and the path over it, of the sizes and with the habits that the settings want."""
    masquerade, limits = settings.masquerade, settings.limits
    table = MasqTable(
        limits.sessions,
        filtering=masquerade.filtering,
        sessions_per_host=limits.sessions_per_host,
        ports_per_host=limits.ports_per_host,
        rate_per_host=limits.new_sessions_per_host,
        sequential=settings.sequential_ports,
        now_ns=now,
    )
    table.make_ready()
    forwarder = Forwarder(table, hairpin=masquerade.hairpin, observes=observes)
    forwarder.set_programs(local_link.FIRST, local_link.COUNT)
    return table, forwarder


def _report_mistake(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("%s", context["message"], exc_info=context.get("exception"))
