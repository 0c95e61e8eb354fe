"""What a reload finds to change: names of what differs, keys that cannot change, and changes made at run time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from fastmasq.config.load import parse
from fastmasq.daemon.policy import Declared, declare
from fastmasq.daemon.reload import (
    as_declared,
    difference,
    forward_changes,
    mark_targets,
    redirect_changes,
    trigger_changes,
)
from fastmasq.errors import ConfigurationError
from fastmasq.policy import forwards, redirects, triggers
from fastmasq.policy.evaluate import Packet, evaluate
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.triggers import Trigger

LINKS = '[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n'
FORWARD = '[[forward]]\nprotocol = "tcp"\nlisten = "eth1:{}"\nto = "10.0.0.2:{}"\n'
REDIRECT = '[[redirect]]\nprotocol = {}\nto = "10.0.0.{}"\n'


def declared(text: str = "", links: str = LINKS) -> Declared:
    return declare(parse(text + links, "f.toml").settings)


def test_equal_files_differ_in_nothing() -> None:
    assert difference(declared(), declared("[masquerade]\nhairpin = true\n")) == []


def test_what_differs_is_named() -> None:
    new = declared('[masquerade]\nfiltering = "endpoint-independent"\n[masquerade.timeouts]\nudp = "3m"\n')
    assert difference(declared(), new) == ["masquerade.filtering", "masquerade.timeouts.udp"]


@pytest.mark.parametrize(
    ("text", "links", "keys"),
    [
        ('compat = "2.0"\n', LINKS, "compat"),
        ("[rings]\nframes = 128\n[masquerade]\nhairpin = false\n", LINKS, "rings.frames"),
        ("[limits]\nsessions = 5000\n", LINKS, "limits.sessions"),
        ('[takeover]\nguard = "tc"\n', LINKS, "takeover.guard"),
        ('[control]\nsocket = "/run/other.sock"\n', LINKS, "control.socket"),
        ("", LINKS.replace("eth1", "ppp0"), "interfaces.outside"),
    ],
)
def test_keys_that_cannot_change_are_named_alone(text: str, links: str, keys: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        difference(declared(), declared(text, links))
    assert str(refused.value).startswith(f"{keys}: cannot change while fastmasq runs")


def test_taking_away_a_forward_that_is_not_there_is_left_out_as_by_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "rc.firewall"
    script.write_text("ipportfw -D -t200.200.200.200/80\nipfwd --masq 10.0.0.2 47\n")
    left_out = f"{script}:1: left out: tcp 200.200.200.200:80: no such forward; see `fastmasq forward list`"
    found = declared(f'[rules]\nfiles = ["{script}"]\n')
    assert (found.warnings, [one.protocol for one in found.redirects]) == ((left_out,), [47])
    with pytest.raises(ConfigurationError, match=r"rc\.firewall:1: tcp 200\.200\.200\.200:80: no such forward"):
        declared(f'[rules]\nfiles = ["{script}"]\nstrict = true\n')


def test_rule_files_are_compared_by_what_they_come_to(tmp_path: Path) -> None:
    file = tmp_path / "rc.firewall"
    text = f'[rules]\nfiles = ["{file}"]\n'
    file.write_text("ipchains -P forward DENY\nipchains -A forward -s 10.0.0.0/8 -j MASQ\nipchains -M -S 0 0 60\n")
    before = declared(text)
    file.write_text("# only told apart by people\n" + file.read_text())
    assert difference(before, declared(text)) == []
    file.write_text(file.read_text().replace("10.0.0.0/8", "10.0.0.0/24"))
    assert difference(before, declared(text)) == ["rules"]
    file.write_text(file.read_text().replace("10.0.0.0/24", "10.0.0.0/8").replace("0 0 60", "0 0 90"))
    assert difference(before, declared(text)) == ["timeouts or dynaddr"]


def test_h43_files_are_run_as_on_a_kernel_of_1999(tmp_path: Path) -> None:
    """Only what they say is masqueraded, and a script without a word about the chain forward routes all."""
    file = tmp_path / "rc.firewall"
    text = f'[rules]\nfiles = ["{file}"]\n'
    leaving = Packet(source=0x0A000002, destination=0xC7000001, protocol=6, interface="eth1")
    for line, verdict in (
        ("ipfwadm -F -a m -S 10.0.0.0/8 -D 0.0.0.0/0\n", "MASQ"),
        ("ipfwadm -F -a m -S 192.168.0.0/16\n", "ACCEPT"),
        ("ipfwadm -I -p accept\n", "ACCEPT"),
        ("", "ACCEPT"),
    ):
        file.write_text(line)
        rules = declared(text).rules
        assert not rules.default_forward
        assert evaluate(rules, "forward", leaving).verdict == verdict
    assert declared().rules.default_forward
    assert difference(declared(), declared(text)) == ["rules"]


def test_want08_forwards_made_at_run_time_are_left_alone() -> None:
    old = declared(FORWARD.format(80, 80) + FORWARD.format(81, 80) + FORWARD.format(82, 80))
    new = declared(FORWARD.format(80, 80) + FORWARD.format(81, 8080))
    by_hand = forwards.read("udp", "eth1:5000", ["10.0.0.3:5000"])
    made = forwards.apply((*old.forwards, by_hand), forward_changes((*old.forwards, by_hand), old, new))
    assert set(made) == {*new.forwards, by_hand}
    assert difference(old, new) == ["forward tcp eth1:82 removed", "forward tcp eth1:81 changed"]


def test_a_forward_deleted_at_run_time_is_not_missed() -> None:
    old, new = declared(FORWARD.format(80, 80)), declared()
    assert forward_changes((), old, new) == []


def test_redirects_likewise() -> None:
    old, new = declared(REDIRECT.format(47, 2) + REDIRECT.format(50, 2)), declared(REDIRECT.format(47, 3))
    made = redirects.apply(old.redirects, redirect_changes(old.redirects, old, new))
    assert made == new.redirects
    assert difference(old, new) == ["redirect protocol 50 removed", "redirect protocol 47 changed"]


def script(tmp_path: Path, *lines: str) -> Declared:
    file = tmp_path / "rc.firewall"
    file.write_text("".join(f"ipmasqadm {line}\n" for line in lines))
    return declared(f'[rules]\nfiles = ["{file}"]\n')


def test_rows_of_autofw_likewise(tmp_path: Path) -> None:
    old = script(tmp_path, "autofw -A -r tcp 1 2 -h 10.0.0.2", "autofw -A -r udp 3 4 -c tcp 5", "autofw -A -d udp 6 7")
    new = script(tmp_path, "autofw -A -r tcp 1 2 -h 10.0.0.3", "autofw -A -d udp 6 7")
    by_hand = Trigger(kind="direct", protocol="tcp", first=8, last=9)
    running = (by_hand, *old.triggers)
    made = triggers.apply(running, trigger_changes(running, old, new))
    assert set(made) == {by_hand, *new.triggers}
    assert difference(old, new) == [
        "trigger range udp outside:3-4 by tcp 5 removed", "trigger range tcp outside:1-2 changed",
    ]  # fmt: skip


def test_a_row_of_autofw_deleted_at_run_time_is_not_missed(tmp_path: Path) -> None:
    assert trigger_changes((), script(tmp_path, "autofw -A -d udp 6 7"), declared()) == []


def test_hosts_of_marks_likewise_and_those_that_stay_keep_their_turn(tmp_path: Path) -> None:
    old = script(tmp_path, *(f"mfw -A -m 1 -r 10.0.0.{host}" for host in ("2", "2 80", "3", "4")))
    new = script(tmp_path, *(f"mfw -A -m 1 -r 10.0.0.{host}" for host in ("2 80", "3 -p 5", "4", "5")))
    turned = [
        MarkTarget(mark=1, address="10.0.0.4", left=7),
        MarkTarget(mark=1, address="10.0.0.2", left=10),
        MarkTarget(mark=1, address="10.0.0.2", port=80, left=10),
        MarkTarget(mark=1, address="10.0.0.3", left=10),
        MarkTarget(mark=2, address="10.0.0.9", left=10),  # made at run time
    ]
    made = mark_targets(turned, old, new)
    assert [(str(one), one.preference, one.left) for one in made] == [
        ("1 -> 10.0.0.4:0", 10, 7),
        ("1 -> 10.0.0.2:80", 10, 10),
        ("1 -> 10.0.0.3:0", 5, None),
        ("2 -> 10.0.0.9:0", 10, 10),
        ("1 -> 10.0.0.5:0", 10, None),
    ]
    assert difference(old, new) == [
        "mark 1 -> 10.0.0.2:0 removed", "mark 1 -> 10.0.0.5:0 added", "mark 1 -> 10.0.0.3:0 changed",
    ]  # fmt: skip


def test_a_mark_whose_turns_have_passed_on_is_as_the_files_say(tmp_path: Path) -> None:
    said = script(tmp_path, "mfw -A -m 1 -r 10.0.0.2", "mfw -A -m 1 -r 10.0.0.3")
    turned = replace(said, marks=tuple(structs.replace(one, left=3) for one in said.marks))
    assert difference(as_declared(turned, said), said) == []


def test_what_the_daemon_says_of_a_rule_file_quotes_no_line_of_other_programs(tmp_path: Path) -> None:
    """Its log has other readers than root, and so has the answer to a reload that the service's user asks for."""
    script = tmp_path / "rc.firewall"
    script.write_text("10.0.0.2 secret\n")
    found = declared(f'[rules]\nfiles = ["{script}"]\n')
    assert found.warnings == (f"{script}:1: ignored: a line of another program",)
