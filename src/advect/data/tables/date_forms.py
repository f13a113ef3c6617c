"""Formats of dates in text, to tell a column of several formats from one of words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date

_DATE = re.compile(
    r"(?P<a>\d{1,4})(?P<mark>[./-])(?P<b>\d{1,2})(?P=mark)(?P<c>\d{1,4})"
    r"(?:(?P<gap>[T ])(?P<hour>\d\d):(?P<minute>\d\d)(?P<second>:\d\d(?:\.\d{1,9})?)?(?P<zone>Z|[+-]\d\d:?\d\d)?)?",
    re.ASCII,
)
_ORDERS = {"ymd": "abc", "dmy": "cba", "mdy": "cab"}
"""Which of the fields a, b, c are year, month and day."""

Format = tuple[str, ...]
"""Order, mark, what stands before the time, and whether there are seconds and an offset."""


def date_formats(word: str) -> frozenset[Format]:
    """The formats in which a word is a date with a year of four digits; none for other words."""
    match = _DATE.fullmatch(word)
    if match is None:
        return frozenset()
    clock = (match["gap"] or "", "seconds" * bool(match["second"]), "offset" * bool(match["zone"]))
    return frozenset(
        (order, match["mark"], *clock) for order, fields in _ORDERS.items() if _is_day(*(match[f] for f in fields))
    )


def _is_day(year: str, month: str, day: str) -> bool:
    if len(year) != 4:
        return False
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return False
    return True


def mixed_formats(words: Iterable[str]) -> tuple[str, str] | None:
    """Two words of different formats, if all are dates and no format fits them all; else None."""
    common: frozenset[Format] | None = None
    pair, narrow = None, ""
    for word in words:
        own = date_formats(word)
        if not own:
            return None
        left = own if common is None else common & own
        if not left and pair is None:
            pair = narrow, word
        narrow = word if left != common else narrow  # the word that left fewer formats
        common = left or common
    return pair
