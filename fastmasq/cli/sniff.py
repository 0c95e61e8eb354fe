"""`fastmasq sniff`: the VPN packets on links, one line each, and what is missing at the HOWTO's points."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fastmasq.cli.options import client_options, find_socket, json_option
from fastmasq.errors import ConfigurationError, FastmasqError

if TYPE_CHECKING:
    from fastmasq.observe.capture import Capture
    from fastmasq.tools.sniff.listener import Heard, Listener
    from fastmasq.tools.sniff.verdict import Finding, Side, Watch, WatchedLink

_LISTEN_S = 0.2  # at most until Ctrl-C is noticed
_LAST_ROUNDS = 1000  # of reading what came before the end, should it never stop
_MARKS = {True: "ok", False: "MISSING", None: "-"}


@click.command()
@click.argument("points", metavar="POINT...", nargs=-1, required=True)
@client_options
@click.option("--seconds", metavar="SECONDS", type=click.FloatRange(0.1),
              help="End after so long.  [default: at Ctrl-C]")  # fmt: skip
@click.option("--count", metavar="COUNT", type=click.IntRange(1), help="End after so many packets.")
@click.option("--quiet", is_flag=True, help="Print the findings alone, not the packets.")
@click.option("--write", metavar="FILE", help="Write the packets to this file, too, for tcpdump -r and Wireshark.")
@json_option
def sniff(
    points: tuple[str, ...],
    socket: str | None,
    config: str | None,
    seconds: float | None,
    count: int | None,
    quiet: bool,
    write: str | None,
    as_json: bool,
) -> None:
    """Show the VPN packets on links, and say what is missing.

    POINT is a link such as eth0, or `inside` or `outside` of the configuration (-c) or of the running forwarder. Watch
    both sides, and start before the VPN does: `fastmasq sniff inside outside`. At the end, or at Ctrl-C, there is one
    finding for each pair of hosts. Nothing is changed. Needs root. Exit status: 0 nothing is missing, 1 something is,
    or nothing was seen. With --json only the findings are printed.

    The FILE of --write is pcapng: whole packets from the IP header on, bare acknowledgments among them, with link and
    direction of each. It is begun anew.
    """
    from fastmasq.tools.sniff.listener import Listener
    from fastmasq.tools.sniff.verdict import Watch

    links = _links(points, socket, config)
    watch = Watch(links)
    names = [link.name for link in links]
    with (
        _interrupts() as interrupted,
        contextlib.closing(Listener(names, time.time_ns)) as listener,
        _capture(write, names) as capture,
    ):
        if not as_json:
            _announce(links)
        _listen(listener, Taker(watch, capture, count, quiet=quiet or as_json), seconds, interrupted)
        lost = listener.lost()
    findings = watch.findings()
    if as_json:
        _print_json(watch, findings, lost)
    else:
        _show(watch, findings, lost)
    sys.exit(0 if findings and all(finding.good is not False for finding in findings) else 1)


# -- which links -------------------------------------------------------------------------------------------------------


def _links(points: tuple[str, ...], socket: str | None, config: str | None) -> list[WatchedLink]:
    """Return the links that the points name, each once. Raises ConfigurationError."""
    from fastmasq.tools.sniff.verdict import WatchedLink

    running = _running(socket, config)
    sides = _configured(config) if config else {name: link["role"] for name, link in running.items()}
    names: list[str] = []
    for point in points:
        named = [name for name, side in sides.items() if side == point] or [point]
        if point in ("inside", "outside") and named == [point]:
            raise ConfigurationError(
                f"{point}: which link is that? name a configuration with -c FILE, or the link, such as eth0"
            )
        names += [name for name in named if name not in names]
    return [
        WatchedLink(name, sides.get(name, ""), not running.get(name, {}).get("qdisc_bypass", False)) for name in names
    ]


def _configured(config: str) -> dict[str, Side]:
    from fastmasq.config.load import load

    interfaces = load(config).settings.interfaces
    return {**{str(name): "inside" for name in interfaces.inside}, str(interfaces.outside): "outside"}


def _running(socket: str | None, config: str | None) -> dict[str, dict[str, Any]]:
    """Return the links of the running forwarder by name; none if none is running, which is no mistake."""
    from fastmasq.control.client import call, is_served

    place = find_socket(socket, config)
    if not is_served(place):
        return {}
    try:
        return {link["name"]: link for link in call(place, "status")["links"]}
    except FastmasqError:
        return {}


def _announce(links: list[WatchedLink]) -> None:
    for link in links:
        side = f", {link.side}" if link.side else ", side unknown: one finding for each pair of hosts, without points"
        click.echo(f"{link.name}{side}")
        if not link.sees_sent:
            click.echo(f"{link.name}: what fastmasq sends there passes no queue, and so no sniffer; only what arrives")


# -- listening ---------------------------------------------------------------------------------------------------------


class Taker:
    """What becomes of each packet: it is counted, written and shown."""

    def __init__(self, watch: Watch, capture: Capture | None, count: int | None, *, quiet: bool) -> None:
        self._watch, self._capture, self._count, self._quiet = watch, capture, count, quiet

    def take(self, packets: list[Heard]) -> bool:
        """Take packets until `count` have been; return whether that is so."""
        from fastmasq.tools.sniff.packets import BARE, decode

        for heard in packets:
            if self._is_over():
                break
            seen = decode(heard.packet)
            if seen is None:
                continue
            self._watch.add(heard.link, heard.sent, seen)
            if self._capture is not None:
                self._capture.add(heard.time_ns, heard.link, heard.sent, heard.packet)
            if not self._quiet and seen.tags != BARE:
                _line(heard, str(seen))
        sys.stdout.flush()
        if self._capture is not None:
            self._capture.flush()
        return self._is_over()

    def _is_over(self) -> bool:
        return self._count is not None and self._watch.packets >= self._count


def _capture(path: str | None, links: list[str]) -> contextlib.AbstractContextManager[Capture | None]:
    from fastmasq.observe.capture import Capture

    return contextlib.nullcontext() if path is None else Capture(path, links)


def _listen(listener: Listener, taker: Taker, seconds: float | None, interrupted: threading.Event) -> None:
    """Take packets until time or count is reached, or interrupted; then those that have come by then."""
    from fastmasq.clock import now_ns
    from fastmasq.units import NS_PER_SECOND

    end = None if seconds is None else now_ns() + round(seconds * NS_PER_SECOND)
    while not interrupted.is_set():
        left = _LISTEN_S if end is None else min(_LISTEN_S, (end - now_ns()) / NS_PER_SECOND)
        if left <= 0:
            break
        if taker.take(listener.hear(left)):
            return
        for link in listener.went_down():
            click.echo(f"fastmasq: {link} went down; it is heard again when it is up, unless it was removed", err=True)
    for _ in range(_LAST_ROUNDS):
        if listener.is_idle() or taker.take(listener.hear(0)):
            return


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Let Ctrl-C set an event instead of breaking off what is being done."""
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _line(heard: Heard, text: str) -> None:
    from fastmasq.units import NS_PER_SECOND

    seconds, rest = divmod(heard.time_ns, NS_PER_SECOND)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{rest // 1000:06}"
    click.echo(f"{clock} {heard.link} {'out' if heard.sent else 'in':<3} {text}")


# -- findings ----------------------------------------------------------------------------------------------------------


def _show(watch: Watch, findings: list[Finding], lost: int) -> None:
    click.echo(f"\n{watch.packets} packets of VPNs{f', {lost} more lost unread' if lost else ''}")
    if watch.unjudged:
        click.echo(f"{watch.unjudged} of them are of too many pairs of hosts to judge")
    if not findings:
        click.echo("Nothing of a VPN was seen: the client sends to another gateway, or has not begun.")
    for finding in findings:
        click.echo(f"{_MARKS[finding.good]:<8}{finding.family} {finding.near} <-> {finding.far}: {finding.said}")
        lights = [f"{kind} {away} out {towards} in" for kind, (away, towards) in finding.lights.items()]
        click.echo(f"{'':8}{', '.join(lights)}")
        if finding.hint:
            click.echo(f"{'':8}{finding.hint}")


def _print_json(watch: Watch, findings: list[Finding], lost: int) -> None:
    import msgspec

    from fastmasq.cli.render import print_json

    print_json(
        {
            "links": [link._asdict() for link in watch.links.values()],
            "packets": watch.packets,
            "lost": lost,
            "findings": msgspec.to_builtins(findings),
        }
    )
