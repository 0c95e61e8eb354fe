"""Random small scripts, run by dash and read by us: the same calls of our programs in the same order, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmasq.errors import ConfigurationError
from tests.support.recording import Dash, calls_read

ARGUMENTS = ("ppp0", "two words", "", "1.2.3.4")
SETTINGS = "ONE=1\nTWO='2  two'\nBLANKS=' x\ty '\nNONE=\nexport LAN=10.0.0.0/8\n"
CARRIED = 0.7  # of the scripts, at least

PIECES = (
    *("a", "-S", "10.0.0.0/8", "x#y", "=", "'x  y'", "''", '""', "'$ONE'", "\\ ", "\\$", "b\\\nc", '"q  $ONE"', "é"),
    *('"\\$ \\" \\\\ \\a"', '"$TWO"', "$ONE", "${TWO}", "$BLANKS", "${BLANKS}", "$NONE", "$1", "$2", '"$@"', "$*"),
    *("$#", "{}", "if", "!", "${NONE:-d e}", "${NONE-d}", '"${ONE:+set $TWO}"', "${NONE:='a  b'}", "${ONE:?}"),
)  # fmt: skip
words = st.lists(st.lists(st.sampled_from(PIECES), min_size=1, max_size=2).map("".join), max_size=3).map(" ".join)


def joined(*parts: str | tuple[str, ...] | st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return texts made of parts in a row: each a text, one of several, or what a strategy makes."""
    made = [st.just(part) if isinstance(part, str) else st.sampled_from(part) if isinstance(part, tuple) else part
            for part in parts]  # fmt: skip
    return st.tuples(*made).map("".join)


calls = joined(("ipchains ", "ipfwadm ", "ipportfw ", '"ipmasqadm" ', "ipfwd "), words)
others = ("cat /dev/null", "test -n x", "printf x >/dev/null", "[ a = b ]", "/bin/true", "ls /none")
TEXTS = ("ipchains -F\n", "\tEOF\n", "EOF \n", "it's\n", '"\n', "$ONE\n", "\\$(x)\n", "\\\\\n", "a \\\n")
texts = st.lists(st.sampled_from(TEXTS), max_size=4).map("".join)
STATEMENTS: dict[str, tuple[int, st.SearchStrategy[str]]] = {
    # What it is: how often it comes, and what it is made of. Few rule scripts have much else than the first six.
    "call": (60, calls),
    "assignment": (12, joined(("ONE=", "TWO=", "NONE=", "export ONE="), PIECES)),
    "comment": (6, st.sampled_from(("# ipchains -F \\", "", " \\\n", "true # ' \" $( `"))),
    "other program": (6, st.sampled_from(others)),
    "calls, joined": (4, joined(calls, (" && ", " &&\n ", "; ", " & wait; ", " \\\n; "), calls)),
    "call, redirected": (4, joined(calls, (" >/dev/null", " 2>/dev/null", " >/dev/null 2>&1 z", " </dev/null"))),
    "call, run for sure": (3, joined(("true && ", ": && ", "false || ", "false && ", "true || "), calls)),
    "call, piped": (3, joined(calls, (" | cat", " | grep x |\n cat", " 2>&1 | cat >/dev/null"))),
    "call, assigned for": (2, joined("ONE=7 ", calls)),
    "here-document": (6, joined("cat ", ("<<", "<<-", "<< "), ("EOF", "'EOF'", '"EOF"', "E\\OF"), " >/dev/null\n",
                                texts, "plain\nEOF\n", calls)),
    "loop": (5, joined("for ONE in x $LAN ", words, ("; do ", "\ndo\n"), calls, (" $ONE; ", " $ONE\n"), "done")),
    "output of a command": (2, st.sampled_from(("IP=$(echo ')' `echo \\`echo x\\``)", 'IP="$(echo "a b" # )\n)"'))),
    "group": (3, joined(("{ ", "( "), calls, ("; }", " ; )", "\n}", ")"))),
    "passed over": (4, joined(("if [ a ]; then ", "if ! true; then :; else ", "if true; then\n "), others,
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
    "special": (1, st.sampled_from(("set -e", "shift", "! ipchains", "eval ipchains -F", "trap ipchains EXIT", "exit",
                                    "echo $((1+1))", ". ./x", "unset ONE"))),
    "pattern": (1, joined(calls, " /dev/nul[l]")),
}  # fmt: skip
statements = st.sampled_from([kind for kind, (weight, _) in STATEMENTS.items() for _ in range(weight)]).flatmap(
    lambda kind: STATEMENTS[kind][1]
)
scripts = st.lists(statements, min_size=1, max_size=5).map(
    lambda found: SETTINGS + "".join(f"{line}\n" for line in found)
)


@pytest.fixture(scope="module")
def dash(tmp_path_factory: pytest.TempPathFactory) -> Dash:
    return Dash(tmp_path_factory.mktemp("dash"))


def test_what_dash_calls_is_what_we_read(dash: Dash) -> None:
    were_carried: list[bool] = []

    @settings(max_examples=2 * settings().max_examples)
    @given(scripts)
    def compare(script: str) -> None:
        were_carried.append(False)
        try:
            read = calls_read(script, ARGUMENTS)
        except ConfigurationError:
            return
        were_carried[-1] = True
        assert read == dash.calls(script, ARGUMENTS)

    compare()
    assert sum(were_carried) >= CARRIED * len(were_carried)


JUNK = "ab1 \t\n\\'\"$`{}()<>&|;#=!-*[]~:?+@"


@given(st.text(alphabet=JUNK, max_size=40))
def test_any_text_is_read_as_dash_runs_it_or_refused(dash: Dash, text: str) -> None:
    script = f"ipchains -F\n{text}\nipchains -X\n"
    try:
        read = calls_read(script, ARGUMENTS)
    except ConfigurationError:
        return
    assert read == dash.calls(script, ARGUMENTS)
