"""Makes fastmasq's policy of a foreign rule set, by what becomes of packets under it.

The rule set is evaluated (`evaluate`) for the first packet of every flow, for those behind it and for their answers,
from each link to each other: which boxes of packets (`regions`) are masqueraded, translated, accepted. A flow is let
pass if the rules let all of it pass and fastmasq can say so; whatever is not wholly understood, or has no counterpart,
stays closed and is noted. What comes out is written anew (`emit`), not rule by rule:

* From inside to outside, and between inside links (`forwarding`): the chain forward. Answers to what is masqueraded
  need no rule; answers to what is only routed are let through where they can open nothing (TCP but for the first
  segment, echo replies), or where they might begin a flow as well.
* DNAT from outside, as far as what follows lets it pass (`incoming`): port forwards, and redirects of other protocols.
  For some senders only: by rules of the chain input, which sees the external port before it is translated.
* REDIRECT from inside (`proxies`): REDIRECT in the chain input, if the chain INPUT lets the redirected packets in.
* INPUT and OUTPUT, with the gateway's addresses (`host`): the user chains `host` and `hostout`, whole or not at all,
  for all that does not pass through.

Strangers get in by forwards and redirects. What a rule set lets pass from outside to addresses that it masquerades is
closed: the answers would come from another address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fastmasq.errors import ConfigurationError
from fastmasq.migrate import foreign, links
from fastmasq.migrate.evaluate import RuleBook
from fastmasq.migrate.files import Carried
from fastmasq.migrate.foreign import ForeignChain
from fastmasq.migrate.forwarding import Forwarding
from fastmasq.migrate.host import Host
from fastmasq.migrate.incoming import Incoming
from fastmasq.migrate.links import Here
from fastmasq.migrate.proxies import Proxies
from fastmasq.migrate.regions import Entries, Ranges
from fastmasq.migrate.work import Work
from fastmasq.policy.chains import INPUT, OUTPUT


def carry(
    chains: Iterable[ForeignChain],
    *,
    inside: Sequence[str] = (),
    outside: str = "",
    addresses: Sequence[str] = (),
    networks: Mapping[str, Ranges] | None = None,
    here: Here | None = None,
) -> Carried:
    """Return the policy. Raises ConfigurationError when the links cannot be told, or nothing sensible can be written.

    inside, outside: the links, where the rules do not show them. addresses: the gateway's own, for its host rules.
    networks: behind inside links, where the rules do not show them. here: what this host knows, if it may be the
    gateway.
    """
    book = RuleBook(chains)
    outside = outside or links.find_outside(book)
    here = here or Here()
    inside = list(inside) or links.find_inside(book, outside, here)
    if outside in inside:
        raise ConfigurationError(f"{outside} cannot be outside and inside")
    own = [foreign.read_network(text)[0] for text in addresses]
    work = Work(book, inside, outside, own, networks or {}, here)
    work.note_rules()
    Incoming(work).carry()
    forwarding = Forwarding(work)
    pairs = forwarding.pairs()
    Proxies(work).carry()
    host = Host(work, pairs, forwarding.answers)
    for hook in (foreign.INPUT, foreign.OUTPUT):
        host.carry(hook)
    touched = any(work.writer.rules.chains[name].rules for name in (INPUT, OUTPUT))
    work.result.needs_rules = touched or not forwarding.is_plain(pairs)
    lists: dict[str, Entries] = {}
    if work.result.needs_rules:
        pairs, lists = forwarding.settled(pairs)
        forwarding.write(lists)
    for entries in pairs.values():
        work.note_missing(entries)
    work.note_lost_masquerading(lists.get(outside, []))
    work.join_notes()
    return work.result
