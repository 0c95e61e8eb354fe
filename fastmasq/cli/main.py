"""The command `fastmasq`: finds its sub-commands when they are called, and turns errors into exit statuses.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted from the keyboard.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click

from fastmasq import __version__, output, program
from fastmasq.errors import FastmasqError

INTERRUPTED = 130

# name: (module, object, the line in `fastmasq --help`)
COMMANDS = {
    "run": ("fastmasq.cli.run", "run", "Forward packets until stopped; stay in the foreground."),
    "check": ("fastmasq.cli.check", "check", "Find mistakes in a configuration, and what this host lacks."),
    "doctor": ("fastmasq.cli.doctor", "doctor", "Say what this kernel lacks, and what that costs."),
    "status": ("fastmasq.cli.status", "status", "Show links, rates, sessions and dropped packets."),
    "sessions": ("fastmasq.cli.sessions", "sessions", "List the sessions: who talks to whom, through which port."),
    "vpn": ("fastmasq.cli.vpn", "vpn", "List the VPNs that pass through, and what they lack."),
    "esp": ("fastmasq.cli.esp", "esp", "Tell SPIs of inside hosts; print programs that do it."),
    "log": ("fastmasq.cli.log", "log", "List or change what the running forwarder logs."),
    "confirm": ("fastmasq.cli.confirm", "confirm", "Keep the change that would go back by itself."),
    "reload": ("fastmasq.cli.reload", "reload", "Read the configuration anew; change what differs, keep sessions."),
    "upgrade": ("fastmasq.cli.upgrade", "upgrade", "Have another program go on in the place of the running one."),
    "rule": ("fastmasq.cli.rule", "rule", "Show, question and change the rules; print the HOWTO's sets."),
    "advise": ("fastmasq.cli.advise", "advise", "Say what VPN hosts inside need; write the configuration."),
    "import": ("fastmasq.cli.import_rules", "import_rules", "Carry over what iptables or nft do on a host today."),
    "proc": ("fastmasq.cli.proc", "proc", "Show the files that /proc had in 1999."),
    "forward": ("fastmasq.cli.forward", "forward", "Lead ports of the outside to inside hosts."),
    "redirect": ("fastmasq.cli.redirect", "redirect", "Lead protocols without ports, such as GRE, to inside hosts."),
    "test": ("fastmasq.cli.pptp_test", "test", "Try what a VPN needs, as a client would, and say what is wrong."),
    "traceroute": ("fastmasq.cli.traceroute", "traceroute", "Show how far GRE or ESP gets, and UDP beside it."),
    "sniff": ("fastmasq.cli.sniff", "sniff", "Show the VPN packets on links, and say what is missing."),
    "setup": ("fastmasq.cli.setup", "setup", "Ask for the two links, and write the configuration."),
    "install": ("fastmasq.cli.install", "install", "Make fastmasq a service of this host: unit, names, manual pages."),
    "uninstall": (
        "fastmasq.cli.install",
        "uninstall",
        "Take away what install has brought, and give the host back.",
    ),
    "release": ("fastmasq.cli.release", "release", "Give the host back what a fastmasq that has ended left changed."),
    "lab": ("fastmasq.lab.command", "lab", "Make a network of namespaces to try things in."),
    "demo": ("fastmasq.lab.command", "demo", "Let real programs talk through fastmasq in such a network."),
    "bench": ("fastmasq_bench.command", "bench", "Measure fastmasq beside the kernel's masquerade."),
}


ALIASES = {"rules": "rule"}


class LazyGroup(click.Group):
    """A group that knows its commands from COMMANDS and imports one only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        module_name, attribute, _ = COMMANDS[cmd_name]
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if program.is_bundle():
                where = f"install the wheel, fastmasq-{__version__}-*.whl, or run scripts/install where the source is"
                raise FastmasqError(f"`{cmd_name}` is not in this program for gateways: {where}") from None
            raise FastmasqError(f"`{cmd_name}` needs the Python module {error.name}, which is not installed") from error
        return getattr(module, attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, _, sentence) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = ALIASES.get(args[0], args[0])
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            ctx.fail(f"No such command {name!r}. " + (f"Did you mean {near[0]}?" if near else "See fastmasq --help."))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FastmasqError as error:
            for line in str(error).splitlines():
                click.echo(f"fastmasq: {line}", err=True)
            ctx.exit(error.exit_status)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fastmasq", message="%(prog)s %(version)s")
def fastmasq() -> None:
    """A masquerading gateway: hosts with private addresses share this host's public one.

    Start with `fastmasq run --inside eth0 --outside eth1`, or see a network at work with `fastmasq demo`.
    """


def main() -> None:
    """Run the command line; this is the console script."""
    sys.exit(output.end("fastmasq", lambda: fastmasq(prog_name="fastmasq")))
