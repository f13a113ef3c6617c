"""Conditions of samples in pictures: words below images and lines, colours of points."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advect.core.errors import printable
from advect.core.types import LENGTH, NULL, Category, Conditions, DataSpec, Quantity

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

MOST = 3
"""Conditions in a caption; the others are counted."""

GROUPS = 9
"""Categories with a colour of their own."""


def condition_words(columns: dict[str, list[Any]]) -> tuple[str, list[str]]:
    """What captions hold, and the caption of each sample in lines, from columns of conditions.

    The names stand in every caption if there are several: "7", or "label 7" over "angle 0.25".
    """
    names = list(map(printable, columns))
    shown = names[:MOST]
    left = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    title = ", ".join(shown) + left
    rows = zip(*list(columns.values())[:MOST], strict=True)
    prefix = [f"{name} " if len(names) > 1 else "" for name in shown]
    words = ["\n".join(p + _word(v) for p, v in zip(prefix, row, strict=True)) for row in rows]
    return title, words if names else []


def _word(value: Any) -> str:
    """One value as text: four digits, days without a clock."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = printable(str(value))
    return text.removesuffix("T00:00:00") if text else "none"


@cache
def font(size: int) -> FreeTypeFont:
    """A font that has the letters of most languages."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def fit(caption: str, width: int, size: int) -> list[str]:
    """Lines of a caption that are at most ``width`` pixels wide, two for a single long one, the rest as "..."."""
    own = font(size)
    lines = caption.split("\n")
    if len(lines) == 1 and own.getlength(caption) > width:
        cut = _longest(caption, width, size)
        ends = [caption.rfind(" ", 1, cut + 1), *(caption.rfind(mark, 1, cut) + 1 for mark in "-_/,")]
        cut = max(ends) if max(ends) > 0 else cut
        lines = [caption[:cut], caption[cut:].lstrip()]
    return [_shortened(line, width, size) for line in lines]


def _longest(text: str, width: int, size: int, mark: str = "") -> int:
    """Number of letters that fit, at least one, with a ``mark`` after them."""
    own = font(size)
    return max(1, bisect_right(range(1, len(text) + 1), width, key=lambda n: own.getlength(text[:n] + mark)))


def _shortened(line: str, width: int, size: int) -> str:
    return line if font(size).getlength(line) <= width else line[: _longest(line, width, size, "…")] + "…"


@dataclass(frozen=True)
class Colouring:
    """A condition by which points are coloured.

    Attributes:
        title: its name, and those of the others.
        values: (n,) codes of ``names``, negative where missing; or numbers, NaN where missing.
        names: of categories; empty for numbers.
        unit: of times, counted since 1970.
    """

    title: str
    values: np.ndarray
    names: Sequence[str] = ()
    unit: str = ""

    def groups(self, among: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Names and places (n,) of the most frequent categories, in their order, then of all others and none."""
        values = self.values[among]
        counts = np.bincount(values[values >= 0].astype(int), minlength=len(self.names))
        kept = sorted(np.argsort(-counts, kind="stable")[: min(GROUPS, int((counts > 0).sum()))])
        found: list[tuple[str, np.ndarray]] = [(str(self.names[code]), values == code) for code in kept]
        rest = [("others", ~np.isin(values, kept) & (values >= 0)), ("none", values < 0)]
        return [*found, *((name, places) for name, places in rest if places.any())]


def colouring(conditions: Conditions, spec: DataSpec) -> Colouring | None:
    """The first category, else the first number, of which samples have several values; None if there is none."""
    named = {name: value for name, value in conditions.items() if name != LENGTH and name in spec.conditions}
    found = [name for name in named if isinstance(spec.conditions[name], Category)]
    found += [name for name in named if isinstance(spec.conditions[name], Quantity)]
    for name in found:
        kind, own = spec.conditions[name], named[name].detach().cpu().numpy()
        others = [other for other in named if other != name]
        title = name + (f" (beside {', '.join(others[:MOST])})" if others else "")
        if isinstance(kind, Category) and len(np.unique(own)) > 1:
            return Colouring(title, np.where(own == NULL, -1, own).astype(np.int64), kind.names)
        if isinstance(kind, Quantity):
            values = (own[:, 0].astype(np.float64) * kind.std[0] + kind.mean[0]) * kind.step + kind.origin
            if len(np.unique(values[np.isfinite(values)])) > 1:
                part = f".{kind.names[0]}" if len(kind.names) > 1 else ""
                return Colouring(name + part + title[len(name) :], values, unit=kind.unit)
    return None
