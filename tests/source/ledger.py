"""The ledgers of the manual, rfc.md and howto.md: each requirement, its mark, and the tests that prove it.

    python -m tests.source.ledger       writes both pages anew

A test carries the id of a rule in its name: rfc4787-req1 is proved by test_rfc4787_req1_the_same_mapping and by
rfc4787-req1-same-port.case, C-45 by test_c45_... and C-45-....case. Other tests are named in the data (`also`). A rule
is met when a test proves it. Where that would say too much, the data has a status, with its reason:

* partly          - what the tests prove is not all of it
* not met
* does not apply
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
MANUAL = ROOT / "fastmasq" / "manual"
PROVEN = "met"
STATUSES = ("partly", "not met", "does not apply")
SHOWN = 4  # tests of one rule

PAGES = {
    "rfc.md": (
        "requirements_rfc.toml",
        "# The RFC ledger\n\nWhat the RFCs ask of a NAT, whether fastmasq does it, and which test proves it.\n",
    ),
    "howto.md": (
        "requirements_howto.toml",
        "# The HOWTO ledger\n\nWhat the VPN Masquerade HOWTO shows and what users want, whether fastmasq does it, and"
        "\nwhich test proves it.\n",
    ),
}
# A test function, or a state machine that hypothesis makes a test of. To parse all modules would take some seconds.
_TEST = re.compile(r"^ *def (test_\w+)\(|^ *([\w.]+) = [\w.]+\.TestCase$", re.MULTILINE)
_WORD = re.compile(r"[a-z0-9]+")
_FOOT = "\nWritten by `scripts/dev docs` from the tests and from tests/source/{source}.\n"


@dataclass(frozen=True)
class Proof:
    """A test function, or a packet-case file."""

    name: str
    place: str  # path from tests/

    def __str__(self) -> str:
        return f"`{self.name}` ({self.place})"


@dataclass(frozen=True)
class Entry:
    """One rule with its mark and the tests that prove it."""

    id: str
    name: str
    rule: str
    strength: str
    status: str
    why: str
    proofs: tuple[Proof, ...]
    unknown: tuple[str, ...]  # tests that the data names and that do not exist

    @property
    def mark(self) -> str:
        return self.status or PROVEN

    def complaint(self) -> str | None:
        """Return what is wrong with the rule's data, or None."""
        if self.unknown:
            return f"{self.id}: there is no test {', '.join(self.unknown)}"
        if self.status and self.status not in STATUSES:
            return f"{self.id}: {self.status!r} is no status; there are: {', '.join(STATUSES)}"
        if self.status and not self.why:
            return f"{self.id} is marked {self.status!r} without a reason"
        if self.mark in (PROVEN, "partly") and not self.proofs:
            return f"{self.id} is marked {self.mark!r}, but no test proves it"
        return None


@functools.cache
def all_tests() -> tuple[Proof, ...]:
    """Return every test function, state machine and case file, in the order of their places; the tree is read once."""
    found = []
    for path in sorted(TESTS.rglob("test_*.py")):
        place = str(path.relative_to(TESTS))
        found += [Proof(test or machine, place) for test, machine in _TEST.findall(path.read_text())]
    return (*found, *(Proof(path.stem, "cases") for path in sorted((TESTS / "cases").glob("*.case"))))


@functools.cache
def normal(name: str) -> str:
    """Return a name or an id in the one spelling in which they are compared: C-45 is c45, and 5.2.2 is 5_2_2."""
    plain = re.sub(r"[-.]", "_", name.lower())
    return re.sub(r"(?<![a-z0-9])([a-z]|want)_(?=\d)", r"\1", plain)


def carries(test: Proof, rule_id: str) -> bool:
    """Whether a test has the id in its name, as a word: rfc1812-5.2 is not rfc1812-5.2.2."""
    wanted, name = normal(rule_id), normal(test.name)
    return wanted in name and re.search(rf"(?<![a-z0-9]){wanted}(?![a-z0-9])(?!_\d+(?:_|$))", name) is not None


def by_word(tests: Sequence[Proof]) -> defaultdict[str, list[Proof]]:
    """Return which tests have a word in their names: those that may carry an id that begins with it."""
    found: defaultdict[str, list[Proof]] = defaultdict(list)
    for test in tests:
        for word in set(_WORD.findall(normal(test.name))):
            found[word].append(test)
    return found


def entries(source: str, tests: Sequence[Proof]) -> Iterator[tuple[str, list[Entry]]]:
    """Yield (title, entries) for each chapter of a file of requirements."""
    known = {test.name for test in tests}
    having = by_word(tests)
    for chapter in tomllib.loads((Path(__file__).parent / source).read_text())["chapter"]:
        rows = []
        for rule in chapter["rules"]:
            also = rule.get("also", [])
            first_word = _WORD.search(normal(rule["id"]))[0]
            carrying = {test for test in having[first_word] if carries(test, rule["id"])}
            proofs = [test for test in tests if test in carrying or test.name in also] if carrying or also else []
            rows.append(
                Entry(
                    rule["id"],
                    rule["name"],
                    rule["rule"],
                    rule.get("strength", ""),
                    rule.get("status", ""),
                    rule.get("why", ""),
                    tuple(proofs),
                    tuple(name for name in also if name not in known),
                )
            )
        yield chapter["title"], rows


def page(name: str) -> str:
    """Return a page of the manual as it must be."""
    source, head = PAGES[name]
    chapters = list(entries(source, all_tests()))
    marks = [entry.mark for _, rows in chapters for entry in rows]
    counts = ", ".join(f"{marks.count(mark)} {mark}" for mark in (PROVEN, "partly", "not met", "does not apply"))
    lines = [head, f"{len(marks)} rules: {counts}."]
    for title, rows in chapters:
        strong = any(entry.strength for entry in rows)
        columns = ["", *(["asked"] if strong else []), "rule", "mark", "proof"]
        lines += ["", f"## {title}", "", _row(columns), _row(["---"] * len(columns))]
        for entry in rows:
            lines.append(
                _row([entry.name, *([entry.strength] if strong else []), entry.rule, f"**{entry.mark}**", proof(entry)])
            )
    return "\n".join(lines) + "\n" + _FOOT.format(source=source)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def proof(entry: Entry) -> str:
    """Return the last cell of a row: why the mark is not more, and the tests."""
    shown = [str(test) for test in entry.proofs[:SHOWN]]
    if len(entry.proofs) > SHOWN:
        shown.append(f"and {len(entry.proofs) - SHOWN} more")
    reason = "" if entry.mark == PROVEN else entry.why or entry.status
    return "; ".join([*([reason] if reason else []), *shown])


if __name__ == "__main__":
    for page_name in PAGES:
        (MANUAL / page_name).write_text(page(page_name))
