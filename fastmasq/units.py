"""The only conversions between numbers and the units people write: durations and rates."""

from __future__ import annotations

import re

NS_PER_SECOND = 1_000_000_000

_DURATION_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": NS_PER_SECOND,
    "m": 60 * NS_PER_SECOND,
    "h": 3_600 * NS_PER_SECOND,
    "d": 86_400 * NS_PER_SECOND,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)")
_RATE = re.compile(r"(\d+)\s*/\s*s")


def parse_duration(text: str | int | float) -> int:
    """Return nanoseconds for "2h4m", "300s", "1.5s", or a bare number of seconds. Raises ValueError."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"a duration cannot be negative: {text}")
        return round(text * NS_PER_SECOND)
    compact = str(text).replace(" ", "")
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        return round(float(compact) * NS_PER_SECOND)
    if not compact or _DURATION_PART.sub("", compact):
        raise ValueError(f"{text!r} is not a duration; write for example 300s, 5m or 2h4m")
    return sum(round(float(number) * _DURATION_NS[unit]) for number, unit in _DURATION_PART.findall(compact))


def format_duration(nanoseconds: int) -> str:
    """Return the shortest exact spelling parse_duration reads back: 7440 s becomes "2h4m"."""
    if nanoseconds == 0:
        return "0s"
    parts = []
    rest = nanoseconds
    for unit in ("d", "h", "m", "s", "ms", "us", "ns"):
        count, rest = divmod(rest, _DURATION_NS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_rate(text: str | int) -> int:
    """Return events per second for "2000/s" or a bare number. Raises ValueError."""
    if isinstance(text, int):
        return text
    match = _RATE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a rate; write for example 2000/s")
    return int(match[1])


def format_count(value: float) -> str:
    """Return a number for people, three significant digits: 12, 4.57 k, 1.20 M."""
    for factor, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"
