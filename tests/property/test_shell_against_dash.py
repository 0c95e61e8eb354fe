"""Random small scripts, run by dash and read by us: the same calls of our programs in the same order, or refused."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.errors import ConfigurationError
from tests.support.recording import Dash, calls_read

ARGUMENTS = ("ppp0", "two words", "", "1.2.3.4")
SETTINGS = "ONE=1\nTWO='2  two'\nBLANKS=' x\ty '\nNONE=\nexport LAN=10.0.0.0/8\n"
# Names that come of $ONE, $BLANKS or $NONE with another piece after it.
LONGER = "".join(f"{name}a=1 {name}x=2 {name}10=3 {name}if=4\n" for name in ("ONE", "BLANKS", "NONE"))
CARRIED = 0.7  # of the scripts, at least
SAMPLE = 1000  # scripts among which so many are carried

Maker = Callable[[Random], str]  # makes a text as chance has it

PIECES = (
    *("a", "-S", "10.0.0.0/8", "x#y", "=", "'x  y'", "''", '""', "'$ONE'", "\\ ", "\\$", "b\\\nc", '"q  $ONE"', "é"),
    *('"\\$ \\" \\\\ \\a"', '"$TWO"', "$ONE", "${TWO}", "$BLANKS", "${BLANKS}", "$NONE", "$1", "$2", '"$@"', "$*"),
    *("$#", "{}", "if", "!", "${NONE:-d e}", "${NONE-d}", '"${ONE:+set $TWO}"', "${NONE:='a  b'}", "${ONE:?}"),
)  # fmt: skip


def one_of(*texts: str) -> Maker:
    return lambda random: random.choice(texts)


def several(maker: Maker, least: int, most: int, between: str = "") -> Maker:
    return lambda random: between.join(maker(random) for _ in range(random.randint(least, most)))


def joined(*parts: str | tuple[str, ...] | Maker) -> Maker:
    """Return what makes texts of parts in a row: each a text, one of several, or what a maker makes."""
    makers = [one_of(part) if isinstance(part, str) else one_of(*part) if isinstance(part, tuple) else part
              for part in parts]  # fmt: skip
    return lambda random: "".join(maker(random) for maker in makers)


words = several(several(one_of(*PIECES), 1, 2), 0, 3, " ")
calls = joined(("ipchains ", "ipfwadm ", "ipportfw ", '"ipmasqadm" ', "ipfwd "), words)
others = ("cat /dev/null", "test -n x", "printf x >/dev/null", "[ a = b ]", "/bin/true", "ls /none")
TEXTS = ("ipchains -F\n", "\tEOF\n", "EOF \n", "it's\n", '"\n', "$ONE\n", "\\$(x)\n", "\\\\\n", "a \\\n")
texts = several(one_of(*TEXTS), 0, 4)
STATEMENTS: dict[str, tuple[int, Maker]] = {
    # What it is: how often it comes, and what it is made of. Few rule scripts have much else than the first six.
    "call": (60, calls),
    "assignment": (12, joined(("ONE=", "TWO=", "NONE=", "export ONE="), PIECES)),
    "comment": (6, one_of("# ipchains -F \\", "", " \\\n", "true # ' \" $( `")),
    "other program": (6, one_of(*others)),
    "calls, joined": (4, joined(calls, (" && ", " &&\n ", "; ", " & wait; ", " \\\n; "), calls)),
    "call, redirected": (4, joined(calls, (" >/dev/null", " 2>/dev/null", " >/dev/null 2>&1 z", " </dev/null"))),
    "call, run for sure": (3, joined(("true && ", ": && ", "false || ", "false && ", "true || "), calls)),
    "call, piped": (3, joined(calls, (" | cat", " | grep x |\n cat", " 2>&1 | cat >/dev/null"))),
    "call, assigned for": (2, joined("ONE=7 ", calls)),
    "here-document": (6, joined("cat ", ("<<", "<<-", "<< "), ("EOF", "'EOF'", '"EOF"', "E\\OF"), " >/dev/null\n",
                                texts, "plain\nEOF\n", calls)),
    "loop": (5, joined("for ONE in x $LAN ", words, ("; do ", "\ndo\n"), calls, (" $ONE; ", " $ONE\n"), "done")),
    "output of a command": (2, one_of("IP=$(echo ')' `echo \\`echo x\\``)", 'IP="$(echo "a b" # )\n)"')),
    "group": (2, joined("{ ", calls, ("; }", "\n}"))),
    "subshell": (1, joined("( ", calls, (" ; )", ")", "\n)"))),
    "passed over": (4, joined(("if [ a ]; then ", "if ! true; then :; elif true; then ", "if true; then\n "), others,
                              ("; fi", "\nfi >/dev/null", "; else { true; } fi"))),
    "passed over, chosen": (2, joined(("case $1 in ppp*) ", "case x in (a|b) :;; *)\n"), others,
                                      (";; esac", "\nesac"))),
    "passed over, again": (3, joined(("for TWO in /proc/sys/net/*/x; do ", "while false; do ", "until true; do "),
                                     others, ("; done", "\n done", "; break; done"))),
    # What is refused, but for some of the special ones.
    "output used": (1, joined(calls, "$(echo x)")),
    "perhaps": (1, joined(others, (" && ", " || "), calls)),
    "if": (1, joined("if [ a ]; then ", calls, "; fi")),
    "case": (1, joined("case $1 in ppp*) ", calls, ";; esac")),
    "while": (1, joined("while true; do ", calls, "; break; done")),
    "function": (1, joined("f() { ", calls, "; }; f")),
    "special": (1, one_of("set -e", "shift", "! ipchains", "eval ipchains -F", "trap ipchains EXIT", "exit",
                          "echo $((1+1))", ". ./x", "unset ONE")),
    "pattern": (1, joined(calls, " /dev/nul[l]")),
}  # fmt: skip
KINDS = tuple(kind for kind, (weight, _) in STATEMENTS.items() for _ in range(weight))


def statements(random: Random) -> str:
    return STATEMENTS[random.choice(KINDS)][1](random)


scripts = joined(SETTINGS, LONGER, several(joined(statements, "\n"), 1, 5))


@pytest.fixture(scope="module")
def dash(tmp_path_factory: pytest.TempPathFactory) -> Dash:
    return Dash(tmp_path_factory.mktemp("dash"))


def calls_unless_refused(script: str) -> list[str] | None:
    try:
        return calls_read(script, ARGUMENTS)
    except ConfigurationError:
        return None


@settings(max_examples=2 * settings().max_examples)
@given(st.randoms(note_method_calls=False).map(scripts))
def test_what_dash_calls_is_what_we_read(dash: Dash, script: str) -> None:
    read = calls_unless_refused(script)
    assert read is None or read == dash.calls(script, ARGUMENTS)


def test_most_scripts_are_carried() -> None:
    """Counted among scripts of the mix as it stands: hypothesis varies what it has found, refused or not."""
    random = Random(1)
    carried = sum(calls_unless_refused(scripts(random)) is not None for _ in range(SAMPLE))
    assert carried >= CARRIED * SAMPLE


JUNK = "ab1 \t\n\\'\"$`{}()<>&|;#=!-*[]~:?+@"


@given(st.text(alphabet=JUNK, max_size=40))
def test_any_text_is_read_as_dash_runs_it_or_refused(dash: Dash, text: str) -> None:
    script = f"ipchains -F\n{text}\nipchains -X\n"
    read = calls_unless_refused(script)
    assert read is None or read == dash.calls(script, ARGUMENTS)
