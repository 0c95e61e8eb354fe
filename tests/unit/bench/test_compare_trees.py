"""The worktree of another commit: built by its own scripts, used again, and free of what other commits left there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fastmasq.errors import FastmasqError
from fastmasq_bench.compare.trees import built, this_tree

# An installation that takes no time: the "Python" says where its tree is, and a file counts how often it was built.
INSTALL = """#!/bin/sh
cd "$(dirname "$0")/.."
mkdir -p .venv/bin
printf '#!/bin/sh\\necho "%s/fastmasq/__init__.py"\\n' "$PWD" >.venv/bin/python
chmod 755 .venv/bin/python
echo built >>.venv/builds
"""


def git(project: Path, *arguments: str) -> str:
    author = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
    argv = ["git", "-C", str(project), *author, *arguments]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def commit(project: Path, tag: str) -> None:
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", tag)
    git(project, "tag", tag)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with two commits, tagged first and second; the second has fastmasq/fast.pyx in plain Python."""
    root = tmp_path / "project"
    (root / "scripts").mkdir(parents=True)
    (root / "fastmasq").mkdir()
    (root / ".gitignore").write_text(".venv/\nbuild/\n*.so\n")
    (root / "scripts/install").write_text(INSTALL)
    (root / "scripts/install").chmod(0o755)
    (root / "fastmasq/__init__.py").touch()
    (root / "fastmasq/fast.pyx").touch()
    (root / "fastmasq/other.pyx").touch()
    git(tmp_path, "init", "--quiet", str(root))
    commit(root, "first")
    (root / "fastmasq/fast.pyx").rename(root / "fastmasq/fast.py")
    commit(root, "second")
    return root


def test_a_commit_is_built_in_a_worktree_and_nothing_shows_in_this_tree(project: Path) -> None:
    with built(project, "first") as tree:
        assert tree.name == "first" and tree.commit == git(project, "rev-parse", "--short", "first")
        assert (tree.root / "fastmasq/fast.pyx").exists()
        assert tree.command == (str(tree.root / ".venv/bin/python"), "-P", "-m", "fastmasq")
    assert git(project, "status", "--porcelain") == ""


def test_the_next_comparison_builds_in_the_same_place_without_what_the_last_one_left(project: Path) -> None:
    with built(project, "first") as tree:
        for name in ("fast", "other"):
            (tree.root / f"fastmasq/{name}.cpython-311.so").touch()
        (tree.root / "fastmasq/other.pyx").write_text("a change by hand")
    with built(project, "second") as again:
        assert again.root == tree.root and (again.root / ".venv/builds").read_text().split() == ["built"] * 2
        assert (again.root / "fastmasq/fast.py").exists()
        assert [path.name for path in again.root.glob("fastmasq/*.so")] == ["other.cpython-311.so"]
        assert (again.root / "fastmasq/other.pyx").read_text() == ""


def test_a_worktree_that_somebody_removed_is_made_again(project: Path) -> None:
    with built(project, "first"):
        pass
    shutil.rmtree(project / "build")
    with built(project, "first") as tree:
        assert (tree.root / "fastmasq/fast.pyx").exists()


@pytest.mark.parametrize("reference", ["nowhere", "--help", ""])
def test_what_is_no_commit_is_refused(project: Path, reference: str) -> None:
    with pytest.raises(FastmasqError, match=f"{reference!r} is no commit of "), built(project, reference):
        pass


def test_a_commit_that_does_not_build_is_refused(project: Path) -> None:
    (project / "scripts/install").write_text("#!/bin/sh\nexit 3\n")
    commit(project, "broken")
    with pytest.raises(FastmasqError, match=r"broken: scripts/install in .* ended with 3"), built(project, "broken"):
        pass


def test_two_comparisons_cannot_share_the_worktree(project: Path) -> None:
    with built(project, "first"), pytest.raises(FastmasqError, match="another comparison"), built(project, "second"):
        pass


def test_this_tree_is_named_with_its_changes(project: Path) -> None:
    subprocess.run([project / "scripts/install"], check=True)
    head = git(project, "rev-parse", "--short", "HEAD")
    assert this_tree(project).commit == head
    (project / "fastmasq/other.pyx").write_text("changed")
    assert this_tree(project).commit == f"{head} with changes"


def use_python(project: Path, says: str) -> None:
    python = project / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{says}\n")
    python.chmod(0o755)


@pytest.mark.parametrize(
    ("says", "complaint"),
    [
        ("echo /usr/lib/fastmasq/__init__.py", "runs /usr/lib/fastmasq/__init__.py, which is not in"),
        ("echo 'No module named fastmasq' >&2; exit 1", "this tree is not built: No module named fastmasq"),
    ],
)
def test_a_tree_that_would_run_another_program_is_refused(project: Path, says: str, complaint: str) -> None:
    use_python(project, says)
    with pytest.raises(FastmasqError, match=complaint):
        this_tree(project)


def test_a_tree_without_an_environment_is_refused(project: Path) -> None:
    with pytest.raises(FastmasqError, match="this tree is not built: there is no program"):
        this_tree(project)
