"""Triggers as data: changes, and what cannot be."""

from __future__ import annotations

import pytest

from fastmasq.errors import ConfigurationError
from fastmasq.policy.triggers import Change, Trigger, apply, check, direct_rows, port_forwards, trigger_rows


def row(**fields) -> Trigger:
    return Trigger(**{"kind": "range", "protocol": "tcp", "first": 2000, "last": 2010, **fields})


FIXED = row(host="10.0.0.5")
TRIGGERED = row(control_protocol="udp", control_port=4000)
BOUNCED = row(kind="port", first=8080, last=8080, host="10.0.0.5", hidden=80)
DIRECT = row(kind="direct")


def test_what_rows_come_to():
    rows = (FIXED, TRIGGERED, BOUNCED, DIRECT)
    assert [(one.first, one.last, one.targets[0].port) for one in port_forwards(rows)] == [
        (2000, 2010, 2000),
        (8080, 8080, 80),
    ]
    assert trigger_rows(rows) == [(6, 2000, 2010, 17, 4000, True, False)]
    assert direct_rows(rows) == [(6, 2000, 2010)]


def test_the_newest_row_comes_first_and_takes_the_place_of_one_for_the_same_ports():
    rows = apply((), [Change(action="add", row=one) for one in (FIXED, TRIGGERED, DIRECT)])
    assert rows == (DIRECT, TRIGGERED, FIXED)
    other = row(host="10.0.0.6")
    assert apply(rows, [Change(action="add", row=other)]) == (other, DIRECT, TRIGGERED)
    assert apply(rows, [Change(action="delete", row=DIRECT), Change(action="clear")]) == ()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (row(host="10.0.0.5", first=0), "ports run from 1"),
        (row(host="10.0.0.5", last=1999), "ports run from 1"),
        (row(), "needs the host that gets it"),
        (row(control_protocol="tcp"), "needs the host that gets it"),
        (row(kind="port", host="10.0.0.5", hidden=80), "one external port leads to one port"),
        (row(kind="port", last=2000, host="10.0.0.5"), "one external port leads to one port"),
        (row(host="0.0.0.0"), "cannot be the address of an inside host"),
        (row(kind="port", last=2000, hidden=80), "cannot be the address of an inside host"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Trigger, text: str):
    with pytest.raises(ConfigurationError, match=text):
        check(wrong)
    with pytest.raises(ConfigurationError, match=text):
        apply((), [Change(action="add", row=wrong)])


def test_changes_want_a_row_that_is_there():
    with pytest.raises(ConfigurationError, match="which row"):
        apply((), [Change(action="delete")])
    with pytest.raises(ConfigurationError, match="is not in use"):
        apply((FIXED,), [Change(action="delete", row=TRIGGERED)])
