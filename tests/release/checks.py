"""The checks of a release: each installs a package as its users would, and returns what came of it in a few words."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from fastmasq.cli.main import COMMANDS
from fastmasq.errors import FastmasqError
from fastmasq.lab import hosts
from fastmasq.lab.forwarder import Fastmasq
from fastmasq.lab.topology import Lab
from fastmasq.program import LEGACY
from tests.release import lives, programs, roots
from tests.release.gateway import demonstrate, idle_bytes, network, start_seconds, until
from tests.release.roots import checked, folder, inside, output_of, run_inside
from tests.support import candidate

FILE_BYTES, FOLDER_BYTES = 15_000_000, 11_000_000
FILE_START_S, FOLDER_START_S = 0.6, 0.35
IDLE_BYTES = {"wheel": 80_000_000, "folder": 65_000_000, "file": 65_000_000}
CAPABILITIES = "cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon"
SCRIPT_LINES, SCRIPT_S = 100, 20.0
APART = ("lab", "demo", "bench")
STARTS = 5


def source_distribution() -> str:
    """The source distribution builds in an environment of its own, and what comes of it forwards."""
    with TemporaryDirectory(dir=roots.CACHE) as place:
        program = programs.installed(programs.SOURCE, Path(place) / "environment")
        version = checked([str(program), "--version"]).strip()
        return f"built; {version}; {demonstrate([str(program)])}"


def wheel() -> str:
    """The wheel forwards in a minimal Debian 12 with nothing but Python, and brings no source of an extension."""
    names = checked(["unzip", "-Z1", str(programs.wheel())]).split()
    sources = [name for name in names if name.endswith((".c", ".pyx"))]
    if sources:
        raise FastmasqError(f"the wheel has sources: {', '.join(sources)}")
    kept = roots.CACHE / "wheels"
    pip = [str(programs.BUILDER), "-m", "pip"]
    checked([*pip, "download", "--quiet", "--dest", str(kept), str(programs.wheel())])
    with folder(roots.debian("bookworm", "python3-venv", "nftables")) as root:
        shutil.copytree(kept, root / "wheels")
        (root / "scripts").mkdir()
        shutil.copy(programs.PROJECT / "scripts/install", root / "scripts")
        offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
        install = inside(root, "/bin/bash", "/scripts/install", "gateway", f"/wheels/{programs.wheel().name}")
        checked(install, env=offline)
        if list(root.glob("usr/bin/*gcc*")):
            raise FastmasqError("scripts/install gateway has left a compiler")
        said = demonstrate(inside(root, "/usr/local/bin/fastmasq"))
    return f"scripts/install gateway in Debian 12 without a compiler; {said}"


def file_alone() -> str:
    """The file forwards where there is nothing else."""
    with folder() as root:
        shutil.copy(programs.FILE, root / "fastmasq")
        return f"nothing else in the root; {demonstrate(inside(root, '/fastmasq'))}"


def file_on_debian_11() -> str:
    """The file forwards on an older Debian without Python."""
    return _file_on(roots.debian("bullseye", "nftables"))


def _file_on(root: Path) -> str:
    if list(root.glob("usr/bin/python3*")):
        raise FastmasqError("the root has a Python")
    with folder(root) as copy:
        shutil.copy(programs.FILE, copy / "usr/local/bin/fastmasq")
        release = (copy / "etc/debian_version").read_text().strip()
        return f"Debian {release} without Python; {demonstrate(inside(copy, '/usr/local/bin/fastmasq'))}"


def folder_alone() -> str:
    """The folder forwards where there is nothing else."""
    with folder() as root:
        programs.unpack_folder(root)
        return f"nothing else in the root; {demonstrate(inside(root, f'/{programs.OPT}/fastmasq'))}"


def capabilities() -> str:
    """The folder forwards for an ordinary user when its program has file capabilities."""
    with folder() as root, network() as lab:
        place = programs.unpack_folder(root)
        checked(["setcap", f"{CAPABILITIES}+ep", str(place / "fastmasq")])
        seconds = start_seconds(lab, inside(root, f"/{programs.OPT}/fastmasq", user="65534:65534"))
    return f"forwards after {seconds:.2f} s as user 65534 with {CAPABILITIES}"


def sizes() -> str:
    """The packages are as small as they are meant to be."""
    said = []
    for package, limit in ((programs.FILE, FILE_BYTES), (programs.FOLDER, FOLDER_BYTES)):
        size = package.stat().st_size
        said.append(f"{package.name} {size / 1e6:.1f} MB")
        if size > limit:
            raise FastmasqError(f"{package.name} has {size} bytes, more than {limit}")
    return ", ".join(said)


def starts() -> str:
    """The bundles forward soon after they are started."""
    said = []
    with folder() as root, network() as lab:
        programs.unpack_folder(root)
        shutil.copy(programs.FILE, root / "fastmasq")
        limits = {f"/{programs.OPT}/fastmasq": FOLDER_START_S, "/fastmasq": FILE_START_S}
        for program, limit_s in limits.items():
            seconds = median(start_seconds(lab, inside(root, program)) for _ in range(STARTS))
            said.append(f"{program} {seconds:.2f} s")
            if seconds > limit_s:
                raise FastmasqError(f"{program} needs {seconds:.2f} s to forward, more than {limit_s:g}")
    return ", ".join(said)


def memory() -> str:
    """An idle forwarder takes as little memory as it is meant to, rings included."""
    said = []
    with programs.on_this_host() as programs_of, network() as lab:
        for name, limit in IDLE_BYTES.items():
            resident = idle_bytes(lab, programs_of[name])
            said.append(f"{name} {resident / 1e6:.1f} MB")
            if resident > limit:
                raise FastmasqError(f"{name}: {resident} bytes are resident in an idle forwarder, more than {limit}")
    return ", ".join(said)


def commands() -> str:
    """Every command is in the bundle, by the names of 1999 too; those that are not say where they are."""
    with folder() as root:
        programs.unpack_folder(root)
        program = f"/{programs.OPT}/fastmasq"
        for name in COMMANDS:
            done = run_inside(root, program, name, "--help")
            if name not in APART:
                output_of(done, name)
            elif done.returncode != 1 or done.stdout or done.stderr.count("\n") != 1 or "wheel" not in done.stderr:
                raise FastmasqError(f"{name} should say in one line that the wheel has it: {done.stderr.strip()}")
        if "[interfaces]" not in checked(inside(root, program, "check", "--sample")):
            raise FastmasqError("check --sample printed no configuration")
        (root / "sbin").mkdir()
        for name in LEGACY:
            (root / "sbin" / name).symlink_to(program)
            done = run_inside(root, f"/sbin/{name}", *([] if "-" in name else ["-h"]))
            if name not in done.stdout + done.stderr:
                raise FastmasqError(f"{name} is not itself: {(done.stdout + done.stderr).strip()[:100]}")
    return f"{len(COMMANDS) - len(APART)} commands, {len(LEGACY)} names of 1999"


def old_script() -> str:
    """A script of 1999 with a hundred lines, run by a shell, takes a time that one can wait."""
    with folder(roots.debian("bullseye", "nftables")) as root, network() as lab:
        programs.unpack_folder(root)
        (root / "sbin/ipchains").symlink_to(f"/{programs.OPT}/fastmasq")
        lines = [f"/sbin/ipchains -A input -s 192.0.2.{number} -j DENY\n" for number in range(SCRIPT_LINES)]
        (root / "rc.firewall").write_text("set -e\n" + "".join(lines))
        with Fastmasq(lab, command=inside(root, f"/{programs.OPT}/fastmasq")) as forwarder:
            started = time.monotonic()
            environment = {**os.environ, "FASTMASQ_SOCKET": str(forwarder.socket)}
            output_of(run_inside(root, "/bin/sh", "/rc.firewall", env=environment), "rc.firewall")
            seconds = time.monotonic() - started
            chains = {chain["name"]: chain for chain in forwarder.ask("rules")["chains"]}
            ruleset = checked(hosts.command_in(lab.namespace("gateway"), ["nft", "list", "ruleset"]))
    if len(chains["input"]["rules"]) != SCRIPT_LINES:
        raise FastmasqError(f"{len(chains['input']['rules'])} of {SCRIPT_LINES} rules arrived")
    if "192.0.2.0" not in ruleset:
        raise FastmasqError("nft did not get the rules about the host itself")
    if seconds > SCRIPT_S:
        raise FastmasqError(f"{SCRIPT_LINES} lines took {seconds:.1f} s, more than {SCRIPT_S:g}")
    return f"{SCRIPT_LINES} lines of ipchains in {seconds:.1f} s"


def killed() -> str:
    """Whatever of the file is killed, nothing of it runs on, and the next start removes what it has left."""
    with network() as lab, TemporaryDirectory() as place:
        bystander = Path(place) / "fastmasq-backup"  # of our name, but not made by the file
        bystander.mkdir(mode=0o700)
        command = ["env", f"TMPDIR={place}", str(programs.FILE)]
        for victim in range(len(_processes_of(lab, command, place, kill=None))):
            _processes_of(lab, command, place, kill=victim)
            until(lambda: not _running_in(place), f"nothing runs on after kill -9 of process {victim}")
        checked([*command, "--version"])
        if os.listdir(place) != [bystander.name]:
            raise FastmasqError(f"left in the temporary directory: {', '.join(os.listdir(place))}")
    return "nothing runs on, and nothing is left"


def _processes_of(lab: Lab, command: Sequence[str], place: str, kill: int | None) -> list[int]:
    """Return the processes of a started file, after killing one of them, or ending it as is due."""
    socket = str(lab.directory / "kill.sock")
    argv = [*command, "run", "--inside", "eth0", "--outside", "eth1", "--socket", socket]
    with lab.popen("gateway", argv, stdout=subprocess.PIPE, text=True) as process:
        if "forwarding" not in process.stdout.readline():
            raise FastmasqError("the file did not forward")
        found = _running_in(place)
        unpacked = set(os.listdir(place))
        checked([*command, "--version"])
        if set(os.listdir(place)) != unpacked:
            raise FastmasqError("another start touched the folder of one that runs")
        os.kill(process.pid if kill is None else found[kill], signal.SIGTERM if kill is None else signal.SIGKILL)
    if kill is not None:
        output_of(
            lab.exec("gateway", [*command, "release", "--socket", socket], capture_output=True, text=True), "release"
        )
    return found


def _running_in(place: str) -> list[int]:
    """Return the processes whose program lies somewhere in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.exe().startswith(f"{place}/"):
                found.append(process.pid)
    return sorted(found)


