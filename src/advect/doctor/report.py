"""What a check finds: a verdict with the figures that it rests on, and how findings are shown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from advect.reporting.style import number

Figure = float | int | str
Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One verdict.

    Attributes:
        level: "ok" where all is well, "note" for what is worth knowing, "problem" for what should be mended.
        title: the verdict, a sentence.
        figures: the numbers and words that it rests on, by name.
        advice: what to try, with the flag; empty where there is nothing to do.
    """

    level: Level
    title: str
    figures: dict[str, Figure] = field(default_factory=dict)
    advice: str = ""


def show(findings: Sequence[Finding]) -> str:
    """The findings as lines for a terminal, the problems last, where one looks, and a line that counts them."""
    order = ("ok", "note", "problem")
    lines = []
    for finding in sorted(findings, key=lambda f: order.index(f.level)):
        lines.append(f"{finding.level:<8} {finding.title}")
        if finding.figures:
            lines.append(" " * 9 + "; ".join(f"{name} {_said(value)}" for name, value in finding.figures.items()))
        if finding.advice:
            lines.append(" " * 9 + f"try: {finding.advice}")
    counts = {level: sum(f.level == level for f in findings) for level in order}
    verdict = f"{counts['problem']} problems, {counts['note']} notes, {counts['ok']} fine"
    return "\n".join([*lines, "", f"nothing is wrong: {verdict}" if not counts["problem"] else verdict])


def to_json(findings: Sequence[Finding]) -> str:
    """The findings as a JSON object: ``healthy``, and ``findings`` with the fields of each; no NaN or infinity."""
    rows = [
        {
            "level": f.level,
            "title": f.title,
            "figures": {name: _plain(value) for name, value in f.figures.items()},
            "advice": f.advice,
        }
        for f in findings
    ]
    return json.dumps({"healthy": is_healthy(findings), "findings": rows}, indent=1, allow_nan=False)


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether none is a problem."""
    return all(f.level != "problem" for f in findings)


def _said(value: Figure) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else number(value)


def _plain(value: Figure) -> Figure:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
