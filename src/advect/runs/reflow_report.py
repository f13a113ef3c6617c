"""What ``advect reflow`` shows at its end: every flow measured at every cost, and the same noise decoded by each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from advect.core.errors import UserError
from advect.core.files import make_folder, write_text_whole
from advect.core.group import current
from advect.core.types import Category
from advect.data import Source
from advect.reports.grid import save_png
from advect.reports.reflow_page import FORMAT, REFLOW, write_reflow
from advect.runs.arguments import parse_config, run_folder
from advect.runs.evaluating import Request, evaluate
from advect.runs.loading import load
from advect.runs.pairs import FACTS
from advect.runs.pictures import draw, held_out_batch
from advect.runs.reflow_arguments import ReflowArguments

SHOWN = (1, 2, 4, 8, 100)
"""Numbers of evaluations at which the same noise is decoded for the eye."""

SOLVER = "euler"
"""The solver of the report: one evaluation a step, and exact on straight paths."""

METRICS = {"image": ("frechet", "kernel")}
"""What is measured, the first one being drawn; see OTHER_METRICS for all other kinds."""

OTHER_METRICS = ("energy", "sliced_wasserstein")


def check_measure(source: Source, a: ReflowArguments) -> None:
    """Raise UserError where :func:`measure_flows` could not measure flows to these data."""
    if not len(source.held_out):
        raise UserError(f"{source.name} has no held-out samples to measure with; hold some out, or give --no-measure")
    if a.features.features is not None and source.spec.kind != "image":
        raise UserError(f"--features is for images, and these are {source.spec.kind} data; leave it out")
    a.features.network(torch.device("cpu"))


def measure_flows(
    folder: Path, flows: Mapping[str, Path], source: Source, a: ReflowArguments, *, say: Callable, progress: bool
) -> Path:
    """Measure flows by their names, of which the first is the run's own, and write reflow.json and report.html.

    All processes call it; the report's path comes back. Evaluations are gone on with where an earlier call ended.
    """
    device = a.settings.training.device
    metrics = METRICS.get(source.spec.kind, OTHER_METRICS)
    told = []
    for i, (name, run) in enumerate(flows.items()):
        say(f"measuring {name}")
        distilled = name == "distilled"
        request = Request(
            features=a.features,
            num_samples=a.measure_samples,
            metrics=(*metrics, "straightness"),
            solvers=(SOLVER,),
            grids=("uniform",),
            nfes=(1,) if distilled else a.nfes,
            guidance=a.guidance if i == 0 else 1.0,
            guidance_interval=a.guidance_interval if i == 0 else None,
        )
        _, result = evaluate(run, request, say=say, progress=progress, device=device)
        told.append({"name": name, "run": str(run), "about": _about(run, i, result), "result": result})
    shown = [nfe for nfe in SHOWN if nfe in a.nfes] or [min(a.nfes), max(a.nfes)]
    if current().is_first:
        for i, flow in enumerate(told):
            guided = {"guidance": a.guidance, "guidance_interval": a.guidance_interval} if i == 0 else {}
            at = [1] if flow["name"] == "distilled" else shown
            flow["pictures"] = _decode(folder, flow["name"], Path(flow["run"]), at, source, device, guided)
        title = run_folder(next(iter(flows.values()))).resolve().name
        values = {"format": FORMAT, "title": title, "metric": metrics[0], "shown": shown, "flows": told}
        write_text_whole(folder / REFLOW, json.dumps(values, indent=1, allow_nan=False) + "\n")
        write_reflow(folder)
    return folder / "report.html"


def _about(run: Path, i: int, result: dict[str, Any]) -> str:
    """What a flow was trained on, in a sentence."""
    step = result["subject"]["step"]
    if i == 0:
        return f"The run itself, at step {step:,}."
    _, config = parse_config(run / "config.yaml")
    assert config.training.pairs is not None
    facts = json.loads((config.training.pairs / FACTS).read_text(encoding="utf-8"))
    way = f"{facts['solver']} in {facts['steps']} steps" if facts["steps"] else facts["solver"]
    real = f" and {facts['inverted']:,} of real data carried back" if facts["inverted"] else ""
    at = " at t = 0 alone" if config.method.times == "start" else ""
    return f"{step:,} steps{at} on {facts['generated']:,} pairs made by {facts['weights']}, {way}{real}."


def _decode(
    folder: Path, name: str, run: Path, shown: list[int], source: Source, device: str, guided: dict[str, Any]
) -> dict[str, str]:
    """Draw the same samples at each cost, and return their pictures' names in the folder."""
    flow = load(run, device=device)
    pictures = make_folder(folder / "pictures", "--output-dir")
    n = 16 if flow.spec.kind == "image" else 3 if flow.spec.kind == "sequence" else 1000
    cond = {c: "cycle" for c, kind in list(flow.spec.conditions.items())[:1] if isinstance(kind, Category)}
    behind = held_out_batch(flow, source.held_out)
    files = {}
    for nfe in shown:
        x = flow.sample(n, steps=nfe, solver=SOLVER, grid="uniform", cond=cond, **guided)
        files[str(nfe)] = f"pictures/{name}-{nfe:03d}.png"
        image = draw(flow, x, flow.conditions(n, cond), behind)
        save_png(image, pictures / Path(files[str(nfe)]).name)
    return files
