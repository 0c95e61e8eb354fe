"""What was changed at run time outlives a kill: as a reload would have it, and whatever the file has become."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.config.load import parse
from fastmasq.daemon.policy import Declared, declare
from fastmasq.errors import KernelError
from fastmasq.kernel.identity import network_namespace
from fastmasq.kernel.run_folder import RunFolder, file_of
from fastmasq.policy import forwards, marks, redirects, triggers
from fastmasq.policy.chains import Match, Rule
from fastmasq.policy.changes import Change
from fastmasq.policy.marks import MarkTarget
from fastmasq.policy.redirects import Redirect
from fastmasq.policy.triggers import Trigger
from fastmasq.table.timeouts import SECOND
from tests.support.path_network import HOST, OTHER_HOST
from tests.support.policy_gateway import PolicyGateway

NAME = file_of(network_namespace().inode, "policy")
LINKS = '[interfaces]\ninside = ["eth0"]\noutside = "eth1"\n'
FORWARD = '[[forward]]\nprotocol = "tcp"\nlisten = "eth1:{}"\nto = "{}:22"\n'
DENY_77 = Rule(match=Match(protocol=6, destination_ports=((77, 77),)), target="DENY", log=True)
MARK_80 = Rule(match=Match(source=(0xC7000000, 0xFF000000), protocol=6, not_source=True), mark=("set", 1))
TRIGGERS = (
    Trigger(kind="range", protocol="udp", first=6970, last=7170, control_protocol="tcp", control_port=7070),
    Trigger(kind="range", protocol="tcp", first=2000, last=2010, host=HOST),
    Trigger(kind="direct", protocol="udp", first=27960, last=27960),
)
MARKS = (MarkTarget(mark=1, address=HOST, port=80), MarkTarget(mark=1, address=OTHER_HOST))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path) as made:
        yield made


@pytest.fixture
def start(folder: RunFolder) -> Iterator[Callable[..., PolicyGateway]]:
    """Start a gateway with a configuration, and kill the one before it."""
    running: list[PolicyGateway] = []

    def start(text: str = "") -> PolicyGateway:
        for one in running:
            one.close()
        running[:] = [PolicyGateway(declared=declared(text), folder=folder)]
        return running[0]

    yield start
    for one in running:
        one.close()


def declared(text: str = "") -> Declared:
    return declare(parse(text + LINKS, "f.toml").settings)


def forward(listen: str, to: str = f"{HOST}:22") -> forwards.Forward:
    return forwards.read("tcp", listen, [to])


def change_everything(gateway: PolicyGateway) -> None:
    """Change each part of policy by some request."""
    gateway.call("rules.change", changes=[
        Change(do="new_chain", chain="mine"),
        Change(do="append", chain="mine", rule=DENY_77),
        Change(do="append", chain="input", rule=MARK_80),
        Change(do="append", chain="input", rule=Rule(target="mine")),
        Change(do="append", chain="acct", rule=Rule()),
        Change(do="policy", chain="output", target="REJECT"),
    ])  # fmt: skip
    gateway.call("forwards.change", changes=[forwards.Change(action="add", forward=forward("eth1:8080"))])
    redirected = Redirect(protocol=47, host=HOST)
    gateway.call("redirects.change", changes=[redirects.Change(action="set", redirect=redirected)])
    gateway.call("triggers.change", changes=[triggers.Change(action="add", row=one) for one in TRIGGERS])
    gateway.call("marks.change", changes=[marks.Change(action="add", target=one) for one in MARKS])
    gateway.call("timeouts", tcp=600, tcp_fin=10, udp=60)
    gateway.call("dynaddr", value=5)


def asked(gateway: PolicyGateway) -> dict[str, Any]:
    """Return what a gateway answers about all of its policy, whose counters are at zero."""
    methods = ("forwards", "redirects", "triggers", "marks", "rules")
    found = {method: msgspec.to_builtins(gateway.call(method)) for method in methods}
    found["rules"].pop("generation")
    return found | {"timeouts": gateway.call("timeouts"), "dynaddr": gateway.gateway.policy().dynaddr}


def content(folder: RunFolder) -> Any:
    return msgspec.json.decode(folder.read(NAME) or b"null")


def test_all_that_was_changed_goes_on(start: Callable, folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = start()
    change_everything(before)
    was, led = asked(before), before.led_inside(0)
    for _ in range(2):
        again = start()
        assert asked(again) == was
        assert again.led_inside(0) == led and {8080, 2005} <= set(led)
        assert [row["from"] for row in again.call("forwards")] == ["command"]
        assert again.gateway.policy().timeouts.udp == 60 * SECOND
    line = "what was changed at run time goes on: rules, timeouts, dynaddr, forwards, redirects, triggers, marks"
    assert caplog.messages == [line, line]


def test_only_what_differs_is_kept(start: Callable, folder: RunFolder) -> None:
    gateway = start(FORWARD.format(22, HOST))
    assert content(folder) is None
    gateway.call("dynaddr", value=5)
    assert content(folder)["running"] == {"dynaddr": 5}
    gateway.call("dynaddr", value=gateway.gateway.declared.dynaddr)
    assert content(folder) is None, "all is as the files say"


def test_a_change_that_is_refused_is_not_kept(start: Callable, folder: RunFolder) -> None:
    gateway = start(FORWARD.format(22, HOST))
    with pytest.raises(Exception, match="forwarded already"):
        gateway.call("forwards.change", changes=[forwards.Change(action="add", forward=forward("eth1:22"))])
    gateway.kept.follow()
    assert content(folder) is None


def test_a_configuration_that_has_changed_wins_as_in_a_reload(start: Callable) -> None:
    """What files say otherwise than before is done; what they say as before is as it was made to run."""
    three = FORWARD.format(22, HOST) + FORWARD.format(23, HOST) + FORWARD.format(24, HOST)
    gateway = start(three + "[masquerade.timeouts]\nudp = 100\n")
    gateway.call("forwards.change", changes=[
        forwards.Change(action="delete", forward=forward("eth1:23")),
        forwards.Change(action="add", forward=forward("eth1:8080")),
    ])  # fmt: skip
    gateway.call("timeouts", tcp=600, tcp_fin=0, udp=60)
    again = start(FORWARD.format(22, OTHER_HOST) + FORWARD.format(23, HOST) + "[masquerade.timeouts]\nudp = 200\n")
    found = {row["first"]: (row["targets"][0]["address"], row["from"]) for row in again.call("forwards")}
    assert found == {22: (OTHER_HOST, "configuration"), 8080: (HOST, "command")}
    assert again.call("timeouts") == {"tcp": 600, "tcp_fin": 240, "udp": 200}


def test_rules_of_changed_files_take_the_place_of_the_running_ones(start: Callable, tmp_path: Path) -> None:
    file = tmp_path / "rc.firewall"
    text = f'[rules]\nfiles = ["{file}"]\n'
    file.write_text("ipchains -A input -p tcp -d 0/0 79 -j DENY\n")
    gateway = start(text)
    gateway.call("rules.change", changes=[Change(do="insert", chain="input", rule=DENY_77)])
    [chain] = start(text).call("rules", chain="input")["chains"]
    assert [rule["from"] for rule in chain["rules"]] == ["command", "configuration"]
    file.write_text("ipchains -A input -p tcp -d 0/0 78 -j DENY\n")
    [left] = start(text).gateway.policy().rules.chain("input").rules
    assert left.rule.match.destination_ports == ((78, 78),)


def test_what_cannot_be_with_the_configuration_is_set_aside(
    start: Callable, folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    start().call("forwards.change", changes=[forwards.Change(action="add", forward=forward("eth1:8080"))])
    again = start('[[forward]]\nprotocol = "tcp"\nlisten = "eth1:8000-8100"\nto = "10.0.0.3:8000"\n')
    [row] = again.call("forwards")
    assert (row["first"], row["from"]) == (8000, "configuration")
    path = folder.path / NAME
    assert caplog.messages == [
        f"{path}: what was changed at run time does not go on: tcp eth1:8000-8100: forwarded already by "
        f"tcp eth1:8080; delete that first, or choose another port; it is now {path}.old"
    ]


def test_a_change_that_nobody_has_confirmed_goes_back_by_a_kill(start: Callable) -> None:
    gateway = start()
    gateway.call("dynaddr", value=5)
    deny = {"changes": [Change(do="policy", chain="input", target="DENY")]}
    line = {"place": "rc", "method": "rules.change", "params": deny}
    gateway.call("policy.change", lines=[line], confirm_s=60)
    assert gateway.gateway.policy().rules.chain("input").policy == "DENY"
    again = start()
    assert again.gateway.policy().rules.chain("input").policy == "ACCEPT"
    assert again.gateway.policy().dynaddr == 5, "what came before it stays"
    again.call("policy.change", lines=[line], confirm_s=60)
    again.call("confirm")
    assert start().gateway.policy().rules.chain("input").policy == "DENY"


def test_what_goes_back_by_itself_is_forgotten(start: Callable, folder: RunFolder) -> None:
    gateway = start()
    line = {"place": "rc", "method": "dynaddr", "params": {"value": 5}}
    gateway.call("policy.change", lines=[line], confirm_s=60)
    gateway.confirmation.every_second(10**18)
    gateway.kept.follow()
    assert content(folder) is None


def test_the_turns_of_marks_are_no_change(start: Callable, folder: RunFolder, tmp_path: Path) -> None:
    file = tmp_path / "rc.firewall"
    file.write_text("ipmasqadm mfw -A -m 1 -r 10.0.0.2\nipmasqadm mfw -A -m 1 -r 10.0.0.3\n")
    gateway = start(f'[rules]\nfiles = ["{file}"]\n')
    gateway.call("marks.change", changes=[marks.Change(action="schedule", target=MarkTarget(mark=1))])
    assert [one["address"] for one in gateway.call("marks")] == ["10.0.0.3", "10.0.0.2"]
    assert content(folder) is None


@pytest.mark.parametrize(("octets", "words"), [
    (b"", "it is damaged: Input data was truncated"),
    (b"\xff\x00", "it is damaged: "),
    (b'{"origin":{"version":9,"namespace":1,"cookie":1,"boot":""},"declared":{},"running":{}}', "another version"),
    (b'{"origin":{"version":1,"namespace":1,"cookie":1,"boot":""},"declared":{},"running":{}}', "that is gone"),
])  # fmt: skip
def test_what_is_nothing_for_us_is_set_aside(
    start: Callable, folder: RunFolder, caplog: pytest.LogCaptureFixture, octets: bytes, words: str
) -> None:
    folder.write(NAME, octets)
    start().call("dynaddr", value=5)
    assert (folder.path / f"{NAME}.old").read_bytes() == octets
    assert len(caplog.messages) == 1 and words in caplog.messages[0]
    assert start().gateway.policy().dynaddr == 5


def test_a_file_that_others_could_have_written_is_not_read(
    start: Callable, folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    start().call("dynaddr", value=5)
    (folder.path / NAME).chmod(0o666)
    assert start().gateway.policy().dynaddr != 5
    assert "everybody may write to" in caplog.messages[0]


def test_without_room_there_is_one_line(
    start: Callable, folder: RunFolder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = start()

    def refuse(*_: object) -> None:
        raise KernelError("no room")

    with monkeypatch.context() as full:
        full.setattr(folder, "write", refuse)
        gateway.call("dynaddr", value=5)
        gateway.kept.follow()
    assert caplog.messages == ["what is changed at run time does not outlive this process: no room"]
    gateway.kept.follow()
    assert content(folder)["running"] == {"dynaddr": 5}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the file of a gateway that was killed after all had been changed."""
    with RunFolder(tmp_path_factory.mktemp("left")) as folder:
        gateway = PolicyGateway(declared=declared(), folder=folder)
        change_everything(gateway)
        gateway.close()
        return folder.read(NAME)


