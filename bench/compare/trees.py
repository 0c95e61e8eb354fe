"""What is compared: this tree, and another commit of it in a git worktree, built by its own scripts, or a program.

The worktree stays in build/compare, one for all commits: the next comparison builds only what differs.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastmasq.errors import FastmasqError

_WHERE_IS_IT = "import fastmasq; print(fastmasq.__file__)"
_BUILT_FOLDERS = ("fastmasq", "bench")


@dataclass(frozen=True)
class Tree:
    """A built tree: what it is called, which commit it is, where it is, and the Python of its environment."""

    name: str
    commit: str
    root: Path
    python: Path

    @property
    def command(self) -> tuple[str, ...]:
        """How its program is started; -P keeps a fastmasq in the current directory from being taken for it."""
        return (str(self.python), "-P", "-m", "fastmasq")

    def check(self) -> None:
        """Raise FastmasqError unless its program is its own."""
        place = _run([str(self.python), "-P", "-c", _WHERE_IS_IT], f"{self.name} is not built")
        if not Path(place).resolve().is_relative_to(self.root.resolve()):
            raise FastmasqError(f"{self.name}: {self.python} runs {place}, which is not in {self.root}")


@dataclass(frozen=True)
class Program:
    """A program that is there already, for example a bundle: what it is called, its version, and how it is started."""

    name: str
    commit: str
    command: tuple[str, ...]


def program_at(path: str) -> Program | None:
    """Return the program of this path; None if there is none. Raises FastmasqError if it is no fastmasq."""
    file = Path(path).absolute()
    if not (file.is_file() and os.access(file, os.X_OK)):
        return None
    version = _run([str(file), "--version"], f"{path} does not run")
    if not version.startswith("fastmasq "):
        raise FastmasqError(f"{path} is no fastmasq: --version says {version!r}")
    return Program(file.name, version.removeprefix("fastmasq "), (str(file),))


def this_tree(project: Path) -> Tree:
    """Return the tree at `project` as it stands, changes that are not committed included."""
    commit = _git(project, "describe", "--always", "--dirty= with changes", "--exclude=*")
    tree = Tree("this tree", commit, project, _python_of(project))
    tree.check()
    return tree


@contextmanager
def built(project: Path, reference: str) -> Iterator[Tree]:
    """Check out and build what git calls `reference`; the worktree is ours until the end of the context.

    Raises FastmasqError if there is no such commit, it does not build, or another comparison has the worktree.
    """
    asked = ["git", "-C", str(project), "rev-parse", "--verify", "--end-of-options", f"{reference}^{{commit}}"]
    commit = _run(asked, f"{reference!r} is no commit of {project}")
    folder = project / "build/compare"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FastmasqError(f"another comparison is at work in {folder}: wait for its end") from None
        yield _build(project, folder / "tree", reference, commit)


def _build(project: Path, root: Path, reference: str, commit: str) -> Tree:
    if (root / ".git").exists():
        _git(root, "checkout", "--quiet", "--force", "--detach", commit)
        _git(root, "clean", "--quiet", "--force", "-d")  # a copy of this project may have changed what git knows of it
    else:
        _git(project, "worktree", "add", "--quiet", "--force", "--detach", str(root), commit)
    _remove_orphans(root)
    done = subprocess.run([root / "scripts/install"], stdout=sys.stderr)
    if done.returncode:
        raise FastmasqError(f"{reference}: scripts/install in {root} ended with {done.returncode}")
    tree = Tree(reference, _git(root, "describe", "--always", "--exclude=*"), root, _python_of(root))
    tree.check()
    return tree


def _remove_orphans(root: Path) -> None:
    """Remove extensions whose source is not in this commit: Python takes them before a module of that name."""
    for folder in _BUILT_FOLDERS:
        for extension in (root / folder).rglob("*.so"):
            if not extension.with_name(extension.name.partition(".")[0] + ".pyx").exists():
                extension.unlink()


def _python_of(root: Path) -> Path:
    return root / ".venv/bin/python"


def _git(folder: Path, *arguments: str) -> str:
    return _run(["git", "-C", str(folder), *arguments], f"git {arguments[0]}")


def _run(argv: list[str], what: str) -> str:
    """Return what a program prints. Raises FastmasqError with its last line of complaint."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True)
    except FileNotFoundError:
        raise FastmasqError(f"{what}: there is no program {argv[0]!r}") from None
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise FastmasqError(f"{what}: {complaint[-1]}")
    return done.stdout.strip()
