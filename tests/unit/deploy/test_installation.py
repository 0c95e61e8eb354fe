"""Installing into a root: all or nothing, never over what is not ours, completed if interrupted, gone without trace."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from fastmasq.deploy import installation, manifest
from fastmasq.deploy.entries import Entry, File, Link
from fastmasq.deploy.manifest import Manifest
from fastmasq.deploy.root import Root
from fastmasq.errors import KernelError

CONFIG = File("/etc/fastmasq.toml", "sample\n", once=True)
SCRIPT = File("/etc/init.d/fastmasq", "#!/bin/sh\n", mode=0o755)
UNIT = File("/usr/lib/systemd/system/fastmasq.service", "[Unit]\n")
NAME = Link("/sbin/ipchains", "/opt/fastmasq/bin/ipchains")
ENTRIES: list[Entry] = [UNIT, CONFIG, SCRIPT, NAME]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Return the root of a host that has a configuration of another program, and its programs in usr/sbin."""
    folder = tmp_path / "root"
    (folder / "usr/sbin").mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "etc/other.conf").write_text("other\n")
    (folder / "sbin").symlink_to("/usr/sbin")  # absolute, as some images have it
    return Root(str(folder))


def tree(root: Root) -> dict[str, str]:
    """Return all there is in a root: folders, targets of links, and contents with their modes."""
    found = {}
    for place in sorted(root.folder.rglob("*")):
        name = str(place.relative_to(root.folder))
        if place.is_symlink():
            found[name] = f"-> {os.readlink(place)}"
        elif place.is_dir():
            found[name] = "folder"
        else:
            found[name] = f"{place.stat().st_mode & 0o777:o} {place.read_text()}"
    return found


def install(root: Root, entries: Iterable[Entry] = ENTRIES) -> list[str]:
    return list(installation.install(root, list(entries)))


def uninstall(root: Root) -> list[str]:
    return list(installation.uninstall(root))


def test_all_of_it_is_there_and_all_of_it_goes(root: Root) -> None:
    before = tree(root)
    assert install(root) == [f"{entry.path}: installed" for entry in ENTRIES]
    after = tree(root)
    assert after["etc/init.d/fastmasq"] == "755 #!/bin/sh\n"
    assert after["etc/fastmasq.toml"] == "644 sample\n"
    assert after["usr/sbin/ipchains"] == "-> /opt/fastmasq/bin/ipchains", "an absolute link of an image stays in it"
    assert len(uninstall(root)) == len(ENTRIES)
    assert tree(root) == before
    with pytest.raises(KernelError, match="nothing is installed"):
        uninstall(root)


def test_twice_is_once(root: Root) -> None:
    install(root)
    once, inode = tree(root), root.at(UNIT.path).stat().st_ino
    assert install(root) == ["/etc/fastmasq.toml: kept as it is"]
    assert (tree(root), root.at(UNIT.path).stat().st_ino) == (once, inode)


def test_what_is_in_the_way_is_said_at_once_and_nothing_is_written(root: Root) -> None:
    root.at(NAME.path).write_text("another program's")
    root.at("/usr/lib").write_text("no folder")
    before = tree(root)
    with pytest.raises(KernelError) as caught:
        install(root)
    assert str(caught.value).splitlines() == [
        f"{root.folder}/usr/lib is no folder, so there can be no {root.folder}/usr/lib/systemd/system; move it away",
        f"{root.folder}/usr/sbin/ipchains is there and is not fastmasq's; move it away",
        "nothing was installed",
    ]
    assert tree(root) == before


def test_a_file_with_our_content_that_we_have_not_written_is_not_ours(root: Root) -> None:
    root.at(NAME.path).symlink_to(NAME.target)
    with pytest.raises(KernelError, match="is not fastmasq's"):
        install(root)


