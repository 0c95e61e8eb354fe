"""An Internet gateway of UPnP (IGD:1 and IGD:2) whose actions are asked of leases, for inside hosts.

It is by the server part of async-upnp-client: descriptions, SOAP, and what is wrong with an action. That does not know
who asks; `Asker` is whom an action is done for, set by whoever takes it from a connection (daemon/upnp_server.py). A
host may have ports lead to itself alone, sees its own mappings and no others, and cannot subscribe to events: their
receivers would be whoever it names.

Sources: UPnP Forum, WANIPConnection:1 (2001) and :2 (2010), InternetGatewayDevice:1 and :2.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from ipaddress import AddressValueError, IPv4Address
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from async_upnp_client.const import STATE_VARIABLE_TYPE_MAPPING, DeviceInfo, ServiceInfo
from async_upnp_client.exceptions import UpnpActionError
from async_upnp_client.server import (
    NopRequester,
    UpnpServerDevice,
    UpnpServerService,
    callable_action,
    create_state_var,
)  # fmt: skip

import fastmasq
from fastmasq.daemon.leases import Lease, Leases, Refused, Why, Wish
from fastmasq.units import NS_PER_SECOND

VERSIONS = (1, 2)
LONGEST_S = 604_800  # that a mapping of "0 seconds" is for, unless the settings say less (IGD:2 section 2.3.6)
LONGEST_TEXT = 64  # characters of a description that are kept

INVALID_ARGUMENTS, ACTION_FAILED, NOT_AUTHORIZED = 402, 501, 606
NO_SUCH_INDEX, NO_SUCH_ENTRY, WILDCARD_PORT, CONFLICT = 713, 714, 716, 718
NO_REMOTE_HOST, NO_PORTS, NOT_FOUND = 726, 728, 730
_CODES = {
    Why.FORBIDDEN: NOT_AUTHORIZED,
    Why.FOREIGN: CONFLICT,
    Why.QUOTA: NO_PORTS,
    Why.FULL: NO_PORTS,
    Why.NO_ADDRESS: ACTION_FAILED,
    Why.TAKEN: CONFLICT,
    Why.FAILED: ACTION_FAILED,
    Why.REMOTES: NO_PORTS,
    Why.UNREACHABLE: NOT_AUTHORIZED,
}

_VARIABLES = {
    "ConnectionType": "string",
    "PossibleConnectionTypes": "string",
    "ConnectionStatus": "string",
    "Uptime": "ui4",
    "LastConnectionError": "string",
    "RSIPAvailable": "boolean",
    "NATEnabled": "boolean",
    "ExternalIPAddress": "string",
    "PortMappingNumberOfEntries": "ui2",
    "PortMappingEnabled": "boolean",
    "PortMappingLeaseDuration": "ui4",
    "RemoteHost": "string",
    "ExternalPort": "ui2",
    "InternalPort": "ui2",
    "PortMappingProtocol": "string",
    "InternalClient": "string",
    "PortMappingDescription": "string",
}
_OF_VERSION_2 = {"A_ARG_TYPE_Manage": "boolean", "A_ARG_TYPE_PortListing": "string"}
_OF_LINK = {
    "WANAccessType": "string",
    "Layer1UpstreamMaxBitRate": "ui4",
    "Layer1DownstreamMaxBitRate": "ui4",
    "PhysicalLinkStatus": "string",
}
_TYPES = {**_VARIABLES, **_OF_VERSION_2, **_OF_LINK}
_ENTRY = {
    "NewRemoteHost": "RemoteHost",
    "NewExternalPort": "ExternalPort",
    "NewProtocol": "PortMappingProtocol",
}
_REST = {
    "NewInternalPort": "InternalPort",
    "NewInternalClient": "InternalClient",
    "NewEnabled": "PortMappingEnabled",
    "NewPortMappingDescription": "PortMappingDescription",
    "NewLeaseDuration": "PortMappingLeaseDuration",
}


class Asker(NamedTuple):
    """The inside host that an action is done for, and when: nanoseconds."""

    host: int
    now: int


ASKER: ContextVar[Asker] = ContextVar("asker")


def action(
    name: str, takes: Mapping[str, str] = {}, gives: Mapping[str, str] = {}
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Declare a method to be an action; its arguments are named with the state variables that they are of."""

    def declare(method: Callable[..., Any]) -> Callable[..., Any]:
        declared = callable_action(name, takes, gives)(method)
        declared.__annotations__ = {
            argument: STATE_VARIABLE_TYPE_MAPPING[_TYPES[variable]]["type"] for argument, variable in takes.items()
        }
        return declared

    return declare


