"""The specification notices a port that an endpoint should not have been given."""

from __future__ import annotations

import pytest

from tests.support.model.nat import Model
from tests.support.model.state import Mapping, Observed, Settings, WrongPort
from tests.support.packets import UDP

HOST, OTHER_HOST, WANTED = 0x0A000002, 0x0A000003, 40000


@pytest.fixture
def model() -> Model:
    """One whose port WANTED is somebody's."""
    made = Model(Settings(ports=frozenset((5000, 5001, 5002, 5004, WANTED, 40002))))
    made.by_external[UDP, WANTED] = Mapping(UDP, 1, WANTED, WANTED)
    return made


def given(model: Model, port: int, host: int = HOST) -> int:
    model.observed = Observed(port=port)
    return model.external_id(UDP, host, WANTED)


@pytest.mark.parametrize("port", [5001, 40002, WANTED, 7])
def test_one_of_another_parity_or_a_clients_or_somebodys(model: Model, port: int) -> None:
    with pytest.raises(WrongPort, match="not one of"):
        given(model, port)


def test_another_than_before_though_both_were_free_then_and_are_now(model: Model) -> None:
    assert given(model, 5002) == 5002
    assert given(model, 5000, OTHER_HOST) == 5000, "another endpoint"
    with pytest.raises(WrongPort, match="it was 5002 before"):
        given(model, 5000)
    model.by_external[UDP, 5002] = Mapping(UDP, OTHER_HOST, 1, 5002)
    assert given(model, 5004) == 5004
    with pytest.raises(WrongPort, match="it was 5004 before"):
        given(model, 5000)
    del model.by_external[UDP, 5002]
    assert given(model, 5002) == 5002


def test_one_that_is_held_down_for_the_host(model: Model) -> None:
    model.held_down[UDP, 5000] = HOST, 1
    assert given(model, 5000) == 5000
    with pytest.raises(WrongPort):
        given(model, 5000, OTHER_HOST)
