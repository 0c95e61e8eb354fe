"""numpy.linalg by its names alone, in a bundle: numpy imports them when it starts, and fastmasq calls none of them."""

from typing import Any


class LinAlgError(ValueError):
    """What numpy's functions of linear algebra raise."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: object, **__: object) -> None:
        raise LinAlgError(f"numpy.linalg.{name} is not in this program")

    return missing
