"""advect eval RUN [flags]: measure a run against held-out data by a recorded protocol."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from advect.checkpoint.manifest import find_weights, named_checkpoint, read_newest
from advect.config.flags import asks_help, launch_processes, parse_words
from advect.config.places import split_place
from advect.config.resume import device_name, versions
from advect.config.section import Section
from advect.core import registry
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, check_name, claim_folder
from advect.distributed.comm import broadcast_object, current, sync_errors
from advect.distributed.context import run_context
from advect.evaluation import results
from advect.evaluation.evaluator import Evaluator
from advect.evaluation.protocol import SAMPLES, EvalConfig, Plan
from advect.evaluation.results import FORMAT
from advect.evaluation.workspace import on_rank_zero, open_cache, open_workspace
from advect.model.sampler_config import SamplerConfig

logger = logging.getLogger(__name__)

SHARED = True


@dataclass(frozen=True, kw_only=True, eq=False)
class CompareArguments(Section):
    """Flags of ``advect eval --compare``."""

    compare: tuple[Path, ...] = ()
    """Result files."""
    force: bool = False
    """Compare different protocols too."""


def run(words: list[str]) -> None:
    """Run ``advect eval`` with the words after it. Raises UserError."""
    if any(word.partition("=")[0] == "--compare" for word in words):
        with sync_errors():
            c = parse_compare(words)
            lines = results.compare(c.compare, force=c.force)
        for line in lines:
            logger.info(line)
        return
    place, flags = split_place(words, "advect eval", EvalConfig)
    with sync_errors():
        a = parse_eval(flags)
    if a.nproc != 1:
        launch_processes("eval", words, a.nproc, a.device)
    file, result = evaluate(place, a)
    for line in (*results.table(result), *results.flow_lines(result), f"result: {file}"):
        logger.info(line)


def parse_eval(flags: list[str]) -> EvalConfig:
    """Parse the words after ``advect eval RUN``. Raises UserError."""
    about = _about() if asks_help(flags) else ""
    return parse_words(EvalConfig, flags, prog="advect eval RUN", description=about)


def parse_compare(flags: list[str]) -> CompareArguments:
    """Parse the words after ``advect eval`` with --compare. Raises UserError."""
    about = "Compare results that were measured by one protocol."
    return parse_words(CompareArguments, flags, prog="advect eval", description=about)


def _about() -> str:
    """Description of the command and the metrics."""
    usual: dict[str, Any] = {name: registry.get("modality", name).metrics for name in registry.choices("modality")}  # pyright: ignore[reportAttributeAccessIssue]
    names = dict.fromkeys([*(name for metrics in usual.values() for name in metrics), *registry.choices("metric")])
    lines = [f"  {name}: {registry.summary(registry.get('metric', name))} ({_when(name, usual)})" for name in names]
    return (
        "Measure how good a run is, how sure that is, and at what cost.\n\n"
        "advect eval --compare A.json B.json lays results of one protocol side by side.\n\n--metrics:\n"
        + "\n".join(lines)
    )


def _when(name: str, usual: Mapping[str, Sequence[str]]) -> str:
    kinds = [kind for kind, metrics in usual.items() if name in metrics]
    return "usual" if len(kinds) == len(usual) else f"usual for {', '.join(kinds)}" if kinds else "when named"


LIBRARIES = ("advect", "torch", "numpy", "scikit-learn", "python")


def evaluate(run: Path, config: EvalConfig) -> tuple[Path, dict[str, Any]]:
    """Evaluate a run; return the result file and its content.

    The file, ``RUN/evaluation/eval-HASH.json`` by default, is written atomically. Samples are drawn in parts on disk:
    memory is bounded, and a repeated call resumes with the same numbers, on any number of processes. Raises UserError
    for a bad request, before writing, moved or changed data, and failed writes.
    """
    with run_context(config.device) as context, ExitStack() as claims:
        find = lambda run: find_weights(named_checkpoint(run, config.checkpoint))
        plan = read_newest(run, lambda place: Plan.make(run, place, config), find, together=True)
        with sync_errors():
            cache = open_cache()
        if config.num_samples is None and plan.samples < SAMPLES:
            logger.info(
                f"note: {plan.samples:,} samples, as there are no more training rows for the floor; see --num-samples"
            )
        rows = broadcast_object(on_rank_zero(lambda: plan.choose_rows(cache)))
        assert rows is not None
        with sync_errors():
            plan = plan.with_rows(rows)
        plan = plan.with_features(cache)  # after the checks, as it may train a network
        with sync_errors():
            protocol = json.loads(json.dumps(plan.protocol(rows)))
            name = f"eval-{_short_hash(protocol, plan.subject)}"
            output = config.output or plan.folder / "evaluation" / f"{name}.json"
            if context.env.is_first:
                claims.enter_context(_claimed(output))
            stamp = f"{plan.space.features.exact}, advect {versions().get('advect')}"
        with open_workspace(output.parent / f"{name}.parts", stamp=stamp) as work:
            found = _measure(plan, Evaluator(plan.space, plan.metrics, rows, work, cache, target=config.target))
            result = {"format": FORMAT, "protocol": protocol, "subject": plan.subject, **found}
            with sync_errors():
                if context.env.is_first:
                    atomic_write_text(output, json.dumps(result, indent=1, allow_nan=False) + "\n")
        return output, broadcast_object(result)


def _measure(plan: Plan, evaluator: Evaluator) -> dict[str, Any]:
    """Results on the first process: floor, flow, and a point for each sampler."""
    points, floor, config, left_out = [], {}, plan.config, dict(plan.left_out)
    if evaluator.compared:
        floor = evaluator.floor
        for i, way in enumerate(plan.sweep):
            found = [
                evaluator.measure(
                    plan.request(way, seed), full=True, name=f"way-{i}-seed-{seed}", title=f"{way}, seed {seed}"
                )
                for seed in config.seeds
            ]
            points.append(_point(way, [f for f in found if f is not None], plan.samples) if current().is_first else {})
            for each in found:
                left_out |= {**each["left_out"], **infinite(each["metrics"])} if each is not None else {}
    of_flow = evaluator.measure_flow(plan.request(plan.sweep[0], config.seed), config.likelihood_samples) or {}
    left_out |= {**infinite(floor or {}), **infinite(of_flow)}
    of_flow = {name: value for name, value in of_flow.items() if name not in left_out}
    made_with = {name: versions().get(name) for name in LIBRARIES}
    made_with |= {"device": device_name(plan.flow.device), "processes": current().world}
    floor_rows = len(evaluator.rows.floor) if evaluator.compared else 0
    values, intervals = _with_intervals([floor or {}])
    return {
        "made_with": made_with,
        "floor": {"samples": floor_rows, "metrics": {k: v[0] for k, v in values.items()}, "intervals": intervals},
        "flow": of_flow,
        "points": points,
        "left_out": left_out,
    }


def infinite(found: Mapping[str, Any]) -> dict[str, str]:
    """Why the numbers that are not finite are left out, by name: JSON has none, and they say nothing."""
    return {name: "is not finite for these rows" for name, value in found.items() if not _is_finite(value)}


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)


def _with_intervals(found: Sequence[Mapping[str, float]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Numbers that all seeds have, by name, and their 95% intervals over the rows, the means of the seeds'."""
    lost = {name for f in found for name in infinite(f)}
    common = {n: [f[n] for f in found] for n in found[0] if n not in lost and all(n in f for f in found)}
    ends = lambda name: [fmean(common[f"{name}_{end}"]) for end in ("low", "high")]
    intervals = {
        name.removesuffix("_low"): ends(name.removesuffix("_low"))
        for name in common
        if f"{name[:-4]}_high" in common and name.endswith("_low")
    }
    numbers = {
        name: v
        for name, v in common.items()
        if name.rpartition("_")[0] not in intervals or name.rpartition("_")[2] not in ("low", "high")
    }
    return numbers, intervals