def noexec() -> str:
    """Where the temporary directory is mounted noexec, the file says in one line what to do."""
    with folder() as root:
        shutil.copy(programs.FILE, root / "fastmasq")
        done = run_inside(root, "/fastmasq", "--version", tmp="noexec")
        if done.returncode != 1 or done.stderr.count("\n") != 1 or "TMPDIR" not in done.stderr:
            raise FastmasqError(f"ended with {done.returncode}: {done.stderr.strip()}")
        (root / "var").mkdir()
        other = run_inside(root, "/fastmasq", "--version", tmp="noexec", env={**os.environ, "TMPDIR": "/var"})
        output_of(other, "with TMPDIR")
        if list((root / "var").iterdir()):
            raise FastmasqError("something is left in TMPDIR")
    return done.stderr.strip().removeprefix("fastmasq: ")


def debian_package() -> str:
    """The Debian package forwards in a minimal Debian 12; a changed configuration is kept, a purge leaves nothing."""
    package = programs.deb()
    with folder(roots.debian("bookworm")) as root:
        before = _files(root)
        shutil.copy(package, root / "package.deb")
        checked(inside(root, "/usr/bin/dpkg", "--install", "/package.deb"))
        said = demonstrate(inside(root, "/usr/bin/fastmasq"))
        configuration = root / "etc/fastmasq.toml"
        configuration.write_text(configuration.read_text() + "# changed\n")
        checked(inside(root, "/usr/bin/dpkg", "--install", "--force-confdef", "--force-confold", "/package.deb"))
        checked(inside(root, "/usr/bin/dpkg", "--remove", "fastmasq"))
        if not configuration.read_text().endswith("# changed\n"):
            raise FastmasqError("a changed configuration was not kept")
        checked(inside(root, "/usr/bin/dpkg", "--purge", "fastmasq"))
        (root / "package.deb").unlink()
        left = _files(root) - before
        if left:
            raise FastmasqError(f"left after a purge: {', '.join(sorted(left))}")
    return f"{package.name} {package.stat().st_size / 1e6:.1f} MB; {said}; purged"


