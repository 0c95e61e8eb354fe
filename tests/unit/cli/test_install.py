"""`fastmasq install` and `uninstall` with --root: what a host gets by what it has, and by how the program was built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastmasq import program
from fastmasq.config.load import load, parse
from fastmasq.config.values import SERVICE_SOCKET
from fastmasq.deploy import plan, service

UNIT = "usr/lib/systemd/system/fastmasq.service"
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def root(tmp_path):
    """Return the root of a host with systemd, System V's scripts and modules."""
    root = tmp_path / "root"
    for folder in ("usr/lib/systemd", "etc/init.d", "usr/sbin", "usr/share/zsh/vendor-completions"):
        (root / folder).mkdir(parents=True)
    (root / "sbin").symlink_to("usr/sbin")
    modprobe = root / "usr/sbin/modprobe"
    modprobe.write_text("#!/bin/sh\n")
    modprobe.chmod(0o755)
    return root


def files(root):
    return {str(place.relative_to(root)) for place in root.rglob("*") if place.is_symlink() or not place.is_dir()}


def install(run, root):
    result = run("install", "--root", root)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_a_host_gets_all_of_it_and_is_rid_of_all_of_it(run, root):
    before = files(root)
    lines = install(run, root)
    brought = files(root) - before
    assert {
        *(UNIT, "etc/init.d/fastmasq", "etc/fastmasq.toml", "etc/modprobe.d/fastmasq.conf"),
        *("usr/lib/sysusers.d/fastmasq.conf", "usr/share/bash-completion/completions/fastmasq"),
        *("usr/share/zsh/vendor-completions/_fastmasq", "usr/bin/fastmasq", "var/lib/fastmasq/installed.json"),
        *("usr/share/man/man1/fastmasq-run.1", "usr/share/man/man5/fastmasq.toml.5", "usr/share/man/man8/ipchains.8"),
        *(f"usr/sbin/{name}" for name in program.LEGACY),
    } <= brought
    assert sum(line.endswith(": installed") for line in lines) == len(brought) - 1, "but for the manifest"
    (root / "var/lib/fastmasq/key").write_bytes(bytes(16))  # as a run does
    assert run("uninstall", "--root", root).exit_code == 0
    assert files(root) == before


def test_a_second_time_all_is_in_place(run, root):
    install(run, root)
    assert install(run, root)[-1] == "all is in place"


def test_the_unit_starts_this_very_program(run, root):
    install(run, root)
    text = (root / UNIT).read_text()
    assert f"\nExecStart={sys.executable} -m fastmasq run --keep -c /etc/fastmasq.toml\n" in text
    assert "@PROGRAM@" not in text
    for line in ("Type=notify", "NotifyAccess=main", "RuntimeDirectoryPreserve=yes", "LimitNICE=-10", "User=fastmasq"):
        assert f"\n{line}\n" in text


def test_the_names_of_1999_lead_to_their_programs(run, root):
    install(run, root)
    for name in program.LEGACY:
        assert os.readlink(root / "sbin" / name) == str(SCRIPTS / name)
    assert os.readlink(root / "usr/bin/fastmasq") == str(SCRIPTS / "fastmasq")


def test_a_program_of_another_is_in_the_way_and_nothing_is_written(run, root):
    (root / "usr/sbin/ipchains").write_text("another's")
    before = files(root)
    result = run("install", "--root", root)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"fastmasq: {root}/usr/sbin/ipchains is there and is not fastmasq's; move it away",
        "fastmasq: nothing was installed",
    ]
    assert files(root) == before


def test_a_configuration_is_the_administrators(run, root):
    (root / "etc/fastmasq.toml").write_text("# mine\n")
    assert "/etc/fastmasq.toml: kept as it is" in install(run, root)
    run("uninstall", "--root", root)
    assert (root / "etc/fastmasq.toml").read_text() == "# mine\n"


def test_the_sample_can_be_run_by_the_service(run, root):
    install(run, root)
    settings = load(root / "etc/fastmasq.toml").settings
    assert settings.control.socket == "/run/fastmasq/control.sock"
    assert settings.interfaces == load(plan.configuration.SAMPLE).settings.interfaces


@pytest.mark.parametrize(
    ("folder", "there", "not_there"),
    [
        ("usr/lib/systemd", UNIT, "etc/init.d/fastmasq"),
        ("lib/systemd", "lib/systemd/system/fastmasq.service", "etc/init.d/fastmasq"),
        ("etc/init.d", "etc/init.d/fastmasq", UNIT),
    ],
)
def test_what_starts_it_is_what_the_host_has(run, tmp_path, folder, there, not_there):
    (tmp_path / folder).mkdir(parents=True)
    install(run, tmp_path)
    assert (tmp_path / there).exists()
    assert not (tmp_path / not_there).exists()


def test_an_empty_root_gets_both_and_the_next_time_as_well(run, tmp_path):
    for _ in range(2):
        install(run, tmp_path)
        assert (tmp_path / UNIT).exists()
        assert (tmp_path / "etc/init.d/fastmasq").stat().st_mode & 0o777 == 0o755


