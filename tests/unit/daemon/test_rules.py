"""The control methods for rules, and that a refused change leaves everything as it was."""

from __future__ import annotations

import pytest

from fastmasq.errors import ConfigurationError, KernelError
from fastmasq.policy.chains import RuleError
from tests.support.policy_gateway import PolicyGateway

DENY_PING = {"match": {"protocol": 1, "source_ports": [[8, 8]]}, "target": "DENY"}
PING = {"source": 0x0A000002, "destination": 0xC7000001, "protocol": 1, "source_port": 8}


@pytest.fixture
def gateway():
    gateway = PolicyGateway()
    yield gateway
    gateway.close()


def test_listing_shows_chains_policies_rules_and_counters(gateway):
    gateway.call("rules.change", changes=[{"do": "append", "chain": "input", "rule": DENY_PING}])
    answer = gateway.call("rules")
    assert [chain["name"] for chain in answer["chains"]] == ["input", "forward", "output", "acct"]
    assert answer["default_forward"] is True
    assert answer["chains"][0] == {
        "name": "input",
        "policy": "ACCEPT",
        "packets": 0,
        "bytes": 0,
        "references": 0,
        "rules": [
            {
                "rule": {**DENY_PING, "match": {"protocol": 1, "source_ports": ((8, 8),)}},
                "packets": 0,
                "bytes": 0,
                "from": "command",
            }
        ],
    }
    assert [chain["name"] for chain in gateway.call("rules", chain="forward")["chains"]] == ["forward"]


def test_a_packet_is_checked_without_being_counted(gateway):
    gateway.call("rules.change", changes=[{"do": "append", "chain": "input", "rule": DENY_PING}])
    answer = gateway.call("rules.check", chain="input", packet=PING)
    assert answer["verdict"] == "DENY"
    assert answer["steps"] == [{"chain": "input", "number": 1, "target": "DENY"}]
    assert gateway.call("rules", chain="input")["chains"][0]["rules"][0]["packets"] == 0


def test_a_refused_change_leaves_the_old_set_in_force(gateway):
    gateway.host.refuses.add("nft")
    before = gateway.gateway.rules.rule_set
    with pytest.raises(KernelError):
        gateway.call("rules.change", changes=[{"do": "flush"}])
    assert gateway.gateway.rules.rule_set is before


@pytest.mark.parametrize("method", ["rules", "rules.change", "rules.check"])
def test_wrong_parameters_are_named(gateway, method):
    with pytest.raises(ConfigurationError, match="rules: "):
        gateway.call(method, chian="input")


def test_what_cannot_be_done_has_a_reason(gateway):
    with pytest.raises(RuleError) as caught:
        gateway.call("rules", chain="nobody")
    assert caught.value.reason == "no chain"
