"""The file that sessions outlive a process in: adopted by the next, set aside if not for it, or done without."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fastmasq.daemon.state import Identity, State, adoptable
from fastmasq.kernel import takeover
from fastmasq.kernel.identity import network_namespace
from fastmasq.kernel.journal import Journal
from fastmasq.kernel.run_folder import RunFolder, file_of
from fastmasq.table import image
from fastmasq.table.image import Number
from fastmasq.table.masq import MasqTable
from tests.support.adoption import assert_consistent
from tests.support.images import rewritten
from tests.support.tables import EXTERNAL, HOST, NEW_EXTERNAL, REMOTE, SECOND, UDP, allowed, make_table, opened
from tests.support.vpn_gateway import Gateway

CAPACITY = 100_000
NOW = 1000 * SECOND
NAME = file_of(network_namespace().inode, "state")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="fastmasq-"))
    yield made
    shutil.rmtree(made)


def start(folder: Path, capacity: int = CAPACITY) -> tuple[State, MasqTable, dict[str, int]]:
    """Begin as a forwarder does; return its file, its table and what it has dropped."""
    state = State(folder, capacity)
    settings = {"buffer": state.buffer, "back": state.back} if state.buffer is not None else {}
    table = make_table(capacity=capacity, ports_per_host=65535, external=None, now_ns=NOW, secret=None, **settings)
    state.adopt(table, NOW)
    table.set_external(EXTERNAL, allowed(range(1, 65536)))
    state.begin()
    return state, table, state.dropped


def test_the_next_one_goes_on_with_all_sessions(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state, table, _ = start(folder)
    for number in range(50_000):
        if table.wants_memory:
            table.make_ready()
        opened(table, UDP, 1 + number, now_ns=NOW)
    state.close()
    assert (folder / NAME).stat().st_mode & 0o777 == 0o600
    again, table, dropped = start(folder, capacity=200_000)
    assert (again.former.externals, table.counts()["active"], dropped) == ((EXTERNAL,), 50_000, {})
    assert caplog.messages == ["adopted 50000 sessions"]
    assert [path.name for path in folder.iterdir()] == [NAME]
    again.close()
    third, table, dropped = start(folder, capacity=49_990)
    assert (table.counts()["active"], dropped) == (49_990, {"no room": 10})
    assert caplog.messages[1:] == ["adopted 49990 sessions; 10 dropped: no room 10"]
    third.close()


def test_until_it_begins_the_file_of_before_stays(folder: Path) -> None:
    first, table, _ = start(folder)
    opened(table, UDP, 40000, now_ns=NOW)
    first.close()
    before = (folder / NAME).stat().st_ino
    fails = State(folder, CAPACITY)
    assert fails.former is not None
    fails.close()
    assert [(path.name, path.stat().st_ino) for path in folder.iterdir()] == [(NAME, before)]
    again, table, dropped = start(folder)
    assert (table.counts()["adopted"], dropped) == (1, {})
    assert_consistent(table, (EXTERNAL,))
    again.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 0}, "another version of fastmasq has written it"),
        ({"version": 0, "arrays": "what it was then"}, "another version of fastmasq has written it"),
        ({"arrays": {}}, "another version of fastmasq has written it, without header"),
        ({"boot": "before"}, "it is about a network namespace that is gone"),
        ({"namespace": 1}, "it is about a network namespace that is gone"),
        ({"cookie": 1 << 40}, "it is about a network namespace that is gone"),
        ({"arrays": {"sessions": {"at": 0, "rows": 1, "size": 1 << 40, "numbers": []}}}, "it is damaged"),
        ({"arrays": "many"}, "it is damaged"),
        (None, "it is damaged"),
    ],
)
def test_what_is_not_for_us_is_set_aside(
    folder: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object] | None, reason: str
) -> None:
    state, table, _ = start(folder)
    opened(table, UDP, 40000, now_ns=NOW)
    state.close()
    with (folder / NAME).open("r+b") as file:
        identity = msgspec.json.decode(file.read(4096).rstrip(b"\0"))
        file.seek(0)
        file.write((b"{" if changes is None else msgspec.json.encode({**identity, **changes})).ljust(4096, b"\0"))
    again, table, _ = start(folder)
    assert table.counts()["active"] == 0
    assert caplog.messages == [
        f"{folder / NAME}: its sessions are not adopted: {reason}; it is now {folder / NAME}.old"
    ]
    assert sorted(path.name for path in folder.iterdir()) == [NAME, f"{NAME}.old"]
    again.close()


def test_rows_of_another_layout_are_adopted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As another version may have written them: other widths and places, and a number less."""
    caplog.set_level(logging.INFO)
    capacity = 100
    state, table, _ = start(folder, capacity)
    for port in range(1, 51):
        opened(table, UDP, port, now_ns=NOW)
    table.set_external(NEW_EXTERNAL, allowed(range(1, 65536)))
    opened(table, UDP, 1, now_ns=NOW, remote=REMOTE + 1)

    def change(number: Number) -> Number | None:
        return None if "packets" in number.name else msgspec.structs.replace(number, type=">u8")

    description, octets = rewritten(capacity, state.buffer, change)
    state.close()
    page = msgspec.json.encode(Identity.here(image.VERSION, arrays=description))
    (folder / NAME).write_bytes(page.ljust(mmap.PAGESIZE, b"\0") + octets)
    assert adoptable(folder) == (folder / NAME, "")
    again, table, dropped = start(folder, capacity)
    assert (table.counts()["active"], dropped, caplog.messages) == (51, {}, ["adopted 51 sessions"])
    assert again.former.externals == (NEW_EXTERNAL,)
    assert_consistent(table, (EXTERNAL, NEW_EXTERNAL))
    again.close()