def refusal(code: int) -> UpnpActionError:
    return UpnpActionError(error_code=code, error_desc="")


class WanIpConnection(UpnpServerService):
    """WANIPConnection:1; a subclass has the leases, the definition, and the state variables."""

    leases: Leases

    @action("GetExternalIPAddress", {}, {"NewExternalIPAddress": "ExternalIPAddress"})
    async def tell_address(self) -> dict[str, Any]:
        address = self.leases.address_for(ASKER.get().host)
        return {"NewExternalIPAddress": "" if address is None else str(IPv4Address(address))}

    @action("GetStatusInfo", {}, {
        "NewConnectionStatus": "ConnectionStatus", "NewLastConnectionError": "LastConnectionError",
        "NewUptime": "Uptime",
    })  # fmt: skip
    async def tell_status(self) -> dict[str, Any]:
        host, now = ASKER.get()
        is_connected = self.leases.address_for(host) is not None
        return {
            "NewConnectionStatus": "Connected" if is_connected else "Disconnected",
            "NewLastConnectionError": "ERROR_NONE",
            "NewUptime": self.leases.epoch_s(now),
        }

    @action("GetConnectionTypeInfo", {}, {
        "NewConnectionType": "ConnectionType", "NewPossibleConnectionTypes": "PossibleConnectionTypes",
    })  # fmt: skip
    async def tell_type(self) -> dict[str, Any]:
        return {"NewConnectionType": "IP_Routed", "NewPossibleConnectionTypes": "IP_Routed"}

    @action("GetNATRSIPStatus", {}, {"NewRSIPAvailable": "RSIPAvailable", "NewNATEnabled": "NATEnabled"})
    async def tell_nat(self) -> dict[str, Any]:
        return {"NewRSIPAvailable": False, "NewNATEnabled": True}

    @action("AddPortMapping", {**_ENTRY, **_REST})
    async def add(self, **given: Any) -> dict[str, Any]:
        self._grant(given, exactly=True)
        return {}

    @action("DeletePortMapping", _ENTRY)
    async def delete(self, **given: Any) -> dict[str, Any]:
        lease = self.leases.at(_protocol(given), given["NewExternalPort"])
        if lease is None:
            raise refusal(NO_SUCH_ENTRY)
        self._end(lease)
        return {}

    @action("GetGenericPortMappingEntry", {"NewPortMappingIndex": "PortMappingNumberOfEntries"}, {**_ENTRY, **_REST})
    async def tell_one_of_all(self, **given: Any) -> dict[str, Any]:
        own, index = self._own(), given["NewPortMappingIndex"]
        if not 0 <= index < len(own):
            raise refusal(NO_SUCH_INDEX)
        lease = own[index]
        named = {
            "NewRemoteHost": "",
            "NewExternalPort": lease.external,
            "NewProtocol": lease.protocol.upper(),
        }
        return named | _rest(lease)

    @action("GetSpecificPortMappingEntry", _ENTRY, _REST)
    async def tell_one(self, **given: Any) -> dict[str, Any]:
        lease = self.leases.at(_protocol(given), given["NewExternalPort"])
        if lease is None or lease not in self._own():
            raise refusal(NO_SUCH_ENTRY)
        return _rest(lease)

    def _own(self) -> list[Lease]:
        """Return the leases of the host that asks, but for those that only who knows a nonce may see."""
        host = ASKER.get().host
        return [lease for lease in self.leases if lease.host == host and not lease.key]

    def _grant(self, given: Mapping[str, Any], *, exactly: bool) -> Lease:
        """Do what an action wants that adds a mapping. Raises UpnpActionError."""
        host, now = ASKER.get()
        protocol, external, port = _protocol(given), given["NewExternalPort"], given["NewInternalPort"]
        if given["NewRemoteHost"]:
            raise refusal(NO_REMOTE_HOST)
        if not 0 <= external <= 65535 or not 1 <= port <= 65535 or not 0 <= given["NewLeaseDuration"] < 1 << 32:
            raise refusal(INVALID_ARGUMENTS)
        if exactly and external == 0:
            raise refusal(WILDCARD_PORT)
        if _address(given["NewInternalClient"]) != host:
            raise refusal(NOT_AUTHORIZED)
        lifetime = min(given["NewLeaseDuration"] or LONGEST_S, LONGEST_S) * NS_PER_SECOND
        about = "".join(each for each in given["NewPortMappingDescription"] if each.isprintable())[:LONGEST_TEXT]
        before = self.leases.at(protocol, external)
        if before in self._own() and before.port != port:
            self._end(before)  # what a host has it may have otherwise
        try:
            return self.leases.grant(
                Wish("upnp", host, protocol, port, external, lifetime, exactly=exactly, about=about), now
            )  # fmt: skip
        except Refused as refused:
            raise refusal(_CODES[refused.why]) from None

    def _end(self, lease: Lease) -> None:
        """End a lease that is the asker's. Raises UpnpActionError."""
        host, now = ASKER.get()
        try:
            self.leases.delete(Wish("upnp", host, lease.protocol, lease.port, lease.external, 0), now)
        except Refused as refused:
            raise refusal(NOT_AUTHORIZED if refused.why is Why.FOREIGN else ACTION_FAILED) from None
        if lease in self.leases:
            raise refusal(NOT_AUTHORIZED)


