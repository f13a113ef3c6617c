"""advect forecast RUN FILE [flags]: draw the steps that follow the series of a file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from advect.checkpoint.manifest import named_checkpoint
from advect.config.flags import asks_help, parse_words, place_first
from advect.config.section import Section, part
from advect.core.bounds import BatchSize, Count, GuidanceScale, Seed, Share, Steps
from advect.core.errors import UserError
from advect.model.forecast import forecast_run
from advect.model.sampler_config import SamplerConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ForecastArguments(Section):
    """Flags of ``advect forecast``."""

    horizon: Count = 24
    """Steps to draw after the last one of each series."""
    history: Count | None = None
    """Most known steps that they are drawn from; default as many as the sequences of training leave."""
    draws: Count = 100
    """Draws of each series."""

    checkpoint: str | None = None
    """Checkpoint of the run: epoch-50, step-1000, best or latest, the default."""
    use_ema: bool = True
    """Use the averaged weights."""
    ema_decay: Share | None = None
    """Use the average of this decay, one of the run's."""

    num_steps: Steps | None = None
    """Solver steps; default those of the run's sample grids."""
    solver: str | None = part("solver", "sde-solver", default=None)
    """Solver; default that of the run's sample grids. With --diffusion: ab2, the default, euler-maruyama or heun."""
    grid: str | None = part("grid", default=None)
    """Placement of the steps; default that of the run's sample grids."""
    diffusion: str | None = part("diffusion", default=None, number=("constant", "scale"))
    """Sample the SDE with this g(t): a number such as 0.5, or a name such as sigma."""

    seed: Seed = 0
    """The same seed gives the same draws."""
    cond: tuple[str, ...] = ()
    """Conditions that the file lacks, as NAME=VALUE; others follow the data's frequencies."""
    guidance: GuidanceScale = 1.0
    """Scale of classifier-free guidance by the conditions: 1 is none."""

    output_dir: Path | None = None
    """Output folder; default RUN/forecasts/seed-SEED."""
    overwrite: bool = False
    """Replace another forecast."""
    batch_size: BatchSize = 256
    """Draws made at once."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU if available."""

    groups: ClassVar = {
        "forecast": ("horizon", "history", "draws", "seed", "cond", "guidance"),
        "solver": ("solver", "num_steps", "grid", "diffusion"),
        "weights": ("checkpoint", "use_ema", "ema_decay"),
        "output": ("output_dir", "overwrite", "batch_size", "device"),
    }


def run(words: list[str]) -> None:
    """Run ``advect forecast`` with the words after it. Raises UserError."""
    places, flags = _places(words)
    a = parse_forecast(flags)
    files = forecast_run(
        named_checkpoint(places[0], a.checkpoint),
        places[1],
        a.horizon,
        draws=a.draws,
        history=a.history,
        sampler=SamplerConfig(
            steps=a.num_steps,
            solver=a.chosen("solver"),
            grid=a.chosen("grid"),
            diffusion=a.chosen("diffusion"),
            guidance=a.guidance,
        ),
        seed=a.seed,
        batch_size=a.batch_size,
        cond=a.cond,
        ema=a.use_ema if a.ema_decay is None else a.ema_decay,
        output_dir=a.output_dir,
        overwrite=a.overwrite,
        device=a.device,
    )
    for name, file in zip(("draws", "quantiles", "picture", "facts"), files, strict=True):
        logger.info(f"{name + ':':10} {file}")


def _places(words: list[str]) -> tuple[list[Path], list[str]]:
    """RUN and FILE, anywhere among the flags, and these."""
    places, rest = [], list(words)
    while len(places) < 2:
        rest = place_first(rest, ForecastArguments) if rest else rest
        if not rest or rest[0].startswith("-"):
            break
        places.append(Path(rest.pop(0)))
    if len(places) < 2 and not asks_help(words):
        raise UserError(
            "advect forecast needs a run and a file of series, such as: advect forecast runs/load load.csv"
        )
    return places, rest


def parse_forecast(flags: list[str]) -> ForecastArguments:
    """Parse the words after ``advect forecast RUN FILE``. Raises UserError."""
    about = (
        "Draw the next steps of each series in a CSV, Parquet or NumPy file, in the form of the training data, by a"
        " flow of sequences trained with --mask prefix: all draws, their quantiles and a picture, in"
        " RUN/forecasts/seed-SEED.\n\n"
        "advect forecast runs/load load.csv --horizon 24 --draws 100"
    )
    a = parse_words(ForecastArguments, flags, prog="advect forecast RUN FILE", description=about)
    if a.ema_decay is not None and not a.use_ema:
        raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")
    return a
