"""`fastmasq rule list`: the chains of the running forwarder, in words, with what each rule has counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from fastmasq.cli.options import client_options, find_socket, json_option
from fastmasq.wire.numbers import ICMP

if TYPE_CHECKING:
    from fastmasq.legacy.names import Names
    from fastmasq.policy.chains import Match, Rule

_COLUMNS = (">No.", "Target", "Protocol", "From", "To", "Link", "Only", "Also", ">Packets", ">Bytes")


@click.command("list")
@client_options
@click.option("--chain", metavar="NAME", help="Only this chain, such as input, or acct for accounting.")
@json_option
def list_rules(socket: str | None, config: str | None, chain: str | None, as_json: bool) -> None:
    """List the chains: which packets each rule wants, what becomes of them, how many there were.

    Link is the arriving one in the chain input, the leaving one in forward and output. Only and Also say what else a
    rule asks for, and what else it does. By says which rules came at run time, if some did.
    """
    from fastmasq.cli.render import print_json
    from fastmasq.control.client import call

    wanted = {} if chain is None else {"chain": chain}
    answer = call(find_socket(socket, config), "rules", **wanted)
    if as_json:
        print_json({**answer, "chains": [_as_json(one) for one in answer["chains"]]})
        return
    parts = ["\n".join(_chain(one, answer["default_forward"])) for one in answer["chains"] if _is_worth_it(one, chain)]
    click.echo("\n\n".join(parts))


def _as_json(chain: dict[str, Any]) -> dict[str, Any]:
    """Return a chain as the control method describes it, but with addresses as text."""
    return {**chain, "rules": [{**each, "rule": _with_text(each["rule"])} for each in chain["rules"]]}


def _with_text(rule: dict[str, Any]) -> dict[str, Any]:
    from fastmasq.legacy.names import write_dotted, write_mask

    match = dict(rule.get("match", {}))
    for key in match.keys() & {"source", "destination"}:
        address, mask = match[key]
        match[key] = write_dotted(address) + write_mask(mask)
    if "interface_address" in match:
        match["interface_address"] = write_dotted(match["interface_address"])
    return {**rule, **({"match": match} if match else {})}


def _is_worth_it(chain: dict[str, Any], wanted: str | None) -> bool:
    """Accounting that nobody has asked for is not shown."""
    return chain["name"] != "acct" or bool(chain["rules"]) or wanted is not None


def _chain(chain: dict[str, Any], default_forward: bool) -> Iterator[str]:
    """Yield the lines of one chain as the control method `rules` describes it."""
    import msgspec

    from fastmasq.cli.render import align
    from fastmasq.legacy.names import Names
    from fastmasq.policy.chains import FORWARD, Counted

    names = Names()
    name, counts = chain["name"], f"{chain['packets']} packets, {chain['bytes']} bytes"
    if name == "acct":
        yield "accounting"
    elif chain["policy"] is None:
        count = chain["references"]
        yield f"chain {name}: {count} rule{' leads' if count == 1 else 's lead'} to it"
    elif name == FORWARD and default_forward:
        yield "chain forward: untouched, so what goes from inside to outside is masqueraded and nothing comes in"
    else:
        yield f"chain {name}: policy {chain['policy']} ({counts})"
    rules = msgspec.convert(chain["rules"], list[Counted])
    origins = [each.get("from", "") for each in chain["rules"]]
    by = "command" in origins  # else all are as the files say
    if rules:
        yield from align(
            (*_COLUMNS, "By") if by else _COLUMNS,
            [
                (str(number), *_cells(each.rule, names), str(each.packets), str(each.bytes), *([origin] if by else []))
                for number, (each, origin) in enumerate(zip(rules, origins, strict=True), 1)
            ],
        )


def _cells(rule: Rule, names: Names) -> tuple[str, ...]:
    """Return a rule's cells: target, protocol, from, to, link, what else it asks for, what else it does."""
    match = rule.match
    protocol = names.protocol_name(match.protocol) or str(match.protocol)
    has_ports = match.protocol != ICMP
    return (
        rule.target or "-",
        _inverted(protocol, match.not_protocol),
        _end(match.source, match.not_source, match.source_ports if has_ports else (), match.not_source_ports),
        _end(match.destination, match.not_destination, match.destination_ports if has_ports else (),
             match.not_destination_ports),
        _inverted(match.interface, match.not_interface) if match.interface else "any",
        ", ".join(_conditions(match)),
        ", ".join(_effects(rule)),
    )  # fmt: skip


def _end(
    network: tuple[int, int], is_inverted: bool, ports: Sequence[tuple[int, int]], are_ports_inverted: bool
) -> str:
    from fastmasq.legacy.names import write_dotted, write_mask

    address, mask = network
    text = _inverted(write_dotted(address) + write_mask(mask), is_inverted) if mask else "any"
    return f"{text} {_inverted(_ports(ports), are_ports_inverted)}" if ports else text


def _ports(ranges: Sequence[tuple[int, int]]) -> str:
    return ",".join("-".join(str(port) for port in dict.fromkeys(ports)) for ports in ranges)


def _inverted(text: str, is_inverted: bool) -> str:
    return f"not {text}" if is_inverted else text


def _conditions(match: Match) -> Iterator[str]:
    from fastmasq.legacy.names import write_dotted

    if match.protocol == ICMP and match.source_ports:
        yield _inverted(f"type {_ports(match.source_ports)}", match.not_source_ports)
    if match.protocol == ICMP and match.destination_ports:
        yield _inverted(f"code {_ports(match.destination_ports)}", match.not_destination_ports)
    if match.interface_address:
        yield f"link has {write_dotted(match.interface_address)}"
    if match.syn is not None:
        yield _inverted("syn", not match.syn)
    if match.ack:
        yield "ack"
    if match.fragment is not None:
        yield _inverted("fragment", not match.fragment)
    if match.swapped_too:
        yield "either way"
    if match.direction != "both":
        yield match.direction


def _effects(rule: Rule) -> Iterator[str]:
    if rule.redirect_port:
        yield f"to port {rule.redirect_port}"
    if rule.log:
        yield "log"
    if rule.mark is not None:
        how, number = rule.mark
        yield f"mark {'+' if how == 'add' else ''}{number}"
    if rule.tos != (0xFF, 0):
        yield f"tos and 0x{rule.tos[0]:02x} xor 0x{rule.tos[1]:02x}"
    if rule.output:
        yield f"copy {rule.output}"
