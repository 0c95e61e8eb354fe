"""The journal: on disk before a change, adopted from the dead, each entry by itself, and nothing that is not ours."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.errors import KernelError
from fastmasq.kernel.identity import Namespace, network_namespace, start_time
from fastmasq.kernel.journal import VERSION, Journal, checked
from fastmasq.kernel.run_folder import LARGEST_FILE, RunFolder

FORWARD = {"sysctl": "net.ipv4.ip_forward", "old": "1", "new": "0", "dependents": {}}
PORTS = {"sysctl": "net.ipv4.ip_local_reserved_ports", "old": "8080", "new": "61000-65095", "dependents": {}}
RANGE = {"sysctl": "net.ipv4.ip_local_port_range", "old": "32768 60999", "new": "20480 24575", "dependents": {}}
GUARD = {"guard": "tc", "memory": {"qdiscs": ["eth0", "ppp0.5"]}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def path(folder: RunFolder) -> Path:
    return folder.path / f"net-{network_namespace().inode}.journal"


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    path.chmod(0o600)


def entries(path: Path) -> list:
    return json.loads(path.read_text())["entries"]


def test_every_change_is_on_disk_at_once(folder: RunFolder, path: Path) -> None:
    journal = Journal.load(folder)
    journal.append(FORWARD)
    assert entries(path) == [FORWARD]
    journal.replace(FORWARD, PORTS)
    assert entries(path) == [PORTS]
    journal.append(RANGE)
    assert entries(path) == [PORTS, RANGE]
    journal.remove(RANGE)
    journal.remove(PORTS)
    assert entries(path) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(folder.path) == [path.name]
    journal.delete()
    assert os.listdir(folder.path) == []


def test_entries_are_left_for_a_successor(folder: RunFolder) -> None:
    Journal.load(folder).append(FORWARD)
    assert Journal.load(folder).entries == [FORWARD]


@pytest.mark.parametrize(
    "changes", [{"boot": "another"}, {"cookie": 12345}, {"namespace": 1}], ids=["boot", "cookie", "inode"]
)
def test_one_of_a_namespace_that_is_gone_is_set_aside(folder: RunFolder, path: Path, changes: dict) -> None:
    Journal.load(folder).append(FORWARD)
    rewrite(path, **changes)
    journal = Journal.load(folder)
    assert journal.entries == []
    (remark,) = journal.remarks
    assert "about a network namespace that is gone" in remark and f"{path}.old" in remark
    assert entries(Path(f"{path}.old")) == [FORWARD]
    assert Journal.load(folder).remarks == [], "it is said once"


def test_without_cookies_inode_and_boot_must_do() -> None:
    here = Namespace(7, 0, "boot")
    assert here.is_same(Namespace(7, 5, "boot"))
    assert not here.is_same(Namespace(8, 5, "boot"))
    assert not Namespace(7, 4, "boot").is_same(Namespace(7, 5, "boot"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 2}', "7", "[" * 100_000, "\xff"])
def test_a_damaged_one_is_set_aside(folder: RunFolder, path: Path, content: str) -> None:
    path.write_text(content, encoding="latin-1")
    journal = Journal.load(folder)
    assert journal.is_damaged and journal.entries == []
    assert f"the journal {path} was damaged" in journal.remarks[0]
    assert Path(f"{path}.old").read_text(encoding="latin-1") == content


STRANGE = [
    {"flow_offload": "eth0"},
    {"sysctl": "kernel.core_pattern", "old": "|/bin/sh", "new": ""},
    {"sysctl": "net.ipv4.conf.//.forwarding", "old": "1", "new": "0"},
    {"sysctl": "net.ipv4.conf./.forwarding", "old": "1", "new": "0"},
    {"sysctl": "net.ipv4.ip_forward", "old": "1"},
    {**FORWARD, "dependents": {"kernel.modprobe": "x"}},
    {**FORWARD, "old": "1\n2"},
    {**RANGE, "new": "20480 24575 1"},
    {**FORWARD, "link": "fastmasq0"},
    {"guard": "tc", "memory": {"qdiscs": ["../eth0"]}},
    {"link": "eth0"},
    {"host_rules": 5},
    "sysctl",
    None,
    [],
]


def test_odd_entries_are_kept_and_the_others_are_believed(folder: RunFolder, path: Path) -> None:
    Journal.load(folder).append(FORWARD)
    rewrite(path, version=VERSION + 1, entries=[FORWARD, *STRANGE, GUARD], more="of a later version")
    journal = Journal.load(folder)
    assert journal.entries == [FORWARD, GUARD]
    assert journal.strange == STRANGE
    journal.append(PORTS)
    assert entries(path) == [*STRANGE, FORWARD, GUARD, PORTS]


def test_nothing_is_written_that_would_not_be_read(folder: RunFolder) -> None:
    with pytest.raises(msgspec.ValidationError):
        Journal.load(folder).append({"sysctl": "kernel.core_pattern", "old": "core", "new": "x", "dependents": {}})


@given(st.binary(max_size=200) | st.lists(st.none() | st.integers() | st.text()).map(repr).map(str.encode))
def test_whatever_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    with RunFolder(tmp_path_factory.mktemp("run")) as folder:
        folder.write(f"net-{network_namespace().inode}.journal", content)
        assert Journal.load(folder).entries == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["sysctl", "old", "new", "guard", "memory", "link", "dependents"]), inner)
    ),
    max_leaves=8,
)


@given(json_values)
def test_whatever_entry(entry: object) -> None:
    """What is believed is one of the kinds and goes on to be believed."""
    try:
        known = checked(entry)
    except msgspec.ValidationError:
        return
    assert checked(known) == known


# version 1, which lay beside the control socket


@pytest.fixture
def former(tmp_path: Path) -> Path:
    path = tmp_path / "fastmasq.journal"
    place = network_namespace()
    content = {
        "version": 1, "pid": 1, "started": 0, "boot": place.boot, "namespace": [4, place.inode], "entries": [FORWARD],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    path.chmod(0o600)
    return path


def test_version_1_is_taken_over_from_its_place(folder: RunFolder, path: Path, former: Path) -> None:
    journal = Journal.load(folder, former)
    assert journal.entries == [FORWARD]
    assert journal.remarks == [f"the journal {former} of an earlier version is taken over"]
    assert not former.exists() and entries(path) == [FORWARD]


def test_version_1_of_another_namespace_is_left_alone(folder: RunFolder, former: Path) -> None:
    rewrite(former, namespace=[4, 1])
    journal = Journal.load(folder, former)
    assert (journal.entries, journal.remarks) == ([], [])
    assert former.exists()


def test_version_1_of_a_living_process_is_respected(folder: RunFolder, former: Path) -> None:
    rewrite(former, pid=os.getpid(), started=start_time(os.getpid()))
    with pytest.raises(KernelError, match=rf"in use by fastmasq \(pid {os.getpid()}\)"):
        Journal.load(folder, former)


def test_version_1_is_not_believed_where_others_may_write(folder: RunFolder, former: Path) -> None:
    former.chmod(0o606)
    journal = Journal.load(folder, former)
    assert journal.entries == []
    assert "is not gone by: everybody may write to" in journal.remarks[0]
    os.chown(former, 65534, 65534)
    assert "is not gone by" in Journal.load(folder, former).remarks[0]


def test_no_place_of_version_1(folder: RunFolder, tmp_path: Path) -> None:
    for path in (None, tmp_path / "nowhere", tmp_path / "nowhere/x"):
        assert Journal.load(folder, path).remarks == []


# the folder


def test_the_folder_is_made_for_its_owner_and_group(folder: RunFolder) -> None:
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o750


@pytest.mark.parametrize("mode", [0o770, 0o757, 0o1777])
def test_a_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(KernelError, match=f"the folder {tmp_path}/run: .* may write|may write to {tmp_path}/run"):
        RunFolder(tmp_path / "run")


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 65534, -1)
    with pytest.raises(KernelError, match="belongs to the user nobody"):
        RunFolder(tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=f"the folder {tmp_path}/nowhere/run: No such file"):
        RunFolder(tmp_path / "nowhere/run")


def test_what_lies_there_is_opened_with_care(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder.path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder.path / "fifo")
    (folder.path / "large").write_bytes(bytes(LARGEST_FILE + 1))
    (folder.path / "foreign").write_text("x")
    os.chown(folder.path / "foreign", 65534, -1)
    for name, words in (
        ("link", "symbolic links"), ("fifo", "no regular file"), ("large", "more than"), ("foreign", "belongs to"),
    ):  # fmt: skip
        with pytest.raises(KernelError, match=f"{folder.path}/{name}: .*{words}"):
            folder.read(name)
    with pytest.raises(KernelError, match="symbolic links"):
        folder.lock("link", "runs here")
    (folder.path / "x.new").symlink_to(tmp_path / "secret")
    with pytest.raises(KernelError, match="symbolic links"):
        folder.write("x", b"")
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_lock_names_its_holder_and_ends_with_it(folder: RunFolder) -> None:
    program = "import sys, time; from pathlib import Path; from fastmasq.kernel.run_folder import RunFolder\n"
    program += f"lock = RunFolder(Path({str(folder.path)!r})).lock('l', 'runs here'); print('held', flush=True)\n"
    with subprocess.Popen([sys.executable, "-c", program + "time.sleep(60)"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(KernelError, match=rf"another fastmasq \(pid {holder.pid}\) runs here; stop that one first"):
            folder.lock("l", "runs here")
        holder.kill()
    lock = folder.lock("l", "runs here")
    with pytest.raises(KernelError, match=rf"pid {os.getpid()}"):
        folder.lock("l", "runs here")
    lock.close()
    lock.close()
    assert os.listdir(folder.path) == []


def test_start_time_of_the_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None, "a zombie does not run"
    child.wait()
    assert start_time(child.pid) is None
