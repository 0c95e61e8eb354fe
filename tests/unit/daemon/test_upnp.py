"""What UPnP's actions come to: leases of the host that asks, and the codes of what is refused (IGD:1 and IGD:2)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from async_upnp_client.exceptions import UpnpActionError
from async_upnp_client.server import UpnpServerService, UpnpXmlSerializer

from fastmasq.config.schema import PortMapping
from fastmasq.daemon import upnp
from fastmasq.daemon.leases import Wish
from fastmasq.daemon.upnp_server import targets
from fastmasq.units import NS_PER_SECOND
from tests.support.harness import address
from tests.support.path_network import HOST, OTHER_HOST
from tests.support.policy_gateway import OUTSIDE_ADDRESS, PolicyGateway

S = NS_PER_SECOND


class Asking:
    """A gateway of UPnP that inside hosts ask."""

    def __init__(self) -> None:
        self.gateway = PolicyGateway(port_mapping=PortMapping(upnp=True, mappings_per_host=3))
        self.leases = self.gateway.leases
        self.devices = {version: upnp.make_gateway(version, self.leases, "here") for version in upnp.VERSIONS}

    def service(self, kind: str = "WANIPConnection", version: int = 2) -> UpnpServerService:
        return next(each for each in self.devices[version].all_services if f":{kind}:" in each.service_type)

    def call(
        self, action: str, *, host: str = HOST, now: int = 0, kind: str = "WANIPConnection", **given: Any
    ) -> dict[str, Any]:  # fmt: skip
        async def call() -> dict[str, Any]:
            upnp.ASKER.set(upnp.Asker(address(host), now * S))
            arguments = {f"New{name}": value for name, value in given.items()}
            return await self.service(kind).async_handle_action(action, **arguments)

        return {name.removeprefix("New"): value for name, value in asyncio.run(call()).items()}

    def add(self, external: int, port: int, client: str = HOST, action: str = "AddPortMapping", **more: Any) -> Any:
        given = {
            "RemoteHost": "", "Protocol": "TCP", "Enabled": True, "PortMappingDescription": "a game",
            "LeaseDuration": 3600, **more,
        }  # fmt: skip
        return self.call(action, ExternalPort=external, InternalPort=port, InternalClient=client, **given)

    def code(self, action: str, **given: Any) -> int:
        with pytest.raises(UpnpActionError) as caught:
            self.call(action, **given)
        return caught.value.error_code

    def refusal(self, external: int, port: int, client: str = HOST, **more: Any) -> int:
        with pytest.raises(UpnpActionError) as caught:
            self.add(external, port, client, **more)
        return caught.value.error_code


@pytest.fixture
def asking() -> Iterator[Asking]:
    made = Asking()
    yield made
    made.gateway.close()


def named(external: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"RemoteHost": "", "ExternalPort": external, "Protocol": protocol}


def test_a_mapping_is_added_told_and_deleted(asking: Asking) -> None:
    asking.add(8080, 6000)
    (lease,) = asking.leases
    assert (lease.by, lease.external, lease.port, lease.about) == ("upnp", 8080, 6000, "a game")
    rest = {
        "InternalPort": 6000, "InternalClient": HOST, "Enabled": True, "PortMappingDescription": "a game",
        "LeaseDuration": 3600,
    }  # fmt: skip
    assert asking.call("GetSpecificPortMappingEntry", **named(8080)) == rest
    assert asking.call("GetGenericPortMappingEntry", PortMappingIndex=0) == named(8080) | rest
    assert asking.code("GetGenericPortMappingEntry", PortMappingIndex=1) == upnp.NO_SUCH_INDEX
    asking.call("DeletePortMapping", **named(8080))
    assert list(asking.leases) == []
    assert asking.code("DeletePortMapping", **named(8080)) == upnp.NO_SUCH_ENTRY


def test_only_for_the_askers_own_address(asking: Asking) -> None:
    for client in (OTHER_HOST, "10.0.0.1", OUTSIDE_ADDRESS, "", "a host", "10.0.0.2.1"):
        assert asking.refusal(8080, 6000, client) == upnp.NOT_AUTHORIZED
    assert list(asking.leases) == []


def test_a_host_sees_and_ends_its_own_mappings_and_no_others(asking: Asking) -> None:
    asking.add(8080, 6000)
    assert asking.code("GetSpecificPortMappingEntry", host=OTHER_HOST, **named(8080)) == upnp.NO_SUCH_ENTRY
    assert asking.code("GetGenericPortMappingEntry", host=OTHER_HOST, PortMappingIndex=0) == upnp.NO_SUCH_INDEX
    assert asking.code("DeletePortMapping", host=OTHER_HOST, **named(8080)) == upnp.NOT_AUTHORIZED
    assert asking.refusal(8080, 6000, OTHER_HOST, host=OTHER_HOST) == upnp.CONFLICT
    asking.leases.grant(Wish("pcp", address(HOST), "tcp", 6001, 8081, 60 * S, b"n" * 12), 0)
    assert asking.code("DeletePortMapping", **named(8081)) == upnp.NOT_AUTHORIZED
    assert asking.code("GetSpecificPortMappingEntry", **named(8081)) == upnp.NO_SUCH_ENTRY
    assert asking.refusal(8081, 6001) == upnp.CONFLICT
    assert sorted(lease.external for lease in asking.leases) == [8080, 8081]


def test_a_mapping_that_is_added_again_leads_where_it_says_then(asking: Asking) -> None:
    asking.add(8080, 6000)
    asking.add(8080, 6000, LeaseDuration=7200)
    assert [lease.left_s(0) for lease in asking.leases] == [7200]
    asking.add(8080, 6001)
    assert [(lease.external, lease.port) for lease in asking.leases] == [(8080, 6001)]


def test_no_seconds_are_as_long_as_may_be(asking: Asking) -> None:
    asking.add(8080, 6000, LeaseDuration=0)
    assert [lease.left_s(0) for lease in asking.leases] == [86_400]


def test_each_refusal_has_its_code(asking: Asking) -> None:
    assert asking.refusal(22, 6000) == upnp.CONFLICT
    assert asking.refusal(8080, 22) == upnp.NOT_AUTHORIZED
    assert asking.refusal(0, 6000) == upnp.WILDCARD_PORT
    assert asking.refusal(8080, 6000, RemoteHost="199.0.0.1") == upnp.NO_REMOTE_HOST
    for more in ({"Protocol": "GRE"}, {"LeaseDuration": -1}):
        assert asking.refusal(8080, 6000, **more) == upnp.INVALID_ARGUMENTS
    for external, port in ((70_000, 6000), (8080, 0), (8080, 70_000)):
        assert asking.refusal(external, port) == upnp.INVALID_ARGUMENTS
    for number in range(3):
        asking.add(8080 + number, 6000 + number)
    assert asking.refusal(8090, 6010) == upnp.NO_PORTS
    asking.gateway.move(None)
    assert asking.refusal(8090, 6010, OTHER_HOST, host=OTHER_HOST) == upnp.ACTION_FAILED


def test_version_2_gives_any_port_and_lists_and_ends_ranges(asking: Asking) -> None:
    asking.add(8080, 6000, OTHER_HOST, host=OTHER_HOST)
    assert asking.add(8080, 6001, action="AddAnyPortMapping") == {"ReservedPort": 6001}
    within = {"StartPort": 1, "EndPort": 65535, "Protocol": "TCP", "Manage": True}
    listing = asking.call("GetListOfPortMappings", **within, NumberOfPorts=0)["PortListing"]
    (entry,) = ElementTree.fromstring(listing)
    said = {each.tag.partition("}")[2]: each.text for each in entry}
    assert (said["NewExternalPort"], said["NewInternalClient"], said["NewDescription"]) == ("6001", HOST, "a game")
    asking.call("DeletePortMappingRange", **within)
    assert [lease.external for lease in asking.leases] == [8080]
    assert asking.code("DeletePortMappingRange", **within) == upnp.NOT_FOUND
    assert asking.code("DeletePortMappingRange", **within | {"EndPort": 0}) == upnp.INVALID_ARGUMENTS


def test_what_else_is_asked_of_a_gateway(asking: Asking) -> None:
    assert asking.call("GetExternalIPAddress") == {"ExternalIPAddress": OUTSIDE_ADDRESS}
    assert asking.call("GetStatusInfo", now=7)["Uptime"] == 7
    assert asking.call("GetStatusInfo")["ConnectionStatus"] == "Connected"
    assert asking.call("GetConnectionTypeInfo")["ConnectionType"] == "IP_Routed"
    assert asking.call("GetNATRSIPStatus") == {"RSIPAvailable": False, "NATEnabled": True}
    link = asking.call("GetCommonLinkProperties", kind="WANCommonInterfaceConfig")
    assert link["PhysicalLinkStatus"] == "Up"


@pytest.mark.parametrize("version", upnp.VERSIONS)
def test_a_description_has_all_devices_and_services_of_its_version(asking: Asking, version: int) -> None:
    device = asking.devices[version]
    text = ElementTree.tostring(UpnpXmlSerializer.to_xml(device), encoding="unicode")
    for kind in ("InternetGatewayDevice", "WANDevice", "WANConnectionDevice"):
        assert f"<deviceType>urn:schemas-upnp-org:device:{kind}:{version}</deviceType>" in text
    assert f"<serviceType>urn:schemas-upnp-org:service:WANIPConnection:{version}</serviceType>" in text
    kinds = [target.kind for target in targets(device)]
    assert len(kinds) == len(set(kinds)) == 9
    has_any = "AddAnyPortMapping" in asking.service(version=version).actions
    assert has_any == (version == 2)
