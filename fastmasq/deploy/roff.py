"""Writes manual pages: text, options and the manual's Markdown in the macros of man(7)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence

_INLINE = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\*\*(?P<strong>.+?)\*\*"
    r"|(?<![\w*])\*(?P<emphasis>[^\s*][^*]*)\*(?![\w*])"
    r"|\[(?P<link>[^\]]+)\]\([^)]*\)"
)
_WRITTEN = {"\\": r"\e", "-": r"\-", "~": r"\(ti", "^": r"\(ha", "`": r"\(ga", "'": r"\(aq"}  # backslashes first
_CELL_BREAK = re.compile(r"(?<!\\)\|")


def escape(text: str) -> str:
    """Return text as roff reads it literally, also at the start of a line."""
    return re.sub(r"^\.", r"\\&.", _literal(text), flags=re.MULTILINE)


def _literal(text: str) -> str:
    for letter, written in _WRITTEN.items():
        text = text.replace(letter, written)
    return text


def bold(text: str) -> str:
    return rf"\fB{_literal(text)}\fR"


def italic(text: str) -> str:
    return rf"\fI{_literal(text)}\fR"


def inline(text: str) -> str:
    """Return a line of Markdown: code and strong words in bold, emphasis in italics, links as their text."""
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts.append(_literal(text[end : match.start()]))
        if match["link"] is not None:
            parts.append(inline(match["link"]))
        elif match["emphasis"] is not None:
            parts.append(italic(match["emphasis"]))
        else:
            parts.append(bold(match["code"] or match["strong"]))
        end = match.end()
    parts.append(_literal(text[end:]))
    line = "".join(parts)
    return rf"\&{line}" if line.startswith(".") else line


def heading(text: str, level: int = 1) -> str:
    """Return the head of a section, or of one within it."""
    words = escape(text).replace('"', r"\(dq")
    return f'.{"SH" if level == 1 else "SS"} "{words}"'


def title(name: str, section: int, version: str, sentence: str, also: Sequence[str] = ()) -> list[str]:
    """Return how a page begins, up to its NAME; `also` are other names that it is about."""
    return [
        f'.TH "{escape(name.upper())}" "{section}" "" "fastmasq {escape(version)}" "fastmasq"',
        ".nh",
        heading("NAME"),
        rf"{escape(', '.join([name, *also]))} \- {inline(sentence)}",
    ]


def page(lines: Iterable[str]) -> str:
    """Return the text of a page; a paragraph behind a head is one anyway."""
    written: list[str] = []
    for line in lines:
        if line != ".PP" or not written[-1].startswith((".SH", ".SS")):
            written.append(line)
    return "\n".join(written) + "\n"


def paragraph(text: str) -> list[str]:
    return [".PP", inline(" ".join(text.split()))]


def described(tag: str, lines: Iterable[str]) -> list[str]:
    """Return a paragraph behind its tag, which is roff already, as are the lines."""
    return [".TP", tag, *lines]


def example(text: str) -> list[str]:
    """Return lines as they are."""
    return [".PP", ".RS 4", ".EX", *(escape(line) or r"\&" for line in text.split("\n")), ".EE", ".RE"]


def help_text(text: str) -> list[str]:
    """Return click's help of a command: paragraphs, and such as are left as they are, behind a line of \\b."""
    lines: list[str] = []
    for block in re.split(r"\n\n+", inspect.cleandoc(text)):
        if block.startswith("\b"):
            lines += example(block.removeprefix("\b").strip("\n"))
        else:
            lines += paragraph(block)
    return lines


def markdown(text: str) -> list[str]:
    """Return a page of the manual but for its head line: heads, paragraphs, lists, tables and examples."""
    lines: list[str] = []
    for block in _blocks(text):
        first = block[0]
        if first.startswith("```"):
            lines += example("\n".join(block[1:-1]))
        elif match := re.match(r"(#+) (.*)", first):
            if len(match[1]) > 1:
                lines.append(heading(match[2].replace("`", ""), len(match[1]) - 1))
        elif first.startswith("    "):
            lines += example("\n".join(line[4:] for line in block))
        elif first.startswith("|"):
            lines += _table(block)
        elif re.match(r"[*-] |\d+\. ", first):
            for mark, item in _items(block):
                lines += [f".IP {mark} 4", inline(item)]
        else:
            lines += paragraph("\n".join(block))
    return lines


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield runs of lines that belong together: an example, a head, or what is between two empty lines."""
    block: list[str] = []
    is_example = False
    for line in [*text.split("\n"), ""]:
        if is_example:
            block.append(line)
            if line.startswith("```"):
                yield block
                block, is_example = [], False
            continue
        is_head = line.startswith("#")
        starts_example = line.startswith("```")
        if block and (not line.strip() or is_head or starts_example):
            yield block
            block = []
        if starts_example:
            block, is_example = [line], True
        elif is_head:
            yield [line]
        elif line.strip():
            block.append(line)


def _items(block: list[str]) -> Iterator[tuple[str, str]]:
    mark, words = "", ""
    for line in block:
        if match := re.match(r"([*-]|\d+\.) +(.*)", line):
            if words:
                yield mark, words
            mark, words = (r"\(bu" if match[1] in "*-" else match[1]), match[2]
        else:
            words += " " + line.strip()
    yield mark, words


def _table(block: list[str]) -> Iterator[str]:
    rows = [[cell.strip().replace(r"\|", "|") for cell in _CELL_BREAK.split(line.strip("| "))] for line in block]
    for tag, *cells in (row for row in rows[1:] if not set("".join(row)) <= set("-: ")):
        yield from described(inline(tag), [inline("; ".join(cells))])