class WanIpConnection2(WanIpConnection):
    """What WANIPConnection:2 has besides."""

    @action("AddAnyPortMapping", {**_ENTRY, **_REST}, {"NewReservedPort": "ExternalPort"})
    async def add_any(self, **given: Any) -> dict[str, Any]:
        return {"NewReservedPort": self._grant(given, exactly=False).external}

    @action("DeletePortMappingRange", {
        "NewStartPort": "ExternalPort", "NewEndPort": "ExternalPort", "NewProtocol": "PortMappingProtocol",
        "NewManage": "A_ARG_TYPE_Manage",
    })  # fmt: skip
    async def delete_range(self, **given: Any) -> dict[str, Any]:
        found = self._within(given)
        for lease in found:
            self._end(lease)
        if not found:
            raise refusal(NOT_FOUND)
        return {}

    @action("GetListOfPortMappings", {
        "NewStartPort": "ExternalPort", "NewEndPort": "ExternalPort", "NewProtocol": "PortMappingProtocol",
        "NewManage": "A_ARG_TYPE_Manage", "NewNumberOfPorts": "PortMappingNumberOfEntries",
    }, {"NewPortListing": "A_ARG_TYPE_PortListing"})  # fmt: skip
    async def tell_range(self, **given: Any) -> dict[str, Any]:
        found = self._within(given)[: given["NewNumberOfPorts"] or None]
        if not found:
            raise refusal(NOT_FOUND)
        listing = Element("p:PortMappingList", {"xmlns:p": "urn:schemas-upnp-org:gw:WANIPConnection"})
        for lease in found:
            entry = SubElement(listing, "p:PortMappingEntry")
            rest = {name: int(value) if isinstance(value, bool) else value for name, value in _rest(lease).items()}
            named = {"NewRemoteHost": "", "NewExternalPort": lease.external, "NewProtocol": lease.protocol.upper()}
            for name, value in {**named, **rest}.items():
                of_list = "NewLeaseTime" if name == "NewLeaseDuration" else name.replace("PortMappingD", "D")
                SubElement(entry, f"p:{of_list}").text = str(value)
        return {"NewPortListing": tostring(listing, encoding="unicode")}

    def _within(self, given: Mapping[str, Any]) -> list[Lease]:
        first, last, protocol = given["NewStartPort"], given["NewEndPort"], _protocol(given)
        if first > last:
            raise refusal(INVALID_ARGUMENTS)
        return [each for each in self._own() if each.protocol == protocol and first <= each.external <= last]


