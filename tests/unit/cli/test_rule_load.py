"""`fastmasq rule load`: a whole script is one request, with a place for each line; what comes of it is printed."""

from __future__ import annotations

from typing import Any

import pytest

from fastmasq.errors import ConfigurationError

SCRIPT = """\
ipchains -N mine
ipportfw -A -t200.200.200.200/7777 -R 10.0.0.2/80
ipportfw -D -t200.200.200.200/80
ipmasqadm mfw -A -m 1 -r 10.0.0.2 80
ipchains -M -S 600 0 0
route add x
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def changed(forwarder) -> list[dict[str, Any]]:
    """Have the forwarder take changes of policy; return the lines that it is asked to do."""
    asked: list[dict[str, Any]] = []

    def change(params: dict[str, Any]) -> dict[str, Any]:
        asked.extend(params["lines"])
        return {"warnings": ["script:3: left out: no such forward"], "changes": 4}

    forwarder.handlers["policy.change"] = change
    return asked


def test_a_script_is_one_request(run, forwarder, script, changed):
    result = run("rule", "load", "--socket", forwarder.path, script)
    assert result.exit_code == 0
    assert [(one["place"], one["method"], one.get("optional", False)) for one in changed] == [
        (str(script), "rules.change", False),
        (f"{script}:2", "forwards.change", False),
        (f"{script}:3", "forwards.change", True),
        (f"{script}:4", "marks.change", False),
        (f"{script}:5", "timeouts", False),
    ]
    assert changed[0]["params"] == {"changes": [{"do": "new_chain", "chain": "mine"}]}
    assert changed[4]["params"] == {"tcp": 600, "tcp_fin": 0, "udp": 0}
    assert result.stdout == f"{script}: 4 changes made\n"
    assert result.stderr.splitlines() == [
        f"warning: {script}:6: ignored: 'route add x', a line of another program",
        "warning: script:3: left out: no such forward",
    ]


def test_strictly_no_line_is_optional(run, forwarder, script, changed):
    assert run("rule", "load", "--strict", "--socket", forwarder.path, script).exit_code == 0
    assert not any(one.get("optional") for one in changed)


def test_a_mistake_in_the_script_asks_for_nothing(run, forwarder, script, changed):
    script.write_text(SCRIPT + "ipchains -A nowhere -j DENY\n")
    result = run("rule", "load", "--socket", forwarder.path, script)
    assert (result.exit_code, changed) == (2, [])
    assert f"{script}:7: " in result.stderr


def test_what_the_forwarder_refuses_is_said(run, forwarder, script):
    def refuse(params: dict[str, Any]) -> None:
        raise ConfigurationError("tcp eth1:80: the same address and port as tcp outside:80; delete one of them")

    forwarder.handlers["policy.change"] = refuse
    result = run("rule", "load", "--socket", forwarder.path, script)
    assert result.exit_code == 2 and result.stdout == ""


def test_a_change_may_go_back_by_itself(run, forwarder, script):
    asked: list[dict[str, Any]] = []
    forwarder.handlers["policy.change"] = lambda params: asked.append(params) or {"warnings": [], "changes": 4}
    forwarder.handlers["confirm"] = lambda params: {
        "undone" if params.get("undo") else "confirmed": f"the change by {script}"
    }
    shown = run("rule", "load", "--socket", forwarder.path, "--confirm", "60", script).stdout
    assert asked[0]["confirm_s"] == 60
    assert shown.splitlines()[-1] == "this goes back in 60 s, unless you say `fastmasq confirm`"
    forwarder.handlers["policy.change"] = lambda params: {"warnings": [], "changes": 0}
    shown = run("rule", "load", "--socket", forwarder.path, "--confirm", "60", script).stdout
    assert shown == f"{script}: 0 changes made\n"
    assert run("confirm", "--socket", forwarder.path).stdout == f"the change by {script} is confirmed\n"
    assert run("confirm", "--socket", forwarder.path, "--undo").stdout == f"the change by {script} is undone\n"


@pytest.mark.parametrize("seconds", ["0", "-5", "86401", "soon"])
def test_times_that_cannot_be(run, forwarder, script, changed, seconds):
    result = run("rule", "load", "--socket", forwarder.path, "--confirm", seconds, script)
    assert (result.exit_code, changed) == (2, [])
