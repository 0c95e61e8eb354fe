"""`fastmasq release`: gives the host back what a fastmasq that has ended had changed and left so."""

from __future__ import annotations

from pathlib import Path

import click

from fastmasq.cli.options import client_options, find_socket, json_option


@click.command()
@client_options
@json_option
def release(socket: str | None, config: str | None, as_json: bool) -> None:
    """Give the host back what a fastmasq that has ended left changed.

    For `run --keep`, which leaves it so, and after `kill -9` or a crash; without --keep, a fastmasq that is stopped
    restores everything itself. What was changed is read from the journal of this network namespace in /run/fastmasq.
    What cannot be put back is said at the end; the exit status is 1 then.
    """
    from fastmasq.config.schema import Control
    from fastmasq.control.client import is_served
    from fastmasq.errors import KernelError
    from fastmasq.kernel import takeover

    control = Control(socket=find_socket(socket, config))
    if is_served(control.socket):
        raise KernelError(f"fastmasq is running at {control.socket}; stop it first")
    restored = takeover.release(former_journal=control.former_journal)
    if restored.done and Path(control.socket).is_socket():
        Path(control.socket).unlink()  # the dead forwarder's: nobody answers there
    if as_json:
        from fastmasq.cli.render import print_json

        print_json({"done": restored.done, "left": restored.left})
    for line in restored.done if not as_json else ():
        click.echo(line)
    if restored.left:
        raise KernelError("\n".join(restored.left))
    if not restored.done and not as_json:
        click.echo("nothing to restore: no fastmasq has left anything changed in this network namespace")
