"""Has nft itself read a file of its rules, in an empty network namespace, and returns what it then lists.

So what stands in /etc is understood as nft understands it: several rules a line, variables, sets, includes. The
namespace is that of a process of its own; it ends with it, and the host's rules are not touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from fastmasq.errors import ConfigurationError, KernelError

_TIMEOUT_S = 60
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_SCRIPT = 'nft -f "$1" && nft -j list ruleset && echo && nft -a list ruleset'
_PLACE = re.compile(r"^\s*(?:table (?P<family>\w+) (?P<table>\S+) \{|chain (?P<chain>\S+) \{)")
_RULE = re.compile(r"^\s*(?P<text>\S.*?) # handle (?P<handle>\d+)$")

Written = dict[tuple[str, str, str, int], str]
"""How nft writes each rule: by family, table, chain and handle. A table that is dormant is there without a chain."""


def load(path: str, text: str | None = None) -> tuple[str, Written]:
    """Return nft's JSON of a file, and how nft writes it.

    text: what to read in place of the file. Raises ConfigurationError with nft's own line where it refuses the file;
    KernelError where it cannot be run.
    """
    programs = [shutil.which(name, path=_PATH) for name in ("unshare", "nft")]
    if None in programs:
        missing = "unshare (package util-linux)" if programs[0] is None else "nft (package nftables)"
        raise KernelError(f"{path} is read by nft itself, and there is no program {missing}")
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = [programs[0], *mapped, "--net", "sh", "-c", _SCRIPT, "sh", path if text is None else "-"]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False,
        env={**os.environ, "PATH": _PATH},
    )  # fmt: skip
    if done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if line.strip())
        if said.startswith("unshare"):
            raise KernelError(f"{path} is read by nft in a namespace of its own, which needs root: {said}")
        name = "standard input" if text is not None else path
        raise ConfigurationError(f"nft refuses {name}:\n{said.replace('/dev/stdin', name)}")
    listed, _, text = done.stdout.partition("\n")
    return listed, _written(text)


def _written(text: str) -> Written:
    """Return the rules of `nft -a list ruleset` by their places."""
    found: Written = {}
    family = table = chain = ""
    for line in text.splitlines():
        place, rule = _PLACE.match(line), _RULE.match(line)
        if place and place["family"]:
            family, table, chain = place["family"], place["table"], ""
        elif place:
            chain = place["chain"]
        elif line.strip() == "flags dormant":
            found[family, table, "", 0] = line.strip()
        elif rule and chain:
            found[family, table, chain, int(rule["handle"])] = rule["text"]
    return found
