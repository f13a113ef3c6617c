"""Type inference for text columns from all values: numbers, dates, words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from advect.core.errors import UserError, quoted_flag
from advect.data.tables.write_text import minutes_of, number_form

MISSING = ("NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "none", "-")
"""Missing values among numbers, dates and booleans; among words they are words."""

CODES = re.compile(r"(^|_)(zip|zip_?code|post_?code|postal_?code|plz|postleitzahl|phone|telephone|tel)$")
"""Names of columns whose digits are codes."""

_INFINITE = r"[+-]?inf(inity)?"
_POWERED = r"\d+([eE]\d+)?"
_GROUPS = ((",", "."), (".", ","), ("'", "."), (" ", ","))
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:([T ])(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)
_DAY = re.compile(r"(\d{1,4})([./-])(\d{1,2})\2(\d{1,4})(?: (\d\d):(\d\d)(?::(\d\d))?)?", re.ASCII)


class Read(NamedTuple):
    """Values of a text column (NaN or None where missing), how they are written, and the reason for the kind.

    ``doubt`` is the question to the person where the kind could be another.
    """

    kind: Literal["number", "time", "bool", "text"]
    values: np.ndarray
    form: dict[str, Any]
    why: str
    doubt: str = ""


def infer_text(
    name: str,
    words: np.ndarray,
    *,
    missing: Sequence[str] | None = None,
    decimal: str = "auto",
    date_order: str = "auto",
    numeric: bool = False,
    only_dates: bool = False,
) -> Read:
    """Infer the kind of words (N,), str or None; empty words are missing.

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
    absent = np.array([w is None or w == "" for w in words], bool)
    marks = np.isin(words.astype(object), list(MISSING if missing is None else missing)) & ~absent
    plain = ~(absent | marks)
    found = _typed(name, words[plain].tolist(), decimal, date_order, numeric, only_dates) if plain.any() else None
    if numeric and plain.any() and (found is None or found[0] != "number"):
        raise _no_numbers(name, words[plain].tolist(), decimal)
    if found is None:
        gone = absent if missing is None else absent | marks
        if only_dates or not plain.any():
            return Read("text", *without_missing(words, gone), "words" if plain.any() else "no values")
        why = _why_words(name, words[plain].tolist())
        doubt = _doubt(name, words[plain].tolist(), sorted(set(words[marks])), decimal, date_order)
        return Read("text", *without_missing(words, gone), why, doubt)
    kind, values, form, why = found
    whole = np.full(len(words), None, object)
    whole[plain] = list(values)
    if marks.any():
        mark = _commonest(words[marks].tolist())
        form = {**form, "missing": mark}
        why += f", {mark!r} among them is a missing value"
    return Read(kind, whole, form, why)


