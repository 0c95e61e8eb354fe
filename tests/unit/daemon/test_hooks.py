"""Programs of the user's that are run when something has happened: what they are told, as whom, and for how long."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastmasq
from fastmasq.config.schema import Hooks as Settings
from fastmasq.config.values import Duration, OptionalPath, UserName
from fastmasq.daemon import hooks
from fastmasq.daemon.hooks import Hooks, complaints
from fastmasq.lab.hosts import wait_until
from fastmasq.trackers.vpn.events import Event
from tests.support.harness import address

FIRST, SECOND = address("200.200.200.200"), address("62.1.2.3")
EXAMPLE = Path(fastmasq.__file__).parent / "templates/hooks/dyndns.sh"


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "fastmasq.hooks")
    return caplog


def program(folder: Path, text: str, mode: int = 0o755, name: str = "hook") -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return str(path)


def made(*, user: str = "", timeout: str = "10s", **programs: str) -> Hooks:
    named = {name: OptionalPath(path) for name, path in programs.items()}
    return Hooks(lambda: Settings(user=UserName(user), timeout=Duration.read(timeout), **named), "eth1")


def is_gone(process: int) -> bool:
    """Return whether a process has ended, be it that nobody has asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def test_h16_programs_learn_of_every_change_of_address(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    tells = program(tmp_path, 'echo "$FASTMASQ_EVENT $FASTMASQ_INTERFACE ${FASTMASQ_OLD_ADDRESS-}>$FASTMASQ_ADDRESS"')
    one = made(address_changed=tells, up=tells, down=tells)
    for now in (None, FIRST, FIRST, SECOND, None, SECOND, None, FIRST):
        one.follow(now)
    one.close()
    assert heard.messages == [
        f"hook {each.partition(' ')[0]}: {each}"
        for each in (
            "up eth1 >200.200.200.200",
            "address_changed eth1 >200.200.200.200",
            "address_changed eth1 200.200.200.200>62.1.2.3",
            "down eth1 >62.1.2.3",
            "up eth1 >62.1.2.3",
            "down eth1 >62.1.2.3",
            "up eth1 >200.200.200.200",
            "address_changed eth1 62.1.2.3>200.200.200.200",
            "down eth1 >200.200.200.200",
        )
    ]


def test_who_goes_on_for_another_has_no_news(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    one = made(up=program(tmp_path, "echo up"), address_changed=program(tmp_path, "echo changed", name="other"))
    one.know(FIRST)
    one.follow(FIRST)
    one.follow(SECOND)
    one.close()
    assert heard.messages == ["hook address_changed: changed"]


def test_tunnels_that_begin_and_end(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    one = made(vpn=program(tmp_path, 'echo "$FASTMASQ_PROTOCOL $FASTMASQ_CHANGE $FASTMASQ_INSIDE $FASTMASQ_REMOTE"'))
    ends = {"inside": address("10.0.0.2"), "remote": SECOND}
    kinds = ("call_asked", "call_established", "esp_associated", "ipsec_begins", "call_ended", "ipsec_ends")
    one.tell_of_vpns(Event(kind=kind, **ends) for kind in kinds)
    one.close()
    assert heard.messages == [
        f"hook vpn: {each} 10.0.0.2 62.1.2.3" for each in ("pptp begins", "ipsec begins", "pptp ends", "ipsec ends")
    ]


def test_its_environment_is_what_it_is_told_and_no_more(
    tmp_path: Path, heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "ours")
    one = made(up=program(tmp_path, "env; pwd"))
    one.follow(FIRST)
    one.close()
    names = {each.removeprefix("hook up: ").partition("=")[0] for each in heard.messages}
    told = {"FASTMASQ_EVENT", "FASTMASQ_INTERFACE", "FASTMASQ_ADDRESS"}
    assert names - {"_", "SHLVL", "OLDPWD"} == {*told, "PATH", "LANG", "HOME", "USER", "LOGNAME", "PWD", "/"}


def test_an_ordinary_user_runs_it_if_one_is_named(heard: pytest.LogCaptureFixture) -> None:
    one = made(up="/usr/bin/id", user="nobody")
    one.follow(FIRST)
    one.close()
    [line] = heard.messages
    assert line.startswith("hook up: uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)")


def test_nothing_is_handed_down_that_others_may_not() -> None:
    """Of what a service has beyond other users, its thread for hooks lets programs have none; others go on."""
    script = (
        "import subprocess, threading; from fastmasq.kernel import privileges\n"
        "def shown(): print(subprocess.run(['grep', 'CapEff', '/proc/self/status'], capture_output=True).stdout)\n"
        "def apart(): privileges.hand_nothing_down(); shown()\n"
        "thread = threading.Thread(target=apart); thread.start(); thread.join(); shown()\n"
    )
    as_service = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=+net_raw", "--ambient-caps=+net_raw"]
    found = subprocess.run([*as_service, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [int(line.split("\\t")[1][:16], 16) for line in found.stdout.splitlines()] == [0, 1 << 13]


def test_what_takes_too_long_is_killed_with_what_it_has_started(
    tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    started = tmp_path / "started"
    slow = program(tmp_path, f"echo begins\nsleep 60 & echo $! >{started}\nsleep 60")
    one = made(up=slow, timeout="1s")
    one.follow(FIRST)
    one.close()
    wait_until(lambda: len(heard.messages) == 2, 10)
    assert heard.messages == ["hook up: begins", f"hook up: {slow} did not end within 1s, and was killed"]
    assert wait_until(lambda: is_gone(int(started.read_text())), 10)


def test_nobody_waits_for_them(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    one = made(address_changed=program(tmp_path, "exec sleep 60"), timeout="0.5s")
    before = time.monotonic()
    for number in range(hooks.MOST_WAITING + 3):
        one.follow(FIRST + number)
    assert "hook address_changed: left out, since 32 others wait to be run" in heard.messages
    one.close()
    assert time.monotonic() - before < hooks.MOST_WAITING * 0.5


def test_what_it_prints_is_in_the_log_and_how_it_ended(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    noisy = program(tmp_path, "printf 'a\\033[1mb\\n'; seq 100; printf 'no end' >&2; exit 3")
    one = made(up=noisy)
    one.follow(FIRST)
    one.close()
    assert heard.messages[:2] == ["hook up: a?[1mb", "hook up: 1"]
    assert heard.messages[-2:] == ["hook up: 49", f"hook up: {noisy} ended with status 3"]


def test_programs_that_cannot_be_run(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    """Others could have written it, it is none, it is not there: `check` says so, and the log when it is wanted."""
    open_to_all = program(tmp_path, "echo never", 0o777)
    text = program(tmp_path, "echo never", 0o644, "text")
    settings = Settings(
        up=OptionalPath(open_to_all),
        down=OptionalPath(text),
        vpn=OptionalPath("/no/such"),
        user=UserName("nobody-here"),
    )
    found = list(complaints(settings))
    assert found == [
        "[hooks] user: this host has no user nobody-here",
        f"[hooks] up: {open_to_all}: everybody may write to {open_to_all} (chmod o-w {open_to_all})",
        f"[hooks] down: {text}: it is no program (chmod +x)",
        "[hooks] vpn: /no/such: No such file or directory",
    ]
    one = made(up=open_to_all, down=text)
    one.follow(FIRST)
    one.close()
    assert [line.removeprefix("[hooks]").strip() for line in found[1:3]] == [
        line.removeprefix("hook ") for line in heard.messages
    ]


@pytest.mark.parametrize(("answer", "status"), [("good 62.1.2.3", 0), ("nochg", 0), ("badauth", 1)])
def test_h16_the_example_tells_a_dynamic_dns_service(tmp_path: Path, answer: str, status: int) -> None:
    asked = tmp_path / "asked"
    program(tmp_path, f'echo "$@" >{asked}; echo "{answer}"', name="curl")
    told = {"FASTMASQ_EVENT": "address_changed", "FASTMASQ_ADDRESS": "62.1.2.3", "FASTMASQ_OLD_ADDRESS": ""}
    environment = {**told, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([EXAMPLE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[0] == "gateway.example.org: no address -> 62.1.2.3"
    assert "hostname=gateway.example.org&myip=62.1.2.3" in asked.read_text()
