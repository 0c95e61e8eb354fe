"""Changes that go back by themselves: what comes back, what stays, and what is refused meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmasq.config.load import Loaded, parse
from fastmasq.daemon.policy import declare
from fastmasq.daemon.reload import Reload
from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.units import NS_PER_SECOND
from tests.support.policy_gateway import PolicyGateway

DENY_ALL = {"changes": [{"do": "policy", "chain": "input", "target": "DENY"}]}
FORWARD = {
    "protocol": "tcp",
    "listen": "eth1",
    "first": 80,
    "last": 80,
    "targets": [{"address": "10.0.0.2", "port": 80}],
}
LATER = 10**18  # ns: after any deadline


@pytest.fixture
def gateway() -> Iterator[PolicyGateway]:
    made = PolicyGateway()
    yield made
    made.close()


def lock_out(gateway: PolicyGateway, confirm_s: int | None = 60) -> None:
    lines = [
        {"place": "rc.firewall", "method": "rules.change", "params": DENY_ALL},
        {
            "place": "rc.firewall:2",
            "method": "forwards.change",
            "params": {"changes": [{"action": "add", "forward": FORWARD}]},
        },
    ]
    gateway.call("policy.change", lines=lines, **({"confirm_s": confirm_s} if confirm_s else {}))


def input_policy(gateway: PolicyGateway) -> str:
    return next(chain["policy"] for chain in gateway.call("rules")["chains"] if chain["name"] == "input")


def test_what_nobody_confirms_goes_back_as_a_whole(gateway: PolicyGateway, caplog: pytest.LogCaptureFixture) -> None:
    lock_out(gateway)
    assert (input_policy(gateway), len(gateway.call("forwards"))) == ("DENY", 1)
    assert gateway.confirmation.describe(0)["what"] == "the change by rc.firewall"
    gateway.confirmation.every_second(0)
    assert input_policy(gateway) == "DENY", "not before its time"
    gateway.confirmation.every_second(LATER)
    assert (input_policy(gateway), gateway.call("forwards")) == ("ACCEPT", [])
    assert gateway.confirmation.describe(0) is None
    assert caplog.messages[-1] == "the change by rc.firewall was not confirmed, so all is as it was before it"


def test_what_is_confirmed_stays(gateway: PolicyGateway) -> None:
    lock_out(gateway)
    assert gateway.call("confirm") == {"confirmed": "the change by rc.firewall"}
    gateway.confirmation.every_second(LATER)
    assert input_policy(gateway) == "DENY"
    with pytest.raises(ConfigurationError, match="no change waits to be confirmed"):
        gateway.call("confirm")


def test_nothing_else_changes_while_one_waits(gateway: PolicyGateway) -> None:
    """It would go back with it, whoever has made it."""
    lock_out(gateway)
    deny = {"changes": [{"do": "policy", "chain": "output", "target": "DENY"}]}
    for method, params in (
        ("policy.change", {"lines": []}),
        ("policy.change", {"lines": [], "confirm_s": 5}),
        ("rules.change", deny),
        ("forwards.change", {"changes": [{"action": "clear"}]}),
        ("redirects.change", {"changes": [{"action": "clear"}]}),
        ("triggers.change", {"changes": [{"action": "clear"}]}),
        ("marks.change", {"changes": [{"action": "clear"}]}),
        ("timeouts", {"tcp": 7200, "tcp_fin": 10, "udp": 60}),
        ("dynaddr", {"value": 5}),
    ):
        with pytest.raises(ConfigurationError) as refusal:
            gateway.call(method, **params)
        assert re.fullmatch(
            r"nothing was changed: the change by rc\.firewall waits to be confirmed, and goes back in \d+ s; "
            r"say `fastmasq confirm` to keep it, or `fastmasq confirm --undo` to have it go back now",
            str(refusal.value),
        )
    assert len(gateway.call("forwards")) == 1
    gateway.call("confirm")
    gateway.call("rules.change", **deny)


def test_what_changes_nothing_does_not_wait(gateway: PolicyGateway) -> None:
    gateway.call("policy.change", lines=[], confirm_s=60)
    gateway.call(
        "policy.change", lines=[{"place": "f:1", "method": "rules.change", "params": {"changes": []}}], confirm_s=60
    )
    settings = gateway.gateway.settings
    reload = Reload(gateway.gateway, lambda: Loaded(settings, ()), gateway.confirmation)
    assert reload.handle({"confirm_s": 60})["changed"] == []
    assert gateway.confirmation.describe(0) is None


def test_what_is_undone_goes_back_at_once(gateway: PolicyGateway, caplog: pytest.LogCaptureFixture) -> None:
    lock_out(gateway)
    assert gateway.call("confirm", undo=True) == {"undone": "the change by rc.firewall"}
    assert (input_policy(gateway), gateway.call("forwards")) == ("ACCEPT", [])
    assert caplog.messages[-1] == "the change by rc.firewall is undone, so all is as it was before it"
    with pytest.raises(ConfigurationError, match="no change waits to be confirmed"):
        gateway.call("confirm", undo=True)


def test_the_kernel_may_refuse_the_way_back_for_a_while(
    gateway: PolicyGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(rule_set: object, itself: object) -> None:
        raise KernelError("nft: busy")

    lock_out(gateway)
    with monkeypatch.context() as busy:
        busy.setattr(gateway.host, "judge", refuse)
        with pytest.raises(KernelError, match="nft: busy"):
            gateway.call("confirm", undo=True)
        for _ in range(3):
            gateway.confirmation.every_second(LATER)
    refused = "the change by rc.firewall was not confirmed, and cannot go back now: nft: busy"
    assert caplog.messages.count(refused) == 1
    gateway.confirmation.every_second(LATER)
    assert input_policy(gateway) == "ACCEPT"


def test_a_reload_goes_back_and_can_be_tried_again(gateway: PolicyGateway, tmp_path: Path) -> None:
    """After it went back, the files are not taken for what is in force."""
    rules = tmp_path / "rc.firewall"
    rules.write_text("ipchains -P input DENY\n")
    links = '[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n[vpn]\npptp = false\nipsec = false\n'
    masquerade = '[masquerade]\nports = "1-65535"\nother_protocols = false\n'
    before = parse(links + masquerade, "f.toml").settings
    after = parse(f'{links}{masquerade}[rules]\nfiles = ["{rules}"]\n', "f.toml").settings
    gateway.gateway.declared = declare(before)
    reload = Reload(gateway.gateway, lambda: Loaded(after, ()), gateway.confirmation)
    for _ in range(2):
        assert reload.handle({"confirm_s": 60})["changed"] == ["rules"]
        assert input_policy(gateway) == "DENY"
        with pytest.raises(ConfigurationError, match="the reload waits to be confirmed"):
            reload.handle({})
        gateway.confirmation.every_second(LATER)
        assert input_policy(gateway) == "ACCEPT"


def test_a_reload_that_closes_sessions_cannot_go_back(gateway: PolicyGateway) -> None:
    reload = Reload(gateway.gateway, lambda: None, gateway.confirmation)
    with pytest.raises(ConfigurationError, match="sessions that are closed cannot come back"):
        reload.handle({"enforce": True, "confirm_s": 60})


@pytest.mark.parametrize("seconds", [0, -1, 86_401, "soon"])
def test_times_that_cannot_be(gateway: PolicyGateway, seconds: object) -> None:
    with pytest.raises(ConfigurationError, match="confirm_s"):
        gateway.call("policy.change", lines=[], confirm_s=seconds)


def test_the_time_is_counted_from_the_change(gateway: PolicyGateway) -> None:
    gateway.confirmation.expect("a change", 60, gateway.gateway.policy(), 5 * NS_PER_SECOND)
    assert gateway.confirmation.describe(6 * NS_PER_SECOND) == {"what": "a change", "left_s": 59.0}
