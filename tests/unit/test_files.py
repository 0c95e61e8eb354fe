"""Files that decide what we do: only what nobody else can have written is read, at once, and not without end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fastmasq import files

NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "folder/file"
    path.parent.mkdir()
    path.write_bytes(b"content")
    return path


def refusal(path: Path | str, largest: int = 100) -> str:
    with pytest.raises(OSError) as refused:
        files.read(path, largest)
    return refused.value.strerror


def test_a_file_of_our_own_is_read(file: Path) -> None:
    assert files.read(file, 7) == b"content"
    assert files.read(os.path.relpath(file), 7) == b"content"
    assert files.read(f"{file.parent}/../folder/./file", 7) == b"content"


def test_a_link_is_followed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder/file")
    (tmp_path / "folders").symlink_to(file.parent)
    assert files.read(tmp_path / "link", 7) == files.read(tmp_path / "folders/file", 7) == b"content"


def test_one_that_is_too_large_is_not_read(file: Path) -> None:
    assert refusal(file, 6) == "it has more than 6 octets"
    assert refusal("/dev/zero") == "it is no regular file"


def test_nobody_waits_for_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / "fifo") == "it is no regular file"
    assert refusal(tmp_path) == "Is a directory"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "symbolic links" in refusal(tmp_path / "a")


def test_what_everybody_may_write_is_refused(file: Path) -> None:
    file.chmod(0o666)
    assert refusal(file) == f"everybody may write to {file} (chmod o-w {file})"
    file.chmod(0o660)
    assert files.read(file, 7) == b"content", "a group is chosen by the owner"
    file.parent.chmod(0o777)
    assert f"everybody may write to {file.parent}" in refusal(file)
    file.parent.chmod(0o777 | stat.S_ISVTX)
    assert files.read(file, 7) == b"content"


def test_what_belongs_to_another_user_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(file, NOBODY, -1)
    assert refusal(file) == f"{file} belongs to the user nobody (chown root {file})"
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    assert files.read(file, 7) == b"content", "whoever may call sudo may do this, too"
    monkeypatch.setenv("SUDO_UID", "9" * 5000)
    assert files.read(file, 7, and_of={NOBODY}) == b"content"
    os.chown(file, 0, -1)
    os.chown(file.parent, NOBODY, -1)
    assert "belongs to the user nobody" in refusal(file)
    os.chown(file.parent, 0, -1)
    link = tmp_path / "link"
    link.symlink_to(file)
    os.chown(link, NOBODY, -1, follow_symlinks=False)
    assert refusal(link).startswith(f"{link} belongs to the user nobody"), "who can make the link can make another"


def test_whoever_has_called_sudo_might_not_read_the_file_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert files.caller_may_see()
    monkeypatch.setenv("SUDO_UID", str(NOBODY))
    assert not files.caller_may_see()
    monkeypatch.setenv("SUDO_UID", "0")
    assert files.caller_may_see()
