"""The kernel's program and the path together do what the specification says, whichever of them takes a packet.

Packets go to the program first, and by the path if that lets them go on. So one flow goes both ways in turn, and what
either leaves in its row is what the other goes by.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import event
from hypothesis import settings as examples

from tests.support.carried import CarriedSubject
from tests.support.comparison import Comparison

pytestmark = pytest.mark.timeout(1200)  # seconds: a failure is shrunk before it is shown


class AddressDependent(Comparison):
    def make_subject(self) -> CarriedSubject:
        return CarriedSubject(self.settings)

    def teardown(self) -> None:
        event("carried" if self.subject.harness.carried else "nothing carried")
        self.subject.close()
        super().teardown()


class EndpointIndependent(AddressDependent):
    settings = replace(Comparison.settings, filtering="endpoint-independent", half_open=4, renumbers=True)


TestAddressDependent = AddressDependent.TestCase
TestEndpointIndependent = EndpointIndependent.TestCase

# the kernel looks the program through for each; and the path alone has as many again
TestAddressDependent.settings = TestEndpointIndependent.settings = examples(max_examples=examples().max_examples // 2)