def _files(root: Path) -> set[str]:
    """Return what is in a root, but for what dpkg keeps and writes, and the copies that useradd makes in /etc."""
    own = ("var/lib/dpkg", "var/log", "var/cache")
    names = {str(path.relative_to(root)) for path in root.rglob("*")}
    return {name for name in names if not name.startswith(own) and not (name.startswith("etc/") and name.endswith("-"))}


def lintian() -> str:
    """The Debian package has no error that lintian knows."""
    checked(["lintian", "--fail-on", "error", "--allow-root", str(programs.deb())])
    return "no errors"


def tests_of(name: str) -> str:
    """Pass the tests of a file beside this one, with the one file as the program where they start one."""
    pass_tests(f"tests/release/test_{name}.py", {candidate.VARIABLE: str(programs.FILE)})
    return f"all of tests/release/test_{name}.py"


def more_examples(name: str) -> str:
    """Pass the tests of a file with many more examples than usually."""
    pass_tests(f"tests/{name}.py", {"HYPOTHESIS_PROFILE": "long"})
    return f"many examples of tests/{name}.py"


def pass_tests(file: str, environment: Mapping[str, str]) -> None:
    """Run the tests of a file. Raises FastmasqError with the first that fails."""
    argv = [sys.executable, "-m", "pytest", "-p", "no:randomly", file]
    environment = {**os.environ, **environment}
    done = subprocess.run(argv, cwd=programs.PROJECT, env=environment, capture_output=True, text=True)
    if done.returncode:
        wrong = [line for line in done.stdout.splitlines() if line.startswith(("E  ", "FAILED", "ERROR"))]
        raise FastmasqError((wrong or done.stdout.splitlines() or ["no message"])[0])


CHECKS: dict[str, Callable[[], str]] = {
    "sizes": sizes,
    "starts": starts,
    "memory": memory,
    "commands": commands,
    "noexec": noexec,
    "killed": killed,
    "old-script": old_script,
    "file": file_alone,
    "file-debian-11": file_on_debian_11,
    "folder": folder_alone,
    "capabilities": capabilities,
    "supervised": lives.supervised,
    "no-nftables": lives.without_nftables,
    "install-folder": lives.installed,
    "deb": debian_package,
    "lintian": lintian,
    "wheel": wheel,
    "sdist": source_distribution,
    "killed-writers": partial(tests_of, "killed_writers"),
    "stopped-writers": partial(tests_of, "stopped_writers"),
    "units": partial(tests_of, "units"),
    "install": partial(tests_of, "install"),
    "systemd": partial(tests_of, "systemd"),
    "old-kernels": partial(tests_of, "old_kernels"),
    "other-kernel": partial(tests_of, "other_kernel"),
    "scripts": partial(more_examples, "property/test_shell_against_dash"),
    "imports": partial(more_examples, "lab/test_imported_rules"),
}
