"""The group: help without imports, and every way to end with its exit status and one clear line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click
import pytest

from fastmasq import __version__
from fastmasq.cli.main import COMMANDS, fastmasq
from fastmasq.errors import CapacityError, ConfigurationError, FastmasqError, KernelError

HEAVY = ("numpy", "rich", "msgspec", "psutil", "tomllib", "json.decoder")


def test_help_names_every_command_in_one_line(run):
    result = run("--help")
    assert result.exit_code == 0
    for name, (_, _, sentence) in COMMANDS.items():
        assert f"  {name:<9} " in result.stdout
        assert len(sentence) < 70


def test_help_in_a_terminal_of_80_columns_needs_no_second_line():
    done = program("--help", env={"COLUMNS": "80"})
    assert all(sentence in done.stdout for _, _, sentence in COMMANDS.values())


@pytest.mark.parametrize("name", ["run", "check", "status", "sessions", "release"])
def test_each_command_says_the_same_in_both_places_and_explains_every_option(run, name):
    command = fastmasq.get_command(click.Context(fastmasq), name)
    assert command.help.splitlines()[0] == COMMANDS[name][2]
    assert all(parameter.help for parameter in command.params)
    result = run(name, "--help")
    assert result.exit_code == 0
    assert all(max(parameter.opts, key=len) in result.stdout for parameter in command.params)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom fastmasq.cli.main import fastmasq\n"
        "try: fastmasq(['--help'], prog_name='fastmasq')\n"
        f"except SystemExit: print('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_version(run):
    assert run("--version").stdout == f"fastmasq {__version__}\n"


def program(*arguments, env=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "fastmasq", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=30,
        **options,
    )


@pytest.mark.parametrize("name", ["lab", "demo", "bench"])
def test_a_bundle_says_which_package_has_the_commands_it_lacks(run, monkeypatch, name):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setitem(sys.modules, COMMANDS[name][0], None)
    result = run(name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"fastmasq: `{name}` is not in this program for gateways: install the wheel")
    assert result.stderr.count("\n") == 1


def test_python_m_fastmasq():
    done = program("--version")
    assert (done.returncode, done.stdout) == (0, f"fastmasq {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statsu"], "No such command 'statsu'. Did you mean status?"),
        (["zzzzzz"], "No such command 'zzzzzz'. See fastmasq --help."),
        (["--colour"], "No such option"),
        (["status", "--jsonn"], "No such option"),
        (["status", "more"], "unexpected extra argument"),
    ],
)
def test_wrong_usage(run, arguments, said):
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "status"), [(FastmasqError, 1), (KernelError, 1), (CapacityError, 1), (ConfigurationError, 2)]
)
def test_an_error_is_one_line_and_an_exit_status(run, stand_in, error, status):
    @click.command()
    def demo():
        raise error("eth0: missing; plug it in")

    stand_in("fastmasq.lab.command", demo=demo)
    result = run("demo")
    assert (result.exit_code, result.stderr, result.stdout) == (status, "fastmasq: eth0: missing; plug it in\n", "")


def test_each_mistake_is_a_line_of_its_own(run, stand_in):
    @click.command()
    def demo():
        raise ConfigurationError("f.toml:1: this\nf.toml:2: that")

    stand_in("fastmasq.lab.command", demo=demo)
    assert run("demo").stderr == "fastmasq: f.toml:1: this\nfastmasq: f.toml:2: that\n"


def test_interruption_is_quiet(run, stand_in):
    @click.command()
    def demo():
        raise KeyboardInterrupt

    stand_in("fastmasq.lab.command", demo=demo)
    result = run("demo")
    assert (result.exit_code, result.stderr, result.stdout) == (130, "", "")


def test_a_command_that_is_not_installed(run, monkeypatch):
    monkeypatch.setitem(COMMANDS, "bench", ("fastmasq_no_such_package.command", "bench", "."))
    result = run("bench")
    assert result.exit_code == 1
    assert (
        result.stderr == "fastmasq: `bench` needs the Python module fastmasq_no_such_package, which is not installed\n"
    )


def test_ctrl_c_in_a_real_process(tmp_path):
    """A forwarder that never answers, and a user who loses patience."""
    import socket

    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "s"))
        mute.listen()
        command = [sys.executable, "-m", "fastmasq", "status", "--socket", str(tmp_path / "s")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        accepted, _ = mute.accept()
        with accepted:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["check", "--sample"], ["sessions"], ["status"], ["status", "--json"]]
)
def test_a_broken_pipe_is_quiet(forwarder, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fastmasq", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            env={**os.environ, "FASTMASQ_SOCKET": forwarder.path},
            timeout=30,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
