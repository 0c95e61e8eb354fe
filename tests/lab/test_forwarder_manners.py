"""What a gateway owes to its neighbours on the outside link."""

from __future__ import annotations

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS
from tests.support.lab_network import GATEWAY_INSIDE, INSIDE_ADDRESS, Network

ASK = """
import socket, struct, sys
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
raw.bind((sys.argv[1], 0x0806))
raw.settimeout(1.0)
own = raw.getsockname()[4]
packet = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + own + socket.inet_aton("200.200.200.1")
packet += bytes(6) + socket.inet_aton(sys.argv[2])
raw.send(b"\\xff" * 6 + own + b"\\x08\\x06" + packet)
try:
    while True:
        heard = raw.recv(100)
        if heard[20:22] == b"\\x00\\x02" and heard[28:32] == socket.inet_aton(sys.argv[2]):
            print("answered")
            break
except TimeoutError:
    print("silence")
"""


@pytest.mark.parametrize(("address", "answer"), [(EXTERNAL_ADDRESS, "answered"), (INSIDE_ADDRESS, "silence")])
def test_rfc3022_5_2_arp_outside_is_for_the_outside_address(net: Network, address: str, answer: str) -> None:
    """The inside host is known to the gateway by then; nobody outside must learn of it."""
    net.start()
    net.run("inside", "ping", "-n", "-c", "1", GATEWAY_INSIDE)
    assert net.run("router", "python3", "-c", ASK, "eth0", address).strip() == answer
