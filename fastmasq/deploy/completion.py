"""Scripts that complete the words of `fastmasq` in a shell: click's own, which ask the program."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.shell_completion import BashComplete, ShellComplete, ZshComplete

from fastmasq.deploy.root import Root

BASH = "/usr/share/bash-completion/completions/fastmasq"
_ZSH_FOLDERS = ("/usr/share/zsh/vendor-completions", "/usr/share/zsh/site-functions")  # Debian's, everybody's
_ASKED_BY = "_FASTMASQ_COMPLETE"


def scripts(root: Root, commands: click.Group) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of the script for each shell."""
    folder = next((folder for folder in _ZSH_FOLDERS if root.is_folder(folder)), _ZSH_FOLDERS[-1])
    for path, shell in ((BASH, BashComplete), (f"{folder}/_fastmasq", ZshComplete)):
        completer = shell(commands, {}, "fastmasq", _ASKED_BY)
        yield path, ShellComplete.source(completer).lstrip("\n")  # that of bash would run bash, to learn its version
