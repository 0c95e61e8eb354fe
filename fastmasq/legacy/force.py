"""The word --force of ipportfw, ipmasqadm and ipfwd, which the originals had not: take what running programs have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from msgspec.structs import replace

FORCE = "--force"

_Request = TypeVar("_Request", bound=Any)  # of any of the programs, with its changes
_SUBJECTS = ("forward", "row", "target", "redirect")  # what a change of each policy is about


def takes_force(parse: Callable[[Sequence[str]], _Request]) -> Callable[[Sequence[str]], _Request]:
    """Have a reader of command lines know the word: what a line with it asks for is to `steal`."""

    @wraps(parse)
    def with_force(words: Sequence[str]) -> _Request:
        request = parse([word for word in words if word != FORCE])
        return replace(request, changes=tuple(map(_stealing, request.changes))) if FORCE in words else request

    return with_force


def _stealing(change: Any) -> Any:
    subjects = {name: getattr(change, name, None) for name in _SUBJECTS}
    return replace(change, **{name: replace(one, steal=True) for name, one in subjects.items() if one is not None})
