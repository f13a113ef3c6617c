"""The job behind ``advect eval``: how good a run is, how sure that is, and at what cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from advect.checkpoint.manifest import find_weights
from advect.commands.sample import number_or_name, parse_conditions
from advect.config.arguments import parse_words
from advect.config.build import pick_device
from advect.config.environment import device_name, versions
from advect.core.device import tune_process
from advect.core.errors import UserError
from advect.core.files import atomic_write_text, make_folder
from advect.distributed.comm import broadcast_object, current, process_group, sync_errors
from advect.evaluation import ReferenceCache
from advect.evaluation.evaluator import Evaluator, open_cache
from advect.evaluation.features import FeatureArguments
from advect.evaluation.protocol import OF_FLOW, SAMPLES, EvalConfig, EvalRows, Plan
from advect.evaluation.results import FORMAT
from advect.evaluation.scores import SCORES
from advect.evaluation.workspace import on_rank_zero, working
from advect.model.sampler_config import Way


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """What one call of ``advect eval RUN`` asks for."""

    features: FeatureArguments = field(default_factory=FeatureArguments)

    num_samples: int | None = None
    """How many samples a point has; by default 10,000, or as many as there are training rows where those are fewer, as
    the floor is of as many of them.
    """

    reference: Literal["held-out", "train"] = "held-out"
    """What samples are compared with."""
    metrics: tuple[str, ...] = ()
    """What is measured, of those above; by default what is usual for the kind of data."""
    solver: tuple[str, ...] = ()
    """One solver or several; by default the run's own."""
    grid: tuple[str, ...] = ()
    """One grid of times or several; by default the run's own."""
    nfe: tuple[int, ...] = ()
    """Numbers of network evaluations; each solver takes those that it can meet."""
    num_steps: tuple[int, ...] = ()
    """Numbers of solver steps; by default the run's own."""
    diffusion: str | None = None
    """Sample the stochastic equation with this g(t), a number or a name, by euler-maruyama or heun."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    guidance_interval: tuple[float, float] | None = None
    """Times LO HI between which guidance acts; by default all."""

    cond: tuple[str, ...] = ()
    """Conditions as NAME=VALUE, such as label=7; samples of one category are compared with the rows of that category.
    Conditions that are not named are drawn as often as in the data.
    """

    seed: int = 0
    """Seed of the samples, the first one with --repeat."""
    repeat: int = 1
    """Measure with so many seeds, and tell mean and spread."""
    use_ema: bool = True
    """Use the averaged weights."""
    ema_decay: float | None = None
    """Use the average of this decay, one of those that the run was trained with."""
    batch_size: int = 256
    """Samples drawn at once."""
    likelihood_samples: int = 256
    """Held-out rows whose likelihood is taken, with --metrics likelihood."""
    output: Path | None = None
    """File for the result; by default RUN/evaluation/eval-HASH.json."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""
    nproc: int = 1
    """Processes on this machine, on a GPU each where there are any; as torchrun --nproc_per_node starts them."""

    @property
    def request(self) -> EvalConfig:
        """What to evaluate and how."""
        return EvalConfig(
            features=self.features,
            num_samples=self.num_samples,
            reference=self.reference,
            metrics=self.metrics or None,
            solvers=self.solver,
            grids=self.grid,
            nfes=self.nfe,
            steps=self.num_steps,
            diffusion=number_or_name(self.diffusion),
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            cond=parse_conditions(self.cond),
            seed=self.seed,
            repeat=self.repeat,
            ema=self.use_ema if self.ema_decay is None else self.ema_decay,
            batch_size=self.batch_size,
            output=self.output,
            likelihood_samples=self.likelihood_samples,
        )


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """What one call of ``advect eval --compare`` asks for."""

    compare: tuple[Path, ...]
    """Result files."""
    force: bool = False
    """Compare numbers of different protocols, too."""


def parse_eval(flags: list[str]) -> EvalArguments:
    """Parse the words after ``advect eval RUN``. Raises UserError."""
    a = parse_words(EvalArguments, flags, prog="advect eval RUN", description=_about())
    parse_conditions(a.cond)
    if a.ema_decay is not None and not a.use_ema:
        raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")
    if a.likelihood_samples != EvalArguments.likelihood_samples and "likelihood" not in a.metrics:
        raise UserError("--likelihood-samples does nothing without --metrics likelihood")
    return a


def parse_compare(flags: list[str]) -> CompareArguments:
    """Parse the words after ``advect eval`` where --compare is among them. Raises UserError."""
    about = "Compare results that were measured by one protocol."
    return parse_words(CompareArguments, flags, prog="advect eval", description=about)


def _about() -> str:
    """What the command does, and what it can measure."""
    lines = [f"  {name}: {score.about} ({_when(name)})" for name, score in SCORES.items()]
    lines.append("  straightness: how straight the paths are from noise to data (usual)")
    lines.append("  likelihood: bits per dimension of held-out rows (when named)")
    assert all(f"  {name}:" in "\n".join(lines) for name in OF_FLOW)
    return (
        "Measure how good a run is, how sure that is, and at what cost.\n\n"
        "advect eval --compare A.json B.json lays results of one protocol side by side.\n\n--metrics:\n"
        + "\n".join(lines)
    )


def _when(name: str) -> str:
    usual = SCORES[name].usual
    return "usual" if len(usual) == 5 else f"usual for {', '.join(usual)}" if usual else "when named"


LIBRARIES = ("advect", "torch", "numpy", "scikit-learn", "python")


def evaluate(
    run: Path,
    request: EvalConfig,
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
    with process_group(pick_device(device)) as me:
        told = say if me.is_first else lambda text: None
        with sync_errors():
            place = find_weights(run) if me.is_first else run
        place = broadcast_object(place)  # a run that still trains has newer ones by and by
        with sync_errors():
            plan = Plan.make(run, place, request, device)
            cache = open_cache()
        chosen = _choose_rows(plan, cache, told)
        with sync_errors():
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
            result = _measure(Evaluator(plan, chosen, space, work, cache), protocol, subject)
            with sync_errors():
                if me.is_first:
                    output.parent.mkdir(parents=True, exist_ok=True)
                    atomic_write_text(output, json.dumps(result, indent=1, allow_nan=False) + "\n")
        return output, broadcast_object(result)


def _choose_rows(plan: Plan, cache: ReferenceCache, say: Callable[[str], None]) -> EvalRows:
    """The rows that take part, which the first process finds."""
    if plan.request.num_samples is None and plan.samples < SAMPLES:
        say(f"note: {plan.samples:,} samples, as there are no more training rows for the floor; see --num-samples")
    chosen = broadcast_object(on_rank_zero(lambda: plan.choose_rows(cache, say)))
    assert chosen is not None
    if len(chosen.other) < plan.samples:
        say(f"note: the floor is of {len(chosen.other):,} rows, as there are no more, beside {plan.samples:,} samples")
    return chosen


def _measure(sets: Evaluator, protocol: dict[str, Any], subject: dict[str, Any]) -> dict[str, Any]:
    """What the result file holds, on the first process."""
    plan, first = sets.plan, current().is_first
    points = []
    ground = sets.ground() if sets.compared else None
    floor = on_rank_zero(lambda: sets.floor(*ground) if ground is not None else {"samples": 0, "metrics": {}})
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
