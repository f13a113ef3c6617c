"""The flags of ``advect reflow``: its own, and those of the training that follows each generation of pairs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, Literal

from advect.core.errors import UserError
from advect.runs.arguments import parse_config, run_folder, run_tyro
from advect.runs.config import Config, D, N
from advect.runs.feature_arguments import FeatureArguments
from advect.runs.presets import DEFAULT, get_preset

NFES = (1, 2, 4, 8, 16, 32, 100)


@dataclass(frozen=True, kw_only=True)
class ReflowArguments(Generic[D, N]):
    """What one call of ``advect reflow`` asks for; the flags of training are by default those of the run."""

    settings: Config[D, N]

    iterations: int = 2
    """How many times pairs are made by the last flow and the next one is trained on them."""
    distill: bool = False
    """Train a further flow on pairs of the last one at t = 0 alone, which draws in one step."""
    num_pairs: int | None = None
    """Pairs for each flow; by default as many as the run has training samples."""
    pair_solver: Literal["euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m", "dopri5"] | None = None
    """Solver that makes the pairs; by default that of the run's own sample grids."""
    pair_steps: int | None = None
    """Its steps; by default as many as the run's own sample grids."""
    pair_grid: Literal["uniform", "cosine", "edm", "shifted"] | None = None
    """Where its steps lie."""

    # Scale of classifier-free guidance for the pairs of the first flow: the next ones have learned it, and sample
    # without.
    guidance: float = 1.0

    guidance_interval: tuple[float, float] | None = None
    """Times LO HI between which guidance acts; by default all."""
    real_share: float = 0.0
    """Share of the pairs that are real data, carried back to noise along the flow (Lee, Lin & Fanti 2024)."""
    store: Literal["auto", "float32", "bf16", "uint8"] = "auto"
    """Type of samples on the disk; auto: bf16 for images, finer than their grey levels, and float32 for all else."""
    output_dir: Path | None = None
    """Folder for pairs, flows and report; by default RUN/reflow."""

    measure: bool = True
    """Measure all flows at the end, and write the report."""
    features: FeatureArguments = field(default_factory=FeatureArguments)
    measure_samples: int = 2000
    """Samples for each point that is measured."""
    nfes: tuple[int, ...] = NFES
    """Numbers of network evaluations at which the flows are measured, with Euler's method."""
    nproc: int = 1
    """Processes on this machine, on a GPU each where there are any; as torchrun --nproc_per_node starts them."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise UserError(f"--iterations must be at least 1, got {self.iterations}; 1 or 2 is usual")
        if self.pair_solver == "dopri5" and (self.pair_steps or self.pair_grid):
            raise UserError("--pair-solver dopri5 chooses its own steps; leave --pair-steps and --pair-grid out")
        if not self.nfes or min(self.nfes) < 1:
            raise UserError(f"--nfes must be whole numbers of at least 1, got {list(self.nfes)}; such as 1 4 20")
        if self.measure_samples < 20:
            raise UserError(f"--measure-samples must be at least 20, got {self.measure_samples}; 2000 is usual")
        asked = self.features.features or self.nfes != NFES or self.measure_samples != type(self).measure_samples
        if asked and not self.measure:
            raise UserError("--no-measure measures nothing; leave --features, --nfes and --measure-samples out")


def parse_reflow(run: Path | None, words: list[str]) -> tuple[str, ReflowArguments]:
    """Parse the words after ``advect reflow RUN``: the run's preset and the arguments; without a run, for --help.

    Raises UserError, also for another network than the run's.
    """
    if run is None:
        preset, config = DEFAULT, get_preset(DEFAULT).config
    else:
        preset, config = parse_config(run_folder(run) / "config.yaml")
    config = for_pairs(config)
    a = run_tyro(
        ReflowArguments[type(config.data), type(config.network)],  # pyright: ignore[reportArgumentType]
        words,
        prog="advect reflow RUN",
        description="Straighten a trained flow until few steps draw as well as many did (Liu, Gong & Liu 2023): pairs "
        "of noise and samples are made by the flow, and the next flow, which begins with its weights, learns to join "
        "them by straight lines. Ended by anything, it goes on where it was when it is repeated.",
        default=ReflowArguments(settings=config),
    )
    if a.settings.network != config.network:
        raise UserError("advect reflow goes on from the weights of the run, so its network must stay; leave that out")
    for flag, there, here in (
        ("--path", config.method.path, a.settings.method.path),
        ("--coupling", "pairs", a.settings.method.coupling),
        ("--objective", "flow-matching", a.settings.method.objective),
        ("--init-from", None, a.settings.training.init_from),
        ("--pairs", None, a.settings.training.pairs),
    ):
        if there != here:
            raise UserError(f"{flag} {here} contradicts advect reflow, which needs {there}; leave it out")
    if a.settings.training.max_minutes is not None:
        raise UserError(
            "--max-minutes would end each call of advect reflow elsewhere; give --max-steps or --num-epochs"
        )
    return preset, a


def for_pairs(config: Config) -> Config:
    """The configuration of a flow that learns the pairs of one trained with ``config``: straight lines, no jitter.

    Noise and score tell nothing at t = 0, where pairs begin, so that such a network learns the velocity instead.
    """
    method = replace(config.method, objective="flow-matching", path="cond-ot", sigma_min=0.0, coupling="pairs")
    if method.prediction in ("noise", "score"):
        method = replace(method, prediction="velocity", loss="same", weight="uniform")
    training = replace(config.training, max_steps=None, max_minutes=None, pair_ahead=False)
    return replace(config, method=method, training=training)
