"""What goes into the source distribution and into wheels: all that a build needs, all that a run needs, no more."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path, PurePath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROGRAM = "fastmasq/offload/flow.bpf.c"  # which the kernel runs


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> tuple[set[str], set[str]]:
    """Return the names in the source distribution and, but for the extensions, in a wheel, both from the root.

    They are made of a copy: a source distribution is gathered in the tree that it is of, which other tests read.
    What only tests use lies there as well, and is in neither.
    """
    folder = tmp_path_factory.mktemp("packed")
    tree = folder / "tree"
    for name in ("fastmasq", "bench", "tests/support"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    source = ["egg_info", "--egg-base", str(folder), "sdist", "--dist-dir", str(folder)]
    wheel = ["build_py", "--build-lib", str(folder / "wheel")]
    subprocess.run([sys.executable, "setup.py", "--quiet", *source, *wheel], cwd=tree, check=True, timeout=60)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {member.name.partition("/")[2] for member in packed if member.isfile()}
    return names, {str(path.relative_to(folder / "wheel")) for path in (folder / "wheel").rglob("*") if path.is_file()}


def tracked(folder: str, *suffixes: str) -> set[str]:
    """Return the project's own files of a folder with these suffixes."""
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in suffixes}


def test_the_source_distribution_has_what_is_built_and_nothing_that_is_made(packed):
    names, _ = packed
    sources = (".py", ".pyx", ".pxd")
    assert PROGRAM in names
    assert tracked("fastmasq", *sources, ".md", ".toml", ".rules") | tracked("bench", *sources) <= names
    assert {"setup.py", "pyproject.toml", "README.md", "fastmasq/LICENSE"} <= names
    assert {PurePath(name).suffix for name in names - {PROGRAM}} & {".c", ".o", ".so", ".pyc"} == set()
    assert not [name for name in names if name.startswith("tests/")]


def test_a_wheel_has_modules_and_data_and_no_sources_of_extensions(packed):
    _, names = packed
    assert tracked("fastmasq", ".py", ".md", ".toml", ".rules") <= names
    assert {"fastmasq/LICENSE", "fastmasq/templates/updown/fastmasq-spi", "fastmasq/templates/hooks/dyndns.sh"} <= names
    assert {PurePath(name).suffix for name in names} & {".c", ".pyx", ".so", ".pyc"} == set()


def test_the_bundle_has_what_the_package_needs_in_versions_that_it_allows():
    pins = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "scripts/packaging/requirements.txt").read_text(), re.MULTILINE)
    )
    pins["numpy"] = re.search(r"^numpy=(\S+)$", (ROOT / "scripts/build-binary").read_text(), re.MULTILINE)[1]
    with (ROOT / "pyproject.toml").open("rb") as file:
        metadata = tomllib.load(file)
    for needed in map(Requirement, [*metadata["build-system"]["requires"], *metadata["project"]["dependencies"]]):
        assert needed.specifier.contains(pins.get(needed.name, "")), f"{needed}: pinned is {pins.get(needed.name)}"
