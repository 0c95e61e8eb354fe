"""The sockets that UPnP is spoken on: TCP port 5351 of each inside address, and SSDP of each inside link (UDP 1900).

All are tied to their links, so nobody outside reaches them, whatever address he sends to: the listeners are ours, and
what async-upnp-client has for a device and its actions is given the connections that we accept. SSDP is heard at its
group alone, and answered at once. What a host may cost is bounded, as for PCP (daemon/port_mapping.py): by its messages
in a second, by the octets of one, and by connections, of which the oldest goes when there are too many.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import InvalidHeader
from async_upnp_client.exceptions import UpnpError
from async_upnp_client.server import UpnpServerDevice, action_handler, to_xml
from async_upnp_client.ssdp import build_ssdp_packet, decode_ssdp_packet, is_valid_ssdp_packet

import fastmasq
from fastmasq.clock import now_ns
from fastmasq.control.endpoints import Endpoint, follow
from fastmasq.control.pace import Pace
from fastmasq.daemon import upnp
from fastmasq.daemon.leases import Leases
from fastmasq.daemon.port_mapping import Bucket
from fastmasq.errors import KernelError
from fastmasq.mishaps import Mishaps
from fastmasq.scarcity import is_scarcity

log = logging.getLogger("fastmasq.forwards")

PORT = 5351
GROUP = ("239.255.255.250", 1900)
LARGEST = 16_384  # octets of a request
LARGEST_SEARCH = 1500
MOST_CONNECTIONS = 32
PATIENCE_S = 10  # of a connection
AT_ONCE = 8  # connections or searches taken in a turn of the loop
MOST_A_TICK = 50  # of them
ALIVE_S = 1800  # for how long a host may believe that we are here
ANNOUNCED_EVERY_S = 600
SERVER = f"Linux/1 UPnP/1.1 fastmasq/{fastmasq.__version__}"


class Target(NamedTuple):
    """What SSDP may search, and under what name the device with this description has it."""

    kind: str
    name: str
    description: str


class _Link(NamedTuple):
    """The sockets of SSDP on a link: one that hears its group, one that sends from the address."""

    group: socket.socket
    sender: socket.socket


class UpnpServer:
    """Serves inside hosts in a loop. `why_not_inside` returns why an address is no inside host's, None if it is."""

    def __init__(
        self, leases: Leases, name: str, why_not_inside: Callable[[int], str | None], loop: asyncio.AbstractEventLoop
    ) -> None:  # fmt: skip
        """The loop must not be running yet."""
        self._loop = loop
        self._why_not_inside = why_not_inside
        self._mishaps = Mishaps(log)
        self._requests, self._changes, self._searches = Bucket(20, 100), Bucket(10, 64), Bucket(5, 20)
        self._listeners: dict[Endpoint, socket.socket] = {}
        self._links: dict[Endpoint, _Link] = {}
        self._beginning: set[asyncio.Task] = set()
        self._since: dict[Any, float] = {}  # when each connection came, the oldest first
        self._pace = Pace(loop, MOST_A_TICK)
        self._announces_at = 0.0
        devices = [upnp.make_gateway(version, leases, name) for version in upnp.VERSIONS]
        self._targets = [target for device in devices for target in targets(device)]
        self._runner = web.AppRunner(self._application(devices), access_log=None, keepalive_timeout=PATIENCE_S)
        loop.run_until_complete(self._runner.setup())

    def _application(self, devices: Iterable[UpnpServerDevice]) -> web.Application:
        made = web.Application(client_max_size=LARGEST, middlewares=[self._bounded])
        for device in devices:
            made.router.add_get(device.device_url, partial(to_xml, device))
            for service in device.all_services:
                definition = service.SERVICE_DEFINITION
                made.router.add_get(definition.scpd_url, partial(to_xml, service))
                made.router.add_post(definition.control_url, partial(action_handler, service))
        return made

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        """Answer those who may ask, and for the address that they ask from.

        Who asks for us by another name than our address is a page in somebody's browser (DNS rebinding).
        """
        host, now = int(ipaddress.IPv4Address(request.remote)), now_ns()
        own, _ = request.get_extra_info("sockname")
        if self._why_not_inside(host) is not None or request.host not in (own, f"{own}:{PORT}"):
            raise web.HTTPForbidden
        is_change = request.method == "POST" and "Mapping" in request.headers.get("SOAPAction", "")
        if not self._requests.take(host, now) or (is_change and not self._changes.take(host, now)):
            raise web.HTTPServiceUnavailable
        upnp.ASKER.set(upnp.Asker(host, now))
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except (UpnpError, KeyError, ValueError):
            raise web.HTTPBadRequest from None
        except Exception as error:
            self._mishaps.report("a UPnP request", error, now)
            raise web.HTTPInternalServerError from None

    # -- where -----------------------------------------------------------------------------------------------------

    def follow(self, endpoints: Iterable[Endpoint]) -> None:
        """Listen on these and no others. Raises KernelError, and listens on as many as it can."""
        wanted = sorted(endpoints)
        first = {endpoint.link: endpoint for endpoint in reversed(wanted)}
        refused = [
            *follow(self._listeners, wanted, self._listen, lambda _, listener: self._leave(listener)),
            *follow(self._links, first.values(), self._search, self._leave_link),
        ]
        if refused:
            said = ", ".join(f"{endpoint.dotted()}: {error.strerror}" for endpoint, error in refused)
            raise KernelError(
                f"[port_mapping] upnp: TCP port {PORT} and UDP port {GROUP[1]}: {said}; end the program that has them"
            )

    def _listen(self, endpoint: Endpoint) -> socket.socket:
        """Raises OSError."""
        with contextlib.ExitStack() as undo:
            made = undo.enter_context(endpoint.socket(socket.SOCK_STREAM))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((endpoint.dotted(), PORT))
            made.listen(MOST_CONNECTIONS)
            undo.pop_all()
        self._pace.begin(made, partial(self._accept, made))
        self._announces_at = 0
        return made

    def _search(self, endpoint: Endpoint) -> _Link:
        """Raises OSError."""
        address = socket.inet_aton(endpoint.dotted())
        with contextlib.ExitStack() as undo:
            group, sender = (undo.enter_context(endpoint.socket(socket.SOCK_DGRAM)) for _ in range(2))
            group.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP[0]) + address)
            group.bind(GROUP)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
            sender.bind((endpoint.dotted(), 0))
            undo.pop_all()
        self._pace.begin(group, partial(self._read, endpoint, group))
        self._announces_at = 0
        return _Link(group, sender)

    def _leave_link(self, endpoint: Endpoint, gone: _Link) -> None:
        self._announce(endpoint, gone, "ssdp:byebye")
        self._leave(gone.group)
        gone.sender.close()

    def _leave(self, gone: socket.socket) -> None:
        self._pace.end(gone)
        gone.close()

    def close(self) -> None:
        """End all connections, and listen no more."""
        self.follow(())
        self._pace.close()
        self.make_way()
        self._loop.run_until_complete(self._runner.cleanup())

    def make_way(self) -> None:
        """Have all connections end."""
        for handler in list(self._runner.server.connections):
            handler.force_close()

    def every_second(self) -> None:
        """End connections that take too long, and say that we are here."""
        now = self._loop.time()
        self._forget_ended()
        for handler in [handler for handler, since in self._since.items() if since + PATIENCE_S < now]:
            handler.force_close()
        if now >= self._announces_at:
            self._announces_at = now + ANNOUNCED_EVERY_S
            for endpoint, link in self._links.items():
                self._announce(endpoint, link, "ssdp:alive")

    # -- connections -----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if len(self._beginning) >= AT_ONCE or not self._pace.is_left:
                return
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if is_scarcity(error):
                    self.make_way()
                    self._pace.count()  # or the loop would turn round here until one has gone
                return
            self._pace.count()
            connection.setblocking(False)
            self._make_room()
            beginning = self._loop.create_task(self._loop.connect_accepted_socket(self._handler, connection))
            self._beginning.add(beginning)
            beginning.add_done_callback(self._beginning.discard)

    def _make_room(self) -> None:
        """Have the oldest connections end when there are too many; of those that are only beginning there are few."""
        if len(self._since) < MOST_CONNECTIONS:
            return
        self._forget_ended()
        present = {*self._runner.server.connections}
        begun = [each for each in self._since if each in present]
        for oldest in begun[: max(0, len(self._since) + 1 - MOST_CONNECTIONS)]:
            del self._since[oldest]
            oldest.force_close()

    def _forget_ended(self) -> None:
        present, now = {*self._runner.server.connections}, self._loop.time()
        self._since = {each: since for each, since in self._since.items() if each in present or now < since + 1}

    def _handler(self) -> Any:
        handler = self._runner.server()
        self._since[handler] = self._loop.time()
        return handler

    # -- SSDP ------------------------------------------------------------------------------------------------------

    def _read(self, endpoint: Endpoint, group: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if not self._pace.is_left:
                return
            try:
                octets, sender = group.recvfrom(LARGEST_SEARCH)
            except OSError:
                return
            self._pace.count()
            host = int(ipaddress.IPv4Address(sender[0]))
            if self._why_not_inside(host) is not None or not self._searches.take(host, now_ns()):
                continue
            try:
                answers = list(self._found(octets, endpoint, sender))
            except Exception as error:
                self._mishaps.report("an SSDP search", error, now_ns())
                continue
            for answer in answers:
                self._send(self._links[endpoint].sender, answer, sender)

    def _found(self, octets: bytes, endpoint: Endpoint, sender: tuple[str, int]) -> Iterator[bytes]:
        """Yield the answers to a search; none to what is none."""
        if not octets.startswith(b"M-SEARCH ") or not is_valid_ssdp_packet(octets):
            return
        try:
            _, headers = decode_ssdp_packet(octets, GROUP, sender)
        except (InvalidHeader, ValueError):
            return
        wanted = headers.get("ST", "")
        for target in self._targets:
            if wanted in ("ssdp:all", target.kind):
                about = {"CACHE-CONTROL": f"max-age={ALIVE_S}", "EXT": "", "ST": target.kind}
                yield build_ssdp_packet("HTTP/1.1 200 OK", about | _place(endpoint, target))

    def _announce(self, endpoint: Endpoint, link: _Link, news: str) -> None:
        about = {"HOST": f"{GROUP[0]}:{GROUP[1]}", "CACHE-CONTROL": f"max-age={ALIVE_S}", "NTS": news}
        for target in self._targets:
            headers = about | {"NT": target.kind} | _place(endpoint, target)
            self._send(link.sender, build_ssdp_packet("NOTIFY * HTTP/1.1", headers), GROUP)

    @staticmethod
    def _send(sender: socket.socket, octets: bytes, to: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            sender.sendto(octets, to)


def targets(device: UpnpServerDevice) -> Iterator[Target]:
    """Yield what of a root device may be searched (UPnP Device Architecture 1.1 section 1.2.2)."""
    yield Target("upnp:rootdevice", f"{device.udn}::upnp:rootdevice", device.device_url)
    for each in device.all_devices:
        yield Target(each.udn, each.udn, device.device_url)
        yield Target(each.device_type, f"{each.udn}::{each.device_type}", device.device_url)
        for service in each.services.values():
            yield Target(service.service_type, f"{each.udn}::{service.service_type}", device.device_url)


def _place(endpoint: Endpoint, target: Target) -> dict[str, str]:
    location = f"http://{endpoint.dotted()}:{PORT}{target.description}"
    return {"LOCATION": location, "SERVER": SERVER, "USN": target.name}