def test_a_host_whose_folders_are_two_has_the_names_in_both(run, tmp_path):
    (tmp_path / "sbin").mkdir()
    (tmp_path / "usr/sbin").mkdir(parents=True)
    install(run, tmp_path)
    for name in program.LEGACY:
        assert (tmp_path / "sbin" / name).is_symlink()
        assert (tmp_path / "usr/sbin" / name).is_symlink()


def test_a_host_without_modules_has_them_answered_by_programs(run, tmp_path):
    for _ in range(2):
        install(run, tmp_path)
    for line, status in (
        *(("depmod -a", 0), ("modprobe ip_masq_ftp", 0), ("modprobe ip_masq_quake 26000,27000", 0)),
        *(("insmod ip_masq_irc", 0), ("insmod /lib/modules/2.0.38/ipv4/ip_masq_ftp.o", 0), ("modprobe -a ppp", 1)),
    ):
        name, *words = line.split()
        done = subprocess.run([tmp_path / "sbin" / name, *words], capture_output=True, text=True)
        assert done.returncode == status, line
        assert ("ppp: this host has no kernel modules" in done.stderr) == bool(status)


@pytest.mark.parametrize("name", ["etc/init.d/fastmasq", "sbin/modprobe"])
def test_scripts_are_for_any_shell(run, tmp_path, name):
    install(run, tmp_path)
    for shell in ("dash", "bash"):
        subprocess.run([shell, "-n", tmp_path / name], check=True)


def test_completion_asks_the_program(run, root):
    install(run, root)
    bash = (root / "usr/share/bash-completion/completions/fastmasq").read_text()
    assert "_FASTMASQ_COMPLETE=bash_complete" in bash
    assert (root / "usr/share/zsh/vendor-completions/_fastmasq").read_text().startswith("#compdef fastmasq\n")
    asked = {"_FASTMASQ_COMPLETE": "bash_complete", "COMP_WORDS": "fastmasq unin", "COMP_CWORD": "1"}
    done = subprocess.run([SCRIPTS / "fastmasq"], env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.stdout == "plain,uninstall\n"


def test_on_a_kernel_before_5_8_another_capability_is_asked_for(monkeypatch, root):
    of_this_host = plan.Root(str(root))
    of_this_host.is_this_host = True
    for release, is_old in (("4.19.0-27-amd64", True), ("5.7.19", True), ("5.8", False), ("6.18.1", False)):
        monkeypatch.setattr(os, "uname", lambda release=release: os.uname_result(("Linux", "", release, "", "")))
        paths = {entry.path: entry for entry in plan._service(of_this_host, plan.this_program(of_this_host))}
        path = "/usr/lib/systemd/system/fastmasq.service.d/old-kernel.conf"
        assert (path in paths) == is_old
        assert not is_old or "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN" in paths[path].text


@pytest.fixture
def bundle(monkeypatch, root):
    """Be a bundle of one folder within the root."""
    file = root / "opt/fastmasq/fastmasq"
    file.parent.mkdir(parents=True)
    file.write_text("")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(file))
    monkeypatch.setattr(sys, "_MEIPASS", str(file.parent / "_internal"), raising=False)
    return file


def test_a_bundle_of_one_folder_is_all_names(run, root, bundle):
    install(run, root)
    assert "\nExecStart=/opt/fastmasq/fastmasq run --keep" in (root / UNIT).read_text()
    for name in ("usr/bin/fastmasq", *(f"sbin/{name}" for name in program.LEGACY)):
        assert os.readlink(root / name) == "/opt/fastmasq/fastmasq"


def test_a_bundle_of_one_file_says_what_the_names_want(run, root, bundle, monkeypatch):
    monkeypatch.setattr(sys, "_MEIPASS", "/tmp/fastmasq-123456/_internal")
    lines = install(run, root)
    assert any("they want the folder build" in line for line in lines)
    assert not (root / "sbin/ipchains").is_symlink()


def test_a_program_that_is_in_the_path_needs_no_link(run, root, bundle, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(root / "usr/sbin/fastmasq"))
    (root / "usr/sbin/fastmasq").write_text("")
    install(run, root)
    assert not (root / "usr/bin/fastmasq").is_symlink()


def test_a_program_outside_of_the_root_is_told(run, root):
    assert any(f"not within {root}" in line for line in install(run, root))


def test_without_console_scripts_nothing_is_installed(run, root, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(root / "python"))
    result = run("install", "--root", root)
    assert result.exit_code == 1
    assert "install fastmasq with pip" in result.stderr
    assert not (root / UNIT).exists()


def test_without_a_way_to_make_the_user_nothing_is_installed(monkeypatch):
    monkeypatch.setattr(service, "has_user", lambda: False)
    monkeypatch.setattr(service, "_FOLDERS", "/nowhere")
    assert service.why_no_user() == (
        "there is none of systemd-sysusers, useradd, adduser; make the user and the group fastmasq by hand"
    )


def test_the_sample_names_the_links_that_are_there():
    text = plan.configuration.compose(["eth2", "br0.7"], "ppp0")
    settings = parse(text, "sample").settings
    assert (list(settings.interfaces.inside), settings.interfaces.outside) == (["eth2", "br0.7"], "ppp0")
    assert settings.control.socket == SERVICE_SOCKET
