"""The packet path does what the specification says, over random traffic and time, under every filtering and limit."""

from __future__ import annotations

from dataclasses import replace

from tests.model.subjects import PathSubject
from tests.property.machine import Comparison


class AddressDependent(Comparison):
    def make_subject(self) -> PathSubject:
        return PathSubject(self.settings)


class EndpointIndependent(AddressDependent):
    settings = replace(Comparison.settings, filtering="endpoint-independent")


class AddressAndPortDependent(AddressDependent):
    settings = replace(Comparison.settings, filtering="address-and-port-dependent")


class TightLimits(AddressDependent):
    settings = replace(Comparison.settings, sessions=6, sessions_per_host=4, ports_per_host=2)


TestAddressDependent = AddressDependent.TestCase
TestEndpointIndependent = EndpointIndependent.TestCase
TestAddressAndPortDependent = AddressAndPortDependent.TestCase
TestTightLimits = TightLimits.TestCase
