"""Reads command lines of ipchains 1.3.9.

Strict reading takes what the program took and refuses the rest in its words. Tolerant reading also repairs what people
wrote and meant (original-systems section 7, rows A-29 and A-31), with a warning for each repair.

The checks stand in the order of the original: of several mistakes the same one is reported. One thing is left out: the
warning about ip_forward being 0, which it always is while fastmasq forwards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec.structs import replace

from fastmasq.legacy import icmp_names
from fastmasq.legacy.ipchains_rule import WHOLE_PACKET, RuleOptions, fail, values_of
from fastmasq.legacy.names import Names
from fastmasq.legacy.requests import Changes, Check, List, ListSessions, Request, SetTimeouts, Text
from fastmasq.legacy.tokens import STRAY, Words, number, plain_dashes
from fastmasq.policy.chains import (
    ACCEPT,
    ACCOUNTING,
    BUILT_IN,
    DENY,
    FORWARD,
    LONGEST_NAME,
    MASQ,
    REDIRECT,
    REJECT,
    TARGETS,
    RuleError,
)
from fastmasq.policy.changes import Change

VERSION = "ipchains 1.3.9, 17-Mar-1999"
HELP = f"""\
{VERSION}, speaking to fastmasq

ipchains -A|-I|-D|-C CHAIN RULE      append, insert (-I CHAIN NUMBER), delete, check a packet
ipchains -D CHAIN NUMBER | -R CHAIN NUMBER RULE         delete, replace by number
ipchains -L|-F|-Z|-X [CHAIN] | -N CHAIN | -P CHAIN TARGET
                                     list, flush, zero counters, delete chain, new chain, default policy
ipchains -M -L | -M -S TCP FIN UDP   masqueraded sessions, their timeouts in seconds
ipchains -h [icmp] | -V              this help, the names of ICMP types, the version

rules (! before an option or its value inverts it where marked):
  -p ! PROTOCOL   -s ! ADDRESS[/MASK] [! PORT[:PORT]]   -d ! ADDRESS[/MASK] [! PORT[:PORT]]
  --sport ! PORT[:PORT]   --dport ! PORT[:PORT]   --icmp-type NAME   -i ! INTERFACE[+]   ! -y   ! -f
  -j ACCEPT|DENY|REJECT|MASQ|RETURN|CHAIN, or REDIRECT [PORT]
  -b both directions   -l log   -m [+-]MARK   -o [SIZE]   -t AND XOR type of service
