"""`fastmasq run`: forwards packets until it is told to stop."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fastmasq import program
from fastmasq.cli.options import CONFIG_FILE, LINK, SOCKET, require_one_side
from fastmasq.errors import FastmasqError

if TYPE_CHECKING:
    from fastmasq.config.load import Loaded
    from fastmasq.config.schema import Settings
    from fastmasq.daemon.upgrade import Succession


class _Run(click.Command):
    """The command; what is wrong with its options is a line of its log when that is to be JSON."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        with _refusals("--log-json" in args):
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _refusals(ctx.params["log_json"]):
            return super().invoke(ctx)


@contextmanager
def _refusals(as_json: bool) -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        if not as_json:
            raise
        from fastmasq.observe import log

        log.set_up(as_json=True)
        logging.getLogger("fastmasq.config").error("%s", error.format_message())
        sys.exit(error.exit_code)


@click.command(cls=_Run)
@click.option("-c", "--config", metavar="FILE", help=f"The configuration.  [default: {CONFIG_FILE}]")
@click.option("--inside", metavar="LINK", type=LINK, multiple=True, help="A link to private hosts; may be repeated.")
@click.option("--outside", metavar="LINK", type=LINK, help="The link to the internet.")
@click.option("--ring", type=click.Choice(["auto", "v3", "v2", "socket"]), help="Force a ring mode, to compare.")
@click.option("--socket", metavar="PATH", type=SOCKET, help="Listen for the other commands here.")
@click.option("--observe", is_flag=True, help="Forward nothing and change nothing: say what would become of packets.")
@click.option("--keep", is_flag=True, help="Leave the host as it is at the end, for the next run; see `release`.")
@click.option("--supervise", is_flag=True, help="Start it again whenever it dies.")
@click.option("--log-json", is_flag=True, help="Log one JSON object a line.")
@click.option("-v", "--verbose", is_flag=True, help="Log details, too.")
def run(
    config: str | None,
    inside: tuple[str, ...],
    outside: str | None,
    ring: str | None,
    socket: str | None,
    observe: bool,
    keep: bool,
    supervise: bool,
    log_json: bool,
    verbose: bool,
) -> None:
    """Forward packets until stopped; stay in the foreground.

    The links are named by a configuration or, for a quick start, by --inside and --outside. Says one line when it
    forwards. SIGTERM or Ctrl-C ends it, and everything changed on the host is as before; with --keep nothing is
    forwarded and nothing leaks until the next run goes on, or `fastmasq release` gives the host back. SIGHUP has it
    read its configuration again, as `fastmasq reload` does; without one it ends, too.

    With --observe it runs beside the kernel's own masquerading: `fastmasq status`, `sessions`, `rule list` and the
    others say what it would do with the packets that pass, and at its end it prints that. Answers to what the kernel
    has translated are taken for answers to its own sessions, where they are known.
    """
    from fastmasq.cli import supervisor

    if observe and (keep or supervise):
        raise click.UsageError(
            "--observe goes without --keep and --supervise: it changes nothing, and carries nothing."
        )
    if supervise:
        supervisor.become(program.command(*(word for word in sys.argv[1:] if word != "--supervise")))
    parent = os.environ.pop(supervisor.VARIABLE, "")
    parent_id = int(parent) if parent.isdecimal() else 0
    from fastmasq.daemon import handover, lean
    from fastmasq.observe import log

    predecessor = handover.predecessor()
    if parent_id and predecessor is None:
        from fastmasq.kernel.identity import end_with

        end_with(parent_id)
    log.set_up(as_json=log_json, verbose=verbose)
    try:
        with lean.imports(), handover.failure_told(predecessor):
            loaded = _read(config, inside, outside, ring, socket)
            from fastmasq.daemon.engine import run_forever

        for warning in loaded.warnings:
            logging.getLogger("fastmasq.config").warning("%s", warning)
        has_file = not inside and not outside
        read_again = partial(_read, config, (), None, ring, socket) if has_file else None
        say = (lambda line: click.echo(log.as_json_line(line))) if log_json else click.echo
        observed = partial(_print_observed, log_json) if observe else None
        run_forever(
            loaded.settings, say, read_again, observed=observed, keep=keep, places=loaded.places,
            predecessor=predecessor, succession=_succession(parent_id),
        )  # fmt: skip
    except FastmasqError as error:
        if not log_json:
            raise
        for line in str(error).splitlines():
            logging.getLogger("fastmasq.engine").error("%s", line)
        sys.exit(error.exit_status)


def _succession(parent: int) -> Succession:
    """Return how another program takes our place; parent: a supervisor that goes on with it, 0 without one.

    A service manager is told, and with it we just end. All others wait for this very process, which then ends when that
    program does.
    """
    from fastmasq.cli import supervisor
    from fastmasq.daemon.upgrade import Succession

    def give_way(successor: int) -> NoReturn:
        sys.stdout.flush()
        if follower != os.getpid():
            program.leave()
        supervisor.follow(successor)

    follower = parent or (0 if "NOTIFY_SOCKET" in os.environ else os.getpid())
    environment = {supervisor.VARIABLE: str(follower)} if follower else {}
    return Succession(sys.argv[1:], environment, parent, give_way)


def _print_observed(log_json: bool, report: dict[str, Any]) -> None:
    from fastmasq.cli.render import make_console
    from fastmasq.cli.status import show_observed

    if log_json:
        import json

        click.echo(json.dumps(report))  # a line, as all others
    else:
        show_observed(report, make_console())


def _read(
    config: str | None, inside: tuple[str, ...], outside: str | None, ring: str | None, socket: str | None
) -> Loaded:
    """Return the settings of the file, or of the links named, with what the other options say."""
    from msgspec.structs import replace

    from fastmasq.config.load import Loaded, load

    if config and (inside or outside):
        raise click.UsageError("--config and --inside/--outside exclude each other: the file names the links.")
    loaded = Loaded(_quick_start(inside, outside), warnings=()) if inside or outside else load(config or CONFIG_FILE)
    settings = loaded.settings
    if ring:
        settings = replace(settings, rings=replace(settings.rings, mode=ring))
    if socket:
        settings = replace(settings, control=replace(settings.control, socket=socket))
    return Loaded(settings, loaded.warnings, loaded.places)


def _quick_start(inside: tuple[str, ...], outside: str | None) -> Settings:
    """Return the default settings for these links."""
    from msgspec.structs import replace

    from fastmasq.config.schema import Interfaces, defaults
    from fastmasq.config.values import InterfaceNames

    if not inside or not outside:
        raise click.UsageError("--inside and --outside are both needed: name the links to both sides.")
    require_one_side(inside, outside)
    names = InterfaceNames(dict.fromkeys(inside))
    return replace(defaults(), interfaces=Interfaces(inside=names, outside=outside))
