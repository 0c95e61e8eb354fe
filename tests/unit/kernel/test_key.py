"""The key for external ports: made once, for nobody else to read, and made anew when it is not as it should be."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastmasq.kernel.key import NAME, read_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "fastmasq"


def test_it_is_made_once_and_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = read_key(folder)
    assert len(key) == 16 and caplog.messages == [f"{folder}/key: there is none; a key for external ports is made anew"]
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o600
    assert os.listdir(folder) == [NAME]
    caplog.clear()
    assert read_key(folder) == key and caplog.messages == []


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"", 0o600, "there is none"),
        (b"x" * 15, 0o600, "it has not 16 octets"),
        (b"x" * 17, 0o600, "it has not 16 octets"),
        (b"x" * 16, 0o640, "others may read it"),
        (b"x" * 16, 0o604, "others may read it"),
    ],
)
def test_one_that_is_not_as_it_should_be_is_made_anew(
    folder: Path, caplog: pytest.LogCaptureFixture, content: bytes, mode: int, said: str
) -> None:
    first = read_key(folder)
    (folder / NAME).write_bytes(content)
    (folder / NAME).chmod(mode)
    caplog.clear()
    key = read_key(folder)
    assert len(key) == 16 and key not in (first, content)
    assert caplog.messages == [f"{folder}/key: {said}; a key for external ports is made anew"]
    assert stat.S_IMODE((folder / NAME).stat().st_mode) == 0o600 and read_key(folder) == key


def test_starts_at_once_have_one_key(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: read_key(folder), range(32)))) == 1


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo", "writable", "strangers", "open folder"])
def test_what_others_may_have_put_there_is_left_alone(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    folder.mkdir(mode=0o750)
    place, elsewhere = folder / NAME, tmp_path / "elsewhere"
    if kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind in ("link", "dangling"):
        place.symlink_to(elsewhere)
        if kind == "link":
            elsewhere.write_bytes(b"x" * 16)
            elsewhere.chmod(0o600)
    else:
        place.write_bytes(b"x" * 16)
        place.chmod(0o620 if kind == "writable" else 0o600)
        if kind == "strangers":
            os.chown(place, 65534, 65534)
        if kind == "open folder":
            folder.chmod(0o777)
    before = place.lstat()
    one, other = read_key(folder), read_key(folder)
    assert b"x" * 16 not in (one, other) and one != other
    assert len(caplog.messages) == 2 and str(folder) in caplog.text
    assert all("are given others after the next start" in each for each in caplog.messages)
    assert place.lstat() == before and elsewhere.exists() == (kind == "link")