def without_missing(words: np.ndarray, absent: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Copy of words (N,) with None where ``absent`` (N,), and the form: the commonest word for these, if any."""
    left = words.astype(object)
    marks = [w for w in left[absent] if w]
    left[absent] = None
    return left, {"missing": _commonest(marks)} if marks else {}


def _why_words(name: str, words: list[str]) -> str:
    """Why words that are not of one other kind are text."""
    numbers = [_looks_numeric(w) for w in words]
    if all(re.fullmatch(r"[+-]?\d+", w) for w in words):
        if any(re.match(r"\+|-?0\d", w) for w in words):
            return "digits after a 0 or a plus, which codes have"
        return "codes, by its name" if CODES.search(name.lower()) else "whole numbers of over 64 bits"
    if all(re.fullmatch(_POWERED, w) for w in words):
        odd = next(w for w in words if not w.isdigit())
        return (
            f"digits with a bare exponent, as {odd!r}, which codes have; numbers with {quoted_flag('numeric', name)}"
        )
    if 2 * sum(numbers) > len(words) > sum(numbers):
        odd = words[numbers.index(False)]
        return f"words, as {odd!r} among numbers is none; missing with {quoted_flag('missing', odd)}"
    return "numbers written in several ways" if all(numbers) else "words"


def _looks_numeric(word: str) -> bool:
    return any(re.fullmatch(p, word) for p in (_pattern("."), _pattern(","), *(_grouped(*g) for g in _GROUPS)))


DOUBTFUL = 0.9
"""Share of numbers or dates above which other words are likely meant to be missing."""


def _doubt(name: str, words: list[str], marks: list[str], decimal: str, date_order: str) -> str:
    """What to ask where more than ``DOUBTFUL`` of the words are numbers or dates; "" else."""
    dates = lambda w: bool(_ISO.fullmatch(w) or _DAY.fullmatch(w))
    for kind, fits in (("numbers", _looks_numeric), ("dates", dates)):
        own = [w for w in words if fits(w)]
        if not DOUBTFUL * len(words) < len(own) < len(words):
            continue
        try:
            if _typed(name, own, decimal, date_order, False, kind == "dates") is None:
                continue
        except UserError:
            pass  # asked next, once these words are missing
        odd = sorted({w for w in words if not fits(w)})
        shown = ", ".join(map(repr, odd[:5])) + (" and others" if len(odd) > 5 else "")
        mend = f"--missing takes them as missing ({quoted_flag('missing', *marks, *odd[:5])})"
        return (
            f"column {name!r} has {kind} but for {len(words) - len(own):,} of {len(words):,} values, {shown}; {mend},"
            f" {quoted_flag('categorical', name)} keeps all as words"
        )
    return ""


def _commonest(words: Sequence[str]) -> str:
    return Counter(words).most_common(1)[0][0]


def _no_numbers(name: str, words: list[str], decimal: str) -> UserError:
    """Error for a column that ``numeric`` names and that is not all numbers of one form."""
    marks = ".," if decimal == "auto" else decimal
    forms = [_pattern(mark) for mark in marks] + [_grouped(*g) for g in _GROUPS if g[1] in marks] + [_INFINITE]
    odd = next((w for w in words if not any(re.fullmatch(form, w, re.I) for form in forms)), None)
    if odd is not None:
        return UserError(f"numeric has {name!r}, which holds {odd!r}; name it to --missing or make it a number")
    large = next((w for w in words if re.fullmatch(r"[+-]?\d+", w) and abs(int(w)) >= 2**63), None)
    if large is not None:
        return UserError(
            f"numeric has {name!r}, which holds {large}, beyond the whole numbers of 64 bits; take it out of"
            " --numeric, and it is text"
        )
    return UserError(
        f"numeric has {name!r}, whose numbers are written in several ways, such as {words[0]!r}; write all with one"
        " decimal mark"
    )


def _typed(name: str, words: list[str], decimal: str, order: str, numeric: bool, only_dates: bool) -> Any:
    """Kind, values, form and reason if all words are of one kind, else None."""
    if not only_dates:
        if set(words) <= {"True", "False"}:
            return "bool", [w == "True" for w in words], {}, "True and False"
        if found := _numbers(name, words, decimal, numeric):
            return found
    return _iso(words) or _days(name, words, order)


def _numbers(name: str, words: list[str], decimal: str, numeric: bool) -> Any:
    infinite = [w for w in words if re.fullmatch(_INFINITE, w, re.I)]
    finite = [w for w in words if w not in infinite] or ["0"]
    fits = [mark for mark in ".," if all(re.fullmatch(_pattern(mark), w) for w in finite)]
    grouped = [g for g in _GROUPS if all(re.fullmatch(_grouped(*g), w) for w in finite)]
    grouped = [g for g in grouped if any(g[0] in w for w in finite)]
    if decimal != "auto":
        fits, grouped = [m for m in fits if m == decimal], [g for g in grouped if g[1] == decimal]
    both = any(len(re.findall(r"[.,]", w)) > 1 for w in finite)
    if not fits and not both and decimal == "auto":
        grouped = []  # 1.234 and 12 alike: a group of thousands is told from a second mark alone
    if not fits and not grouped:
        return None
    if fits == [","] and (",", ".") in grouped and decimal == "auto":
        raise UserError(
            f"column {name!r} has numbers such as {next(w for w in finite if ',' in w)!r}, whose comma can be decimal"
            " or part thousands; say --decimal , or --decimal ."
        )
    group, mark = ("", fits[0]) if fits else grouped[0]
    plain = [w.replace(group, "") if group else w for w in words]
    whole = all(re.fullmatch(r"[+-]?\d+", w) for w in plain)
    zeros = any(re.match(r"-?0\d", w) for w in plain)
    if not numeric and not group and (zeros or (whole and any(w.startswith("+") for w in plain))):
        return None
    if not numeric and not whole and all(re.fullmatch(_POWERED, w) for w in plain):
        return None
    if not numeric and whole and CODES.search(name.lower()):
        return None
    if whole and not infinite:
        values: list[Any] = [int(w) for w in plain]
        if max(map(abs, values)) >= 2**63:
            return None
        return "number", values, {"group": group} if group else {}, "whole numbers"
    values = [float(w.replace(mark, ".")) for w in plain]
    form = number_form([w for w in plain if not re.fullmatch(_INFINITE, w, re.I)] or ["0"], mark)
    form |= {"group": group} if group else {}
    told = "" if "places" in form or not any("e" in w.lower() for w in finite) else ", some of them with exponents"
    return "number", values, form, "numbers" + (" with a decimal comma" if mark == "," else "") + told


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


def _iso(words: list[str]) -> Any:
    """Full ISO dates, times in UTC to nanoseconds; 2024-01 and 20240101 are codes."""
    parts = [_ISO.fullmatch(w) for w in words]
    if not all(parts):
        return None
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
        form |= {"zones": _zones(stamps, [f[8] for f in fields])}
        return "time", stamps, form, "ISO times with offsets, which become UTC"
    return "time", stamps, form, "ISO dates"


def _stamp(f: tuple[str | None, ...]) -> str:
    day = f"{f[0]}-{f[1]}-{f[2]}"
    return day if f[3] is None else f"{day}T{f[4]}:{f[5]}:{f[6] or '00'}" + (f".{f[7]}" if f[7] else "")


def _zones(stamps: np.ndarray, zones: list[str]) -> list[list[Any]]:
    """Pairs of start time (UTC seconds since 1970) and offset; one, the commonest, if offsets do not follow time."""
    order = np.argsort(stamps, kind="stable")
    counts, names = stamps.astype("M8[s]").astype(np.int64)[order], np.array(zones, object)[order]
    change = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
    if len(change) > 400 or len(change) > max(2, len(names) / 10):
        return [[int(counts[0]), max(set(zones), key=zones.count)]]
    return [[int(counts[i]), str(names[i])] for i in change]


def _days(name: str, words: list[str], order: str) -> Any:
    """Dates such as 31.12.2020, 12/31/2020 and 2020/12/31, with or without a time."""
    parts = [_DAY.fullmatch(w) for w in words]
    if not all(parts):
        return None
    fields = [p.groups() for p in parts if p]
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
            f"column {name!r} has dates such as {words[0]!r}, whose day may come first or second; say --date-order dmy"
            f" or mdy, or keep them as words with categorical=({name!r},), {quoted_flag('categorical', name)}"
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
    return "time", stamps, form, f"dates in the order {found}"


def as_series(read: Read, name: str) -> Any:
    """Values as a pandas Series: int64, float64, bool, datetime64 or object; nullable if values are missing."""
    import pandas as pd

    absent = np.array([v is None for v in read.values], bool)
    there = read.values[~absent]
    if read.kind == "time":
        stamps = np.full(len(absent), np.datetime64("NaT"), there[0].dtype)
        stamps[~absent] = there.astype(stamps.dtype)
        years = stamps[~absent].astype("M8[Y]").astype(int) + 1970
        wide = years.min() < 1678 or years.max() > 2261
        unit = np.datetime_data(stamps.dtype)[0]
        series = pd.Series(stamps.astype(f"M8[{'s' if unit == 'D' else unit}]" if wide else "M8[ns]"), name=name)
        return series.dt.tz_localize("UTC") if read.form.get("zones") else series
    if read.kind == "bool":
        return pd.Series(read.values, name=name, dtype="boolean" if absent.any() else "bool")
    if read.kind == "number" and all(isinstance(v, int) for v in there):
        return pd.Series(read.values, name=name, dtype="Int64" if absent.any() else "int64")
    if read.kind == "number":
        return pd.Series([np.nan if v is None else v for v in read.values], name=name, dtype="float64")
    return pd.Series(read.values, name=name, dtype=object)
