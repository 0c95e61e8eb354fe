"""`fastmasq doctor`: looks for what is wrong with this host, or lacking, and says what to make of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fastmasq.cli.options import Group, json_option

if TYPE_CHECKING:
    from fastmasq.tools.doctor.kernel import Report


@click.group(cls=Group)
def doctor() -> None:
    """Look for what is wrong with this host, or lacking, and say what to make of it."""


@doctor.command()
@json_option
def kernel(as_json: bool) -> None:
    """Say what this kernel lacks, what that costs, and what is done instead.

    Everything that fastmasq uses is asked for, as `fastmasq run` does; nothing is changed, a running fastmasq is not
    disturbed. A kernel may lack what its version has, if it was built without it, and have what is newer than it.
    """
    import msgspec

    from fastmasq.cli.render import print_json
    from fastmasq.tools.doctor.kernel import examine

    report = examine()
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _show(report)


def _show(report: Report) -> None:
    click.echo(
        f"Linux {report.release} lacks {len(report.lacking) or 'nothing'} of {report.uses} things that fastmasq uses"
    )
    for lack in report.lacking:
        click.echo(f"\n{lack.use}: {lack.reason}")
        click.echo(f"  instead: {lack.instead}")
        click.echo(f"  cost:    {lack.cost}")
        if lack.since:
            click.echo(f"  needs:   {', '.join(lack.since)}")
