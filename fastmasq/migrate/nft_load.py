"""Has nft itself read a file of its rules, in an empty network namespace, and returns what it then lists.

So what stands in /etc is understood as nft understands it: several rules a line, variables, sets, includes. The
namespace is that of a process of its own; it ends with it, and the host's rules are not touched. Links that the file
asks for by their numbers (iif, oif) or hooks (flowtables, netdev) must exist: it gets links of these names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastmasq.errors import ConfigurationError, KernelError

_TIMEOUT_S = 60
_MOST_LINKS = 128
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_SCRIPT = """
file=$1 options=$2
shift 2
while [ $# -gt 1 ]; do
    ip link add name "$1" type veth peer name "$2" >/dev/null 2>&1
    shift 2
done
nft $options -f "$file" && nft -j list ruleset && echo && nft -s -a list ruleset
"""
_PLACE = re.compile(r"^\s*(?:table (?P<family>\w+) (?P<table>\S+) \{|chain (?P<chain>\S+) \{)")
_RULE = re.compile(r"^\s*(?P<text>\S.*?) # handle (?P<handle>\d+)$")
_NAMING = re.compile(r"\b(?:iif|oif|devices?|define\s+\S+)\b\s*[!=]*\s*(\{[^}]*\}|\S+)")
_FLOWS = re.compile(r"(?P<table>\bflowtable\s+\S+\s*\{(?:[^{}]|\{[^{}]*\})*\})|\bflow\s+(?:add|offload)\s+@[\w.-]+")
_LINK = re.compile(r"[A-Za-z0-9_][\w.@-]{0,14}(?![\w.@:/-])", re.ASCII)
_NAMING_AS_JSON = re.compile(r'"(?:dev|right)":\s*("[^"]*"|\[[^\]]*\]|\{\s*"set":\s*\[[^\]]*\])')
_SPARE = "fastmasq.spare"
_HINT = "If it is about a link, name that with --inside or --outside, or import what `nft -j list ruleset` prints."
OF_IPTABLES = "there are rules of iptables among these, which nft cannot tell; import what iptables-save prints"
_EXTENSION = re.compile(r"\bxt (?:match|target)\b|xtables compat")
_NO_LINK = ("Interface does not exist", "No such file or directory", "No such device")

Written = dict[tuple[str, str, str, int], str]
"""How nft writes each rule: by family, table, chain and handle. With handle 0 there are a chain's hook, and, without a
chain, a table that is dormant."""


def load(path: str, text: str | None = None, links: Iterable[str] = ()) -> tuple[str, Written]:
    """Return nft's JSON of a file, and how nft writes it.

    text: what to read in place of the file. links: what links there may be, beside those that it names. Raises
    ConfigurationError with nft's own lines where it refuses the file; KernelError where it cannot be run.
    """
    programs = [shutil.which(name, path=_PATH) for name in ("unshare", "nft")]
    if None in programs:
        missing = "unshare (package util-linux)" if programs[0] is None else "nft (package nftables)"
        raise KernelError(f"{path} is read by nft itself, and there is no program {missing}")
    written = Path(path).read_text(errors="replace") if text is None else text
    names = _in_pairs([*_links_in(written), *links])
    done = _run(programs, path if text is None else "-", text, names)
    if done.returncode and (without := _FLOWS.sub(_blanked, written)) != written:
        done = _run(programs, "-", without, names)
    if done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if line.strip())
        if said.startswith("unshare"):
            raise KernelError(f"{path} is read by nft in a namespace of its own, which needs root: {said}")
        name = "standard input" if path == "-" else path
        hint = f"\n{_HINT}" if any(words in said for words in _NO_LINK) else ""
        hint = f"\n{OF_IPTABLES.capitalize()}." if _EXTENSION.search(said) else hint
        raise ConfigurationError(f"nft refuses {name}:\n{said.replace('/dev/stdin', name)}{hint}")
    listed, _, text = done.stdout.partition("\n")
    return listed, _written(text)


def _run(programs: list[str], path: str, text: str | None, links: list[str]) -> subprocess.CompletedProcess[str]:
    """Have nft read a file, or a text, and list what it has read; links: pairs of names."""
    unshare = [programs[0], *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]
    options = "-j" if text is not None and is_json(text) else ""
    return subprocess.run(
        [*unshare, "sh", "-c", _SCRIPT, "sh", path, options, *links],
        input=text, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False,
        env={**os.environ, "PATH": _PATH},
    )  # fmt: skip


def _blanked(match: re.Match[str]) -> str:
    """Return what stands for a flowtable, or a statement about one, where the kernel has none: they decide nothing."""
    words = "" if match["table"] else "counter"
    return words + re.sub(r"[^\n]", " ", match[0][len(words) :])


def is_json(text: str) -> bool:
    """Whether rules are written as `nft -j list ruleset` prints them."""
    return text.lstrip().startswith("{")


def _links_in(text: str) -> Iterator[str]:
    """Yield what may be names of links that nft wants to find."""
    if not is_json(text):
        for naming in _NAMING.finditer(text):
            yield from _LINK.findall(naming[1])
        return
    for naming in _NAMING_AS_JSON.finditer(text):
        yield from re.findall(r'"([^"]*)"', naming[1])


def _in_pairs(names: Iterable[str]) -> list[str]:
    """Return names for pairs of links, each once."""
    found = [name for name in dict.fromkeys(names) if _LINK.fullmatch(name) and name != "lo"][:_MOST_LINKS]
    return [*found, _SPARE] if len(found) % 2 else found


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
        elif chain and line.lstrip().startswith("type "):
            found[family, table, chain, 0] = line.strip()
        elif rule and chain:
            found[family, table, chain, int(rule["handle"])] = rule["text"]
    return found
