"""The doctor's check of calibration."""

from __future__ import annotations

from collections.abc import Callable

from advect.doctor.report import Figure, Finding, Level, Share
from advect.doctor.run import RunFacts

TITLES = {
    "over-confident": "The flow is over-confident: draws given a condition are too narrow",
    "under-confident": "The flow is under-confident: draws given a condition are too wide",
    "biased": "The flow is biased: true values lie to one side of the draws given their condition",
    "miscalibrated": "The flow is miscalibrated: draws given a condition have another law than true values",
}

FAR = 0.1
"""Error of the coverage of any column's intervals from which miscalibration is a problem."""


def check_calibration(run: RunFacts) -> Finding | None:
    """Check the calibration measured by ``advect report`` or ``advect eval``."""
    found = run.calibration
    if not found or not found.get("coverage"):
        return None
    told = int(found.get("column", 0))
    figures: dict[str, Figure] = {
        f"{found['level']:.0%} intervals of {found['columns'][told]} cover": Share(found["coverage"][told]),
        "standard error": Share(found["coverage_error"]),
        "held-out rows": int(found["rows"]),
        "draws a row": int(found["draws"]),
    }
    figures |= {"p": float(found["p_value"])} if found.get("p_value") is not None else {}
    figures["measured by"] = found["by"]
    if found["kind"] not in TITLES:
        return Finding("ok", "Draws given a condition are calibrated as far as the held-out rows tell", figures)
    farthest = max(abs(covered - found["level"]) for covered in found["coverage"])
    level: Level = "problem" if farthest > FAR else "note"
    return Finding(level, TITLES[found["kind"]], figures, found["advice"])


CALIBRATION_CHECKS: tuple[Callable[[RunFacts], Finding | None], ...] = (check_calibration,)