lists: -n numeric   -v verbose   -x exact counters   --line-numbers
"""

_SHORT = "A:C:D:R:I:L::F::Z::N:X::P:MS:Vh::o::p:s:d:j:i:fbvm:nlt:xy1:2:3W"
_LONG = {
    **{"append": "A", "delete": "D", "insert": "I", "replace": "R", "list": "L", "flush": "F", "zero": "Z"},
    **{"check": "C", "new-chain": "N", "delete-chain": "X", "policy": "P", "masquerading": "M", "set": "S"},
    **{"bidirectional": "b", "source": "s", "destination": "d", "src": "s", "dst": "d", "source-port": "1"},
    **{"destination-port": "2", "icmp-type": "1", "sport": "1", "dport": "2", "protocol": "p", "interface": "i"},
    **{"jump": "j", "TOS": "t", "mark": "m", "numeric": "n", "log": "l", "output": "o", "verbose": "v"},
    **{"exact": "x", "fragments": "f", "syn": "y", "version": "V", "help": "h", "line-numbers": "3"},
    **{"no-warnings": "W"},
}
_SHOWN = {"1": "s", "2": "d"}  # how mistakes call the options that have no letter of their own

_DELETE_NUMBERED = "#"
_TOGETHER = {"L": "ZM", "Z": "L", "M": "LS", "S": "M"}  # commands that may stand beside another
_CHANGES = {
    **{"A": "append", "I": "insert", "R": "replace", "D": "delete_equal", _DELETE_NUMBERED: "delete"},
    **{"F": "flush", "Z": "zero", "N": "new_chain", "X": "delete_chain", "P": "policy"},
}

_ABOUT_RULES = ("A", "I", "R", "D", "C")
_OPTIONS = "nsdpjybvlxtifm12o3"
_RULE_OPTIONS = "sdpjybvltifm12o"
_LEGAL = {
    **dict.fromkeys("IDA", _RULE_OPTIONS),
    "R": _RULE_OPTIONS.replace("b", ""),
    **dict.fromkeys(f"{_DELETE_NUMBERED}FZNXPS", "v"),
    "L": "nvx3",
    "M": "",
    "C": "sdpybvif12",
}
_NEEDED = {"C": "sdpi"}
_INVERTIBLE = "sdpyif12"


def parse(words: Sequence[str], names: Names, *, tolerant: bool = False, chains: Collection[str] = ()) -> Request:
    """Return what the words behind the program's name ask for. Raises Misuse, or RuleError ("no chain").

    chains: the user chains there are, whose names tolerant reading does not take for misspelt targets.
    """
    line = _Line(names, tolerant, chains)
    line.read(words)
    return line.text or line.request()


class _Line:
    """One command line: what `read` found in it, put together by `request`."""

    def __init__(self, names: Names, tolerant: bool, chains: Collection[str]) -> None:
        self.names = names
        self.tolerant = tolerant
        self.chains = chains
        self.warnings: list[str] = []
        self.text: Text | None = None
        self.commands = ""  # letters
        self.chain: str | None = None
        self.number: int | None = None
        self.policy: str | None = None
        self.timeouts = (0, 0, 0)
        self.options = RuleOptions(names)
        self.given = self.options.given
        self.warns = True
        self._invert = False  # whether a "!" stands before the next option

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, words: Sequence[str]) -> None:
        if self.tolerant:
            words = [self._repair(word) for word in words]
        reading = Words(words, _SHORT, fail, _LONG)
        for letter, argument in reading:
            if letter == STRAY:
                self._stray(argument)
                continue
            if letter in "Vh":
                self.text = Text(self._about(letter, argument, reading))
                return
            if letter == "W":
                self._refuse_inversion("cannot have ! before --no-warnings")
                self.warns = False
            elif letter in "ADCRILFZNXPMS":
                self._command(letter, argument, reading)
            else:
                self._option(letter, argument, reading)
            self._invert = False
        if reading.rest:
            fail("unknown arguments found on commandline")
        if not self.commands:
            fail("no command specified")
        if self._invert:
            fail("nothing appropriate following !")

    def _repair(self, word: str) -> str:
        plain = plain_dashes(word)
        if plain != word:
            self.warnings.append(f"{word!r} begins with a typographic dash; taken as {plain!r}")
        return plain

    def _stray(self, word: str | None) -> None:
        if word != "!":
            fail("unknown arguments found on commandline")
        self._refuse_inversion("multiple consecutive ! not allowed")
        self._invert = True

    def _about(self, letter: str, argument: str | None, reading: Words) -> str:
        if letter == "V":
            return "Not ipchains 2.0\n" if self._invert else f"{VERSION}\n"
        wanted = argument or reading.take("") or ""
        return f"{VERSION}\n\n{icmp_names.overview()}" if wanted.lower() == "icmp" else HELP

    def _command(self, letter: str, argument: str | None, reading: Words) -> None:
        self._refuse_inversion("unexpected ! flag")
        others = [other for other in self.commands if other not in _TOGETHER.get(letter, "")]
        if others:
            fail(f"Can't use -{letter} with -{others[-1].replace(_DELETE_NUMBERED, 'D')}")
        self.commands += letter
        if letter in "LFZX":
            named = reading.take("-!") if argument is None else argument
            self.chain = self.chain if named is None else named
            if {"L", "Z"} <= set(self.commands) and self.chain is not None:
                fail("-L with -Z does not allow chain to be specified")
        elif letter == "S":
            rest = [reading.take("-!"), reading.take("-!")]
            if None in rest:
                fail("-S requires 3 timeout values")
            self.timeouts = tuple(values_of(self.names).timeout(text) for text in (argument, *rest))
        elif letter != "M":
            self.chain = argument
            self._chain_argument(letter, reading.take("-!") if letter in "DRIP" else None)

    def _chain_argument(self, letter: str, word: str | None) -> None:
        """Read what stands behind the chain: a rule's number, or a policy."""
        if letter == "P":
            if word is None:
                fail("-P requires a chain and a policy")
            self.policy = self._policy(word)
        elif word is not None:
            self.number = number(word, 1, 0x7FFFFFFF) or fail(f"Invalid rule number `{word}'")
            if letter == "D":
                self.commands = _DELETE_NUMBERED
        elif letter == "R":
            fail("-R requires a rule number")

    def _option(self, letter: str, argument: str | None, reading: Words) -> None:
        if letter in "psdi12" and argument == "!":
            self._refuse_inversion("Multiple `!' flags not allowed")
            self._invert = True
            argument = reading.take("")
            if argument is None:
                fail("nothing appropriate following !")
        if letter == "3":
            self._refuse_inversion("cannot have ! before --line-numbers")
        if letter == "o" and argument is None:
            argument = reading.take("-!")
        self._set(letter, argument or ("" if letter != "o" else str(WHOLE_PACKET)))
        if letter in "sd":
            self._ports_behind({"s": "1", "d": "2"}[letter], reading)
        elif letter == "j":
            self._jump(argument, reading)
        elif letter == "t":
            xor = reading.take("-!")
            if xor is None:
                fail("-t requires 2 hexbyte arguments")
            self.options.tos_xor = xor

    def _ports_behind(self, letter: str, reading: Words) -> None:
        """Read the ports that may stand behind an address; a "!" before an option belongs to that."""
        second = reading.peek(1)
        if reading.peek() == "!" and second is not None and not second.startswith(("-", "!")):
            reading.take("")
            self._invert = True
        ports = reading.take("-!")
        if ports is not None:
            self._set(letter, ports)

    def _set(self, letter: str, value: str) -> None:
        shown = _SHOWN.get(letter, letter)
        if letter in self.given:
            fail(f"multiple -{shown} flags not allowed")
        self.given[letter] = value
        if self._invert:
            if letter not in _INVERTIBLE:
                fail(f"cannot have ! before -{shown}")
            self.options.inverted.add(letter)
            self._invert = False

    def _refuse_inversion(self, text: str) -> None:
        if self._invert:
            fail(text)

    def _jump(self, target: str, reading: Words) -> None:
        if not target:
            fail("Invalid target name (too short)")
        if len(target) > LONGEST_NAME:
            fail(f"Invalid target name `{target}' ({LONGEST_NAME} chars max)")
        if any(letter.isspace() for letter in target):
            fail(f"Invalid target name `{target}'")
        self.given["j"] = self._folded(target)
        port = reading.take("-!") if self.given["j"] == REDIRECT else None
        self.options.redirect_port = "0" if port is None else port

    def _folded(self, target: str) -> str:
        """Return a built-in target written in small letters as ipchains spells it, when reading is tolerant (A-31)."""
        upper = target.upper()
        if not self.tolerant or target == upper or upper not in TARGETS or target in self.chains:
            return target
        self.warnings.append(f"target {target!r}: built-in targets are in capitals; taken as {upper}")
        return upper

    def _policy(self, word: str) -> str:
        policy = self._folded(word)
        if policy == MASQ:
            return policy if self.chain == FORWARD else fail("`-P MASQ' only valid for `forward' chain.")
        if self.chain not in BUILT_IN:
            fail("Can only set policy in built-in chains.")
        if policy not in (ACCEPT, DENY, REJECT):
            fail(f"Invalid policy `{policy}' for -P")
        return policy

    # -- putting together ------------------------------------------------------------------------------------------

    def request(self) -> Request:
        """Return what the line asks for. Raises Misuse when its parts do not go together, RuleError ("no chain")."""
        rules = self.options.rules(self.commands, self.chain) if self.commands in _ABOUT_RULES else []
        if self.warns:
            self.warnings += self.options.warnings
        if "S" in self.commands and "M" not in self.commands:
            self.commands += "M"
        self._check_legal()
        if self.chain is not None and len(self.chain) > LONGEST_NAME:
            fail(f"chain name `{self.chain}' too long (must be under {LONGEST_NAME} chars)")
        if self.commands == "M":
            fail("-M/--masquerading requires -L/--list or -S/--set")
        if self.chain == ACCOUNTING and self.commands != "N":  # the chain of ipfwadm -A is none of ipchains
            raise RuleError("no chain", f"no chain {self.chain!r}")
        verbose = "v" in self.given
        if self.commands == "C":
            return Check(self.chain, tuple(rules), verbose, tuple(self.warnings))
        if "S" in self.commands:
            return SetTimeouts(*self.timeouts, tuple(self.warnings))
        if "L" in self.commands:
            return self._listing(verbose)
        change = Change(do=_CHANGES[self.commands], chain=self.chain, number=self.number, target=self.policy)
        changes = tuple(replace(change, rule=rule) for rule in rules) or (change,)
        return Changes(changes, verbose, tuple(self.warnings))

    def _listing(self, verbose: bool) -> Request:
        numeric, warnings = "n" in self.given, tuple(self.warnings)
        if "M" in self.commands:
            return ListSessions(numeric, verbose, warnings)
        return List(
            self.chain,
            numeric,
            verbose,
            exact="x" in self.given,
            line_numbers="3" in self.given,
            zero="Z" in self.commands,
            warnings=warnings,
        )

    def _check_legal(self) -> None:
        for letter in _OPTIONS:
            shown = _SHOWN.get(letter, letter)
            if letter not in self.given and any(letter in _NEEDED.get(command, "") for command in self.commands):
                fail(f"You need to supply the `-{shown}' option for this command")
            if letter in self.given and not any(letter in _LEGAL[command] for command in self.commands):
                fail(f"Illegal option `-{shown}' with this command")
