"""Reads the output of `nft list ruleset` in its plain form: one rule a line, as nft itself prints it.

What people write by hand may look different (several rules a line, variables, includes); let nft print it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fastmasq.errors import ConfigurationError
from fastmasq.migrate.foreign import ForeignChain, ForeignRule
from fastmasq.migrate.nft_rules import STATEMENTS, Condition, build

_FAMILIES = ("ip", "inet")
_TABLE = re.compile(r"table (?:(\w+) )?(\S+) \{")
_CHAIN = re.compile(r"chain (\S+) \{")
_HOOK = re.compile(r"type (\w+) hook (\w+) .*?(?:policy (\w+);)?$")
_TOKEN = re.compile(r'"[^"]*"|[{}(),|&]|[^\s{}(),|&"]+')
_ONE_WORD = ("iifname", "oifname", "iif", "oif", "l4proto", "nfproto")
_TWO_WORDS = ("ip", "tcp", "udp", "th", "icmp", "ct", "meta")
_SYN_MASKS = ({"fin", "syn", "rst", "ack"}, {"syn", "rst", "ack"})
_HARMLESS = {"counter": ("packets", "bytes"), "log": ("prefix", "level", "group", "flags"), "comment": ()}


def read(text: str) -> Iterator[ForeignChain]:
    """Yield the chains of all IPv4 tables. Raises ConfigurationError for what nft does not print."""
    family, chain, depth = "", None, 0
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if depth == 0:
            table = _TABLE.fullmatch(line)
            if table is None:
                raise ConfigurationError(f"line {number}: not a table of nft: {line[:60]!r}")
            family, depth = table[1] or "ip", 1
        elif line == "}":
            depth -= 1
            if chain is not None and family in _FAMILIES:
                yield chain
            chain = None
        elif depth == 1:
            depth += line.endswith("{")
            named = _CHAIN.fullmatch(line)
            chain = ForeignChain(name=named[1], line=number) if named else None
        elif chain is not None:
            _line_of_chain(chain, line, number)
    if depth:
        raise ConfigurationError("the text ends within a table; is it all of `nft list ruleset`?")


def _line_of_chain(chain: ForeignChain, line: str, number: int) -> None:
    hook = _HOOK.fullmatch(line)
    if hook:
        chain.kind, chain.hook, chain.policy = hook[1], hook[2], hook[3] or "accept"
    else:
        chain.rules += _Line(line, number).rules()


class _Line:
    """The tokens of one rule, taken from the left."""

    def __init__(self, line: str, number: int) -> None:
        self.tokens = _TOKEN.findall(line)
        self.base = ForeignRule(line=number, text=line)
        self.conditions: list[Condition] = []

    def rules(self) -> Iterator[ForeignRule]:
        while self.tokens:
            word = self.tokens.pop(0)
            if word in _HARMLESS:
                self._pass_over(word)
            elif word in STATEMENTS:
                self._statement(word)
            elif word in _ONE_WORD:
                self._condition(word)
            elif word in _TWO_WORDS and self.tokens:
                field = self.tokens.pop(0)
                self._condition(field if word == "meta" else f"{word} {field}")
            else:
                self._give_up(word)
        yield from build(self.base, self.conditions)

    def _give_up(self, word: str) -> None:
        """Note what is not understood, up to the statement that decides."""
        rest = [word]
        while self.tokens and self.tokens[0] not in STATEMENTS:
            rest.append(self.tokens.pop(0))
        self.base.unknown.append(" ".join(rest))

    def _pass_over(self, word: str) -> None:
        self.base.log = self.base.log or word == "log"
        while self.tokens and self.tokens[0] in _HARMLESS[word]:
            del self.tokens[:2]
        if word == "comment":
            del self.tokens[:1]

    def _statement(self, word: str) -> None:
        self.base.action = STATEMENTS[word]
        if word == "jump":
            self.base.to = "".join(self.tokens[:1])
            del self.tokens[:1]
        elif word == "reject":
            self.tokens.clear()  # `with icmp port-unreachable` and its like
        elif self.tokens and self.tokens[0] in ("to", "ip"):
            while self.tokens and self.tokens[0] in ("ip", "to"):
                del self.tokens[0]
            self.base.to = self.tokens.pop(0) if self.tokens else ""

    def _condition(self, field: str) -> None:
        if field == "tcp flags":
            self._flags()
            return
        inverted = bool(self.tokens) and self.tokens[0] == "!="
        if self.tokens and self.tokens[0] in ("!=", "=="):
            del self.tokens[0]
        if self.tokens and self.tokens[0] in ("&", "|", "<", ">", "<=", ">="):
            self._give_up(field)
            return
        self.conditions.append(Condition(field, inverted, self._values()))

    def _flags(self) -> None:
        """Read `syn`, or `syn / fin,syn,rst,ack`, or `& (fin | syn | rst | ack) == syn`."""
        words = []
        while self.tokens and (self.tokens[0] in "&|(),/" or self.tokens[0] in ("==", "fin", "syn", "rst", "ack")):
            words.append(self.tokens.pop(0))
        named = [word for word in words if word.isalpha()]
        first = named[:1] == ["syn"] and set(named[1:]) in _SYN_MASKS and "/" in words
        last = named[-1:] == ["syn"] and set(named[:-1]) in _SYN_MASKS and "==" in words
        if first or last:
            self.conditions.append(Condition("tcp flags", False, ["syn"]))
        else:
            self.base.unknown.append(f"tcp flags {' '.join(words)}")

    def _values(self) -> list[str]:
        """Read one value, a list `a,b`, or a set `{ a, b }`."""
        values = []
        closing = self.tokens[:1] == ["{"]
        if closing:
            del self.tokens[0]
        while self.tokens:
            values.append(self.tokens.pop(0).strip('"'))
            if self.tokens[:1] != [","]:
                break
            del self.tokens[0]
        if closing and self.tokens[:1] == ["}"]:
            del self.tokens[0]
        return values
