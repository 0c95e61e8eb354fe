"""`fastmasq install` and `uninstall`: the service and all else that a host needs of us, put there and taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fastmasq.cli.options import CONFIG_FILE

if TYPE_CHECKING:
    from fastmasq.deploy.root import Root

_root_option = click.option(
    "--root", "folder", metavar="DIR", default="/", help="The root of the host; an image, say.  [default: /]"
)


@click.command()
@_root_option
@click.pass_context
def install(ctx: click.Context, folder: str) -> None:
    """Make fastmasq a service of this host: unit, names, manual pages.

    Brings a unit of systemd, a script of System V's init, or both, the user fastmasq, a configuration with the links
    that are there (never over one that is), links of the names of 1999 in /sbin, manual pages, and completion for bash
    and zsh. What is in the way is found before anything is written. Nothing is started. A second run brings what is
    missing or has become another. With --root no program is run, and systemd makes the user when that host starts.
    """
    from fastmasq.deploy import installation, plan, service
    from fastmasq.deploy.manifest import Manifest
    from fastmasq.deploy.root import Root
    from fastmasq.errors import KernelError

    root = Root(folder)
    known = Manifest.read(root) or Manifest()
    wanted = plan.make(root, plan.this_program(root), _commands(ctx), known)
    makes_user = root.is_this_host and not service.has_user()
    if makes_user and (reason := service.why_no_user()):
        raise KernelError(f"{reason}; nothing was installed")
    news = 0
    for line in installation.install(root, wanted.entries, makes_user):
        click.echo(line)
        news += not line.endswith("kept as it is")
    if makes_user:
        service.make_user(plan.SYSUSERS)
        click.echo(f"user and group {service.USER}: made")
    for line in wanted.notes:
        click.echo(line)
    if not news:
        click.echo("all is in place")
    if root.is_this_host:
        click.echo(f"then: fastmasq check; {_start_with(service.look_again(), root)}")


@click.command()
@_root_option
@click.pass_context
def uninstall(ctx: click.Context, folder: str) -> None:
    """Take away what install has brought, and give the host back.

    Stops the service, gives the host back as `fastmasq release` does, and removes exactly what install has written. A
    configuration that was changed is kept, and so is whatever has taken the place of something of ours.
    """
    from fastmasq.deploy import installation, plan, service
    from fastmasq.deploy.manifest import Manifest
    from fastmasq.deploy.root import Root

    root = Root(folder)
    known = Manifest.read(root)
    if known is not None and root.is_this_host:
        service.stop(plan.INIT_SCRIPT)
        _release(ctx)
    for line in installation.uninstall(root):
        click.echo(line)
    if root.is_this_host:
        service.look_again()
        if known is not None and known.has_user:
            service.remove_user()
            click.echo(f"user and group {service.USER}: removed")


def _commands(ctx: click.Context) -> click.Group:
    """Return the whole program."""
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    return group


def _start_with(systemd: bool, root: Root) -> str:
    from fastmasq.deploy import plan

    if systemd or not root.is_program(plan.INIT_SCRIPT):
        return "systemctl enable --now fastmasq"
    return f"{plan.INIT_SCRIPT} start"


def _release(ctx: click.Context) -> None:
    """Give the host back, by the configuration that is there, as long as it can be read."""
    from fastmasq.cli.release import release
    from fastmasq.errors import ConfigurationError

    try:
        ctx.invoke(release, socket=None, config=CONFIG_FILE)
    except ConfigurationError:
        ctx.invoke(release, socket=None, config=None)
