"""The program's own name and command line: from Python they go through the interpreter, in a bundle they do not."""

from __future__ import annotations

import os
import shutil
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


@pytest.mark.parametrize("executable", ["fastmasq", "../one-file"])
def test_a_bundle_becomes_its_helper_and_leaves_nothing_unpacked(bundled, monkeypatch, tmp_path, executable):
    folder = tmp_path / "bundle"
    (folder / "_internal").mkdir(parents=True)
    shutil.copy("/bin/echo", folder / "_internal/helper")
    monkeypatch.setattr(sys, "executable", os.path.normpath(folder / executable))
    monkeypatch.setattr(sys, "_MEIPASS", str(folder / "_internal"), raising=False)
    reader, writer = os.pipe()
    if not os.fork():
        os.dup2(writer, 1)
        try:
            program.become("helper", ["one", "two"])
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader) as said:
        assert said.read() == "one two\n"
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert folder.exists() == (executable == "fastmasq")


def test_wheels_have_a_script_for_each_name():
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    assert scripts == {"fastmasq": "fastmasq.cli.main:main", **program.LEGACY}
