"""Every drop reason and every note is documented, with its sentence, and the specification knows no other reasons."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastmasq.path.verdict import DROP_REASONS, NOTES, VERDICTS
from fastmasq.trackers.alg.refusals import REFUSALS, Refusal

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "fastmasq" / "manual" / "counters.md"
REFUSED = re.compile(r'Refused\(\s*"(\w+)"')


@pytest.fixture(scope="module")
def manual() -> str:
    return MANUAL.read_text()


@pytest.mark.parametrize(("symbol", "sentence"), DROP_REASONS, ids=[symbol for symbol, _ in DROP_REASONS])
def test_drop_reason_is_documented(manual: str, symbol: str, sentence: str) -> None:
    lines = [line for line in manual.splitlines() if f"`{symbol}`" in line]
    assert lines, f"{symbol} is missing"
    assert any(sentence in line for line in lines), f"{symbol} has another sentence"


@pytest.mark.parametrize("symbol", [*VERDICTS, *NOTES])
def test_verdicts_and_notes_are_documented(manual: str, symbol: str) -> None:
    assert f"`{symbol}`" in manual


def test_sentences_are_distinct() -> None:
    sentences = [sentence for _, sentence in DROP_REASONS]
    assert len(sentences) == len(set(sentences))


def test_the_specification_uses_known_reasons() -> None:
    used = {
        symbol for path in (ROOT / "tests/support/model").glob("*.py") for symbol in REFUSED.findall(path.read_text())
    }
    assert used
    assert used <= {symbol for symbol, _ in DROP_REASONS}


def test_cases_use_known_reasons() -> None:
    rows = [line for path in (ROOT / "tests" / "cases").glob("*.case") for line in path.read_text().splitlines()]
    used = {match[1] for row in rows if (match := re.match(r"\s+drop (\w+)", row))}
    assert used <= {symbol for symbol, _ in DROP_REASONS}


@pytest.mark.parametrize(("name", "refusal"), REFUSALS.items())
def test_refusals_of_application_gateways_are_documented(name: str, refusal: Refusal) -> None:
    page = (MANUAL.parent / "gateways.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, seen, afterwards, _ = (part.strip() for part in line.split("|"))
    assert seen.startswith(refusal.sentence)
    assert afterwards == ("unread" if refusal.ends else "read on")