NUMBERS = st.sampled_from([-1, 0, 1, 7, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64, -(2**63)])
VALUES = st.one_of(NUMBERS, st.sampled_from([None, True, [], {}, "", "forward", "10.0.0.256"]))


def _places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*here, key)
        yield from _places(each, (*here, key))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_octet_of_it_is_trusted(
    data: st.DataObject, left: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:  # fmt: skip
    """Octets changed, or whole values: a gateway begins in any case, and can be told what it should do."""
    with RunFolder(tmp_path_factory.mktemp("mutated")) as folder:
        octets = bytearray(left)
        if data.draw(st.booleans()):
            for _ in range(data.draw(st.integers(1, 4))):
                octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
            octets = octets[: data.draw(st.integers(len(octets) // 2, len(octets)))]
        else:
            image = msgspec.json.decode(octets)
            for _ in range(data.draw(st.integers(1, 3))):
                *way, last = data.draw(st.sampled_from(list(_places(image))))
                inner = image
                for key in way:
                    inner = inner[key]
                inner[last] = data.draw(VALUES)
                if not list(_places(image)):
                    break
            octets = msgspec.json.encode(image)
        folder.write(NAME, bytes(octets))
        gateway = PolicyGateway(declared=declared(), folder=folder)
        try:
            asked(gateway)
            old = gateway.gateway.policy()
            gateway.gateway.apply(old, declared())
            assert gateway.call("forwards") == []
        finally:
            gateway.close()
