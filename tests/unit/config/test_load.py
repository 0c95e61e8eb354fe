"""Every kind of mistake is reported with its line and a remedy, all of them at once; good files give settings."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.config.load import load, parse
from fastmasq.errors import ConfigurationError

LINKS = '[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n'  # lines 1 to 3
FORWARD = "[[forward]]\nprotocol = 'tcp'\nlisten = 'eth1:80'\nto = '10.0.0.2:80'\n"
REDIRECT = "[[redirect]]\nprotocol = 47\nto = '10.0.0.2'\n"


def mistakes_in(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "f.toml")
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


def warnings_in(text: str) -> tuple[str, ...]:
    return parse(text, "f.toml").warnings


def test_the_shortest_file():
    settings = parse(LINKS, "f.toml").settings
    assert settings.interfaces.inside == ("eth0",)
    assert settings.interfaces.outside == "eth1"
    assert settings.masquerade.timeouts.tcp_established == 7_440_000_000_000


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    file = tmp_path / "f.toml"
    file.write_bytes(f"\ufeff{LINKS}x = 1\n".encode())
    with pytest.raises(ConfigurationError, match=r"f\.toml:4: "):
        load(file)
    file.write_bytes(f"\ufeff{LINKS}".encode())
    assert load(file).settings.interfaces.outside == "eth1"


def test_every_section_is_read():
    settings = parse(
        """
        compat = "2.2"
        interfaces = { inside = ["eth0", "eth0.5"], outside = "ppp0" }
        rings.mode = "v2"
        rings.busy_poll = 0
        takeover.guard = "tc"
        control.socket = "/tmp/x.sock"
        [masquerade]
        ports = "5000, 61000-65095"
        filtering = "endpoint-independent"
        hairpin = true
        dynaddr = 0
        timeouts.udp = 200
        [limits]
        sessions = 2_000
        new_sessions_per_host = "0/s"
        """,
        "f.toml",
    ).settings
    assert settings.interfaces.inside == ("eth0", "eth0.5")
    assert (settings.rings.mode, settings.rings.busy_poll, settings.takeover.guard) == ("v2", 0, "tc")
    assert settings.control.status_socket is None
    assert settings.masquerade.ports == ((5000, 5000), (61000, 65095))
    assert (settings.masquerade.filtering, settings.masquerade.hairpin) == ("endpoint-independent", True)
    assert settings.masquerade.timeouts.udp == 200_000_000_000
    assert settings.masquerade.timeouts.tcp_established == 900_000_000_000
    assert (settings.limits.sessions, settings.limits.sessions_per_host) == (2_000, 500)
    assert settings.limits.ports_per_host == 4097 // 4
    assert settings.limits.new_sessions_per_host == 0


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[interfaces", 1, "not TOML: Expected ']'"),
        ("a = 1\nb = 2\nb = 3", 3, "not TOML: Cannot overwrite a value"),
        ('a = 1\nb = "', 2, "not TOML"),
        ("a = 1\n\nb =", 3, "not TOML"),
        ("x = " + "[" * 5000, 1, "not TOML: nested too deep"),
        ("x = 1" + "0" * 5000, 1, "not TOML: nested too deep, or a number too long"),
    ],
)
def test_what_is_not_toml(text, line, said):
    (mistake,) = mistakes_in(text)
    assert mistake.startswith(f"f.toml:{line}: {said}")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        # links
        ("", 1, 'interfaces.inside: missing; write inside = ["eth0"] under [interfaces]'),
        ("", 1, 'interfaces.outside: missing; write outside = "eth1" under [interfaces]'),
        ('\n[interfaces]\ninside = ["a"]', 2, "interfaces.outside: missing; "),
        ("\ninterfaces = 3", 2, "interfaces: is a section, not a key; write [interfaces]"),
        ('[interfaces]\ninside = "eth0"', 2, 'interfaces.inside: "eth0" is not a list; write ["eth0"]'),
        ("[interfaces]\ninside = []", 2, "interfaces.inside: [] names no links; "),
        ('[interfaces]\ninside = ["a", 3]', 2, "interfaces.inside: 3 is not the name of one link; "),
        ('[interfaces]\ninside = [\n"a",\n"b", "a"]', 2, 'interfaces.inside: names "a" twice; name it once'),
        ('[interfaces]\noutside = ["eth1"]', 2, 'interfaces.outside: ["eth1"] is not the name of one link; '),
        ('[interfaces]\noutside = ""', 2, 'interfaces.outside: "" cannot be the name of a link; '),
        ('[interfaces]\noutside = ".."', 2, 'interfaces.outside: ".." cannot be the name of a link; '),
        ('[interfaces]\noutside = "a b"', 2, 'interfaces.outside: "a b" cannot be the name of a link; '),
        ('[interfaces]\noutside = "a23456789012345\u00e9"', 2, "has 17 bytes, a link's name at most 15; see `ip link`"),
        ('[interfaces]\ninside = ["a", "b"]\noutside = "a"', 3, 'interfaces.outside: "a" is named inside, too; '),
        # keys
        (LINKS + "[masqurade]\n", 4, "masqurade: unknown key; did you mean masquerade?"),
        (LINKS + "outsid = 1\n", 4, "interfaces.outsid: unknown key; did you mean outside?"),
        (LINKS + "[masquerade]\nudp = 1\n", 5, "masquerade.udp: unknown key; udp belongs under [masquerade.timeouts]"),
        (LINKS + "[rings]\ncompat = 1\n", 5, "rings.compat: unknown key; compat belongs at the top of the file"),
        (LINKS + "[limits]\nsocke = 1\n", 5, "limits.socke: unknown key; did you mean control.socket?"),
        (LINKS + "[control]\nzzz = 1\n", 5, "control.zzz: unknown key; the keys here are socket"),
        (LINKS + '[control]\n"a\\nb" = 1\n', 5, 'control."a\\nb": unknown key; '),
        # choices
        ("compat = 2.0\n" + LINKS, 1, 'compat: 2.0 is not "modern" or "2.0" or "2.2"; did you mean "2.0"?'),
        (LINKS + '[masquerade]\nfiltering = "adress-dependent"', 5, 'did you mean "address-dependent"?'),
        (LINKS + '[masquerade]\nmapping = "symmetric"', 5, '"symmetric" is not known; use "endpoint-independent"'),
        (LINKS + "[masquerade]\nhost_ports = 7", 5, 'masquerade.host_ports: 7 is not a range of ports; write "auto", '),
        (LINKS + '[masquerade]\nhost_ports = "no"', 5, 'masquerade.host_ports: "no" is not a range of ports; '),
        (LINKS + '[masquerade]\nhost_ports = "500-4000"', 5, '"500-4000" has ports under 1024, which are for services'),
        (LINKS + '[masquerade]\nhost_ports = "5000-5254"', 5, "is fewer than the 256 ports that a host wants; "),
        (LINKS + '[masquerade]\nhost_ports = "9000-5000"', 5, '"9000-5000" runs backwards; write 5000-9000'),
        (LINKS + "[masquerade]\nmss = 87", 5, "masquerade.mss: 87 is not from 88 to 65495 octets; "),
        (LINKS + '[masquerade]\nmss = "1400"', 5, 'masquerade.mss: "1400" is not from 88 to 65495 octets; '),
        (LINKS + "[masquerade]\nmss = true", 5, "masquerade.mss: true is not from 88 to 65495 octets; "),
        (LINKS + '[host]\nunsolicited = "deny"', 5, 'host.unsolicited: "deny" is not known; use "answer" or "drop"'),
        (LINKS + '[host]\nopen = "tcp:22"', 5, 'host.open: "tcp:22" is not a list; write for example ["tcp:22", '),
        (
            LINKS + '[host]\nopen = ["ssh"]',
            5,
            '"ssh" is none of "tcp:PORT", "udp:PORT", "protocol:NUMBER" and "ping"; ',
        ),
        (LINKS + '[host]\nopen = ["tcp:0"]', 5, 'host.open: "0" is outside 1-65535; write for example ["tcp:22", '),
        (LINKS + '[host]\nopen = ["protocol:256"]', 5, 'host.open: "protocol:256" is none of "tcp:PORT", '),
        (LINKS + '[host]\nopen = ["ping", "ping"]', 5, 'host.open: names "ping" twice; name it once'),
        (LINKS + "[rings]\nmode = []", 5, 'rings.mode: [] is not known; use "auto" or "v3" or "v2" or "socket"'),
        # plain types
        (LINKS + "[masquerade]\nhairpin = 1", 5, "masquerade.hairpin: 1 is not true or false; write for example true"),
        (
            LINKS + '[limits]\nsessions = "1M"',
            5,
            'limits.sessions: "1M" is not a whole number; write for example 1000000',
        ),
        (LINKS + "[rings]\nframes = 1.5", 5, "rings.frames: 1.5 is not a whole number; "),
        (LINKS + "[rings]\nframes = true", 5, "rings.frames: true is not a whole number; "),
        (LINKS + "[rings.frames]\nx = 1", 4, "rings.frames: {...} is not a whole number; "),
        (
            LINKS + "[masquerade]\ntimeouts = 3",
            5,
            "masquerade.timeouts: is a section, not a key; write [masquerade.timeouts]",
        ),
        (
            LINKS + '[masquerade]\naddresses = "1.2.3.4"',
            5,
            'masquerade.addresses: "1.2.3.4" is not a list of addresses; ',
        ),
        (
            LINKS + '[masquerade]\naddresses = ["eth1"]',
            5,
            '"eth1" is not the IPv4 address of a host; write for example [',
        ),
        (LINKS + "[masquerade]\naddresses = [1]", 5, "masquerade.addresses: 1 is not the IPv4 address of a host; "),
        (LINKS + '[masquerade]\naddresses = ["127.0.0.1"]', 5, '"127.0.0.1" is not the IPv4 address of a host; '),
        (LINKS + '[masquerade]\naddresses = ["1.2.3.4", "1.2.3.4"]', 5, 'names "1.2.3.4" twice; name it once'),
        (
            LINKS + '[masquerade]\naddresses = ["1.0.0.1", "1.0.0.2", "1.0.0.3", "1.0.0.4"]',
            5,
            "masquerade.addresses: names 4 addresses; at most 3 are used at a time",
        ),
        # units
        (
            LINKS + "[masquerade.timeouts]\n\nudp = '5 minutes'",
            6,
            'masquerade.timeouts.udp: "5 minutes" is not a duration; ',
        ),
        (LINKS + "[masquerade.timeouts]\nudp = -1", 5, "masquerade.timeouts.udp: -1 is not a duration; "),
        (LINKS + "[masquerade.timeouts]\nudp = inf", 5, "masquerade.timeouts.udp: inf is not a duration; "),
        (LINKS + "[masquerade.timeouts]\nudp = nan", 5, "masquerade.timeouts.udp: nan is not a duration; "),
        (LINKS + "[masquerade.timeouts]\nudp = true", 5, "masquerade.timeouts.udp: true is not a duration; "),
        (
            LINKS + "[masquerade.timeouts]\nudp = 2020-01-01",
            5,
            "masquerade.timeouts.udp: 2020-01-01 is not a duration; ",
        ),
        (LINKS + '[limits]\nnew_sessions_per_host = "5/m"', 5, 'limits.new_sessions_per_host: "5/m" is not a rate; '),
        (LINKS + "[limits]\nnew_sessions_per_host = 1.5", 5, "limits.new_sessions_per_host: 1.5 is not a rate; "),
        # bounds
        (LINKS + "[masquerade]\ndynaddr = 8", 5, "masquerade.dynaddr: 8 is out of bounds; use 0 to 7"),
        (LINKS + "[limits]\nsessions = 0", 5, "limits.sessions: 0 is out of bounds; use 16 to 50000000"),
        (
            LINKS + "[limits]\nnew_sessions_per_host = -1",
            5,
            "limits.new_sessions_per_host: -1 is out of bounds; use 0/s to",
        ),
        (LINKS + "[rings]\nbusy_poll = 1", 5, "rings.busy_poll: 1 is out of bounds; use 0s to 10ms"),
        (
            LINKS + "[masquerade.timeouts]\nicmp = '99d'",
            5,
            'masquerade.timeouts.icmp: "99d" is out of bounds; use 1s to 1d',
        ),
        # ports
        (
            LINKS + "[masquerade]\nports = 5",
            5,
            'masquerade.ports: 5 is not a list of ports; write "auto" or for example',
        ),
        (LINKS + "[masquerade]\nports = ''", 5, 'masquerade.ports: "" is not a range of ports; '),
        (LINKS + "[masquerade]\nports = '1-2-3'", 5, 'masquerade.ports: "1-2-3" is not a range of ports; '),
        (LINKS + "[masquerade]\nports = '0-5'", 5, 'masquerade.ports: "0-5" is outside 1-65535; '),
        (LINKS + "[masquerade]\nports = '1-65536'", 5, 'masquerade.ports: "1-65536" is outside 1-65535; '),
        (LINKS + "[masquerade]\nports = '9-5'", 5, 'masquerade.ports: "9-5" runs backwards; write 5-9'),
        (LINKS + "[masquerade]\nports = '4-9,1-4'", 5, 'masquerade.ports: "4-9,1-4" names port 4 twice; '),
        # the control socket
        (LINKS + "[control]\nsocket = 'x.sock'", 5, 'control.socket: "x.sock" is not the absolute path of a file; '),
        (LINKS + "[control]\nsocket = 3", 5, "control.socket: 3 is not the absolute path of a file; "),
        (
            LINKS + f"[control]\nsocket = '/{'x' * 107}'",
            5,
            "has 108 bytes, a socket's path at most 107; choose a shorter one",
        ),
        (LINKS + "[rules]\nfiles = '/x'", 5, '"/x" is not a list of files; write for example ["/etc/rc'),
        (LINKS + "[rules]\nfiles = ['x']", 5, '"x" is not the absolute path of a file; write'),
        (LINKS + "[rules]\nfiles = ['/x', '/x']", 5, 'names "/x" twice; name it once'),
        # keys that do not fit each other
        (
            LINKS + "[limits]\nsessions_per_host = 17\nsessions = 16",
            5,
            "17 is more than limits.sessions = 16; use at most 16",
        ),
        # sections that may stand several times
        (LINKS + "[forward]\nprotocol = 'tcp'", 4, "forward: is a list of sections; write [[forward]] above each"),
        (LINKS + "[[redirect]]\nprotocol = 47", 4, 'redirect.to: missing; write for example to = "10.0.0.2"'),
        (LINKS + FORWARD + "lisen = 'x'", 8, "forward.lisen: unknown key; did you mean listen?"),
        (LINKS + FORWARD + "preferences = [1.5]", 8, "forward.preferences: [1.5] cannot stand here; write for example"),
        (LINKS + FORWARD + FORWARD, 8, "forwarded already by tcp eth1:80; delete that first, or"),
        (LINKS + FORWARD.replace(":80'", ":0'"), 4, "ports run from 1 to 65535"),
        (LINKS + REDIRECT + REDIRECT, 7, "protocol 47: stands twice; one host can have it"),
        (LINKS + REDIRECT.replace("47", "6"), 4, "protocol 6: TCP has ports; use a port forward"),
        # what is out of bounds
        (LINKS + '[vpn]\npreload = "on"', 5, 'vpn.preload: "on" is not a port; write "off" or for example 4555'),
        (LINKS + "[vpn]\npreload = 65536", 5, "vpn.preload: 65536 is not a port"),
        (LINKS + "[vpn]\npreload = true", 5, "vpn.preload: true is not a port"),
        (LINKS + '[vpn]\npreload_keys = "keys"', 5, 'vpn.preload_keys: "keys" is not the absolute path of a file'),
        (LINKS + '[vpn]\nipsec_lifetime = "5m"', 5, 'vpn.ipsec_lifetime: "5m" is out of bounds; use 15m to 7d'),
    ],
)
def test_each_mistake_has_its_line_and_a_remedy(text, line, said):
    fitting = [mistake for mistake in mistakes_in(text) if said in mistake]
    assert len(fitting) == 1
    assert fitting[0].startswith(f"f.toml:{line}: ")
    assert ";" in fitting[0]


def test_all_mistakes_are_reported_in_the_order_of_the_file():
    mistakes = mistakes_in(
        'compat = "3.0"\n[control]\nsocket = 1\nx = 1\n[vpn]\npptp = 1\n[rings]\nmode = "v4"\nframes = 1\n'
        '[masquerade.timeouts]\nudp = ""\n'
    )
    assert [int(mistake.split(":")[1]) for mistake in mistakes] == [1, 1, 1, 3, 4, 6, 8, 9, 11]


def test_a_wrong_key_is_not_blamed_twice():
    assert len(mistakes_in(LINKS.replace('["eth0"]', '"eth0"'))) == 1
    assert len(mistakes_in(LINKS + "[limits]\nsessions = 17.5\nsessions_per_host = 99999")) == 1


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[masquerade.timeouts]\ntcp_established = '2h'", 5, '"2h" is less than the 2h4m of RFC 5382 REQ-5'),
        ("[masquerade.timeouts]\ntcp_transitory = 239", 5, "239 is less than the 4m of RFC 5382 REQ-5"),
        ("[masquerade.timeouts]\nudp = '119s'", 5, '"119s" is less than the 2m of RFC 4787 REQ-5'),
        ("[masquerade.timeouts]\nicmp = 30", 5, "30 is less than the 60s of RFC 5508 REQ-2"),
        (
            "[limits]\nports_per_host = 5000\n[masquerade]\nports = '61000-65095'",
            5,
            "may take all 4096 ports of 61000-65095",
        ),
    ],
)
def test_warnings(text, line, said):
    (warning,) = warnings_in(LINKS + text)
    assert warning.startswith(f"f.toml:{line}: ")
    assert said in warning
    assert "; use " in warning


@pytest.mark.parametrize("compat", ["modern", "2.0", "2.2"])
def test_nothing_is_warned_of_that_nobody_wrote(compat):
    assert warnings_in(f'compat = "{compat}"\n{LINKS}') == ()


def test_at_the_floor_there_is_no_warning():
    floors = "tcp_established = '2h4m'\ntcp_transitory = '4m'\nudp = '2m'\nicmp = 60"
    assert warnings_in(f"{LINKS}[masquerade.timeouts]\n{floors}") == ()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"/none.toml: cannot be read: No such file .*; name a configuration"):
        load(tmp_path / "none.toml")


def test_a_folder_instead_of_a_file(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory; "):
        load(tmp_path)


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "f.toml"
    path.write_bytes(b"# one\n# two \xff\n")
    with pytest.raises(ConfigurationError, match=r"f\.toml:2: not UTF-8; "):
        load(path)


def test_mistakes_name_the_file(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text("compat = 1")
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert all(line.startswith(f"{path}:1: ") for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"key{number} = 1\n" for number in range(5_000)),
        "[limits]\n" + "".join(f"sessionx{number} = 1\n" for number in range(5_000)),
        "[[forward]]\nprotocl = 1\n" * 5_000,
    ],
)
def test_after_a_hundred_mistakes_it_is_another_file_that_was_meant(text):
    """Their places and remedies took minutes, in which a running fastmasq answered nobody."""
    mistakes = mistakes_in(text)
    assert len(mistakes) == 101
    assert mistakes[-1] == ("f.toml: more than 100 mistakes; the rest was not looked at, is this the right file?")


@pytest.mark.parametrize("line", ["{} = 1", "[{}]", "[[ {} ]]", " {} = 1", '"x".{} = "="'])
def test_a_key_of_many_names_is_refused_unread(line):
    """The time that TOML takes for one grows with the square of their number."""
    deep = line.format(".".join("a" * 300_000))
    assert mistakes_in(f"# {'.' * 40}\n{deep}\n") == ["f.toml:2: a key of more than 32 names; no key has so many"]


@pytest.mark.parametrize(
    "text",
    [
        '[masquerade]\nports = "{}"',
        '[masquerade]\nhost_ports = "{}"',
        '[masquerade.timeouts]\nudp = "{}s"',
        '[control]\nsocket = "/{}"',
        "{} = 1",
        f"{FORWARD.replace('eth1:80', '1.2.3.4:{}')}",
        f"{FORWARD.replace('tcp', '{}')}",
        f"{REDIRECT.replace('10.0.0.2', '{}')}",
    ],
)
def test_a_word_of_any_length_makes_no_long_line(text):
    mistakes = mistakes_in(f"{text.format('9' * 100_000)}\n{LINKS}")
    assert max(map(len, mistakes)) < 450
    assert all("; " in mistake for mistake in mistakes), "the remedy stands at its end"


def test_a_long_list_is_no_key():
    many = ", ".join(f'"10.0.0.{number}:80"' for number in range(1, 100))
    forward = FORWARD.replace("'10.0.0.2:80'", f"[\n  {many}\n]")
    assert parse(f"{LINKS}{forward}", "f.toml").settings.forward


def test_many_links_are_read_soon():
    links = ", ".join(f'"e{number}"' for number in range(5_000))
    assert len(parse(LINKS.replace('"eth0"', links), "f.toml").settings.interfaces.inside) == 5_000


@given(st.text())
def test_any_text_gives_settings_or_mistakes(text):
    try:
        parse(text, "f.toml")
    except ConfigurationError as error:
        assert all(line.startswith("f.toml:") for line in str(error).split("\n"))


SECTIONS = st.sampled_from(["interfaces", "masquerade", "limits", "rings", "takeover", "control", "vpn", "other"])
NAMES = st.sampled_from(["inside", "outside", "ports", "udp", "timeouts", "mode", "sessions", "socket", "guard", "zzz"])
WRITTEN = st.sampled_from(
    ["1", "-1", "1.5", "true", '"5m"', '"auto"', '"\\u0000"', "[]", '["a"]', "{}", "nan", "[{}]", "1999-01-01"]
)


@given(st.dictionaries(SECTIONS, st.dictionaries(NAMES, WRITTEN)))
def test_any_table_gives_settings_or_mistakes_with_their_lines(tables):
    text = "".join(
        f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in table.items())
        for section, table in tables.items()
    )
    try:
        parse(text, "f.toml")
    except ConfigurationError as error:
        for line in str(error).split("\n"):
            assert 1 <= int(line.split(":")[1]) <= max(1, text.count("\n"))


def calls_to_read(forwards: int) -> int:
    """Return how many functions are called to read a configuration with so many forwards."""
    entry = '[[forward]]\nprotocol = "tcp"\nlisten = "eth1:{}"\nto = "10.0.0.2:80"\n'
    text = LINKS + "".join(entry.format(1000 + number) for number in range(forwards))
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        assert len(parse(text, "f").settings.forward) == forwards
    finally:
        sys.setprofile(None)
    return calls


def test_what_a_list_of_forwards_costs_grows_as_the_list_does() -> None:
    calls_to_read(1)  # what is kept for the next time
    assert calls_to_read(400) < 5 * calls_to_read(100)