class WanCommonInterfaceConfig(UpnpServerService):
    """WANCommonInterfaceConfig:1: that there is a link."""

    STATE_VARIABLE_DEFINITIONS: Mapping[str, Any] = {}

    @action("GetCommonLinkProperties", {}, {
        "NewWANAccessType": "WANAccessType", "NewLayer1UpstreamMaxBitRate": "Layer1UpstreamMaxBitRate",
        "NewLayer1DownstreamMaxBitRate": "Layer1DownstreamMaxBitRate", "NewPhysicalLinkStatus": "PhysicalLinkStatus",
    })  # fmt: skip
    async def tell_link(self) -> dict[str, Any]:
        return {
            "NewWANAccessType": "Ethernet",
            "NewLayer1UpstreamMaxBitRate": 0,
            "NewLayer1DownstreamMaxBitRate": 0,
            "NewPhysicalLinkStatus": "Up",
        }


def _protocol(given: Mapping[str, Any]) -> Literal["tcp", "udp"]:
    protocol = given["NewProtocol"].lower()
    if protocol not in ("tcp", "udp"):
        raise refusal(INVALID_ARGUMENTS)
    return protocol


def _address(text: str) -> int | None:
    try:
        return int(IPv4Address(text))
    except AddressValueError:
        return None


def _rest(lease: Lease) -> dict[str, Any]:
    """Return what there is to say of a lease besides its external endpoint."""
    return {
        "NewInternalPort": lease.port,
        "NewInternalClient": str(IPv4Address(lease.host)),
        "NewEnabled": True,
        "NewPortMappingDescription": lease.about,
        "NewLeaseDuration": lease.left_s(ASKER.get().now),
    }


# -- devices -----------------------------------------------------------------------------------------------------------


def make_gateway(version: int, leases: Leases, name: str) -> UpnpServerDevice:
    """Return the root device of a version, with all that is in it; `name` tells this gateway from others, for good."""
    folder = f"/igd{version}"
    variables = {**_VARIABLES, **_OF_VERSION_2} if version > 1 else _VARIABLES
    base = WanIpConnection2 if version > 1 else WanIpConnection
    members = {
        "leases": leases,
        "SERVICE_DEFINITION": _service(folder, "WANIPConn1", "WANIPConnection", version),
        "STATE_VARIABLE_DEFINITIONS": {each: create_state_var(kind) for each, kind in variables.items()},
    }
    connection = type("Connection", (base,), members)
    members = {
        "SERVICE_DEFINITION": _service(folder, "WANCommonIFC1", "WANCommonInterfaceConfig", 1),
        "STATE_VARIABLE_DEFINITIONS": {each: create_state_var(kind) for each, kind in _OF_LINK.items()},
    }
    link = type("Link", (WanCommonInterfaceConfig,), members)
    device: type[UpnpServerDevice] | None = None
    for kind, services in (("WANConnectionDevice", [connection]), ("WANDevice", [link]), ("InternetGatewayDevice", [])):
        members = {
            "DEVICE_DEFINITION": _device(folder, kind, version, name),
            "EMBEDDED_DEVICES": [device] if device is not None else [],
            "SERVICES": services,
        }
        device = type(kind, (UpnpServerDevice,), members)
    return device(NopRequester(), "")


def _service(folder: str, short: str, kind: str, version: int) -> ServiceInfo:
    return ServiceInfo(
        service_id=f"urn:upnp-org:serviceId:{short}",
        service_type=f"urn:schemas-upnp-org:service:{kind}:{version}",
        control_url=f"{folder}/{short}/control",
        event_sub_url=f"{folder}/{short}/events",
        scpd_url=f"{folder}/{short}.xml",
        xml=Element("service"),
    )


def _device(folder: str, kind: str, version: int, name: str) -> DeviceInfo:
    return DeviceInfo(
        device_type=f"urn:schemas-upnp-org:device:{kind}:{version}",
        friendly_name="fastmasq",
        manufacturer="fastmasq",
        manufacturer_url=None,
        model_description="masquerading gateway",
        model_name="fastmasq",
        model_number=fastmasq.__version__,
        model_url=None,
        serial_number=None,
        udn=f"uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'fastmasq {name} {kind}:{version}')}",
        upc=None,
        presentation_url=None,
        url=f"{folder}/root.xml",
        icons=[],
        xml=Element("device"),
    )
