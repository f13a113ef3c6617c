"""Type inference for text columns from all values: numbers, dates, words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from advect.core.errors import UserError, optional_import, quoted_flag
from advect.data.tables.date_forms import mixed_formats
from advect.data.tables.words import (
    all_of,
    among,
    any_of,
    commonest,
    compute,
    distinct_of,
    every,
    fits,
    some,
    text_of,
)
from advect.data.tables.write_text import minutes_of, number_form

MISSING = ("NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "none", "-")
"""Missing values among numbers, dates and booleans; among words they are words."""

CODES = re.compile(r"(^|_)(zip|zip_?code|post_?code|postal_?code|plz|postleitzahl|phone|telephone|tel)$")
"""Names of columns whose digits are codes."""

_INFINITE = r"(?i:[+-]?inf(inity)?)"
_POWERED = r"\d+([eE]\d+)?"
_GROUPS = ((",", "."), (".", ","), ("'", "."), (" ", ","))
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:([T ])(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_DAY_ALIKE = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}(?: \d\d:\d\d(?::\d\d)?)?"
_DAY = re.compile(r"(\d{1,4})([./-])(\d{1,2})\2(\d{1,4})(?: (\d\d):(\d\d)(?::(\d\d))?)?", re.ASCII)


class Read(NamedTuple):
    """Values (N,) of a text column, which are missing, how they are written, and the reason for the kind.

    Values are int64 or float64, datetime64, bool or objects (text, None where missing), and any where missing.
    ``doubt`` is the question to the person where the kind could be another.
    """

    kind: Literal["number", "time", "bool", "text"]
    values: np.ndarray
    absent: np.ndarray
    form: dict[str, Any]
    why: str
    doubt: str = ""

    @property
    def told(self) -> str:
        """Kind and why, for logs."""
        return f"{self.kind} ({self.why})"


def infer_text(
    name: str,
    words: Any,
    *,
    missing: Sequence[str] | None = None,
    decimal: str = "auto",
    date_order: str = "auto",
    numeric: bool = False,
    only_dates: bool = False,
) -> Read:
    """Infer the kind of words, an Arrow ``ChunkedArray`` (N,) of strings; empty and null ones are missing.

    Args:
        missing: words that are missing values in any column; None: ``MISSING`` where all others are numbers, dates,
            times or booleans.
        decimal: "." or ","; "auto" infers it from all numbers.
        date_order: "dmy" or "mdy" for 03/04/2020; "auto" infers it from all dates.
        numeric: read digits that look like codes as numbers.
        only_dates: infer dates only, for text of its own type.

    Raises:
        UserError: numbers or dates are ambiguous, or ``numeric`` words are no numbers.
    """
    pc = compute()
    empty = pc.fill_null(pc.equal(words, ""), True)
    marks = pc.and_not(pc.fill_null(among(words, MISSING if missing is None else missing), False), empty)
    plain = pc.invert(pc.or_(empty, marks))
    own, filled = words if all_of(plain) else words.filter(plain), any_of(plain)
    found = _typed(name, own, decimal, date_order, numeric, only_dates) if filled else None
    if numeric and filled and (found is None or found[0] != "number"):
        raise _no_numbers(name, own, decimal)
    if found is None:
        gone = empty if missing is None else pc.or_(empty, marks)
        if filled and (doubt := _mixed(name, own)):
            return as_text(words, gone, "dates in several formats", doubt)
        if only_dates or not filled:
            return as_text(words, gone, "words" if filled else "no values")
        doubt = _doubt(name, own, sorted(pc.unique(words.filter(marks)).to_pylist()), decimal, date_order)
        return as_text(words, gone, _why_words(name, own), doubt)
    kind, values, form, why = found
    there = plain.to_numpy()
    whole = values
    if not there.all():
        whole = np.zeros(len(there), values.dtype)
        whole[there] = values
    if any_of(marks):
        mark = commonest(words.filter(marks))
        form = {**form, "missing": mark}
        why += f", {mark!r} among them is a missing value"
    return Read(kind, whole, ~there, form, why)


def as_text(words: Any, absent: Any, why: str, doubt: str = "") -> Read:
    """Words (N,) as text that is missing where ``absent`` (N,), of the commonest form there."""
    pc = compute()
    marks = words.filter(pc.and_(absent, pc.fill_null(pc.not_equal(words, ""), False)))
    left = pc.if_else(absent, optional_import("pyarrow", "tables").scalar(None, "string"), words)
    form = {"missing": commonest(marks)} if len(marks) else {}
    return Read("text", left.to_pandas().to_numpy(object), absent.to_numpy(), form, why, doubt)


def _why_words(name: str, words: Any) -> str:
    """Why words that are not of one other kind are text."""
    pc = compute()
    numbers = _looks_numeric(words)
    count = pc.sum(numbers).as_py()
    if every(words, r"[+-]?\d+"):
        if some(words, r"\+|-?0\d"):
            return "digits after a 0 or a plus, which codes have"
        return "codes, by its name" if CODES.search(name.lower()) else "whole numbers of over 64 bits"
    if every(words, _POWERED):
        odd = words.filter(pc.invert(fits(words, r"\d+")))[0].as_py()
        return (
            f"digits with a bare exponent, as {odd!r}, which codes have; numbers with {quoted_flag('numeric', name)}"
        )
    if 2 * count > len(words) > count:
        odd = words.filter(pc.invert(numbers))[0].as_py()
        return f"words, as {odd!r} among numbers is none; missing with {quoted_flag('missing', odd)}"
    return "numbers written in several ways" if count == len(words) else "words"


def _looks_numeric(words: Any) -> Any:
    return fits(words, "|".join((_pattern("."), _pattern(","), *(_grouped(*g) for g in _GROUPS))))


DOUBTFUL = 0.9
"""Share of numbers or dates above which other words are likely meant to be missing."""


def _doubt(name: str, words: Any, marks: list[str], decimal: str, date_order: str) -> str:
    """What to ask where more than ``DOUBTFUL`` of the words are numbers or dates; "" else."""
    pc = compute()
    dates = fits(words, f"{_ISO.pattern}|{_DAY_ALIKE}")
    for kind, good in (("numbers", _looks_numeric(words)), ("dates", dates)):
        count = pc.sum(good).as_py()
        if not DOUBTFUL * len(words) < count < len(words):
            continue
        try:
            if _typed(name, words.filter(good), decimal, date_order, False, kind == "dates") is None:
                continue
        except UserError:
            pass  # asked next, once these words are missing
        odd = sorted(pc.unique(words.filter(pc.invert(good))).to_pylist())
        shown = ", ".join(map(repr, odd[:5])) + (" and others" if len(odd) > 5 else "")
        mend = f"--missing takes them as missing ({quoted_flag('missing', *marks, *odd[:5])})"
        return (
            f"column {name!r} has {kind} but for {len(words) - count:,} of {len(words):,} values, {shown}; {mend},"
            f" {quoted_flag('categorical', name)} keeps all as words"
        )
    return ""


def _mixed(name: str, words: Any) -> str:
    """What to say of words that are all dates, but not of one format; "" else."""
    if not every(words, f"{_ISO.pattern}|{_DAY_ALIKE}"):
        return ""
    found = mixed_formats(distinct_of(words)[0])
    if found is None:
        return ""
    return (
        f"column {name!r} has dates in several formats, such as {found[0]!r} and {found[1]!r}; write all in one, or"
        f" keep them as words with categorical=({name!r},), {quoted_flag('categorical', name)}"
    )


def _no_numbers(name: str, words: Any, decimal: str) -> UserError:
    """Error for a column that ``numeric`` names and that is not all numbers of one form."""
    pc = compute()
    first = lambda mask: words.filter(mask)[0].as_py() if any_of(mask) else None
    marks = ".," if decimal == "auto" else decimal
    forms = [_pattern(mark) for mark in marks] + [_grouped(*g) for g in _GROUPS if g[1] in marks] + [_INFINITE]
    odd = first(pc.invert(fits(words, "|".join(forms))))
    if odd is not None:
        return UserError(f"numeric has {name!r}, which holds {odd!r}; name it to --missing or make it a number")
    large = _beyond_64_bits(words)
    if large is not None:
        return UserError(
            f"numeric has {name!r}, which holds {large}, beyond the whole numbers of 64 bits; take it out of"
            " --numeric, and it is text"
        )
    return UserError(
        f"numeric has {name!r}, whose numbers are written in several ways, such as {words[0].as_py()!r}; write all"
        " with one decimal mark"
    )


def _beyond_64_bits(words: Any) -> str | None:
    """The first whole number at or beyond +-2^63, if any."""
    long = words.filter(fits(words, r"[+-]?0*[1-9]\d{18,}")).to_pylist()
    return next((w for w in long if len(w.lstrip("+-0")) > 19 or abs(int(w)) >= 2**63), None)


def _typed(name: str, words: Any, decimal: str, order: str, numeric: bool, only_dates: bool) -> Any:
    """Kind, values (N,), form and reason if all words are of one kind, else None."""
    if not only_dates:
        if all_of(among(words, ("True", "False"))):
            return "bool", compute().equal(words, "True").to_numpy(), {}, "True and False"
        if found := _numbers(name, words, decimal, numeric):
            return found
    return _iso(words) or _days(name, words, order)


def _numbers(name: str, words: Any, decimal: str, numeric: bool) -> Any:
    pc = compute()
    finite, unbounded = words, False
    marks = [mark for mark in ".," if every(words, _pattern(mark))]
    if not marks and some(words, "[+-]?[iI]"):
        infinite = fits(words, _INFINITE)
        finite, unbounded = words.filter(pc.invert(infinite)), any_of(infinite)
        marks = [mark for mark in ".," if every(finite, _pattern(mark))]
    grouped = [g for g in _GROUPS if any_of(pc.match_substring(finite, g[0])) and every(finite, _grouped(*g))]
    if decimal != "auto":
        marks, grouped = [m for m in marks if m == decimal], [g for g in grouped if g[1] == decimal]
    elif not marks and not some(finite, r"[^.,]*[.,][^.,]*[.,]"):
        grouped = []  # 1.234 and 12 alike: a group of thousands is told from a second mark alone
    if not marks and not grouped:
        return None
    if marks == [","] and (",", ".") in grouped and decimal == "auto":
        such = finite.filter(pc.match_substring(finite, ","))[0].as_py()
        raise UserError(
            f"column {name!r} has numbers such as {such!r}, whose comma can be decimal"
            " or part thousands; say --decimal , or --decimal ."
        )
    group, mark = ("", marks[0]) if marks else grouped[0]
    plain = pc.replace_substring(words, group, "") if group else words
    whole = not unbounded and every(plain, r"[+-]?\d+")
    if not numeric and not group and some(plain, r"-?0\d"):
        return None
    if not numeric and whole and (CODES.search(name.lower()) or (not group and any_of(pc.starts_with(plain, "+")))):
        return None
    if not numeric and not whole and not unbounded and every(plain, _POWERED):
        return None
    if whole:
        if _beyond_64_bits(plain):
            return None
        values = pc.cast(pc.replace_substring_regex(plain, r"^\+", ""), "int64").to_numpy()
        return "number", values, {"group": group} if group else {}, "whole numbers"
    values = _reals(plain if mark == "." else pc.replace_substring(plain, mark, "."))
    bounded = (pc.replace_substring(finite, group, "") if group else finite) if unbounded else plain
    form = number_form(bounded if len(bounded) else text_of(["0"]), mark)
    form |= {"group": group} if group else {}
    told = "" if "places" in form or not any_of(fits(finite, ".*[eE].*")) else ", some of them with exponents"
    return "number", values, form, "numbers" + (" with a decimal comma" if mark == "," else "") + told


def _reals(words: Any) -> np.ndarray:
    try:
        return compute().cast(words, "float64").to_numpy()
    except ValueError:  # Arrow does not read what float64 cannot hold
        return np.array([float(w) for w in words.to_pylist()])


def _pattern(mark: str) -> str:
    m = re.escape(mark)
    return rf"[+-]?(\d+({m}\d*)?|{m}\d+)([eE][+-]?\d+)?"


def _grouped(group: str, mark: str) -> str:
    return rf"-?\d{{1,3}}({re.escape(group)}\d{{3}})*({re.escape(mark)}\d+)?"


def read_iso(word: str) -> np.datetime64 | None:
    """An ISO date or time, in UTC if it has an offset; None for other words."""
    match = _ISO.fullmatch(word)
    if match is None:
        return None
    fields = match.groups()
    try:
        return np.datetime64(_stamp(fields)) - np.timedelta64(minutes_of(fields[8]), "m")
    except ValueError:
        return None


def _iso(words: Any) -> Any:
    """Full ISO dates, times in UTC to nanoseconds; 2024-01 and 20240101 are codes."""
    if not every(words, _ISO.pattern):
        return None
    distinct, codes = distinct_of(words)
    parts = [_ISO.fullmatch(w) for w in distinct]
    fields = [p.groups() for p in parts if p]
    if len({f[3] for f in fields}) > 1 or len({f[6] is None for f in fields}) > 1:
        return None
    zones = {bool(f[8]) for f in fields}
    if len(zones) > 1:
        return None
    digits = {len(f[7] or "") for f in fields}
    unit = "D" if fields[0][3] is None else ("s", "ms", "us", "ns")[-(-max(digits) // 3)]
    try:
        stamps = np.array([_stamp(f) for f in fields], f"M8[{unit}]")
    except ValueError:
        return None
    form: dict[str, Any] = {"date": "iso", "separator": fields[0][3], "seconds": fields[0][6] is not None}
    form |= {"digits": max(digits), "trim": len(digits) > 1}
    if zones == {True}:
        minutes = np.array([minutes_of(f[8]) for f in fields])
        stamps = stamps - minutes.astype("m8[m]")
        form |= {"zones": _zones(stamps[codes], np.array([f[8] for f in fields], object)[codes])}
        return "time", stamps[codes], form, "ISO times with offsets, which become UTC"
    return "time", stamps[codes], form, "ISO dates"


def _stamp(f: tuple[str | None, ...]) -> str:
    day = f"{f[0]}-{f[1]}-{f[2]}"
    return day if f[3] is None else f"{day}T{f[4]}:{f[5]}:{f[6] or '00'}" + (f".{f[7]}" if f[7] else "")


def _zones(stamps: np.ndarray, zones: np.ndarray) -> list[list[Any]]:
    """Pairs of start time (UTC seconds since 1970) and offset; one, the commonest, if offsets do not follow time."""
    order = np.argsort(stamps, kind="stable")
    counts, names = stamps.astype("M8[s]").astype(np.int64)[order], zones[order]
    change = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
    if len(change) > 400 or len(change) > max(2, len(names) / 10):
        return [[int(counts[0]), Counter(names.tolist()).most_common(1)[0][0]]]
    return [[int(counts[i]), str(names[i])] for i in change]


def _days(name: str, words: Any, order: str) -> Any:
    """Dates such as 31.12.2020, 12/31/2020 and 2020/12/31, with or without a time."""
    if not every(words, _DAY_ALIKE):
        return None
    distinct, codes = distinct_of(words)
    parts = [_DAY.fullmatch(w) for w in distinct]
    fields = [p.groups() for p in parts if p]
    if len(fields) < len(parts):  # of two marks
        return None
    marks, year_first = {f[1] for f in fields}, {len(f[0]) == 4 for f in fields}
    shapes = {(f[4] is None, f[6] is None) for f in fields}
    if len(marks) > 1 or len(year_first) > 1 or len(shapes) > 1:
        return None
    if any(len(f[0 if year_first == {True} else 3]) != 4 for f in fields):
        return None
    first, middle = np.array([int(f[0]) for f in fields]), np.array([int(f[2]) for f in fields])
    if year_first == {True}:
        found = "ymd"
    elif order != "auto":
        found = order
    elif first.max() > 12 or middle.max() > 12 or marks == {"."}:
        found = "dmy" if middle.max() <= 12 else "mdy"
    else:
        raise UserError(
            f"column {name!r} has dates such as {distinct[0]!r}, whose day may come first or second; say --date-order"
            f" dmy or mdy, or keep them as words with categorical=({name!r},), {quoted_flag('categorical', name)}"
        )
    places = {"ymd": (0, 2, 3), "dmy": (3, 2, 0), "mdy": (3, 0, 2)}[found]
    clock = fields[0][4] is not None
    try:
        days = ["-".join(f[i].zfill(4 if i == places[0] else 2) for i in places) for f in fields]
        times = [f"T{f[4]}:{f[5]}:{f[6] or '00'}" if clock else "" for f in fields]
        stamps = np.array([d + t for d, t in zip(days, times, strict=True)], "M8[s]" if clock else "M8[D]")
    except ValueError:
        return None
    padded = all(len(f[i]) >= 2 for f in fields for i in places)
    form = {"date": found, "mark": marks.pop(), "padded": padded, "clock": clock, "seconds": fields[0][6] is not None}
    return "time", stamps[codes], form, f"dates in the order {found}"


def as_series(read: Read, name: str) -> Any:
    """Values as a pandas Series: int64, float64, bool, datetime64 or object; nullable if values are missing."""
    import pandas as pd

    values, absent = read.values, read.absent
    if read.kind == "time":
        stamps = np.where(absent, np.datetime64("NaT"), values)
        years = values[~absent].astype("M8[Y]").astype(int) + 1970
        wide = years.min() < 1678 or years.max() > 2261
        unit = np.datetime_data(stamps.dtype)[0]
        series = pd.Series(stamps.astype(f"M8[{'s' if unit == 'D' else unit}]" if wide else "M8[ns]"), name=name)
        return series.dt.tz_localize("UTC") if read.form.get("zones") else series
    if values.dtype.kind in "bi" and absent.any():
        nullable = pd.arrays.BooleanArray if read.kind == "bool" else pd.arrays.IntegerArray
        return pd.Series(nullable(values, absent), name=name)
    if values.dtype.kind == "f" and absent.any():
        values = np.where(absent, np.nan, values)
    return pd.Series(values, name=name, copy=False)
