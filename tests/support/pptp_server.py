"""A PPTP server for the lab that speaks as scapy does, behaves as a test wants, and sends GRE for its calls."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field

from scapy.layers import pptp
from scapy.layers.l2 import GRE_PPTP
from scapy.packet import Raw

from fastmasq.wire.numbers import GRE, PPTP_PORT
from fastmasq.wire.pptp import Header, Type
from tests.support.lab_network import Network

_LCP = bytes.fromhex("ff03 c021 01 01 0004")
_CALL_ID = 4711


@dataclass
class PptpServer:
    """Answers one control connection after the other. Results are those of RFC 2637; 1 accepts.

    mode: "speaks", "silent" (accepts connections and says nothing), "closes" (at the first message) or "gives up" (once
    it has made a call).
    """

    net: Network
    host: str = "server"
    mode: str = "speaks"
    start_result: int = 1
    call_result: int = 1
    sends_gre: bool = True
    heard: list[Type] = field(default_factory=list)  # control messages, in order

    def __enter__(self) -> PptpServer:
        self._listener = self.net.listen(self.host, port=PPTP_PORT)
        self._listener.settimeout(0.05)
        with self.net.on(self.host):
            self._raw = self.net.keep(socket.socket(socket.AF_INET, socket.SOCK_RAW, GRE))
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(OSError):
                connection, (client, _) = self._listener.accept()
                with connection:
                    connection.settimeout(0.05)
                    self._talk(connection, client)

    def _talk(self, connection: socket.socket, client: str) -> None:
        received = bytearray()
        while not self._ending.is_set():
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                continue
            if not piece:
                return
            received += piece
            while (header := Header.parse(received)) is not None and len(received) >= header.length:
                octets = bytes(received[: header.length])
                del received[: header.length]
                self.heard.append(Type(header.control_type))
                if self.mode == "closes":
                    return
                if self.mode in ("speaks", "gives up"):
                    self._answer(connection, client, Type(header.control_type), octets)
                if self.mode == "gives up" and header.control_type == Type.OUTGOING_CALL_REQUEST:
                    return

    def _answer(self, connection: socket.socket, client: str, kind: Type, octets: bytes) -> None:
        if kind is Type.START_REQUEST:
            names = {"host_name": b"vpn.example", "vendor_string": b"scapy"}
            reply = pptp.PPTPStartControlConnectionReply(result_code=self.start_result, **names)
            connection.sendall(bytes(pptp.PPTPEchoRequest()) + bytes(reply))
        elif kind is Type.OUTGOING_CALL_REQUEST:
            peer = int.from_bytes(octets[12:14], "big")
            ids = {"call_id": _CALL_ID, "peer_call_id": peer}
            connection.sendall(bytes(pptp.PPTPOutgoingCallReply(result_code=self.call_result, **ids)))
            if self.sends_gre and self.call_result == 1:
                header = GRE_PPTP(call_id=peer, seqnum_present=1, sequence_number=0, payload_len=len(_LCP))
                self._raw.sendto(bytes(header / Raw(_LCP)), (client, 0))
        elif kind is Type.STOP_REQUEST:
            connection.sendall(bytes(pptp.PPTPStopControlConnectionReply()))
