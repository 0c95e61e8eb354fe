"""Redirects of protocols as data (section 5.6): which are taken, what changes do, and how the path is told."""

from __future__ import annotations

import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.policy.redirects import Change, Redirect, apply, compile_redirects

GRE = Redirect(protocol=47, host="10.0.0.2")


def put(redirect: Redirect) -> Change:
    return Change(action="set", redirect=redirect)


def test_one_host_has_a_protocol_and_a_later_one_takes_its_place():
    esp, other = Redirect(protocol=50, host="10.0.0.2"), Redirect(protocol=47, host="10.0.0.3")
    assert apply((), [put(GRE), put(esp), put(GRE)]) == (GRE, esp)
    assert apply((GRE, esp), [put(other)]) == (esp, other)


def test_different_networks_may_have_different_hosts():
    narrow = Redirect(protocol=47, host="10.0.0.3", source="199.0.0.0/24")
    rows = compile_redirects(apply((), [put(GRE), put(narrow)]))
    assert [(int(row["host"]), int(row["source_first"]), int(row["source_last"])) for row in rows] == [
        (0x0A000003, 0xC7000000, 0xC70000FF),
        (0x0A000002, 0, 0xFFFFFFFF),
    ]


@pytest.mark.parametrize(
    ("redirect", "said"),
    [
        (Redirect(protocol=1, host="10.0.0.2"), "use a port forward"),
        (Redirect(protocol=6, host="10.0.0.2"), "TCP has ports"),
        (Redirect(protocol=17, host="10.0.0.2"), "UDP has ports"),
        (Redirect(protocol=136, host="10.0.0.2"), "checksum over the addresses"),
        (Redirect(protocol=256, host="10.0.0.2"), "is not 0 to 255"),
        (Redirect(protocol=47, host="ten"), "is not an IPv4 address"),
        (Redirect(protocol=47, host="127.0.0.1"), "cannot be the address of an inside host"),
        (Redirect(protocol=47, host="10.0.0.2", source="199.0.0.1/24"), "is not a network"),
    ],
)
def test_mistakes_are_named(redirect: Redirect, said: str):
    with pytest.raises(ConfigurationError, match=said):
        apply((), [put(redirect)])


def test_deleting_what_is_not_there_is_an_error():
    assert apply((GRE,), [Change(action="delete", redirect=GRE)]) == ()
    with pytest.raises(ConfigurationError, match="no such redirect"):
        apply((), [Change(action="delete", redirect=GRE)])
    assert apply((GRE,), [Change(action="clear")]) == ()
