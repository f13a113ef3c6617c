"""The job behind ``advect eval``: how good a run is, how sure that is, and at what cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from advect.core.errors import UserError
from advect.core.files import make_folder, write_text_whole
from advect.core.group import agree, broadcast_object, current, joined
from advect.core.platform import tune_process
from advect.evaluation import ReferenceCache
from advect.evaluation.results import FORMAT
from advect.runs.build import pick_device
from advect.runs.environment import device_name, versions
from advect.runs.eval_plan import SAMPLES, Chosen, Plan
from advect.runs.eval_plan import Request as Request
from advect.runs.eval_sets import Sets, open_cache
from advect.runs.ways import Way
from advect.runs.work import by_first, working
from advect.training.checkpoint import find_weights

LIBRARIES = ("advect", "torch", "numpy", "scikit-learn", "python")


def evaluate(
    run: Path,
    request: Request,
    *,
    say: Callable[[str], None] = print,
    progress: bool = True,
    device: str = "auto",
) -> tuple[Path, dict[str, Any]]:
    """Measure a run as ``request`` asks, and return the result file and what it holds.

    The file, ``RUN/evaluation/eval-<hash>.json`` unless the request names another, appears whole or not at all.
    Samples are drawn in parts that do not depend on the number of processes, are looked at part by part, and lie on
    disk meanwhile; a call that was ended goes on from them when it is repeated, and ends with the same numbers. Memory
    does not grow with the number of samples. Several processes share the work and all return the same. ``say`` is told
    notes, ``progress`` shows bars.

    Raises UserError for a bad request, before anything is written, for data that have moved or changed, and where
    files cannot be written.
    """
    tune_process()
    with joined(pick_device(device)) as me:
        told = say if me.is_first else lambda text: None
        with agree():
            place = find_weights(run) if me.is_first else run
        place = broadcast_object(place)  # a run that still trains has newer ones by and by
        with agree():
            plan = Plan.make(run, place, request, device)
            cache = open_cache()
        chosen = _choose_rows(plan, cache, told)
        with agree():
            plan.check_enough(chosen)
            space = plan.comparable.space(plan.source, plan.network)
            subject, protocol = plan.subject.told(), plan.protocol(chosen, space.told())
            name = f"eval-{_short_hash(protocol, subject)}"
            folder = plan.subject.folder / "evaluation"
            output = request.output or folder / f"{name}.json"
            if me.is_first:
                _check_output(output)
            stamp = f"{space.exact}, advect {versions().get('advect')}"
        with working(folder / f"{name}.parts", stamp=stamp, show=progress, say=told) as work:
            result = _measure(Sets(plan, chosen, space, work, cache), protocol, subject)
            with agree():
                if me.is_first:
                    output.parent.mkdir(parents=True, exist_ok=True)
                    write_text_whole(output, json.dumps(result, indent=1, allow_nan=False) + "\n")
        return output, broadcast_object(result)


def _choose_rows(plan: Plan, cache: ReferenceCache, say: Callable[[str], None]) -> Chosen:
    """The rows that take part, which the first process finds."""
    if plan.request.num_samples is None and plan.samples < SAMPLES:
        say(f"note: {plan.samples:,} samples, as there are no more training rows for the floor; see --num-samples")
    chosen = broadcast_object(by_first(lambda: plan.choose_rows(cache, say)))
    assert chosen is not None
    if len(chosen.other) < plan.samples:
        say(f"note: the floor is of {len(chosen.other):,} rows, as there are no more, beside {plan.samples:,} samples")
    return chosen


def _measure(sets: Sets, protocol: dict[str, Any], subject: dict[str, Any]) -> dict[str, Any]:
    """What the result file holds, on the first process."""
    plan, first = sets.plan, current().is_first
    points = []
    ground = sets.ground() if sets.compared else None
    floor = by_first(lambda: sets.floor(*ground) if ground is not None else {"samples": 0, "metrics": {}})
    for i, way in enumerate(plan.ways if sets.compared else ()):
        found = [sets.samples(i, way, seed, ground) for seed in plan.seeds]
        points.append(_point(way, [f for f in found if f is not None], plan.samples) if first else {})
    of_flow: dict[str, Any] = {}
    if "straightness" in plan.scores:
        of_flow["straightness"] = sets.straightness()
    if "likelihood" in plan.scores:
        of_flow["bits_per_dim"] = sets.bits()
    there = versions()
    made_with = {name: there.get(name) for name in LIBRARIES}
    made_with |= {"device": device_name(plan.flow.device), "processes": current().world}
    return {
        "format": FORMAT,
        "protocol": json.loads(json.dumps(protocol)),
        "subject": subject,
        "made_with": made_with,
        "floor": floor,
        "flow": of_flow,
        "points": points,
    }


def _point(way: Way, found: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """One way's numbers over the seeds; a number that one of them has not is left out."""
    metrics = {}
    for name in found[0]["metrics"]:
        values = [f["metrics"][name] for f in found if name in f["metrics"]]
        if len(values) == len(found):
            spread = stdev(values) if len(values) > 1 else None
            metrics[name] = {"mean": fmean(values), "std": spread, "values": values}
    seconds = fmean(f["seconds"] for f in found)
    nfe = fmean(f["nfe"] for f in found)
    return {
        **way.told(),
        "nfe": int(nfe) if nfe.is_integer() else nfe,
        "seconds": seconds,
        "samples_per_s": n / seconds if seconds else None,
        "metrics": metrics,
    }


def _short_hash(protocol: Mapping[str, Any], subject: Mapping[str, Any]) -> str:
    """Eight characters for these numbers, wherever the run lies."""
    what = [protocol, {name: value for name, value in subject.items() if name != "run"}]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def _check_output(output: Path) -> None:
    """Raise UserError where a file cannot be written; remove what a killed call has left of it."""
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, such as {output / 'eval.json'}")
    there = next(folder for folder in output.absolute().parents if folder.exists())
    make_folder(there, "--output")
    for partial in output.parent.glob(f".{output.name}.*.partial"):
        partial.unlink(missing_ok=True)
