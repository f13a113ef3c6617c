"""Findings as text and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from advect.core.errors import printable
from advect.reporting.style import duration, number, percent, plural

T = TypeVar("T")
Figure = float | int | str
Level = Literal["ok", "note", "problem"]


class Share(float):
    """A share in [0, 1], shown in percent."""


class Seconds(float):
    """A length of time, shown in its usual units."""


class Bytes(float):
    """An amount of memory, shown in its usual units."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        level: "ok", "note" (worth knowing) or "problem" (to be fixed).
        title: the verdict, a sentence.
        figures: numbers and words behind it, by name.
        advice: what to try, with the flag; may be empty.
    """

    level: Level
    title: str
    figures: dict[str, Figure] = field(default_factory=dict)
    advice: str = ""


def show(findings: Sequence[Finding]) -> str:
    """Findings as text for a terminal, problems last, with counts."""
    order = ("ok", "note", "problem")
    lines = []
    for finding in sorted(findings, key=lambda f: order.index(f.level)):
        lines.append(f"{finding.level:<8} {finding.title}")
        if finding.figures:
            lines.append(" " * 9 + "; ".join(f"{name} {_text(value)}" for name, value in finding.figures.items()))
        if finding.advice:
            lines.append(" " * 9 + f"try: {finding.advice}")
    counts = {level: sum(f.level == level for f in findings) for level in order}
    verdict = f"{plural(counts['problem'], 'problem')}, {plural(counts['note'], 'note')}, {counts['ok']} fine"
    return "\n".join(
        [*map(printable, lines), "", f"nothing is wrong: {verdict}" if not counts["problem"] else verdict]
    )


def to_json(findings: Sequence[Finding]) -> str:
    """Findings as a JSON object ``{healthy, findings}``, without NaN and infinity."""
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
    """Whether no finding is a problem."""
    return all(f.level != "problem" for f in findings)


def _text(value: Figure) -> str:
    match value:
        case str():
            return value
        case int():
            return f"{value:,}"
        case Share() if math.isfinite(value):
            return percent(value)
        case Seconds() if math.isfinite(value):
            return duration(value)
        case Bytes() if math.isfinite(value):
            return f"{number(value / 2**30)} GiB" if value >= 2**30 else f"{number(value / 2**20)} MiB"
    return number(value)


def run_checks(facts: T, checks: Iterable[Callable[[T], Finding | None]]) -> list[Finding]:
    """Findings of the checks on ``facts``, in order."""
    return [finding for check in checks if (finding := check(facts)) is not None]


def _plain(value: Figure) -> Figure:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
