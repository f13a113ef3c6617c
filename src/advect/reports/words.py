"""Numbers in words that read well."""

from __future__ import annotations


def number(value: float) -> str:
    """Three significant digits, thousands grouped, millions as such: 0.0123, 4.56, 12,345, 6.79 M."""
    if value != value or abs(value) == float("inf"):
        return str(value)
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M" if abs(value) < 1e9 else f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{round(value):,}"
    text = f"{value:.3g}"
    return text if "e" not in text or abs(value) < 1e-4 else f"{float(text):g}"


def percent(share: float) -> str:
    """A share in [0, 1] in percent with one decimal."""
    return f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{whole} s"
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def plural(count: int, noun: str) -> str:
    """The count with its noun: 1 epoch, 2 epochs."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
