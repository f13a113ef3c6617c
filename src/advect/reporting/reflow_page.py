"""``report.html`` of a reflow: quality by cost, and the same noise decoded by each flow."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from advect.core.errors import UserError
from advect.core.records import find_object, guarded
from advect.reporting import plots
from advect.reporting.page import write_page
from advect.reporting.plots import file_uri
from advect.reporting.style import number, plural

REFLOW, FORMAT, PICTURE_BYTES = "reflow.json", 1, 60_000


def write_reflow(folder: Path) -> Path:
    """Write ``folder``/report.html from reflow.json and pictures, atomically; return its path.

    Raises UserError without a valid reflow.json of this version.
    """
    content = find_object(folder / REFLOW)
    if content is None or "format" not in content:
        raise UserError(f"{folder / REFLOW} is missing or damaged; repeat advect reflow, which writes it")
    if content["format"] != FORMAT:
        raise UserError(f"{folder / REFLOW} is of another version of advect; repeat advect reflow")
    values = guarded(lambda: _describe(folder, content), folder / REFLOW)
    return write_page(folder / "report.html", "reflow.html", values)


def curve(flow: dict[str, Any], metric: str) -> dict[str, list[Any]]:
    """Numbers of evaluations, and means of a metric."""
    points = [p for p in flow["result"]["points"] if metric in p["metrics"]]
    return {"nfe": [p["nfe"] for p in points], "distance": [p["metrics"][metric]["mean"] for p in points]}


def _describe(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    flows, metric = content["flows"], content["metric"]
    first, protocol = flows[0]["result"], flows[0]["result"]["protocol"]
    floor = first["floor"]["metrics"][metric]
    curves = {flow["name"]: curve(flow, metric) for flow in flows}
    nfes = sorted({nfe for c in curves.values() for nfe in c["nfe"]})
    shown = [int(nfe) for nfe in content["shown"]]
    return {
        "title": content["title"],
        "subtitle": f"{plural(len(flows), 'flow')} · {protocol['data']}",
        "cards": list(_cards(flows, curves, floor)),
        "solver": first["points"][0]["solver"],
        "floor_samples": f"{first['floor']['samples']:,}",
        "verdict": _verdict(flows, curves),
        "chart": Markup(plots.quality_chart(curves, floor, label=f"{metric} distance to held-out data")),
        "metric": f"{metric} at evaluations",
        "nfes": nfes,
        "rows": [_row(flow, curves[flow["name"]], nfes) for flow in flows],
        "floor": number(floor),
        "protocol": f"{protocol['samples']:,} samples a point against {protocol['reference']:,} held-out rows, in "
        f"{protocol['features']['name']}; seed {' '.join(map(str, protocol['seeds']))}.",
        "shown": [plural(nfe, "evaluation") for nfe in shown],
        "pictures": list(_pictures(folder, flows, shown)),
        "about": [
            {"name": f["name"], "text": f["about"], "command": f"advect sample {shlex.quote(f['run'])}"} for f in flows
        ],
    }


def _cards(flows: list[dict], curves: dict[str, dict], floor: float) -> Iterator[dict[str, str]]:
    for flow in flows:
        points = dict(zip(curves[flow["name"]]["nfe"], curves[flow["name"]]["distance"], strict=True))
        nfe = min(points, key=lambda n: (abs(n - 4), n))
        note = f"floor {number(floor)}; straightness {_straightness(flow)}"
        yield {"label": f"{flow['name']} at {plural(nfe, 'evaluation')}", "value": number(points[nfe]), "note": note}


def _verdict(flows: list[dict], curves: dict[str, dict]) -> str:
    """Evaluations of the last rectified flow that match the first flow's."""
    rectified = [curves[flow["name"]] for flow in flows if flow["name"] != "distilled"]
    before, after = (dict(zip(c["nfe"], c["distance"], strict=True)) for c in (rectified[0], rectified[-1]))
    for nfe in sorted(after):
        met = [n for n in sorted(before) if before[n] >= after[nfe] and n > nfe]
        if met:
            verb = "is" if nfe == 1 else "are"
            return f"{plural(nfe, 'evaluation')} of the last flow {verb} at least as good as {max(met)} of the first."
    return "The last flow needs as many evaluations as the first."


def _row(flow: dict, points: dict[str, list[Any]], nfes: list[int]) -> dict[str, Any]:
    values = dict(zip(points["nfe"], points["distance"], strict=True))
    cells = [number(values[nfe]) if nfe in values else "" for nfe in nfes]
    return {"name": flow["name"], "cells": cells, "straightness": _straightness(flow)}


def _straightness(flow: dict) -> str:
    return number(flow["result"]["flow"]["straightness"]["relative"])


def _pictures(folder: Path, flows: list[dict], shown: list[int]) -> Iterator[dict[str, Any]]:
    for flow in flows:
        files = [flow["pictures"].get(str(nfe)) for nfe in shown]
        yield {"name": flow["name"], "uris": [file and file_uri(folder / file, PICTURE_BYTES) for file in files]}
