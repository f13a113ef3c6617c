"""Numbers and times as text, written as the columns of a text file were."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_EXPONENT = r"[+-]?(\d?)(?:[.,](\d*))?([eE])([+-]?)(\d+)"


def number_form(words: Sequence[str], mark: str) -> dict[str, Any]:
    """How real numbers are written, by their words with the decimal ``mark``, without thousands; for
    :func:`write_number`.

    Places are told where all have as many, exponents where all have them after a single digit, and else whether whole
    numbers are without a point.
    """
    form: dict[str, Any] = {"decimal": mark} if mark == "," else {}
    if all(w[0] in "+-" for w in words) and any(w[0] == "+" for w in words):
        form["plus"] = True
    if any(re.match(r"[+-]?[.,]", w) for w in words) and not any(re.match(r"[+-]?0+[.,]", w) for w in words):
        form["bare"] = True
    powers = [re.fullmatch(_EXPONENT, w) for w in words]
    if all(powers):
        parts = [p.groups() for p in powers if p]
        places = [len(p[1] or "") for p in parts]
        form |= {"exponent": parts[0][2], "places": max(places), "least": min(places)}
        return form | {"power_plus": any(p[3] == "+" for p in parts), "width": min(len(p[4]) for p in parts)}
    counts = {len(w.partition(mark)[2]) for w in words}
    if len(counts) == 1 and not any("e" in w.lower() for w in words):
        return form | {"places": counts.pop()}
    return form | ({"whole": True} if any(re.fullmatch(r"[+-]?\d+([eE].*)?", w) for w in words) else {})


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
