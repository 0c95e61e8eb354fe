"""What a network with VPN clients or servers needs of its gateway: the question of HOWTO 3.2, answered and written out.

A host with a registered address is only routed. A private client is masqueraded. A private server is masqueraded and
reached by a port forward for the control channel. The data channel of PPTP is followed from there; for that of IPsec a
redirect says whose SAs are that nobody inside has begun. From the answers come sentences, a fastmasq.toml, or a script
of 1999 made of the HOWTO's own rule sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from msgspec import Struct

from fastmasq.advice.templates import Places, fill, text_of
from fastmasq.errors import ConfigurationError
from fastmasq.wire.numbers import ESP, GRE, ISAKMP_PORT, PPTP_PORT

Role = Literal["client", "server", "both"]
Vpn = Literal["pptp", "ipsec", "both"]
Tool = Literal["ipfwadm", "ipchains"]

RULES_FILE = "/etc/fastmasq.rules"
ANYWHERE = "0.0.0.0/0"

_PRIVATE = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))  # RFC 1918
_CHANNELS = {"pptp": ("tcp", PPTP_PORT, GRE), "ipsec": ("udp", ISAKMP_PORT, ESP)}
_FOLLOWED = ("pptp",)  # their data channels need no redirect
_SPELLED = {"pptp": "PPTP", "ipsec": "IPsec"}
_TRACES = {"pptp": r" 1723\b|/1723\b|-p 47\b| 47\b", "ipsec": r" 500\b|/500\b|-p 50\b| 50\b"}  # in the HOWTO's lines


class Question(Struct, frozen=True, kw_only=True):
    """The network. hosts: the VPN clients or servers inside; peers: whom they talk to, none is anybody.

    public: the outside link's address, "" when it changes. tight: nothing but the VPN may pass.
    """

    hosts: tuple[str, ...]
    role: Role = "client"
    vpn: Vpn = "both"
    public: str = ""
    inside: str = "eth0"
    outside: str = "eth1"
    lan: str = ""
    peers: tuple[str, ...] = ()
    tight: bool = False
    registered: bool | None = None  # None: by the address of the hosts


def is_private(address: str | int) -> bool:
    """Return whether an address is for private networks (RFC 1918), so that it must be masqueraded."""
    return any(IPv4Address(address) in network for network in _PRIVATE)


class Advice:
    """The answers to one question. Raises ConfigurationError for a network that cannot be."""

    def __init__(self, question: Question) -> None:
        self.question = question
        kinds = {not is_private(host) for host in question.hosts}
        if not question.hosts:
            raise ConfigurationError("no VPN host is named; name its inside address with --host")
        if question.registered is None and len(kinds) > 1:
            raise ConfigurationError(
                "some hosts have private and some registered addresses; ask about each kind by itself"
            )
        self.registered = kinds.pop() if question.registered is None else question.registered
        self.is_server = question.role != "client"
        self.vpns = tuple(name for name in _CHANNELS if question.vpn in (name, "both"))
        if self.is_server and not self.registered and len(question.hosts) > 1:
            raise ConfigurationError(
                f"one outside address leads to one server of a kind; {question.hosts[0]} or {question.hosts[1]}?"
            )

    # -- sentences -------------------------------------------------------------------------------------------------

    def sentences(self) -> Iterator[str]:
        """Yield what is needed, and what is not, each with its reason."""
        one = len(self.question.hosts) == 1
        kind = f"{'registered' if self.registered else 'private'} {'address' if one else 'addresses'}"
        hosts = f"{', '.join(self.question.hosts)} {'has a' if one else 'have'} {kind}"
        if self.registered:
            yield f"{hosts}: route, do not masquerade."
            yield "No port forward and no redirect is needed. The rules say what may pass (HOWTO 3.9, 3.10)."
        else:
            yield f"{hosts}: masquerade (HOWTO 3.5, 3.6)."
            if self.is_server:
                yield from self._server_sentences()
            else:
                yield "No port forward and no redirect is needed for clients."
        if "ipsec" in self.vpns and not self.registered:
            yield "IPsec must use ESP: AH cannot be masqueraded (HOWTO 2.2)."
        if not self.question.public and not self.registered:
            yield f"The address of {self.question.outside} may change: forwards and rules name the link instead."
        if self.question.tight and not self.question.peers:
            yield "No peer is named, so the VPN is open to anybody; name the other ends with --peer for tighter rules."

    def _server_sentences(self) -> Iterator[str]:
        for name in self.vpns:
            protocol, port, data = _CHANNELS[name]
            forward = (
                f"{_SPELLED[name]}: forward {protocol} {port} of {self.question.outside} to {self.question.hosts[0]}"
            )
            if name in _FOLLOWED:
                yield f"{forward} (HOWTO 3.8); its protocol {data} is followed from there, without a redirect."
            else:
                yield f"{forward}, and redirect protocol {data} to it (HOWTO 3.8)."
        yield "Remote clients use the gateway's outside address as the address of the server."

    # -- files -----------------------------------------------------------------------------------------------------

    @property
    def needs_rules(self) -> bool:
        """Return whether fastmasq.toml needs a file of rules beside it: else everything from inside is masqueraded."""
        return self.registered or self.question.tight

    def toml(self) -> str:
        """Return a fastmasq.toml; where `needs_rules`, it names RULES_FILE, which `script` writes."""
        ask = self.question
        parts = [f'[interfaces]\ninside = ["{ask.inside}"]\noutside = "{ask.outside}"\n']
        if self.needs_rules:
            made = "# Made by the same `fastmasq advise` with --format rules."
            parts.append(f'[rules]\n{made}\nfiles = ["{RULES_FILE}"]\n')
        if self.is_server and not self.registered:
            for name in self.vpns:
                protocol, port, _ = _CHANNELS[name]
                listen = f"{ask.public or ask.outside}:{port}"
                parts.append(
                    f'[[forward]]\nprotocol = "{protocol}"\nlisten = "{listen}"\nto = "{ask.hosts[0]}:{port}"\n'
                )
            parts += [f'[[redirect]]\nprotocol = {number}\nto = "{ask.hosts[0]}"\n' for number in self._redirected()]
        if not self.registered:
            switches = "".join(f"{name} = {str(name in self.vpns).lower()}\n" for name in _CHANNELS)
            parts.append(f"[vpn]\n{switches}")
        return "\n".join(parts)

    def script(self, tool: Tool, *, forwards: bool = True) -> str:
        """Return a script of 1999. forwards: with the commands of HOWTO 3.8; not where fastmasq.toml has them."""
        text = self._routed(tool) if self.registered else self._masqueraded(tool)
        if forwards and self.is_server and not self.registered:
            text += self._forwarding(tool)
        return "".join(f"{line}\n" for line in self._only_wanted(text.splitlines()))

    def _masqueraded(self, tool: Tool) -> str:
        section = "3.5" if tool == "ipfwadm" else "3.6"
        names = [f"{section}-{tool}-{'tight' if self.question.tight else 'minimum'}-ppp0"]
        if self.question.tight:
            names += [f"server-{tool}"] if self.is_server and "pptp" in self.vpns else []
            names.append(f"gateway-{tool}")
        return "".join(self._filled(name) for name in names)

    def _routed(self, tool: Tool) -> str:
        """Return the sets for registered addresses; of two, the lines before each denial are put together."""
        names = [f"3.9-{tool}-registered-server"] if self.is_server else []
        names += [f"3.10-{tool}-registered-client"] if self.question.role != "server" else []
        forward = {
            "ipfwadm": "ipfwadm -F -p deny\nipfwadm -F -p accept",
            "ipchains": "ipchains -P forward DENY\nipchains -P forward ACCEPT",
        }[tool]
        text = f"# Route: nothing is masqueraded.\n{forward}\n"
        for pieces in zip(*(_by_denials(self._filled(name)) for name in names), strict=True):
            text += "".join(accepts for accepts, _ in pieces) + pieces[0][1]
        return text

    def _forwarding(self, tool: Tool) -> str:
        """Return the commands of HOWTO 3.8, with one clearing of the table only (original-systems A-14)."""
        ask = self.question
        own = ask.public or ask.outside
        lines = ["# Forward the control channels to the server, and redirect the data channels that are not followed"]
        lines.append("/sbin/ipportfw -C" if tool == "ipfwadm" else "ipmasqadm portfw -f")
        for name in self.vpns:
            protocol, port, _ = _CHANNELS[name]
            if tool == "ipfwadm":
                lines.append(f"/sbin/ipportfw -A -{protocol[0]} {own}/{port} -R {ask.hosts[0]}/{port}")
            else:
                lines.append(f"ipmasqadm portfw -a -P {protocol} -L {own} {port} -R {ask.hosts[0]} {port}")
        lines += [f"/sbin/ipfwd --masq {ask.hosts[0]} {number} &" for number in self._redirected()]
        return "".join(f"{line}\n" for line in lines)

    def _redirected(self) -> list[int]:
        """Return the protocols that the server is to get."""
        return [_CHANNELS[name][2] for name in self.vpns if name not in _FOLLOWED]

    def _filled(self, name: str) -> str:
        ask = self.question
        places = Places(
            lan=ask.lan or network_of(ask.hosts[0]),
            hosts=ask.hosts,
            peers=ask.peers or (ANYWHERE,),
            public=ask.public or ANYWHERE,
            inside=ask.inside,
            outside=ask.outside,
        )
        return fill(text_of(name), places)

    def _only_wanted(self, lines: Iterable[str]) -> Iterator[str]:
        """Leave out the lines about a VPN that is not there."""
        for line in lines:
            signs = _SPELLED if line.startswith("#") else _TRACES
            is_of = {name for name, sign in signs.items() if re.search(sign, line)}
            if not is_of or is_of & set(self.vpns):
                yield line


def _by_denials(text: str) -> list[tuple[str, str]]:
    """Cut a set into pairs (lines up to some that deny, those lines with the comments right before them)."""
    pairs: list[list[str]] = [["", ""]]
    comments = ""
    for line in text.splitlines(keepends=True):
        if line.startswith("#"):
            comments += line
            continue
        denies = bool(re.search(r"-a deny|-j DENY", line))
        if not denies and pairs[-1][1]:
            pairs.append(["", ""])
        pairs[-1][denies] += comments + line
        comments = ""
    return [(accepts, denials) for accepts, denials in pairs]


def network_of(host: str | int) -> str:
    """Return the private range an address belongs to; of a registered one the /24 it is in."""
    within = next((network for network in _PRIVATE if IPv4Address(host) in network), None)
    return str(within or IPv4Network((host, 24), strict=False))
