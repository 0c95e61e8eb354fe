"""The journal: on disk before a change, its owner's only, adopted from the dead and refused from the living."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fastmasq.errors import KernelError
from fastmasq.kernel.journal import Journal, network_namespace, start_time


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_change_is_on_disk_at_once(path: Path) -> None:
    journal = Journal.load(path)
    journal.append({"sysctl": "a"})
    assert json.loads(path.read_text())["entries"] == [{"sysctl": "a"}]
    journal.replace({"sysctl": "a"}, {"sysctl": "b"})
    assert json.loads(path.read_text())["entries"] == [{"sysctl": "b"}]
    journal.remove({"sysctl": "b"})
    assert json.loads(path.read_text())["entries"] == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["journal"]


def test_a_living_owner_is_respected(path: Path) -> None:
    Journal.load(path).append({"sysctl": "a"})
    with pytest.raises(KernelError, match=rf"in use by fastmasq \(pid {os.getpid()}\)"):
        Journal.load(path)


def test_a_dead_owner_leaves_its_entries(path: Path) -> None:
    program = f"from pathlib import Path; from fastmasq.kernel.journal import Journal; Journal(Path({str(path)!r}), [])"
    subprocess.run([sys.executable, "-c", program + ".append({'sysctl': 'a'})"], check=True)
    assert Journal.load(path).entries == [{"sysctl": "a"}]


def test_a_reused_process_id_is_not_the_owner(path: Path) -> None:
    Journal.load(path).append({"sysctl": "a"})
    rewrite(path, started=start_time(os.getpid()) - 1)
    assert Journal.load(path).entries == [{"sysctl": "a"}]


def test_a_restart_of_the_machine_voids_it(path: Path) -> None:
    Journal.load(path).append({"sysctl": "a"})
    rewrite(path, boot="another")
    assert Journal.load(path).entries == []


def test_a_vanished_namespace_voids_it(path: Path) -> None:
    Journal.load(path).append({"sysctl": "a"})
    rewrite(path, started=0, namespace=[network_namespace()[0], 1])
    assert Journal.load(path).entries == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 1}', "7"])
def test_a_damaged_one_is_not_guessed_at(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(KernelError, match="is damaged"):
        Journal.load(path)


def test_another_version_is_refused(path: Path) -> None:
    Journal.load(path).append({"sysctl": "a"})
    rewrite(path, version=99)
    with pytest.raises(KernelError, match="another version"):
        Journal.load(path)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"cannot write the journal .*/nowhere/journal: No such file"):
        Journal.load(tmp_path / "nowhere/journal").save()


def test_start_time_of_the_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None, "a zombie does not run"
    child.wait()
    assert start_time(child.pid) is None
