"""Numbers and times as text, written as the columns of a text file were."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, UnsetType

from advect.core.errors import UserError
from advect.core.records import Record
from advect.data.tables.words import HEAD, compute, every, some

Digits = Annotated[int, Meta(ge=0, le=400)]
Mark = Annotated[str, Meta(max_length=8)]


class Form(Record):
    """How the words of a column of numbers, or of categories, were written: see :func:`number_form`."""

    decimal: Literal[".", ","] | UnsetType = UNSET
    group: Mark = ""
    plus: bool = False
    bare: bool = False
    whole: bool = False
    places: Digits | UnsetType = UNSET
    exponent: Literal["e", "E"] | UnsetType = UNSET
    least: Digits = 0
    power_plus: bool = False
    width: Digits = 0
    missing: str = ""

    def __post_init__(self) -> None:
        if self.exponent is not UNSET and self.places is UNSET:
            raise UserError("numbers with exponents have no places; take another file")


class TimeForm(Record):
    """How the words of a column of dates or times were written, ISO ones or others: see :func:`write_time`."""

    date: Literal["iso", "dmy", "mdy", "ymd"]
    seconds: bool
    separator: Mark | None = None
    digits: Annotated[int, Meta(ge=0, le=9)] = 0
    trim: bool = False
    zones: tuple[tuple[int, Annotated[str, Meta(pattern=r"^(Z|[+-]\d\d:?\d\d)$")]], ...] = ()
    mark: Mark | UnsetType = UNSET
    padded: bool | UnsetType = UNSET
    clock: Mark | bool | None = None
    missing: str = ""

    def __post_init__(self) -> None:
        if self.date != "iso" and (self.mark is UNSET or self.padded is UNSET):
            raise UserError("dates have no mark between their parts; take another file")


_EXPONENT = r"[+-]?(\d?)(?:[.,](\d*))?([eE])([+-]?)(\d+)"


def number_form(words: Any, mark: str) -> dict[str, Any]:
    """How real numbers are written, by their words (N,) with the decimal ``mark``, without thousands; for
    :func:`write_number`.

    Places are told where all have as many, exponents where all have them after a single digit, and else whether whole
    numbers are without a point. ``words`` is an Arrow ``ChunkedArray`` of strings.
    """
    pc = compute()
    form: dict[str, Any] = {"decimal": mark} if mark == "," else {}
    if every(words, "[+-].*") and some(words, r"\+"):
        form["plus"] = True
    if some(words, "[+-]?[.,]") and not some(words, "[+-]?0+[.,]"):
        form["bare"] = True
    lengths = lambda pattern, own=words: pc.utf8_length(pc.replace_substring_regex(own, pattern, ""))
    if every(words, _EXPONENT):
        places, power = lengths(r"^[^.,]*[.,]|^[^.,]*$|[eE].*$"), lengths("^.*[eE][+-]?")
        form |= {"exponent": "e" if "e" in words[0].as_py() else "E"}
        form |= {"places": pc.max(places).as_py(), "least": pc.min(places).as_py()}
        return form | {"power_plus": some(words, r".*[eE]\+"), "width": pc.min(power).as_py()}
    before = rf"^[^{mark}]*{re.escape(mark)}?"
    if len(pc.unique(lengths(before, words[:HEAD]))) == 1 and not some(words, ".*[eE]"):
        counts = pc.unique(lengths(before))
        if len(counts) == 1:
            return form | {"places": counts[0].as_py()}
    return form | ({"whole": True} if some(words, r"[+-]?\d+([eE].*)?$") else {})


def write_number(value: float, form: Mapping[str, Any]) -> str:
    """Number written as in the column."""
    group, mark = form.get("group", ""), form.get("decimal", "." if form.get("group") != "." else ",")
    if "exponent" in form:
        text = _with_exponent(value, form)
    else:
        text = f"{value:.{form['places']}f}" if "places" in form else repr(value)
    if form.get("whole"):
        text = text.removesuffix(".0")
    if form.get("bare"):
        text = re.sub(r"^(-?)0\.", r"\1.", text)
    if group:
        head, dot, tail = text.partition(".")
        text = f"{abs(int(head)):,}".replace(",", group) + (mark if dot else "") + tail
        text = "-" + text if head.startswith("-") else text
    else:
        text = text.replace(".", mark)
    return "+" + text if form.get("plus") and not text.startswith("-") else text


def _with_exponent(value: float, form: Mapping[str, Any]) -> str:
    head, _, power = f"{value:.{form['places']}e}".partition("e")
    whole, dot, digits = head.partition(".")
    digits = digits[: form["least"]] + digits[form["least"] :].rstrip("0")
    sign = "-" if power[0] == "-" else "+" if form["power_plus"] else ""
    return (
        whole + (dot if digits else "") + digits + form["exponent"] + sign + power[1:].lstrip("0").zfill(form["width"])
    )


def minutes_of(zone: str | None) -> int:
    if zone in (None, "Z"):
        return 0
    sign = -1 if zone[0] == "-" else 1
    return sign * (int(zone[1:3]) * 60 + int(zone[-2:]))


def write_time(stamp: np.datetime64, form: Mapping[str, Any]) -> str:
    """Time (UTC if offsets are known) written as in the column."""
    zone, clock = "", form.get("clock", form.get("separator"))
    digits = form.get("digits", 0)
    stamp = stamp.astype(f"M8[{('s', 'ms', 'us', 'ns')[-(-digits // 3)]}]" if clock else "M8[D]")
    if zones := form.get("zones"):
        count = int(stamp.astype("M8[s]").astype(np.int64))
        zone = next((z for start, z in reversed(zones) if start <= count), zones[0][1])
        stamp = stamp + np.timedelta64(minutes_of(zone), "m")
    day, _, clock = str(stamp).partition("T")
    if form["date"] == "iso":
        if form["separator"] is None:
            return day
        clock, _, fraction = clock.partition(".")
        fraction = fraction[: form["digits"]].ljust(form["digits"], "0")
        keep = fraction and not (form["trim"] and not int(fraction))
        return (
            day
            + form["separator"]
            + (clock if form["seconds"] else clock[:5])
            + (f".{fraction}" if keep else "")
            + zone
        )
    year, month, date = day.split("-")
    named = {"y": year, "m": month, "d": date}
    if not form["padded"]:
        named = {key: str(int(value)) for key, value in named.items()}
    text = form["mark"].join(named[key] for key in form["date"])
    return f"{text} {clock if form['seconds'] else clock[:5]}" if form["clock"] else text
