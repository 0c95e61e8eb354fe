"""Reads the sections of fastmasq.toml that may stand several times: [[forward]] and [[redirect]]."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from fastmasq.config.lines import Place
from fastmasq.config.values import in_toml
from fastmasq.errors import ConfigurationError
from fastmasq.policy import forwards, redirects

Remark = Callable[[Place, str], None]

_FORWARD = {  # key: (an example, whether it must be there, what is right)
    "protocol": ('"tcp"', True, lambda value: isinstance(value, str)),
    "listen": ('"eth1:8080"', True, lambda value: isinstance(value, str)),
    "to": ('"10.0.0.2:80"', True, lambda value: isinstance(value, str) or _is_list(value, str)),
    "preferences": ("[10, 5]", False, lambda value: _is_list(value, int)),
    "steal": ("true", False, lambda value: isinstance(value, bool)),
}
_REDIRECT = {
    "protocol": ("47", True, lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "to": ('"10.0.0.2"', True, lambda value: isinstance(value, str)),
    "from": ('"199.0.0.0/24"', False, lambda value: isinstance(value, str)),
    "steal": ("true", False, lambda value: isinstance(value, bool)),
}


def read_forwards(written: Any, complain: Remark) -> dict[forwards.Forward, Place]:
    """Return the forwards of the file with their places; each mistake goes to `complain` with its place."""
    taken = forwards.Taken()
    places: dict[forwards.Forward, Place] = {}
    for place, table in _tables("forward", written, _FORWARD, complain):
        to = [table["to"]] if isinstance(table["to"], str) else table["to"]
        try:
            preferences, steal = table.get("preferences", ()), table.get("steal", False)
            new = forwards.read(table["protocol"], table["listen"], to, preferences, steal=steal)
            taken.add(new)
            places[new] = place
        except ConfigurationError as error:
            complain(place, f"[[forward]]: {error}")
    return places


def read_redirects(written: Any, complain: Remark) -> dict[redirects.Redirect, Place]:
    """Return the redirects of the file with their places; each mistake goes to `complain` with its place."""
    found: tuple[redirects.Redirect, ...] = ()
    places: dict[redirects.Redirect, Place] = {}
    for place, table in _tables("redirect", written, _REDIRECT, complain):
        new = redirects.Redirect(
            protocol=table["protocol"],
            host=table["to"],
            source=table.get("from", redirects.EVERYWHERE),
            steal=table.get("steal", False),
        )
        try:
            new = redirects.check(new)
            if any((one.protocol, one.source) == (new.protocol, new.source) for one in found):
                raise ConfigurationError(f"{new}: stands twice; one host can have it, name networks with from")
            found = redirects.apply(found, [redirects.Change(action="set", redirect=new)])
            places[new] = place
        except ConfigurationError as error:
            complain(place, f"[[redirect]]: {error}")
    return places


def _tables(name: str, written: Any, keys: dict[str, Any], complain: Remark) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield each table whose keys are known, complete and of the right kind."""
    if not isinstance(written, list) or not all(isinstance(table, dict) for table in written):
        complain((name,), f"{name}: is a list of sections; write [[{name}]] above each")
        return
    for number, table in enumerate(written):
        place = (name, number)
        mistakes = [*_mistakes(name, place, table, keys)]
        for where, text in mistakes:
            complain(where, f"{name}.{text}")
        if not mistakes:
            yield place, table


def _mistakes(name: str, place: Place, table: dict[str, Any], keys: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    for key, value in table.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(keys)}"
            yield (*place, key), f"{key}: unknown key; {hint}"
        elif not keys[key][2](value):
            yield (*place, key), f"{key}: {in_toml(value)} cannot stand here; write for example {keys[key][0]}"
    for key, (example, required, _) in keys.items():
        if required and key not in table:
            yield place, f"{key}: missing; write for example {key} = {example}"


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(element) is kind for element in value)
