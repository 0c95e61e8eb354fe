"""The guard as a tc classifier: an eBPF program at the ingress of each link, compiled from the specification.

Addresses are compiled into the program, the ports of each are bitmaps in a map, which the programs of all links share.
An update of ports alone writes the map; any other loads new programs with a new map and puts them in the place of the
old ones, which the kernel does atomically, link by link. The filter holds the program and the program holds the map, so
that all of it outlives the process.

What is ours goes past the filters of others at the hook, as what a filter drops does. It is given a time as well, any
but 0: the kernel asks the clock for each packet that comes to a ring without one, and that costs more than the rest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastmasq.errors import KernelError
from fastmasq.kernel import netlink, rtnetlink
from fastmasq.kernel.bpf import calls, clsact
from fastmasq.kernel.bpf.assembler import CHANGE_TYPE, R0, R1, R2, R6, R7, R8, Assembler
from fastmasq.kernel.guard.specification import DHCP_CLIENT_PORT, FIRST_GROUP_ADDRESS, NAME, Guard, GuardSpec, present
from fastmasq.kernel.links import Interface, header_length, list_interfaces
from fastmasq.ring.packet_socket import GUARD_MARK
from fastmasq.wire.numbers import TCP, UDP

_TC_ACT_OK = 0
_TC_ACT_UNSPEC = -1  # go on with the next filter, unlike TC_ACT_OK

_PRIORITY = 1
_HANDLE = 0xFA57
_ETH_P_IP = 0x0800
_QDISC_KINDS = ("clsact", "ingress")

# Offsets in struct __sk_buff, 4 bytes each.
_SKB_PACKET_TYPE, _SKB_MARK, _SKB_PROTOCOL, _SKB_VLAN_PRESENT, _SKB_VLAN_TCI = 4, 8, 16, 20, 24
_SKB_TIME = 152  # 8 bytes
_VLAN_NUMBER = 0x0FFF
_BITMAP_BYTES = 65536 // 8


class TcGuard(Guard):
    """`memory` holds the names of the interfaces that had a clsact or ingress qdisc of somebody else before us."""

    backend = "tc"
    marks = True

    def __init__(self, memory: Mapping[str, Any]) -> None:
        super().__init__()
        self._requests = netlink.RequestSocket()
        self._not_ours = frozenset(memory["qdiscs"] if "qdiscs" in memory else self._names_with_qdisc())
        self._shown: dict[str, bytes] = {}  # how the kernel shows each filter since the last update, with its program
        self._ports = contextlib.ExitStack()  # holds the map of the programs that are in force
        self._written: tuple[int, tuple, bytes] | None = None  # its descriptor, and what programs and map were made of

    def memory(self) -> dict[str, Any]:
        return {"qdiscs": sorted(self._not_ours)}

    def check(self) -> None:
        nothing = np.zeros(65536, np.bool_)
        probe = GuardSpec((), (), (), {0: (nothing, nothing)})  # with an address: that is what needs a newer kernel
        ports = _load_ports(probe)
        try:
            os.close(_load(probe, "outside", 14, ports))
        finally:
            os.close(ports)

    def update(self, spec: GuardSpec) -> None:
        if not self._write_ports(spec):
            self._put_programs(spec)

    def _write_ports(self, spec: GuardSpec) -> bool:
        """Have the programs in force go by other ports of the same addresses, if that is all; return whether it is."""
        if self._written is None:
            return False
        ports, of_programs, before = self._written
        bitmaps = _bitmaps(spec)
        if bitmaps == before or of_programs != self._made_of(spec):  # equal ones: somebody has altered the programs
            return False
        try:
            calls.write_value(ports, bitmaps)
        except OSError as error:
            raise KernelError(f'guard "tc": the kernel refused other ports: {error.strerror}') from None
        self._written = ports, of_programs, bitmaps
        return True

    def _made_of(self, spec: GuardSpec) -> tuple:
        """Return all that programs are compiled from, and where they are to be."""
        links = [(interface.name, interface.ifindex, role) for interface, role in present(spec)]
        return replace(spec, external={}), tuple(spec.external), links

    def _put_programs(self, spec: GuardSpec) -> None:
        links, refused = [], []
        self._shown = {}
        self.close()
        made_of, ports = self._made_of(spec), _load_ports(spec)
        self._ports.callback(os.close, ports)
        for interface, role in present(spec):
            try:
                self._guard(interface, _load(spec, role, header_length(interface.hardware), ports))
            except OSError as error:
                if error.errno == errno.ENODEV:  # vanished meanwhile
                    continue
                refused.append(
                    f'guard "tc": cannot attach a filter with priority {_PRIORITY} to the ingress of {interface.name}: '
                    f"{error.strerror}"
                )
            except KernelError as error:
                refused.append(str(error))
            links.append(interface)
        self._put_on(links)
        if refused:
            self.look()
            raise KernelError("; ".join(dict.fromkeys(refused)))
        self._written = ports, made_of, _bitmaps(spec)

    def remove(self) -> bool:
        self._put_on(())
        self.close()
        removed = [self._detach(interface) for interface in list_interfaces()]
        return any(removed)

    def close(self) -> None:
        self._written = None
        self._ports.close()

    def describe(self) -> str:
        return f"tc: eBPF classifier at the ingress of {self._where()}"

    def _altered(self) -> Collection[str]:
        return [name for name, number in self._numbers.items() if self._show(number) != self._shown.get(name)]

    def _guard(self, interface: Interface, program: int) -> None:
        """Have the program judge what comes in by an interface, and close its descriptor. Raises OSError."""
        try:
            with contextlib.suppress(FileExistsError):
                clsact.add(self._requests, interface.ifindex)
            clsact.attach(self._requests, _classifier(interface), program, NAME)
        finally:
            os.close(program)
        self._shown[interface.name] = self._show(interface.ifindex)

    def _show(self, ifindex: int) -> bytes:
        """Return how the kernel shows our filter, with the number of its program; nothing if it is not there."""
        for message in self._filters(ifindex, clsact.INGRESS):
            _, _, handle, _, info = rtnetlink.TCMSG.read(message)
            if (handle, info >> 16) == (_HANDLE, _PRIORITY):
                return rtnetlink.TCMSG.attributes(message).get(rtnetlink.TCA_OPTIONS, b"")
        return b""

    def _detach(self, interface: Interface) -> bool:
        if NAME not in self._filter_names(interface, clsact.INGRESS):
            return False
        try:
            self._requests.ask(netlink.RTM_DELTFILTER, 0, _classifier(interface))
            hooks = (clsact.INGRESS, clsact.EGRESS)
            empty = not any(self._filter_names(interface, hook) for hook in hooks)
            if empty and interface.name not in self._not_ours:
                self._requests.ask(netlink.RTM_DELQDISC, 0, clsact.qdisc(interface.ifindex))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        return True

    def _filter_names(self, interface: Interface, parent: int) -> list[str]:
        """Return the names of the filters at one hook, "" for a filter that has none."""
        return [_filter_name(message) for message in self._filters(interface.ifindex, parent)]

    def _filters(self, ifindex: int, parent: int) -> list[bytes]:
        """Return the messages that show the filters at one hook."""
        try:
            messages, _ = self._requests.dump(
                netlink.RTM_GETTFILTER, rtnetlink.TCMSG.pack(ifindex=ifindex, parent=parent)
            )
        except OSError:  # no such hook
            return []
        return [message for message in messages if rtnetlink.TCMSG.read(message)[2]]

    def _names_with_qdisc(self) -> list[str]:
        names = {interface.ifindex: interface.name for interface in list_interfaces()}
        messages, _ = self._requests.dump(netlink.RTM_GETQDISC, rtnetlink.TCMSG.pack())
        found = []
        for message in messages:
            ifindex = rtnetlink.TCMSG.read(message)[1]
            kind = netlink.read_text(rtnetlink.TCMSG.attributes(message), rtnetlink.TCA_KIND)
            if kind in _QDISC_KINDS and ifindex in names:
                found.append(names[ifindex])
        return found


def _classifier(interface: Interface) -> bytes:
    return clsact.classifier(interface.ifindex, _PRIORITY, _HANDLE)


def _filter_name(message: bytes) -> str:
    options = rtnetlink.TCMSG.attributes(message).get(rtnetlink.TCA_OPTIONS, b"")
    return netlink.read_text(netlink.attributes(options), rtnetlink.TCA_BPF_NAME)


def _bitmaps(spec: GuardSpec) -> bytes:
    return b"".join(
        np.packbits(ports, bitorder="little").tobytes() for of_address in spec.external.values() for ports in of_address
    )


def _load_ports(spec: GuardSpec) -> int:
    """Make the map of ports and return its descriptor. Raises KernelError."""
    return _asked(lambda: calls.load_value(_bitmaps(spec) or bytes(1)))


def _load(spec: GuardSpec, role: str, link_header: int, ports: int) -> int:
    """Load the classifier for one link and return its descriptor. Raises KernelError."""
    return _asked(lambda: calls.load_classifier(classifier(spec, role, link_header, ports), NAME))


def _asked(ask: Callable[[], int]) -> int:
    try:
        return ask()
    except OSError as error:
        if error.errno == errno.EPERM:
            raise KernelError(
                'guard "tc": loading an eBPF program needs CAP_BPF and CAP_NET_ADMIN; run as root'
            ) from None
        raise KernelError(f'guard "tc": the kernel refused the eBPF program: {error.strerror}') from None


def classifier(spec: GuardSpec, role: str, link_header: int, ports: int) -> bytes:
    """Return the program. `link_header` is 14 or 0 bytes; `ports` the map: bitmaps of TCP and UDP for each address."""
    code = Assembler()
    code.move(R6, R1)  # where load_packet expects the context
    for field, wanted in (
        (_SKB_PROTOCOL, socket.htons(_ETH_P_IP)),
        (_SKB_PACKET_TYPE, socket.PACKET_HOST),
    ):
        code.load(R0, R6, field, 4)
        code.jump_if_not_equal(R0, wanted, "pass")
    code.load(R0, R6, _SKB_VLAN_PRESENT, 4)
    code.jump_if_equal(R0, 0, "untagged")
    code.load(R0, R6, _SKB_VLAN_TCI, 4)
    code.bit_and(R0, _VLAN_NUMBER)
    code.jump_if_not_equal(R0, 0, "pass")
    code.label("untagged")
    if role != "local":  # the verifier refuses code that is never reached
        _judge_destination(code, spec, role, link_header)
        if spec.external:
            _judge_ours(code, spec, link_header, ports)
    code.label("ours")
    code.move(R1, R6)
    code.set(R2, socket.PACKET_OTHERHOST)
    code.call(CHANGE_TYPE)
    code.set(R1, GUARD_MARK)
    code.store(R6, _SKB_MARK, R1, 4)
    code.store(R6, _SKB_TIME, R1, 8)
    code.set(R0, _TC_ACT_OK)
    code.exit()
    code.label("pass")
    code.set(R0, _TC_ACT_UNSPEC)
    code.exit()
    return code.program()


def _judge_destination(code: Assembler, spec: GuardSpec, role: str, link_header: int) -> None:
    """Emit what finds out to whom a packet is: to the host, to others, or to an external address."""
    code.load_packet(link_header + 16, 4)
    for address in spec.external:
        code.jump_if_equal(R0, address, f"to {address}")
    code.jump_if_at_least(R0, FIRST_GROUP_ADDRESS, "pass")
    for address in spec.local_addresses:
        code.jump_if_equal(R0, address, "pass")
    if role == "outside":
        _pass_dhcp_answers(code, link_header)
    code.jump("ours")


def _judge_ours(code: Assembler, spec: GuardSpec, link_header: int, ports: int) -> None:
    """Emit what judges a packet to an external address; R8 = its bitmaps."""
    for number, address in enumerate(spec.external):
        code.label(f"to {address}")
        code.load_map_value(R8, ports, number * 2 * _BITMAP_BYTES)
        code.jump("to us")
    code.label("to us")
    code.load_packet(link_header + 9, 1)  # protocol
    code.move(R7, R0)
    code.jump_if_equal(R7, TCP, "look up")
    code.jump_if_equal(R7, UDP, "to UDP")
    for protocol in spec.protocols:
        code.jump_if_equal(R7, protocol, "ours")
    code.jump("pass")
    code.label("to UDP")
    code.add_value(R8, _BITMAP_BYTES)
    code.label("look up")
    _jump_if_later_fragment(code, link_header, "pass")
    _load_destination_port(code, link_header)
    code.move(R1, R0)
    code.shift_right(R1, 3)
    code.add(R8, R1)
    code.load(R8, R8, 0, 1)
    code.bit_and(R0, 7)
    code.shift_right_by(R8, R0)
    code.bit_and(R8, 1)
    code.jump_if_equal(R8, 0, "pass")


def _pass_dhcp_answers(code: Assembler, link_header: int) -> None:
    code.load_packet(link_header + 9, 1)
    code.jump_if_not_equal(R0, UDP, "ours")
    _jump_if_later_fragment(code, link_header, "ours")
    _load_destination_port(code, link_header)
    code.jump_if_equal(R0, DHCP_CLIENT_PORT, "pass")


def _jump_if_later_fragment(code: Assembler, link_header: int, target: str) -> None:
    code.load_packet(link_header + 6, 2)  # flags and fragment offset
    code.bit_and(R0, 0x1FFF)
    code.jump_if_not_equal(R0, 0, target)


def _load_destination_port(code: Assembler, link_header: int) -> None:
    """R0 = destination port of TCP or UDP, behind the options; changes R7."""
    code.load_packet(link_header, 1)
    code.bit_and(R0, 0x0F)
    code.shift_left(R0, 2)
    code.move(R7, R0)
    code.load_packet_indexed(R7, link_header + 2, 2)
    code.bit_and(R0, 0xFFFF)