def _point(way: SamplerConfig, found: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """A sampler's numbers over the seeds; incomplete ones are left out."""
    metrics = {}
    numbers, intervals = _with_intervals([f["metrics"] for f in found])
    for name, values in numbers.items():
        spread = stdev(values) if len(values) > 1 else None
        metrics[name] = {"mean": fmean(values), "std": spread, "values": values, "interval": intervals.get(name)}
    seconds = fmean(f["seconds"] for f in found)
    nfe = fmean(f["nfe"] for f in found)
    return {
        **way.to_dict(),
        "nfe": int(nfe) if nfe.is_integer() else nfe,
        "seconds": seconds,
        "samples_per_s": n / seconds if seconds else None,
        "metrics": metrics,
    }


def _short_hash(protocol: Mapping[str, Any], subject: Mapping[str, Any]) -> str:
    """Eight characters of hash, independent of the run's folder."""
    what = [protocol, {name: value for name, value in subject.items() if name != "run"}]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def _claimed(output: Path) -> Iterator[None]:
    """Context that holds the folder of a file against other calls for that file; raises UserError if it cannot be
    written. Leftovers of a killed call are removed.
    """
    check_name(output, "--output")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, such as {output / 'eval.json'}")
    with claim_folder(output.parent, "--output", f".{output.name}.lock"):
        for partial in output.parent.glob(f".{output.name}.*.partial"):
            partial.unlink(missing_ok=True)
        yield
