"""The part of a report about what was measured while the run trained."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup

from advect.reports import plots
from advect.reports.run_folder import RunFolder
from advect.reports.words import number

_WORDS = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance",
    "energy": "energy distance",
    "held-out-loss": "held-out loss",
}

PROTOCOL = ("eval_samples", "eval_features")
"""What rows need to have in common to be compared."""


def measured(run: RunFolder) -> dict[str, Any] | None:
    """The distances of samples to held-out data, of the last protocol; None where nothing was measured."""
    if not run.evals:
        return None
    last = run.evals[-1]
    rows = [row for row in run.evals if all(row.get(key) == last.get(key) for key in PROTOCOL)]
    steps, distances = [row["step"] for row in rows], [row["eval_frechet"] for row in rows]
    floor, smallest = last.get("eval_frechet_floor"), int(np.argmin(distances))
    said = f"Smallest at step {steps[smallest]:,}: {number(distances[smallest])}"
    if isinstance(floor, (int, float)):
        said += f", where real training data score {number(floor)}"
    else:
        floor = None
    return {
        "svg": Markup(plots.eval_chart((steps, distances), floor)),
        "said": f"{said}. {last.get('eval_samples', '?')} samples a point, in {last.get('eval_features', '?')}.",
        "best": _best(run),
    }


def _best(run: RunFolder) -> dict[str, str] | None:
    """The checkpoint that is kept: where, its step, and by what it is the best."""
    name, metric = (str((run.best or {}).get(key, "")) for key in ("name", "metric"))
    kind, _, step = name.partition("-")
    if kind != "step" or not step.isdecimal():
        return None
    return {"place": f"{run.path}/checkpoints/best", "step": f"{int(step):,}", "metric": _WORDS.get(metric, metric)}
