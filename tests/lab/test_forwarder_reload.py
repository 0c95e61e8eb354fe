"""Reload: only what differs changes, sessions live on, a bad file changes nothing, `--enforce` closes what it must."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest

from fastmasq.control.client import call
from fastmasq.errors import FastmasqError
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import UDP_LITE
from tests.support.lab_network import ECHO_PORT, Network, eventually, round_trip, send_and_compare

SERVER = (SERVER_ADDRESS, ECHO_PORT)
ALL_OUT = "ipchains -P forward DENY\nipchains -A forward -s 10.0.0.0/8 -j MASQ\n"
NO_NEW_TCP = (
    "ipchains -P forward DENY\nipchains -A forward -p tcp -y -j DENY\nipchains -A forward -s 10.0.0.0/8 -j MASQ\n"
)
FORWARD = '[[forward]]\nprotocol = "tcp"\nlisten = "eth1:{listen}"\nto = "10.0.0.2:{to}"\n'


def configure(net: Network, head: str) -> None:
    """Have the file begin otherwise; its interfaces and its socket stay."""
    file = net.fastmasq.configuration
    text = file.read_text()
    file.write_text(head + text[text.index("\n[interfaces]") :])


def reload(net: Network, *options: str) -> str:
    return net.fastmasq.run_command("reload", *options)


def rule_file(tmp_path: Path, text: str) -> str:
    """Write the rule file; return the section that names it."""
    file = tmp_path / "rc.firewall"
    file.write_text(text)
    return f'[rules]\nfiles = ["{file}"]\n'


def connects(net: Network) -> bool:
    try:
        return round_trip(net.connect("inside", SERVER, timeout=1), None, b"?", 1)
    except OSError:
        return False


def test_an_unchanged_file_changes_nothing(net: Network) -> None:
    net.start('[masquerade.timeouts]\nudp = "3m"\n')
    assert reload(net) == "nothing changed\n"


def test_want08_a_stream_and_a_forward_go_through_reloads(net: Network, tmp_path: Path) -> None:
    """Forwards that stay are not touched, one that goes leaves its session, and not a segment of a stream is lost."""
    both = FORWARD.format(listen=8080, to=ECHO_PORT) + FORWARD.format(listen=8081, to=ECHO_PORT)
    net.start(both + rule_file(tmp_path, ALL_OUT))
    net.echo_tcp("inside")
    outside = [net.connect("server", (EXTERNAL_ADDRESS, port)) for port in (8080, 8081)]
    near, far = net.pair()
    over = threading.Event()

    def turn() -> None:
        number = 0
        while not over.is_set():
            number += 1
            kept = FORWARD.format(listen=8080, to=ECHO_PORT)
            rules = rule_file(tmp_path, (ALL_OUT, NO_NEW_TCP)[number % 2])
            configure(net, kept + (FORWARD.format(listen=9000 + number, to=ECHO_PORT)) + rules)
            reload(net)

    before = net.drops()
    thread = threading.Thread(target=turn)
    thread.start()
    try:
        send_and_compare(near, far, 200_000_000)
    finally:
        over.set()
        thread.join()
    for connection in outside:
        assert round_trip(connection, None, b"still here")
    lost = {reason: count - before.get(reason, 0) for reason, count in net.drops().items()}
    assert not lost.get("forward_denied") and not lost.get("input_denied"), lost
    assert round_trip(net.connect("server", (EXTERNAL_ADDRESS, 8080)), None, b"new")


def test_exactly_what_the_file_says_comes_back(net: Network) -> None:
    """A forward cleared at run time stays away, and one made then stays, until all is to be as the file says."""
    net.start(FORWARD.format(listen=8080, to=ECHO_PORT))
    net.fastmasq.run_command("forward", "clear")
    net.fastmasq.run_command("forward", "add", "tcp", "eth1:9090", "10.0.0.2:80")
    assert reload(net) == "nothing changed\n"
    assert "eth1:9090" in net.fastmasq.run_command("forward", "list")
    assert reload(net, "--exact") == "changed: forward tcp eth1:9090 removed, forward tcp eth1:8080 added\n"
    [_, row] = net.fastmasq.run_command("forward", "list").splitlines()
    assert (row.split()[1], row.split()[-1]) == ("eth1:8080", "configuration")
    assert reload(net, "--exact") == "nothing changed\n"


def test_changed_timeouts_take_effect(net: Network) -> None:
    net.start('[masquerade.timeouts]\nicmp = "60s"\n')
    configure(net, '[masquerade.timeouts]\nudp = "2s"\nicmp = "60s"\n')
    assert reload(net) == "changed: masquerade.timeouts.udp\n"
    net.echo_udp()
    assert round_trip(net.udp("inside"), SERVER, b"?")
    eventually(lambda: net.sessions() == [], 6, "no session")


def test_changed_ports_are_those_of_new_sessions(net: Network) -> None:
    reserved = net.sysctl("gateway", "net.ipv4.ip_local_reserved_ports")
    net.start()
    net.echo_udp()
    first, second = net.udp("inside"), net.udp("inside2")
    assert round_trip(first, SERVER, b"?")
    [old] = net.sessions()
    configure(net, '[masquerade]\nports = "40000-40100"\n')
    assert "masquerade.ports" in reload(net)
    assert "40000" in net.sysctl("gateway", "net.ipv4.ip_local_reserved_ports")
    assert round_trip(first, SERVER, b"old") and round_trip(second, SERVER, b"new")
    ports = {int(each["external"].partition(":")[2]) for each in net.sessions() if each != old}
    assert int(old["external"].partition(":")[2]) in ports
    assert any(40000 <= port <= 40100 for port in ports)
    configure(net, "")
    reload(net)
    assert net.sysctl("gateway", "net.ipv4.ip_local_reserved_ports") == reserved


def test_hairpin_filtering_and_limits_change(net: Network) -> None:
    net.start()
    net.echo_udp()
    configure(
        net,
        '[masquerade]\nhairpin = false\nfiltering = "endpoint-independent"\n'
        '[limits]\nsessions_per_host = 1\nnew_sessions_per_host = "5/s"\n',
    )
    changed = reload(net)
    for key in ("filtering", "hairpin", "sessions_per_host", "new_sessions_per_host"):
        assert key in changed
    asking = net.udp("inside")
    assert round_trip(asking, SERVER, b"?")
    assert not round_trip(net.udp("inside"), SERVER, b"?", 0.5)
    [session] = net.sessions()
    address, _, port = session["external"].partition(":")
    net.udp("router").sendto(b"stranger", (address, int(port)))
    assert asking.recv(100) == b"stranger"


def test_want09_a_changed_rule_file_keeps_old_sessions_unless_told_to_enforce(net: Network, tmp_path: Path) -> None:
    net.start(rule_file(tmp_path, ALL_OUT))
    net.echo_tcp()
    net.echo_udp()
    old, datagrams = net.connect("inside", SERVER), net.udp("inside")
    assert round_trip(old, None, b"before") and round_trip(datagrams, SERVER, b"before")
    rule_file(tmp_path, NO_NEW_TCP)
    assert reload(net) == "changed: rules\n"
    assert not connects(net)
    assert round_trip(old, None, b"after")
    told = reload(net, "--enforce")
    assert f"closed tcp 10.0.0.2:{old.getsockname()[1]} -> {SERVER_ADDRESS}:{ECHO_PORT}: the chain forward" in told
    assert told.splitlines()[-1].startswith("1 sessions closed, 1 inside ends reset")
    with pytest.raises(ConnectionResetError):
        old.recv(100)
    assert round_trip(datagrams, SERVER, b"after")
    assert [session["protocol"] for session in net.sessions()] == ["udp"]


def test_rules_that_stay_keep_their_counters(net: Network, tmp_path: Path) -> None:
    net.start(rule_file(tmp_path, ALL_OUT))
    net.echo_udp()
    asking = net.udp("inside")
    for _ in range(3):
        assert round_trip(asking, SERVER, b"?")
    rule_file(tmp_path, NO_NEW_TCP)
    reload(net)
    [chain] = call(str(net.fastmasq.socket), "rules", chain="forward")["chains"]
    assert [rule["packets"] for rule in chain["rules"]] == [0, 3]


def test_what_was_changed_at_run_time_stays(net: Network) -> None:
    net.start(FORWARD.format(listen=8080, to=ECHO_PORT))
    net.fastmasq.run_command("forward", "add", "tcp", "eth1:8090", "10.0.0.2:80")
    net.fastmasq.run_command("forward", "add", "udp", "eth1:22000", "10.0.0.2:80")
    assert net.sysctl("gateway", "net.ipv4.ip_local_reserved_ports") == "22000", "no program is to connect from it"
    net.fastmasq.run_command("forward", "delete", "udp", "eth1:22000")
    assert net.sysctl("gateway", "net.ipv4.ip_local_reserved_ports") == ""
    configure(net, FORWARD.format(listen=8080, to=80) + '[masquerade.timeouts]\nudp = "4m"\n')
    assert reload(net) == "changed: masquerade.timeouts.udp, forward tcp eth1:8080 changed\n"
    listed = call(str(net.fastmasq.socket), "forwards")
    assert {(one["first"], one["targets"][0]["port"]) for one in listed} == {(8080, 80), (8090, 80)}


def test_enforce_closes_sessions_of_a_forward_that_has_gone(net: Network) -> None:
    net.start(FORWARD.format(listen=8080, to=ECHO_PORT))
    net.echo_tcp("inside")
    outside = net.connect("server", (EXTERNAL_ADDRESS, 8080))
    assert round_trip(outside, None, b"before")
    assert "0 sessions closed" in reload(net, "--enforce")
    configure(net, "")
    assert reload(net) == "changed: forward tcp eth1:8080 removed\n"
    assert round_trip(outside, None, b"lives on")
    told = reload(net, "--enforce")
    assert "no forward leads there" in told and "1 sessions closed" in told
    assert net.sessions() == []


def test_enforce_closes_sessions_by_address_that_are_no_longer_allowed(net: Network) -> None:
    net.start()
    server, client = (net.udp(host, port=4000, protocol=UDP_LITE) for host in ("server", "inside"))
    client.sendto(b"hello", (SERVER_ADDRESS, 4000))
    server.recv(100)
    assert "0 sessions closed" in reload(net, "--enforce")
    configure(net, "[masquerade]\nother_protocols = false\n")
    told = reload(net, "--enforce")
    assert "no redirect leads there" in told and "1 sessions closed" in told
    client.sendto(b"hello", (SERVER_ADDRESS, 4000))
    eventually(lambda: net.drops() == {"protocol_not_masqueraded": 1}, what="the drop")


BAD = {
    "not TOML": ("[masquerade\n", ".toml:1: not TOML"),
    "unknown key": ("[masquerade]\nharpin = true\n", ".toml:2: masquerade.harpin: unknown key"),
    "rule file": ('[masquerade]\nhairpin = false\n[rules]\nfiles = ["{rules}"]\n', "rc.firewall:2: "),
    "fixed key": (
        "[masquerade]\nhairpin = false\n[rings]\nframes = 128\n[limits]\nsessions = 5000\n",
        "limits.sessions, rings.frames: cannot change while fastmasq runs",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_changes_nothing_and_says_why(net: Network, tmp_path: Path, name: str) -> None:
    net.start()
    net.echo_udp()
    asking = net.udp("inside")
    assert round_trip(asking, SERVER, b"?")
    text, words = BAD[name]
    rules = tmp_path / "rc.firewall"
    rules.write_text("ipchains -P forward DENY\nipchains -A forward -j NOWHERE\n")
    before = net.fastmasq.configuration.read_text()
    configure(net, text.replace("{rules}", str(rules)))
    with pytest.raises(FastmasqError) as failed:
        reload(net)
    assert words in str(failed.value) and "ended with 2" in str(failed.value)
    assert f"not reloaded: {str(failed.value).splitlines()[0].partition('fastmasq: ')[2]}" in net.fastmasq.errors()
    assert call(str(net.fastmasq.socket), "rules")["default_forward"] is True
    assert round_trip(asking, SERVER, b"!")
    net.fastmasq.configuration.write_text(before)
    assert reload(net) == "nothing changed\n"


def test_sighup_reloads(net: Network) -> None:
    net.start()
    process = net.fastmasq.process
    process.send_signal(signal.SIGHUP)
    eventually(lambda: "reloaded: nothing changed" in net.fastmasq.errors())
    configure(net, "[masquerade]\ndynaddr = 5\n")
    process.send_signal(signal.SIGHUP)
    eventually(lambda: "reloaded: masquerade.dynaddr" in net.fastmasq.errors())
    configure(net, "[masquerade]\ndynaddr = 9\n")
    process.send_signal(signal.SIGHUP)
    eventually(
        lambda: "not reloaded: " in net.fastmasq.errors() and ".toml:2: masquerade.dynaddr" in net.fastmasq.errors()
    )
    assert net.fastmasq.is_running() and net.answers("inside", SERVER_ADDRESS)


def test_sighup_ends_what_was_started_without_a_file(net: Network, tmp_path: Path) -> None:
    links = ["--inside", "eth0", "--outside", "eth1", "--socket", str(tmp_path / "control.sock")]
    argv = [sys.executable, "-m", "fastmasq", "run", *links]
    with (tmp_path / "said").open("wb") as said, net.lab.popen("gateway", argv, stdout=said) as process:
        eventually(lambda: b"forwarding" in (tmp_path / "said").read_bytes())
        with pytest.raises(FastmasqError, match="nothing to reload"):
            call(str(tmp_path / "control.sock"), "reload")
        process.send_signal(signal.SIGHUP)
        assert process.wait(5) == 0


def test_what_nobody_confirms_goes_back(net: Network, tmp_path: Path) -> None:
    """And so does a script; what is confirmed stays."""
    net.start(rule_file(tmp_path, ALL_OUT))
    configure(net, rule_file(tmp_path, "ipchains -P forward DENY\n"))
    assert net.fastmasq.ask("reload", confirm_s=1)["changed"] == ["rules"]
    eventually(lambda: targets(net, "forward") == ["MASQ"], what="the rules of before")
    assert net.status()["confirm"] is None
    deny = tmp_path / "lockout"
    deny.write_text("ipchains -A input -j DENY\n")
    net.fastmasq.run_command("rule", "load", "--confirm", "60", str(deny))
    assert net.status()["confirm"]["what"] == f"the change by {deny}"
    assert net.fastmasq.run_command("confirm") == f"the change by {deny} is confirmed\n"
    assert net.status()["confirm"] is None
    assert targets(net, "input") == ["DENY"]


def targets(net: Network, chain: str) -> list[str]:
    """Return the targets of the rules of a chain."""
    return [each["rule"]["target"] for each in net.fastmasq.ask("rules", chain=chain)["chains"][0]["rules"]]
