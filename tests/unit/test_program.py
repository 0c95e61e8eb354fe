"""The program's own name and command line: from Python they go through the interpreter, in a bundle they do not."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastmasq import __version__, program

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundled(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/opt/fastmasq/fastmasq")


def test_the_command_starts_this_program():
    done = subprocess.run(program.command("--version"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"fastmasq {__version__}\n")


def test_a_bundle_starts_itself(bundled):
    assert program.is_bundle()
    assert program.command("run", "--keep") == ["/opt/fastmasq/fastmasq", "run", "--keep"]


def test_from_python_it_is_no_bundle():
    assert not program.is_bundle()


@pytest.mark.parametrize(
    ("first_word", "name"),
    [("/sbin/ipchains", "ipchains"), ("ipfwadm", "ipfwadm"), ("/venv/fastmasq/__main__.py", "fastmasq")],
)
def test_the_name_it_was_called_by_has_no_folders(monkeypatch, first_word, name):
    monkeypatch.setattr(sys, "argv", [first_word])
    assert program.called_as() == name


@pytest.mark.parametrize(
    ("first_word", "said"),
    [("/sbin/ipfwadm", "ipfwadm"), ("/sbin/ipportfw", "ipportfw"), ("/opt/other-name", "fastmasq")],
)
def test_a_bundle_is_the_program_of_its_name(bundled, monkeypatch, capsys, first_word, said):
    monkeypatch.setattr(sys, "argv", [first_word, "--help" if said == "fastmasq" else "-h"])
    with pytest.raises(SystemExit):
        program.main()
        sys.exit(0)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("executable", "unpacked_from"), [("/opt/fastmasq/fastmasq", None), ("/root/one-file", "/root/one-file")]
)
def test_a_bundle_starts_anew_where_it_is_unpacked(bundled, monkeypatch, executable, unpacked_from):
    started = []
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "_MEIPASS", "/opt/fastmasq/_internal", raising=False)
    monkeypatch.setattr(program.os, "execve", lambda *words: started.append(words))
    program.start_anew(program.SUPERVISOR, ["/opt/fastmasq/fastmasq", "run"])
    ((file, words, environment),) = started
    assert str(file) == "/opt/fastmasq/fastmasq"
    assert words == [program.SUPERVISOR, "/opt/fastmasq/fastmasq", "run"]
    assert environment.get(program.FILE_VARIABLE) == unpacked_from


def test_wheels_have_a_script_for_each_name():
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    assert scripts == {"fastmasq": "fastmasq.cli.main:main", **program.LEGACY}
