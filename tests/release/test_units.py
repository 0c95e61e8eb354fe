"""What install writes, read by the programs it is for: systemd, man, shells and modprobe of Debian.

They come with `apt-get install systemd man-db mandoc zsh bash kmod strace`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastmasq import program
from fastmasq.deploy.plan import TEMPLATES
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from tests.support.lab_network import ECHO_PORT, Network, round_trip

EXPOSURE = 2.2
RULES = "ipchains -P input ACCEPT\nipchains -A input -s 192.0.2.1 -j DENY\nipchains -P forward MASQ\n"


def run(*argv: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root with all that install can bring."""
    root = tmp_path_factory.mktemp("root")
    done = run(*program.command(), "install", "--root", root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def unit(root: Path) -> Path:
    return root / "usr/lib/systemd/system/fastmasq.service"


def test_systemd_has_nothing_to_say_about_the_unit(unit: Path) -> None:
    done = run("systemd-analyze", "verify", "--man=no", unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_systemd_asks_for_and_does_not_get_has_its_reason(root: Path, unit: Path) -> None:
    report = run("systemd-analyze", "security", "--offline=true", f"--root={root}", unit.name).stdout
    assert float(re.search(r"Overall exposure level for fastmasq.service: (\S+)", report)[1]) <= EXPOSURE
    reasons = "".join(line for line in unit.read_text().splitlines() if line.startswith("#"))
    for name in re.findall(r"✗ (\S+)", report):
        key, _, value = name.partition("=")
        if key in ("CapabilityBoundingSet", "AmbientCapabilities"):
            continue  # why there are any is said where they are
        wanted = value.removeprefix("~") if key in ("SystemCallFilter", "RestrictAddressFamilies") else key
        for word in re.sub(r"AF_\((.*)\)", r"AF_\1", wanted).replace("|INET6", " AF_INET6").split():
            assert word in reasons, name


def system_calls(group: str) -> set[str]:
    """Return the system calls of one of systemd's groups."""
    names = set()
    for line in run("systemd-analyze", "syscall-filter", group).stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            names |= system_calls(word)
        elif word and not word.startswith("#"):
            names.add(word)
    return names


def allowed(unit: Path) -> set[str]:
    """Return the system calls that the unit's filter lets pass."""
    names: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.MULTILINE):
        for word in line.removeprefix("~").split():
            named = system_calls(word) if word.startswith("@") else {word}
            names = names - named if line.startswith("~") else names | named
    return names


@pytest.mark.parametrize("guard", ["tc", "nftables"])
def test_every_system_call_it_makes_is_allowed(lab: Lab, unit: Path, tmp_path: Path, guard: str) -> None:
    """Also those of nft, which it runs; traced while it starts, forwards, reads rules anew, and ends."""
    rules, trace = tmp_path / "rules", tmp_path / "trace"
    rules.write_text(RULES)
    net = Network(lab)
    extra = f'[takeover]\nguard = "{guard}"\n[rules]\nfiles = ["{rules}"]\n'
    command = ["strace", "-D", "-f", "-qq", "-o", str(trace), *program.command()]
    with Fastmasq(lab, extra, command=command) as fastmasq:
        net._fastmasq = fastmasq
        net.echo_tcp()
        assert round_trip(net.connect("inside", (SERVER_ADDRESS, ECHO_PORT)), None, b"?")
        fastmasq.ask("status")
        rules.write_text(RULES.replace("192.0.2.1", "192.0.2.2"))
        fastmasq.ask("reload")
    net._fastmasq = None
    net.close()
    made = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)[( ]", trace.read_text(), re.MULTILINE))
    assert {"bpf" if guard == "tc" else "execve", "mmap", "sendmmsg"} <= made
    assert made - allowed(unit) == set()


def test_it_runs_where_memory_is_written_or_run(lab: Lab) -> None:
    """As MemoryDenyWriteExecute has it; PR_SET_MDWE of Linux 6.3 does the same."""
    code = (
        "import ctypes, os, sys\n"
        "assert ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    with Fastmasq(lab, command=[sys.executable, "-c", code, *program.command()]) as fastmasq:
        assert fastmasq.ask("ping") == "pong"


def test_man_has_nothing_to_say_about_the_pages(root: Path) -> None:
    manual = root / "usr/share/man"
    for page in sorted(manual.glob("man?/*")):
        name = page.relative_to(manual)
        said = run("mandoc", "-T", "lint", "-W", "warning", name, cwd=manual).stdout.splitlines()
        assert [line for line in said if "missing date" not in line] == [], "pages have no date, so that builds agree"
        done = run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", name, cwd=manual)
        assert (done.returncode, done.stderr) == (0, ""), name


def test_shells_complete(root: Path) -> None:
    path = f"{root}/usr/bin:{os.environ['PATH']}"
    script = root / "usr/share/bash-completion/completions/fastmasq"
    ask = "COMP_WORDS=(fastmasq rele); COMP_CWORD=1; _fastmasq_completion fastmasq; echo ${COMPREPLY[@]}"
    assert run("bash", "-c", f"source {script}; {ask}", env={**os.environ, "PATH": path}).stdout == "release\n"
    done = run("zsh", "-n", root / "usr/share/zsh/site-functions/_fastmasq")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("ip_masq_portfw", 0, ""),
        ("ip_masq_ftp", 0, "ip_masq_ftp: fastmasq does not follow active FTP; passive FTP works\n"),
        ("ip_masq_quake 26000,27000,27910,27960", 0, None),
        ("no_such_module", 1, None),
    ],
)
def test_the_hosts_modprobe_answers_for_modules_of_1999(tmp_path: Path, line: str, status: int, said: str) -> None:
    (tmp_path / "fastmasq.conf").write_text((TEMPLATES / "modprobe.conf").read_text())
    done = run("/sbin/modprobe", "-C", tmp_path, *line.split())
    assert done.returncode == status
    assert said is None or done.stderr == said
