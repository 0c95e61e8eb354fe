"""The line of each key: by hand for every shape of TOML, and against tomllib and a counting writer at random."""

from __future__ import annotations

import json
import tomllib

from hypothesis import given
from hypothesis import strategies as st

from fastmasq.config.lines import find_lines

EVERY_SHAPE = '''\
# a comment [not a table]
top = 1 # with = sign
"quoted key" = 'lit#eral'

[a]
b.c."d.e" = "x # y"
list = [ 1,
  2, # two
  { in = "line", deep = [ 3,
    4 ] },
]
text = """
[no.table]
key = 1 \\""" still text""""
date = 1979-05-27 07:32:00 # a blank inside
[[a.tables]]
x = \'\'\'
y = 2
\'\'\'
[a.tables.sub]
z = inf
[[a.tables]]
\t[ a . "tables" . sub ]
z = 0x1F
'''


def test_every_shape():
    assert find_lines(EVERY_SHAPE) == {
        ("top",): 2,
        ("quoted key",): 3,
        ("a",): 5,
        ("a", "b"): 6,
        ("a", "b", "c"): 6,
        ("a", "b", "c", "d.e"): 6,
        ("a", "list"): 7,
        ("a", "list", 0): 7,
        ("a", "list", 1): 8,
        ("a", "list", 2): 9,
        ("a", "list", 2, "in"): 9,
        ("a", "list", 2, "deep"): 9,
        ("a", "list", 2, "deep", 0): 9,
        ("a", "list", 2, "deep", 1): 10,
        ("a", "text"): 12,
        ("a", "date"): 15,
        ("a", "tables"): 16,
        ("a", "tables", 0): 16,
        ("a", "tables", 0, "x"): 17,
        ("a", "tables", 0, "sub"): 20,
        ("a", "tables", 0, "sub", "z"): 21,
        ("a", "tables", 1): 22,
        ("a", "tables", 1, "sub"): 23,
        ("a", "tables", 1, "sub", "z"): 24,
    }


def test_windows_line_ends():
    assert find_lines("a = 1\r\n\r\n[b]\r\nc = 2\r\n") == {("a",): 1, ("b",): 3, ("b", "c"): 4}


def test_nothing():
    assert find_lines("") == find_lines("# only a comment") == {}


KEYS = st.one_of(st.sampled_from(["a", "b-1", "3", "true", "inside"]), st.text(max_size=4))
PLAIN = st.one_of(
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.floats(allow_nan=False),
    st.text(max_size=8),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)


class Writer:
    """Writes a table as TOML in a style that the drawn numbers choose, and notes the line of each place."""

    def __init__(self, choose):
        self.choose = choose
        self.text = ""
        self.lines = {}

    def note(self, place):
        self.lines.setdefault(place, self.text.count("\n") + 1)

    def string(self, text):
        style = self.choose(3)
        controls = any(ord(letter) < 32 or ord(letter) == 127 for letter in text)
        if style == 0 and not controls and "'" not in text:
            return f"'{text}'"
        escaped = json.dumps(text).replace("\x7f", "\\u007f") if text.isascii() else self.escape(text)
        return f'""{escaped}""' if style == 1 else escaped

    @staticmethod
    def escape(text):
        return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'

    def key(self, key):
        bare = key and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)
        return (
            key
            if bare and self.choose(2)
            else json.dumps(key).replace("\x7f", "\\u007f")
            if key.isascii()
            else self.escape(key)
        )

    def value(self, value, place):
        if isinstance(value, dict):
            self.text += "{ "
            for index, (key, inner) in enumerate(value.items()):
                self.text += ", " if index else ""
                self.note((*place, key))
                self.text += f"{self.key(key)} = "
                self.value(inner, (*place, key))
            self.text += " }"
        elif isinstance(value, list):
            self.text += "["
            for index, inner in enumerate(value):
                self.text += self.gap()
                self.note((*place, index))
                self.value(inner, (*place, index))
                self.text += self.gap() + ","
            self.text += self.gap() + "]"
        elif isinstance(value, str):
            self.text += self.string(value)
        elif isinstance(value, bool):
            self.text += "true" if value else "false"
        else:
            self.text += repr(value).replace("e", "e") if value == value else "nan"

    def gap(self):
        return ("", " ", "\n", " # ] }\n\t")[self.choose(4)]

    def table(self, table, place=()):
        later = {}
        for key, value in table.items():
            is_array = isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value)
            if (isinstance(value, dict) or is_array) and self.choose(2):
                later[key] = value
                continue
            self.text += ("", "\n", "# x = 1\n", "  ")[self.choose(4)]
            self.note((*place, key))
            self.text += f"{self.key(key)} = "
            self.value(value, (*place, key))
            self.text += "\n"
        for key, value in later.items():
            header = ".".join(self.key(part) for part in (*[part for part in place if isinstance(part, str)], key))
            if isinstance(value, dict):
                self.note((*place, key))
                self.text += f"[{header}]\n"
                self.table(value, (*place, key))
                continue
            for index, inner in enumerate(value):
                self.note((*place, key))
                self.note((*place, key, index))
                self.text += f"[[ {header} ]] # [x]\n"
                self.table(inner, (*place, key, index))


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.data())
def test_any_table_in_any_style(table, data):
    writer = Writer(lambda count: data.draw(st.integers(0, count - 1)))
    writer.table(table)
    assert tomllib.loads(writer.text) == table
    assert find_lines(writer.text) == writer.lines
