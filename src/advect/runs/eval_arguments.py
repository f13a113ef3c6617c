"""The flags of ``advect eval``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from advect.core.errors import UserError
from advect.evaluation.scores import SCORES
from advect.runs.arguments import parse_words
from advect.runs.eval_plan import OF_FLOW, Request
from advect.runs.feature_arguments import FeatureArguments
from advect.runs.sample_arguments import number_or_name, parse_conditions


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """What one call of ``advect eval RUN`` asks for."""

    features: FeatureArguments = field(default_factory=FeatureArguments)

    # How many samples a point has; by default 10,000, or as many as there are training rows where those are fewer, as
    # the floor is of as many of them.
    num_samples: int | None = None

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

    # Conditions as NAME=VALUE, such as label=7; samples of one category are compared with the rows of that category.
    # Conditions that are not named are drawn as often as in the data.
    cond: tuple[str, ...] = ()

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
    def request(self) -> Request:
        """What to evaluate and how."""
        return Request(
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
