"""Results of ``advect eval`` in a report: tables and charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from advect.evaluation import results
from advect.reporting import plots
from advect.reporting.run_folder import RunFolder
from advect.reporting.style import number

SHOWN = 6
"""Number of results shown."""

Result = Mapping[str, Any]


def evaluated(run: RunFolder) -> list[dict[str, Any]]:
    """Results, newest first."""
    return [_result(run, i, result) for i, result in enumerate(reversed(run.results[-SHOWN:]))]


def _result(run: RunFolder, i: int, result: Result) -> dict[str, Any]:
    protocol, points, floor = result["protocol"], result["points"], result["floor"]
    metrics = list(dict.fromkeys(name for point in points for name in point["metrics"]))
    cell = lambda found: "" if found is None else results.spread(found)
    rows = [[_way(p), f"{p['nfe']:.6g}", *(cell(p["metrics"].get(m)) for m in metrics)] for p in points]
    if floor["metrics"]:
        ends = floor.get("intervals", {})
        floors = [results.figure(floor["metrics"][m], ends.get(m)) if m in floor["metrics"] else "" for m in metrics]
        rows.append([f"floor: {floor['samples']:,} real training rows", "", *floors])
    return {
        "title": f"{result['subject']['checkpoint']}, {protocol['samples']:,} samples",
        "said": f"Against {protocol['reference']:,} {protocol['split']} rows, in {protocol['features']['name']}; "
        f"guidance {protocol['guidance']:g}; seeds {' '.join(map(str, protocol['seeds']))}.{_of_flow(result['flow'])}",
        "head": ["", "evaluations", *(m.replace("_", " ") for m in metrics)],
        "rows": [[way, *(cell.replace(", ", ",\u00a0") for cell in cells)] for way, *cells in rows],
        "notes": results.notes(result),
        "svg": _chart(i, result, metrics),
    }


def _way(point: Result) -> str:
    steps = "" if point["steps"] is None else f", {point['steps']} steps, {point['grid']}"
    return f"{point['solver']}{steps}" + ("" if point["diffusion"] is None else f", g {point['diffusion']}")


def _of_flow(flow: Result) -> str:
    """Straightness, likelihood and calibration, if measured."""
    words = ""
    if found := flow.get("straightness"):
        words += f" Straightness {number(found['relative'])} of the paths' mean square."
    if found := flow.get("bits_per_dim"):
        words += f" {number(found['mean'])} bits per dimension of held-out rows."
    if found := flow.get("bits_per_token"):
        words += f" {number(found['mean'])} bits a token of held-out rows, at most."
    if found := flow.get("calibration"):
        words += f" {found['sentence']}."
    return words


def _chart(i: int, result: Result, metrics: list[str]) -> Markup | None:
    """Chart of the first metric against evaluations, if a solver has three points."""
    metric = metrics[0] if metrics else None
    curves: dict[str, dict[str, list]] = {}
    for point in sorted(result["points"], key=lambda p: p["nfe"]):
        if metric in point["metrics"] and point["diffusion"] is None and point["steps"] is not None:
            curve = curves.setdefault(
                f"{point['solver']} {point['grid']}", {"nfe": [], "distance": [], "interval": []}
            )
            curve["nfe"].append(point["nfe"])
            curve["distance"].append(mean := point["metrics"][metric]["mean"])
            curve["interval"].append(point["metrics"][metric].get("interval") or [mean, mean])
    floor = result["floor"]["metrics"].get(metric)
    if floor is None or max((len(c["nfe"]) for c in curves.values()), default=0) < 3:
        return None
    name = str(metric).replace("_", " ")
    return Markup(plots.quality_chart(curves, floor, label=f"{name} to held-out data", name=f"eval-{i}"))


_WORDS = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance",
    "energy": "energy distance",
    "held-out-loss": "held-out loss",
}

PROTOCOL = ("eval_samples", "eval_features")
"""Entries that comparable rows share."""


def measured(run: RunFolder) -> dict[str, Any] | None:
    """Distances to held-out data during training, under the last protocol; None if not measured."""
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
    """The best checkpoint: place, step and metric."""
    name, metric = (str((run.best or {}).get(key, "")) for key in ("name", "metric"))
    kind, _, step = name.partition("-")
    if kind != "step" or not step.isdecimal():
        return None
    return {"place": f"{run.path}/checkpoints/best", "step": f"{int(step):,}", "metric": _WORDS.get(metric, metric)}
