"""POSIX chapter 2, construct by construct: what dash calls, and that we read the same calls or refuse by name."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from fastmasq.errors import ConfigurationError
from tests.support.recording import Dash, calls_read

ARGUMENTS = ("ppp0", "two words", "")


class Row(NamedTuple):
    """A construct with its section; a script; the calls that dash makes; what we say, "" if we read the same."""

    construct: str
    script: str
    dash: tuple[str, ...]
    refused: str = ""


F = "ipchains -F"
TABLE = (
    # -- 2.2 quoting
    Row("2.2.1 backslash", r"ipchains a\ b \$X \\ \a", ("ipchains 'a b' '$X' '\\' a",)),
    Row("2.2.1 a line that goes on", "ipchains -F \\\n  in\\\nput", ("ipchains -F input",)),
    Row("2.2.1 an operator that goes on", "false &\\\n& ipchains -F", ()),
    Row("2.2.2 single quotes", "ipchains 'a  $X\\' '' b'c'd", ("ipchains 'a  $X\\' '' bcd",)),
    Row("2.2.2 over lines", "ipchains 'a\nipchains -F'\n", ("ipchains 'a\nipchains -F'",)),
    Row("2.2.2 not closed", "ipchains -F\nipchains 'a\n", (F,), "2: ' is not closed: a shell would end here"),
    Row("2.2.3 double quotes", 'ipchains "a \\"b\\" \\$X \\a \'c\'"', ("ipchains 'a \"b\" $X \\a '\"'\"'c'\"'\"''",)),
    Row("2.2.3 not closed", 'ipchains "a\n', (), '1: " is not closed: a shell would end here'),
    Row("2.2.4 $'...' of 2024", "ipchains $'a'", ("ipchains '$a'",), "1: '$'', which not every shell knows, needs"),
    # -- 2.3 tokens
    Row("2.3 comment", "ipchains -F # -X\n#ipchains -X\nipchains a#b", (F, "ipchains 'a#b'")),
    Row("2.3 a comment does not go on", "# a \\\nipchains -F", (F,)),
    Row("2.3 carriage return", "ipchains -F a\rb", ("ipchains -F 'a\rb'",)),
    Row("2.3 other blanks", "ipchains -F a\x0bb\xa0c", ("ipchains -F 'a\x0bb\xa0c'",)),
    Row("2.3.1 alias", "alias x=ipchains\nx -F\n", (F,), "1: 'alias' needs a shell"),
    # -- 2.4 reserved words
    Row("2.4 !", "! ipchains -F; ! true || ipchains -X; ! false && ipchains -Z", (F, "ipchains -X", "ipchains -Z")),
    Row("2.4 !, joined to a word", "!\\\nipchains -F\n!\\\n ipchains -X", ("ipchains -X",)),
    Row("2.4 { joined to a word", "{\\\nipchains -F\n", ()),
    Row("2.4 ! twice", "! ! ipchains -F", (), "1: '!' needs a shell"),
    Row("2.4 in", "in\nipchains -F", (), "1: 'in' needs a shell"),
    Row("2.4 quoted", "\\if ipchains -F", (), "1: 'if' needs a shell"),
    Row("2.4 as an argument", "ipchains -F if then { }", ("ipchains -F if then '{' '}'",)),
    Row("2.4 [[ of bash", "[[ a ]] ; ipchains -F", (F,), "1: '[[' needs a shell"),
    # -- 2.5 parameters
    Row("2.5.1 arguments", "ipchains $1 ${2} $#", ("ipchains ppp0 two words 3",)),
    Row("2.5.1 ten is one and zero", "ipchains $10", ("ipchains ppp00",)),
    Row("2.5.1 not given", "ipchains ${4}", ("ipchains",), "1: depends on argument 4, which is not given"),
    Row("2.5.2 $@ and $*", "ipchains $@\nipchains $*", ("ipchains ppp0 two words",) * 2),
    Row("2.5.2 quoted", 'ipchains "$@"\nipchains "x$@y"',
        ("ipchains ppp0 'two words' ''", "ipchains xppp0 'two words' y")),
    Row("2.5.2 beside another", 'A=1; ipchains "$@"$A', ("ipchains ppp0 'two words' 1",), '1: depends on "$@" beside'),
    Row("2.5.2 $* quoted", 'ipchains "$*"', ("ipchains 'ppp0 two words '",)),
    Row("2.5.2 $?", "true; ipchains $?", ("ipchains 0",), "1: depends on $?, which is not set in this file"),
    Row("2.5.3 set in the script", "A=1 B=$A; ipchains $A${B}", ("ipchains 11",)),
    Row("2.5.3 from elsewhere", "ipchains -F $LAN", (F,), "1: depends on $LAN, which is not set in this file"),
    Row("2.5.3 IFS", "IFS=:; A=a:b; ipchains $A", ("ipchains a b",), "1: IFS needs a shell"),
    Row("2.5.3 the shell's own", "LINENO=7\nipchains $LINENO", ("ipchains 7",), "2: depends on $LINENO, which has a"),
    # -- 2.6 expansions
    Row("2.6.1 tilde", "HOME=/h; ipchains ~", ("ipchains /h",), "1: depends on ~, which only a shell can find"),
    Row("2.6.1 in an assignment", "HOME=/h A=x:~; ipchains $A", ("ipchains x:/h",), "1: depends on $A, which has a"),
    Row("2.6.2 default", "A=; B=b; ipchains ${A:-x y} ${B:-c} ${A-d} ${9-e}", ("ipchains x y b e",)),
    Row("2.6.2 alternative", "A=; B=b; ipchains ${A:+x} ${B:+y} ${A+z}", ("ipchains y z",)),
    Row("2.6.2 assigning", 'A=; ipchains "${A:=x y}"; ipchains $A', ("ipchains 'x y'", "ipchains x y")),
    Row("2.6.2 assigning what is split", "A=; ipchains ${A:='x  y'}", ("ipchains x y",)),
    Row("2.6.2 demanding, found", "A=a; ipchains ${A:?none}", ("ipchains a",)),
    Row("2.6.2 demanding, not found", "A=; : ${A:?none}\nipchains -F", (),
        "1: '${A:?...}' finds nothing: a shell would"),
    Row("2.6.2 demanding, unknown", ": ${A:?none}\nipchains -F", (), "1: '${A:?...}', which may end it, needs a shell"),
    Row("2.6.2 unknown default", "ipchains ${A:-x}", ("ipchains x",),
        "1: depends on $A, which is not set in this file"),
    Row("2.6.2 quotes in it", "A=; ipchains ${A:-'b  c'} \"${A:-'d'}\"", ("ipchains 'b  c' ''\"'\"'d'\"'\"''",)),
    Row("2.6.2 length", "A=abc; ipchains ${#A}", ("ipchains 3",), "1: depends on an expansion of a shell"),
    Row("2.6.2 cut", "A=a.b; ipchains ${A%.*}", ("ipchains a",), "1: depends on an expansion of a shell"),
    Row("2.6.2 of bash", "A=abc\nipchains ${A:0:1}", (), "2: '${A:0:1}', which not every shell knows, needs"),
    Row("2.6.3 output", "ipchains $(echo -F)", (F,), "1: depends on the output of a command"),
    Row("2.6.3 of ours", "A=$(ipchains -F)", (F,), "1: is run within a command substitution"),
    Row("2.6.3 nested", "A=$(echo $(echo ')') \")\" # )\n)\nipchains -F", (F,)),
    Row("2.6.3 old form", "A=`echo \\`ipchains -F\\``", (F,), "1: is run within a command substitution"),
    Row("2.6.3 ends itself", "A=$(exit 1)\nipchains -F", (F,), "1: 'exit' is run within a command substitution"),
    Row("2.6.4 arithmetic", "ipchains $((1+1))", ("ipchains 2",), "1: arithmetic needs a shell"),
    Row("2.6.4 that ends the shell", "echo $((1/0))\nipchains -F", (), "1: arithmetic needs a shell"),
    Row("2.6.5 splitting", "A=' a  b '; ipchains x$A\"y\" $A", ("ipchains x a b y a b",)),
    Row("2.6.5 not in assignments", "A='a  b'; B=$A; ipchains \"$B\"", ("ipchains 'a  b'",)),
    Row("2.6.6 file names", "ipchains /bin/ls*h*h /dev/nul?", ("ipchains '/bin/ls*h*h' /dev/null",),
        "1: depends on a pattern"),
    Row("2.6.6 from a variable", "A='/dev/nul?'; ipchains $A \"$A\"", ("ipchains /dev/null '/dev/nul?'",),
        "1: depends on a"),
    Row("braces of bash", "ipchains {a,b}", ("ipchains '{a,b}'",),
        "1: depends on braces, which not every shell expands"),
    # -- 2.7 redirection
    Row("2.7.2 output", "ipchains -F >/dev/null 2>&1 -X", ("ipchains -F -X",)),
    Row("2.7.2 without the command", ">/dev/null\nipchains -F", (F,)),
    Row("2.7.2 that fails", "ipchains -F >/none/x\nipchains -X", ("ipchains -X",),
        "1: is not run if the file /none/x cannot"),
    Row("2.7.1 input that fails", "ipchains -F </none/x", (), "1: is not run if the file /none/x cannot be opened"),
    Row("2.8.1 and ends the shell", ": >/none/x\nipchains -F", (), "1: ':' with the file /none/x needs a shell"),
    Row("2.7 number or word", "ipchains a2>/dev/null 2 >/dev/null 2>/dev/null", ("ipchains a2 2",)),
    Row("2.7 two digits", "ipchains 22>/dev/null", ("ipchains 22",), "1: '22>', which not every shell knows, needs"),
    Row("2.7 without a file", "ipchains -F >\nipchains -X", (), "1: '>' without a file: a shell would end here"),
    Row("2.7.6 another behind it", "ipchains -F >&2>/dev/null", (), "1: '>&' without a file: a shell would end"),
    Row("2.7.6 of what is not open", "ipchains -F >&7", (), "1: '>&7', whose file is not known here, needs a shell"),
    Row("&> of bash", "ipchains -F &>/dev/null", (F,), "1: '&>', which not every shell knows, needs a shell"),
    Row("2.7.4 here-document", "cat >/dev/null <<EOF\nipchains -F input\nEOF\nipchains -X", ("ipchains -X",)),
    Row("2.7.4 with a quoted word", "cat <<'E'OF\n$(ipchains -F)\nEOF\n", ()),
    Row("2.7.4 with tabs", "cat <<-EOF\n\tipchains -F\n\tEOF\nipchains -X", ("ipchains -X",)),
    Row("2.7.4 without tabs", "cat <<EOF\n\tEOF\nipchains -F\nEOF\nipchains -X", ("ipchains -X",)),
    Row("2.7.4 blanks before its end", "cat <<-EOF\n EOF\nipchains -F\nEOF\n", ()),
    Row("2.7.4 several", "cat <<A <<B; ipchains -F\nipchains -X\nA\nipchains -L\nB\nipchains -Z", (F, "ipchains -Z")),
    Row("2.7.4 a line behind it that goes on", "cat <<EOF && \\\nipchains -F\nEOF\n", (F,),
        "2: is run or not by what stands before &&"),
    Row("2.7.4 with a command in it", "cat <<EOF\n$(ipchains -F)\nEOF\n", (F,),
        "2: is run within a command substitution"),
    Row("2.7.4 its lines go on", "cat <<EOF\n\\\nEOF\nipchains -F\nEOF\n", (F,),
        "4: a here-document whose last line is joined"),
    Row("2.7.4 without its end", "ipchains -X\ncat <<EOF\nipchains -F\n", ("ipchains -X",),
        "2: a here-document without its end"),
    Row("2.7.4 for ours", "ipchains -F <<EOF\nx\nEOF\n", (F,)),
    Row("here-string of bash", "cat <<<ipchains", (), "1: '<<<', which not every shell knows, needs a shell"),
    # -- 2.9 commands
    Row("2.9.1 assignment for a command", "A=1; A=2 ipchains $A; ipchains $A", ("ipchains 1", "ipchains 1")),
    Row("2.9.1 the program in a variable", "FW=ipchains; $FW -F; NO=; $NO ipchains -X", (F, "ipchains -X")),
    Row("2.9.1 a program that is no file", "ipchains/ -F", ()),
    Row("2.9.1 the program is unknown", "$FW -F", (), "1: the program depends on $FW, which is not set in this file"),
    Row("2.9.2 pipeline", "echo x | ipchains -F | cat", (F,)),
    Row("2.9.2 over lines", "echo x |\n\n ipchains -F", (F,)),
    Row("2.9.2 assigns nothing", "A=1; A=2 | cat; ipchains $A", ("ipchains 1",)),
    Row("2.9.2 ends nothing", "exit | cat; ipchains -F", (F,)),
    Row("2.9.3 ; and &", "ipchains -F & wait; ipchains -X;", (F, "ipchains -X")),
    Row("2.9.3 & assigns nothing", "A=1; A=2 & wait; ipchains $A", ("ipchains 1",)),
    Row("2.9.3 & ends nothing", "exit & wait; ipchains -F", (F,)),
    Row("2.9.3 and, of ours", "ipchains -F && ipchains -X", (F, "ipchains -X")),
    Row("2.9.3 or, of ours", "ipchains -N x || ipchains -F", ("ipchains -N x",),
        "1: is run or not by what stands before ||"),
    Row("2.9.3 and, unknown", "test -e /none && ipchains -F", (), "1: is run or not by what stands before &&"),
    Row("2.9.3 and, over lines", "test -e /none &&\nipchains -F", (), "2: is run or not by what stands before &&"),
    Row("2.9.3 and, known", "true && ipchains -F; false && ipchains -X; : || ipchains -Z; false || ipchains -L",
        (F, "ipchains -L")),
    Row("2.9.3 assigns perhaps", "A=1; test -e /none && A=2; ipchains $A", ("ipchains 1",),
        "1: depends on $A, which has a"),
    Row("2.9.3 ends perhaps", "test -e /none && exit; ipchains -F", (F,),
        "1: 'exit' is run or not by what stands before &&"),
    Row("2.9.3 nothing before", "; ipchains -F", (), "1: ';' stands where a command should: a shell would end here"),
    Row("2.9.3 nothing between", "ipchains -F ; ; ipchains -X", (),
        "1: ';' stands where a command should: a shell would"),
    Row("2.9.4 ( )", "(ipchains -F)\n( A=1; exit ); ipchains -X", (F, "ipchains -X")),
    Row("2.9.4 ( ) assigns nothing", "A=1; (A=2; ipchains $A); ipchains $A", ("ipchains 2", "ipchains 1")),
    Row("2.9.4 (( )) of bash", "((ipchains -F))", (F,), "1: '((', which not every shell knows, needs a shell"),
    Row("2.9.4 { }", "{ ipchains -F; A=2; } >/dev/null\n{ ipchains $A\n}", (F, "ipchains 2")),
    Row("2.9.4 { }, ended", "{ ipchains -F; exit; }; ipchains -X", (F,)),
    Row("2.9.4 { } into a file", "{ ipchains -F; } >/none/x; ipchains -X", ("ipchains -X",),
        "1: is not run if the file /none/x cannot be opened"),
    Row("2.9.4 { } behind ours", "ipchains -F && { ipchains -X; ipchains -Z; }", (F, "ipchains -X", "ipchains -Z"),
        "1: is run or not by what stands before &&"),
    Row("2.9.4 { }, empty", "{ }\nipchains -F", (), "1: '}' behind nothing: a shell would end here"),
    Row("2.9.4 } without {", "ipchains -F\n}\n", (F,), "2: '}' needs a shell"),
    Row("2.9.4 { closed by )", "ipchains -F\n{ ipchains -X )\n", (F,), "2: ')' stands where a command should: a shell"),
    Row("2.9.4 ( closed by }", "ipchains -F\n( ipchains -X; }\n", (F,), "2: '}' needs a shell"),
    Row("2.9.4 for", "for A in a 'b c' $1; do ipchains $A; done; ipchains $A",
        ("ipchains a", "ipchains b c", *("ipchains ppp0",) * 2)),
    Row("2.9.4 for, over lines", "for A in a \\\n b # c\ndo\nfor B in 1 2; do ipchains $A$B; done\ndone",
        tuple(f"ipchains {a}{b}" for a in "ab" for b in "12")),
    Row("2.9.4 for, of arguments", "for A; do ipchains \"$A\"; done",
        ("ipchains ppp0", "ipchains 'two words'", "ipchains ''")),
    Row("2.9.4 for, of nothing", "A=x; for A in; do ipchains -F; done; ipchains $A", ("ipchains x",)),
    Row("2.9.4 for, of the unknown", "for A in $(echo a); do ipchains $A; done", ("ipchains a",),
        "1: is in a loop over the output of a command; write it out"),
    Row("2.9.4 for, of file names", "for A in /proc/none/*/x; do echo 1 >/dev/null; continue; done\nipchains -F", (F,)),
    Row("2.9.4 for, of the unknown, twice", "F=echo; for A in $(echo a b); do $F -F; F=ipchains; done", (F,),
        "1: the program depends on $F, which has a value that only a shell can find"),
    Row("2.9.4 for, of the unknown, a variable", "for A in $(echo a); do B=$A; done; ipchains $B", ("ipchains a",),
        "1: depends on $B, which has a value that only a shell can find"),
    Row("2.9.4 for, in the background", "A=x; for A in a; do ipchains $A; done & wait; ipchains $A",
        ("ipchains a", "ipchains x")),
    Row("2.9.4 for, into a file", "for A in a; do ipchains $A; done >/none/x", (),
        "1: is not run if the file /none/x cannot be opened"),
    Row("2.9.4 for, not ended", "for A in a; do ipchains $A\n", (), "2: 'done' is missing: a shell would end here"),
    Row("2.9.4 case", "case a in a) ipchains -F;; esac", (F,), "1: is in 'case', which needs a shell"),
    Row("2.9.4 case without rules", "case $1 in\n(a|b*) ;; # x\n*) echo y >/dev/null\nesac\nipchains -F", (F,)),
    Row("2.9.4 case, not ended", "ipchains -F\ncase a in a) true", (F,), "2: 'esac' is missing"),
    Row("2.9.4 if", "if false; then ipchains -F; fi; ipchains -X", ("ipchains -X",),
        "1: is in 'if', which needs a shell"),
    Row("2.9.4 if without rules", "if [ -e /none ]; then\n A=2\nelif true; then :; else\n false; fi\nipchains -F",
        (F,)),
    Row("2.9.4 if, its condition", "if ipchains -F; then :; fi; if ! ipchains -X; then :; fi", (F, "ipchains -X")),
    Row("2.9.4 if, a variable", "A=1; if true; then A=2; fi; ipchains $A", ("ipchains 2",), "1: depends on $A"),
    Row("2.9.4 if, that ends", "if false; then exit; fi; ipchains -F", (F,), "1: 'exit' is in 'if', which needs"),
    Row("2.9.4 if, in each other", "if true; then if true; then { true; } fi fi\nipchains -F", (F,)),
    Row("2.9.4 if, in a substitution", "A=$(if true; then echo b; fi); ipchains -F", (F,)),
    Row("2.9.4 if, else twice", "ipchains -F\nif true; then :; else :; else :; fi", (F,), "2: 'else' needs a shell"),
    Row("2.9.4 if, not ended", "ipchains -F\nif true; then true", (F,), "2: 'fi' is missing: a shell would end here"),
    Row("2.9.4 while", "while false; do ipchains -F; done", (), "1: is in 'while', which needs a shell"),
    Row("2.9.4 while without rules", "while read A; do echo $A; break; done </dev/null\nuntil true; do :; done\n" + F,
        (F,)),
    Row("2.9.4 while, a later turn", "F=true; while $F; do F=ipchains; break; done", (),
        "1: the program depends on $F, which has a value that only a shell can find"),
    Row("2.9.4 while, in a loop", "for A in a b; do while true; do break 2; done; ipchains $A; done", (),
        "1: 'break' needs a shell"),
    Row("2.9.5 function", "f() { ipchains -F; }\nf", (F,), "1: a function needs a shell"),
    Row("2.9.5 in place of ours", "ipchains() { :; }\nipchains -F", (), "1: a function needs a shell"),
    # -- 2.14 special built-ins, and others that run or change commands
    Row("2.14 break", "for A in a b; do ipchains $A; break; done", ("ipchains a",), "1: 'break' needs a shell"),
    Row("2.14 :", ": ipchains -F", ()),
    Row("2.14 .", "echo ipchains -F >x; . ./x", (F,), "1: '.' needs a shell"),
    Row("2.14 eval", "eval ipchains -F", (F,), "1: 'eval' needs a shell"),
    Row("2.14 exec", "exec ipchains -F\nipchains -X", (F,), "1: 'exec' needs a shell"),
    Row("2.14 exit", "ipchains -F; exit 0; ipchains -X\n)", (F,)),
    Row("2.14 exit with the last result", "ipchains -F; exit $?\nipchains -X", (F,)),
    Row("2.14 export", "export A='a b' B=c D; ipchains $A $B", ("ipchains a b c",)),
    Row("2.14 export, as before it", "A=1; export A=2 B=$A; ipchains $A $B", ("ipchains 2 1",)),
    Row("2.14 export of no name", "export 1=2\nipchains -F", (), "1: 'export' of '1=2' needs a shell"),
    Row("2.14 export with an option", "export A= -n\nipchains -F", (), "1: 'export' of '-n' needs a shell"),
    Row("2.14 readonly", "readonly A=1\nA=2\nipchains -F $A", (), "2: A is read-only: a shell would end here"),
    Row("2.14 return", "return\nipchains -F", (), "1: 'return' needs a shell"),
    Row("2.14 set", "set -- a; ipchains $1", ("ipchains a",), "1: 'set' needs a shell"),
    Row("2.14 set -e", "set -e\nfalse\nipchains -F", (), "1: 'set' needs a shell"),
    Row("2.14 shift", "shift; ipchains \"$1\"", ("ipchains 'two words'",), "1: 'shift' needs a shell"),
    Row("2.14 trap", "trap 'ipchains -F' EXIT", (F,), "1: 'trap' needs a shell"),
    Row("2.14 unset", "A=1; unset A; ipchains -F $A", (F,), "1: depends on $A, which has a value that only a shell"),
    Row("2.14 unset of no name", "unset A=1\nipchains -F", (F,), "1: 'unset' of 'A=1' needs a shell"),
    Row("command", "command ipchains -F", (F,), "1: 'command' needs a shell"),
    Row("printf of bash", "printf -v A x\nipchains -F $A", (F,), "1: 'printf' needs a shell"),
    Row("read", "read A <<EOF\nx\nEOF\nipchains $A", ("ipchains x",), "4: depends on $A, which has a value"),
    Row("read with an option", "read -t 1 A\nipchains -F", (F,), "1: 'read' of '-t' needs a shell"),
    Row("a program that runs ours", "env A=1 ipchains -F", (F,), "1: 'env' needs a shell"),
    Row("a script in a script", "echo ipchains -F >x; sh x", (F,), "1: 'sh' needs a shell"),
    Row("an option without its program", "-F", (), "1: begins with the option -F"),
)  # fmt: skip


@pytest.fixture(scope="module")
def dash(tmp_path_factory: pytest.TempPathFactory) -> Dash:
    return Dash(tmp_path_factory.mktemp("dash"))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.construct)
def test_a_construct_is_read_as_dash_runs_it_or_refused(dash: Dash, row: Row) -> None:
    assert dash.calls(row.script, ARGUMENTS) == list(row.dash)
    if not row.refused:
        assert calls_read(row.script, ARGUMENTS) == list(row.dash)
        return
    with pytest.raises(ConfigurationError) as caught:
        calls_read(row.script, ARGUMENTS)
    assert str(caught.value).startswith(f"f:{row.refused}")
