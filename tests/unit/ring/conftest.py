"""The veth pair of veth.py as fixtures."""

from tests.support.veth import open_ring, pair

__all__ = ["open_ring", "pair"]