def test_a_file_of_tunnels_of_another_version_is_said_before_an_upgrade(folder: Path) -> None:
    state, gateway = State(folder, CAPACITY), Gateway()
    state.begin(gateway.vpn)
    assert adoptable(folder) == (folder / NAME, "")
    file = folder / NAME.replace("state", "tunnels")
    octets = file.read_bytes()
    file.write_bytes(octets.replace(b'"version":1', b'"version":2'))
    assert adoptable(folder)[1] == f"{file}: another version of fastmasq has written it"
    state.close()


def test_a_file_that_ends_early_has_fewer_sessions(folder: Path) -> None:
    state, table, _ = start(folder)
    opened(table, UDP, 40000, now_ns=NOW)
    state.close()
    os.truncate(folder / NAME, 8192 + 100)
    again, table, dropped = start(folder)
    assert (table.counts()["active"], dropped) == (0, {})
    again.close()


def test_a_file_that_others_may_write_is_not_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for wrong in (lambda: (folder / NAME).chmod(0o620), lambda: os.chown(folder / NAME, 12345, 0)):
        (folder / NAME).write_bytes(b"")
        wrong()
        state, table, _ = start(folder)
        assert state.path is None
        opened(table, UDP, 40000, now_ns=NOW)
        assert "it is no regular file that only root or fastmasq may write" in caplog.messages[-1]
        (folder / NAME).unlink()
    (folder / NAME).symlink_to("/etc/passwd")
    state, _, _ = start(folder)
    assert state.path is None and Path("/etc/passwd").exists()


def test_tunnels_that_are_nothing_for_us_are_set_aside(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = folder / NAME.replace("state", "tunnels")
    for octets, mode, words in ((b"{}\n", 0o600, "it is damaged"), (b"", 0o666, "everybody may write to")):
        file.write_bytes(octets)
        file.chmod(mode)
        caplog.clear()
        state, gateway = State(folder, CAPACITY), Gateway()
        state.adopt_tunnels(gateway.vpn, NOW)
        state.begin(gateway.vpn)
        [line] = caplog.messages
        assert words in line and line.startswith(f"{file}: its calls and SAs are not adopted: ")
        assert line.endswith(f"; it is now {file}.old") and (folder / f"{file.name}.old").read_bytes() == octets
        assert file.stat().st_mode & 0o777 == 0o600
        state.close()


def test_a_folder_that_is_no_tmpfs_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, table, _ = start(tmp_path)
    opened(table, UDP, 40000, now_ns=NOW)
    assert state.path is None and list(tmp_path.iterdir()) == []
    assert caplog.messages == [f"sessions do not outlive this process: {tmp_path} is no tmpfs ([state] directory)"]


def test_without_room_a_part_is_the_process_s_own(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 000 rows the file gets 32 768; the others are there all the same, and are not adopted."""
    state, table, _ = start(folder)

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", refuse)
        for number in range(60_000):
            if table.wants_memory:
                table.make_ready()
            opened(table, UDP, 1 + number, now_ns=NOW)
    assert caplog.messages == [f"{folder / NAME}: No space left on device: not all sessions outlive this process"]
    found = [table.find(UDP, 0, HOST, 1 + number, REMOTE, 80) for number in (0, 32_767, 32_768, 59_999)]
    assert found == [(0, 0), (32_767, 0), (32_768, 0), (59_999, 0)]
    state.close()
    again, table, dropped = start(folder)
    assert (table.counts()["adopted"], dropped) == (32_768, {})
    again.close()


def test_two_addresses_in_the_file(folder: Path) -> None:
    state, table, _ = start(folder)
    opened(table, UDP, 40000, now_ns=NOW)
    table.set_external(NEW_EXTERNAL, allowed(range(1, 65536)))
    opened(table, UDP, 40001, now_ns=NOW)
    state.close()
    again, table, _ = start(folder)
    assert again.former.externals == (NEW_EXTERNAL,)
    assert_consistent(table, (EXTERNAL, NEW_EXTERNAL))
    again.close()


def test_it_goes_with_what_is_put_back(folder: Path, tmp_path: Path) -> None:
    state, _, _ = start(folder)
    state.close()
    (folder / f"{NAME}.old").write_bytes(b"")
    with RunFolder(tmp_path) as run_folder:
        Journal(run_folder).append({"state": str(folder / NAME)})
    assert takeover.release(tmp_path).left == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "net-1.state", "/run/../net-1.state/x", "/run/net-1.state.old"])
def test_a_journal_names_no_other_files(tmp_path: Path, path: str) -> None:
    with RunFolder(tmp_path) as run_folder, pytest.raises(msgspec.ValidationError):
        Journal(run_folder).append({"state": path})