@pytest.mark.parametrize("finish", [install, uninstall])
def test_an_interrupted_installation_is_told_and_finished(
    root: Root, finish: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at each step in turn: after it, all is as after the first try, or as before it."""
    before = tree(root)
    install(root)
    whole = tree(root)
    uninstall(root)
    steps = 0
    while True:
        left = steps
        replace = os.replace

        def full(source: Path, target: Path, replace: object = replace) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            replace(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", full)
            try:
                install(root)
            except KernelError as error:
                told = "the next `fastmasq install` completes this one" if steps else "nothing was installed"
                assert f"No space left on device; {told}" in str(error)
            else:
                break
        if finish is install:
            assert (install(root)[0].startswith("an earlier installation was interrupted")) == (steps > 0)
            assert tree(root) == whole
            uninstall(root)
        elif steps:
            uninstall(root)
        assert tree(root) == before
        steps += 1
    assert steps > len(ENTRIES)


def test_what_the_administrator_has_changed_in_etc_is_kept(root: Root) -> None:
    install(root)
    root.at(SCRIPT.path).write_text("#!/bin/sh\n# mine\n")
    root.at(CONFIG.path).write_text("mine\n")
    assert install(root) == ["/etc/fastmasq.toml: kept as it is", "/etc/init.d/fastmasq: kept as it is"]
    lines = uninstall(root)
    assert "/etc/fastmasq.toml: kept, since it was changed" in lines
    assert root.at(CONFIG.path).read_text() == "mine\n"
    assert root.at(SCRIPT.path).exists()
    assert not root.exists(UNIT.path)


def test_a_configuration_that_was_there_is_nobodys_but_the_administrators(root: Root) -> None:
    root.at(CONFIG.path).write_text("mine\n")
    assert "/etc/fastmasq.toml: kept as it is" in install(root)
    assert len(uninstall(root)) == len(ENTRIES) - 1
    assert root.at(CONFIG.path).read_text() == "mine\n"


def test_what_was_changed_elsewhere_is_not_written_over_and_not_removed(root: Root) -> None:
    install(root)
    root.at(NAME.path).unlink()
    root.at(NAME.path).write_text("a package's")
    with pytest.raises(KernelError, match="ipchains was changed since it was installed; move it away"):
        install(root)
    assert "/sbin/ipchains: kept, since it was changed" in uninstall(root)
    assert root.at(NAME.path).read_text() == "a package's"


def test_a_newer_version_takes_the_place_of_an_older_one(root: Root) -> None:
    install(root)
    newer = [File(UNIT.path, "[Unit]\n# newer\n"), File(CONFIG.path, "newer sample\n", once=True), SCRIPT]
    assert install(root, newer) == [
        "/etc/fastmasq.toml: kept as it is",
        f"{UNIT.path}: installed",
        "/sbin/ipchains: removed",
    ]
    assert root.at(CONFIG.path).read_text() == "sample\n"
    uninstall(root)
    assert not root.exists("/usr/lib")


def test_folders_that_others_use_meanwhile_stay(root: Root) -> None:
    install(root)
    root.at("/usr/lib/systemd/system/other.service").write_text("")
    uninstall(root)
    assert root.is_folder("/usr/lib/systemd/system")
    assert not root.exists("/etc/init.d")


@pytest.mark.parametrize("content", ["", "{}", '{"version": 1}', "[]"])
def test_a_damaged_manifest_is_said_and_nothing_touched(root: Root, content: str) -> None:
    install(root)
    root.at(manifest.PATH).write_text(content)
    before = tree(root)
    for attempt in (install, uninstall):
        with pytest.raises(KernelError, match="is damaged"):
            attempt(root)
    assert tree(root) == before


def test_a_manifest_of_another_version_is_left_to_it(root: Root) -> None:
    install(root)
    root.at(manifest.PATH).write_text('{"version": 2}')
    with pytest.raises(KernelError, match="written by another version"):
        uninstall(root)


def test_links_in_a_circle_are_said(root: Root) -> None:
    root.at("/usr/sbin").rmdir()
    root.at("/usr/sbin").symlink_to("../sbin")
    with pytest.raises(KernelError, match="too many symbolic links"):
        install(root)


def test_a_root_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no such folder"):
        Root(str(tmp_path / "nowhere"))


def test_the_manifest_is_readable_for_all_and_names_each_file(root: Root) -> None:
    install(root)
    assert root.at(manifest.PATH).stat().st_mode & 0o777 == 0o644
    known = Manifest.read(root)
    assert list(known.entries) == [entry.path for entry in ENTRIES]
    assert known.is_complete
