"""The rule sets of the VPN Masquerade HOWTO, word for word, and what one puts beside them, as files of this package.

They keep the HOWTO's example addresses; `fill` puts a real network in their place. A set whose name ends in "-eth1"
is put together: the HOWTO gives only the lines of the second variant, which are to follow the policies and the lines of
the inside link (original-systems A-7).
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from fastmasq.errors import ConfigurationError

FOLDER = Path(__file__).parents[1] / "templates"

LAN, HOST, REGISTERED_HOST = "10.0.0.0/8", "10.0.0.2", "222.0.0.2"
PEERS = ("199.0.0.1", "199.0.0.2", "199.0.0.3")
PUBLIC, PUBLIC_NETWORK = "200.200.200.200", "200.200.200.0/24"
INSIDE, OUTSIDE = "eth0", ("ppp0", "eth1")


class Template(NamedTuple):
    """A rule set that ships: its name, and what it is for."""

    name: str
    sentence: str


TEMPLATES = tuple(
    Template(*row)
    for row in (
        ("3.5-ipfwadm-minimum-ppp0", "Private VPN client or server: masquerade everything; ppp0."),
        ("3.5-ipfwadm-minimum-eth1", "The same for a permanent connection, put together."),
        ("3.5-ipfwadm-minimum-eth1-lines", "Only the lines the HOWTO gives for it."),
        ("3.5-ipfwadm-tight-ppp0", "Private VPN client or server: nothing but the VPN; ppp0."),
        ("3.5-ipfwadm-tight-eth1", "The same for a permanent connection, put together."),
        ("3.5-ipfwadm-tight-eth1-lines", "Only the lines the HOWTO gives for it."),
        ("3.6-ipchains-minimum-ppp0", "As 3.5 minimum, for ipchains."),
        ("3.6-ipchains-minimum-eth1", "The same for a permanent connection, put together."),
        ("3.6-ipchains-minimum-eth1-lines", "Only the lines the HOWTO gives for it."),
        ("3.6-ipchains-tight-ppp0", "As 3.5 tight, for ipchains; ICMP does not pass."),
        ("3.6-ipchains-tight-eth1", "The same for a permanent connection, put together."),
        ("3.6-ipchains-tight-eth1-lines", "Only the lines the HOWTO gives for it."),
        ("3.8-ipportfw-static-ipsec", "Port forward to an IPsec server inside."),
        ("3.8-ipportfw-static-pptp", "Port forward to a PPTP server inside; its -C clears the one before."),
        ("3.8-ipportfw-dynamic-ipsec", "The same for /etc/ppp/ip-up, where ${4} is the local address."),
        ("3.8-ipportfw-dynamic-pptp", "The same for /etc/ppp/ip-up, where ${4} is the local address."),
        ("3.8-ipmasqadm-server", "Both port forwards with the tool of 2.2 kernels (not in the HOWTO)."),
        ("3.8-ipfwd", "Redirection of ESP and GRE to a VPN server inside."),
        ("3.9-ipfwadm-registered-server", "VPN server with a registered address: routed; one line has the HOWTO's -0."),
        ("3.9-ipchains-registered-server", "The same for ipchains (not in the HOWTO)."),
        ("3.10-ipfwadm-registered-client", "VPN client with a registered address: routed."),
        ("3.10-ipchains-registered-client", "The same for ipchains (not in the HOWTO)."),
        ("5.2-ipfwadm-open", "Everything open, to find out whether rules are at fault."),
        ("5.2-ipchains-open", "Everything open, to find out whether rules are at fault."),
        ("gateway-ipfwadm", "Addition to tight sets: lo, and the ICMP errors everybody needs."),
        ("gateway-ipchains", "Addition to tight sets: lo, and the ICMP errors everybody needs."),
        ("server-ipfwadm", "Addition to the tight set of 3.5: a PPTP server inside."),
        ("server-ipchains", "Addition to the tight set of 3.6: a PPTP server inside."),
        *(
            (f"{service}-{tool}", f"Addition to tight sets: {what}.")
            for service, what in (
                ("dns", "name servers"),
                ("http", "web servers"),
                ("pop", "mailboxes by POP3"),
                ("imap", "mailboxes by IMAP"),
            )
            for tool in ("ipfwadm", "ipchains")
        ),
    )
)
NAMES = tuple(template.name for template in TEMPLATES)


class Places(Struct, frozen=True, kw_only=True):
    """What to write for the HOWTO's examples; an empty one stays as it is.

    hosts: the VPN clients or servers inside. peers: whom they talk to; a line about a peer comes once for each. public:
    an address or a network. Each of them is an address, peers, public and lan also a network with /.
    """

    lan: str = ""
    hosts: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    public: str = ""
    inside: str = ""
    outside: str = ""


def text_of(name: str) -> str:
    """Return the text of a template. Raises ConfigurationError with the nearest name."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
        raise ConfigurationError(
            f"there is no template {name!r}; "
            + (f"did you mean {near[0]}?" if near else "`fastmasq rule templates` lists them")
        )
    if not name.endswith("-eth1"):
        return (FOLDER / f"{name}.rules").read_text()
    variant = name.removesuffix("-eth1")
    common = itertools.takewhile(
        lambda line: not line.startswith("# Masquerade"), text_of(f"{variant}-ppp0").splitlines(keepends=True)
    )
    return "".join(common) + "# The lines of the permanent connection\n" + text_of(f"{variant}-eth1-lines")


def fill(text: str, places: Places) -> str:
    """Return a template with the HOWTO's examples replaced, and its -0 corrected to -O (original-systems A-1)."""
    corrected = text.replace("ipfwadm -0 ", "ipfwadm -O ")
    lines = [line for given in corrected.splitlines() for line in _filled(given, places)]
    return "".join(f"{line}\n" for line in lines)


def _filled(line: str, places: Places) -> Iterator[str]:
    """Yield what becomes of a line: several when it names a host or a peer, none when it names the second peer."""
    if line.startswith("#"):
        yield line
        return
    if places.peers and PEERS[2] in line:
        return
    if "/" in places.public:
        line = line.replace(f" -V {PUBLIC}", "")  # -V takes one address
    hosts = _each(line, (HOST, REGISTERED_HOST), places.hosts)
    for host, peer in itertools.product(hosts, _each(line, PEERS, places.peers)):
        changed = line
        for examples, value in (
            ((HOST, REGISTERED_HOST), host),
            (PEERS, peer),
            ((PUBLIC, PUBLIC_NETWORK), places.public),
            ((LAN,), places.lan),
            ((INSIDE,), places.inside),
            (OUTSIDE, places.outside),
        ):
            for example in examples if value else ():
                changed = _replaced(changed, example, value)
        yield changed


def _each(line: str, examples: Sequence[str], values: Iterable[str]) -> list[str]:
    named = any(re.search(_whole(example), line) for example in examples)
    return list(values) if named and values else [""]


def _replaced(line: str, example: str, value: str) -> str:
    """Put a value in the place of an example; a network takes the mask's place, too."""
    mask = r"(?:/32)?" if "/" in value else ""
    if "/" in example and "/" not in value and re.match(r"\d", value):
        value += "/32"
    return re.sub(_whole(example) + mask, value, line)


def _whole(example: str) -> str:
    return rf"(?<![\w.]){re.escape(example)}(?![\w.])"
