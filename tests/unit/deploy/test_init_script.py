"""The script of System V's init with a program that stands in for fastmasq: what LSB asks of each action."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmasq.deploy.plan import Program, _template
from fastmasq.lab.hosts import wait_until

NEEDED = ("cat", "sleep", "rm", "mkdir", "grep", "touch", "sh")
PROGRAM = """\
#!/bin/sh
# run [WORDS]: forward, unless there is a file `broken`, until SIGTERM; status: whether it does; reload.
cd {folder}
echo "$*" >>calls
case "$1" in
    run)
        [ ! -e broken ] || {{ echo "it is broken" >&2; exit 1; }}
        trap 'rm -f forwards; exit 0' TERM
        touch forwards
        echo "it forwards"
        while :; do sleep 0.05; done
        ;;
    status) [ -e forwards ] ;;
    reload) exit 0 ;;
esac
"""


class Script:
    """The script, with the host's folders in one of the test's, and with these programs in its PATH alone."""

    def __init__(self, folder: Path, programs: tuple[str, ...]) -> None:
        self.folder = folder
        for name in ("etc/default", "run", "var/log", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "etc/fastmasq.toml").write_text("")
        for name in (*NEEDED, *programs):
            (folder / "bin" / name).symlink_to(shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin"))
        program = folder / "program"
        program.write_text(PROGRAM.format(folder=shlex.quote(str(folder))))
        program.chmod(0o755)
        text = _template("fastmasq.init", Program((str(program),), str(program), {}, False))
        text = text.replace("PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"PATH={folder}/bin")
        text = text.replace("sleep 1", "sleep 0.1").replace("PATIENCE=15", "PATIENCE=150")
        for place in ("etc", "run", "var"):
            text = text.replace(f"/{place}/", f"{folder}/{place}/")
        self.file = folder / "fastmasq"
        self.file.write_text(text)

    def __call__(self, *words: str) -> tuple[int, str]:
        """Return the exit status of an action, and what it says."""
        done = subprocess.run(
            ["dash", self.file, *words], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def logged(self, text: str) -> bool:
        """Return whether the log is this, as soon as its writer has come to it."""
        log = self.folder / "var/log/fastmasq.log"
        return wait_until(lambda: log.exists() and log.read_text() == text, 10)

    @property
    def pid(self) -> int:
        return int((self.folder / "run/fastmasq/supervisor.pid").read_text())


def is_running(pid: int) -> bool:
    """Return whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(params=["sh", "start-stop-daemon"])
def script(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Script]:
    made = Script(tmp_path, ("start-stop-daemon",) if request.param == "start-stop-daemon" else ("setsid",))
    yield made
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(made.pid, signal.SIGTERM)


def test_start_status_stop(script: Script) -> None:
    assert script("status") == (3, "fastmasq: is not running")
    status, said = script("start")
    assert (status, said) == (0, f"fastmasq: forwards (process {script.pid})")
    assert script("status") == (0, f"fastmasq: is running (process {script.pid})")
    assert script("start") == (0, f"fastmasq: is running (process {script.pid})")
    status, said = script("stop")
    assert status == 0
    assert said.startswith("fastmasq: has ended; nothing is forwarded until")
    assert script("stop") == (0, "fastmasq: is not running")
    assert script("status") == (3, "fastmasq: is not running")
    run = f"run --supervise --keep -c {script.folder}/etc/fastmasq.toml"
    assert (script.folder / "calls").read_text().splitlines().count(run) == 1


def test_what_it_says_is_logged(script: Script) -> None:
    script("start")
    script("stop")
    assert script.logged("it forwards\n")


def test_restart_is_another_process(script: Script) -> None:
    script("start")
    before = script.pid
    assert script("restart")[0] == 0
    assert script.pid != before
    script("stop")


@pytest.mark.parametrize("action", ["reload", "force-reload"])
def test_reload_asks_the_running_one(script: Script, action: str) -> None:
    assert script(action) == (7, "fastmasq: is not running")
    script("start")
    assert script(action)[0] == 0
    assert (script.folder / "calls").read_text().splitlines()[-1] == f"reload -c {script.folder}/etc/fastmasq.toml"
    script("stop")


def test_a_start_that_fails_says_where_to_look(script: Script) -> None:
    (script.folder / "broken").touch()
    status, said = script("start")
    assert status == 1
    assert "does not forward yet; its log says why" in said
    assert script.logged("it is broken\n")


def test_what_has_died_is_told(script: Script) -> None:
    script("start")
    os.kill(script.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(script.pid), 10)
    (script.folder / "forwards").unlink()
    assert script("status") == (1, f"fastmasq: is dead, and {script.folder}/run/fastmasq/supervisor.pid is there")
    assert script("start")[0] == 0
    script("stop")


def test_without_a_configuration_it_is_not_started(script: Script) -> None:
    (script.folder / "etc/fastmasq.toml").unlink()
    status, said = script("start")
    assert (status, said) == (
        6,
        f"fastmasq: {script.folder}/etc/fastmasq.toml: cannot be read; fastmasq setup writes it",
    )


def test_settings_of_the_host_are_read(script: Script) -> None:
    (script.folder / "etc/default/fastmasq").write_text("CONFIG=/elsewhere.toml\n")
    assert script("start") == (6, "fastmasq: /elsewhere.toml: cannot be read; fastmasq setup writes it")


@pytest.mark.parametrize("words", [(), ("begin",)])
def test_another_action_is_misuse(script: Script, words: tuple[str, ...]) -> None:
    status, said = script(*words)
    assert status == 2
    assert said.endswith("start|stop|restart|reload|force-reload|status")
