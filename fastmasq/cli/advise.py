"""`fastmasq advise`: what a network with VPN clients or servers needs, and the configuration for it."""

from __future__ import annotations

import sys

import click

from fastmasq.cli.options import ADDRESS, LINK, json_option

_FORMATS = ("toml", "rules", "ipfwadm", "ipchains")


@click.command()
@click.option("--host", type=ADDRESS, multiple=True, help="Inside address of a VPN client or server; may be repeated.")
@click.option("--role", type=click.Choice(["client", "server", "both"]), help="What the hosts are.")
@click.option("--vpn", type=click.Choice(["pptp", "ipsec", "both"]), help="What they speak.  [default: both]")
@click.option("--public", type=ADDRESS, help="The outside address, where it never changes.")
@click.option("--inside", type=LINK, help="The inside link.  [default: eth0]")
@click.option("--outside", type=LINK, help="The outside link.  [default: eth1]")
@click.option("--lan", metavar="NETWORK", help="The inside network.  [default: the private range of the host]")
@click.option("--peer", metavar="ADDRESS", multiple=True, help="The other end, or its network; may be repeated.")
@click.option("--tight", is_flag=True, help="Let nothing but the VPN pass.")
@click.option("--registered/--private", default=None, help="Say what the hosts' addresses are.  [default: RFC 1918]")
@click.option("--format", "form", type=click.Choice(_FORMATS), default="toml", show_default=True, help="What to write.")
@json_option
def advise(
    host: tuple[str, ...], role: str | None, peer: tuple[str, ...], form: str, as_json: bool, **given: object
) -> None:  # fmt: skip
    """Say what VPN clients or servers inside need of the gateway, and write the configuration for it.

    The configuration goes to standard output, the advice to standard error. On a terminal, what is not given is asked.
    --format toml is a fastmasq.toml; where that names a file of rules, --format rules is this file. --format ipfwadm
    and ipchains are whole scripts, port forwards included.
    """
    from fastmasq.advice.advise import RULES_FILE, Advice, Question
    from fastmasq.errors import ConfigurationError

    answers = {name: value for name, value in given.items() if value not in (None, "")}
    if not (host and role) and sys.stdin.isatty():
        host, role, asked = _ask(host, role, answers)
        answers |= asked
    if not host or not role:
        raise ConfigurationError("advise: name the VPN hosts with --host ADDRESS, and with --role what they are")
    advice = Advice(_question(Question, {**answers, "hosts": host, "role": role, "peers": peer}))
    if as_json:
        from fastmasq.cli.render import print_json

        rules = advice.script("ipchains", forwards=False) if advice.needs_rules else None
        print_json({"advice": list(advice.sentences()), "toml": advice.toml(), "rules": rules})
        return
    for sentence in advice.sentences():
        click.echo(sentence, err=True)
    if form == "toml":
        click.echo(advice.toml(), nl=False)
        if advice.needs_rules:
            click.echo(f"Its file of rules: the same command with --format rules > {RULES_FILE}", err=True)
    elif form == "rules":
        click.echo(advice.script("ipchains", forwards=False), nl=False)
    else:
        click.echo(advice.script(form), nl=False)


def _question(kind: type, answers: dict[str, object]):
    """Return the Question. Raises ConfigurationError for a peer or a network that is none."""
    from ipaddress import IPv4Network

    from fastmasq.errors import ConfigurationError

    for text in (*answers["peers"], *([answers["lan"]] if "lan" in answers else [])):
        try:
            IPv4Network(text)
        except ValueError:
            raise ConfigurationError(f"{text!r} is no address and no network; write 199.0.0.1 or 10.0.0.0/8") from None
    return kind(**answers)


def _ask(host: tuple[str, ...], role: str | None, answers: dict[str, object]):
    """Ask on the terminal what was not given; return the hosts, their role, and the other answers."""
    asked: dict[str, object] = {}
    if not host:
        host = (click.prompt("Inside address of the VPN client or server", type=ADDRESS, err=True),)
    if not role:
        role = click.prompt("Is it a", type=click.Choice(["client", "server", "both"]), default="client", err=True)
    if "vpn" not in answers:
        asked["vpn"] = click.prompt("Which VPN", type=click.Choice(["pptp", "ipsec", "both"]), default="both", err=True)
    for name, default in (("inside", "eth0"), ("outside", "eth1")):
        if name not in answers:
            asked[name] = click.prompt(f"The {name} link", type=LINK, default=default, err=True)
    if "public" not in answers and click.confirm("Does the outside address stay the same", err=True):
        asked["public"] = click.prompt("Which address", type=ADDRESS, err=True)
    return host, role, asked
