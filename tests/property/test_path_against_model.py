"""The packet path does what the specification says, over random traffic and time, under every filtering and limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.comparison import FORWARDS_FOR_SOME, PROGRAM_RULES, Comparison
from tests.support.model.subjects import PathSubject

pytestmark = pytest.mark.timeout(1200)  # seconds: a failure is shrunk before it is shown


class AddressDependent(Comparison):
    def make_subject(self) -> PathSubject:
        return PathSubject(self.settings)


class EndpointIndependent(AddressDependent):
    settings = replace(Comparison.settings, filtering="endpoint-independent", programs=PROGRAM_RULES, half_open=4)


class AddressAndPortDependent(AddressDependent):
    settings = replace(
        Comparison.settings, filtering="address-and-port-dependent", renumbers=True, forwards=FORWARDS_FOR_SOME
    )


class TightLimits(AddressDependent):
    settings = replace(Comparison.settings, sessions=8, sessions_per_host=3, ports_per_host=2, programs=PROGRAM_RULES)


class Shares(AddressDependent):
    settings = replace(Comparison.settings, sessions=14, prefix=24, programs=PROGRAM_RULES)


TestAddressDependent = AddressDependent.TestCase
TestEndpointIndependent = EndpointIndependent.TestCase
TestAddressAndPortDependent = AddressAndPortDependent.TestCase
TestTightLimits = TightLimits.TestCase
TestShares = Shares.TestCase
