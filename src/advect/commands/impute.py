"""advect impute RUN FILE [flags]: draw the empty entries of a file, several times."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from advect.checkpoint.manifest import named_checkpoint
from advect.config.flags import asks_help, launch_processes, parse_words, place_first
from advect.config.section import Section, part
from advect.core.bounds import BatchSize, Count, GuidanceScale, Processes, Seed, Share, Steps, Time
from advect.core.errors import UserError
from advect.distributed.comm import sync_errors
from advect.model.answers import answer_run
from advect.model.conditions import parse_conditions
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import describe_files

logger = logging.getLogger(__name__)

SHARED = True


@dataclass(frozen=True, kw_only=True, eq=False)
class ImputeArguments(Section):
    """Flags of ``advect impute``."""

    draws: Count = 5
    """Draws of each row, a file each: multiple imputation."""

    checkpoint: str | None = None
    """Checkpoint of the run: epoch-50, step-1000, best or latest, the default."""
    num_steps: Steps | None = None
    """Solver steps; default those of the run's sample grids."""
    solver: str | None = part("solver", "sde-solver", default=None)
    """Solver; default that of the run's sample grids. With --diffusion: ab2, the default, euler-maruyama or heun."""
    grid: str | None = part("grid", default=None)
    """Placement of the steps; default that of the run's sample grids."""
    diffusion: str | None = part("diffusion", default=None, number=("constant", "scale"))
    """Sample the SDE with this g(t): a number such as 0.5, or a name such as sigma."""

    posterior: str | None = part("posterior", default=None)
    """Posterior sampling, for flows trained without --mask, with its own steps: pigdm or mmps, say."""

    seed: Seed = 0
    """The same seed gives the same draws."""
    cond: tuple[str, ...] = ()
    """Conditions that the file lacks as NAME=VALUE, such as label=7; NAME=none if it is not known."""
    guidance: GuidanceScale = 1.0
    """Scale of classifier-free guidance by the conditions: 1 is none."""
    guidance_interval: tuple[Time, Time] | None = None
    """Times LO HI between which guidance acts; default all."""

    use_ema: bool = True
    """Use the averaged weights."""
    ema_decay: Share | None = None
    """Use the average of this decay, one of the run's."""
    output_dir: Path | None = None
    """Output folder; default RUN/imputed/seed-SEED."""
    overwrite: bool = False
    """Replace other draws."""
    batch_size: BatchSize = 256
    """Rows drawn at once."""
    part_size: Count | None = None
    """Most rows in a part, default 10,000. Processes share parts, and a repeated call resumes after complete ones."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU if available."""
    nproc: Processes = 1
    """Local processes, one a GPU if there are any, as by torchrun --nproc_per_node."""

    groups: ClassVar = {
        "draws": ("draws", "seed", "cond", "guidance", "guidance_interval"),
        "solver": ("solver", "num_steps", "grid", "diffusion", "posterior"),
        "weights": ("checkpoint", "use_ema", "ema_decay"),
        "output": ("output_dir", "overwrite"),
        "processes": ("batch_size", "part_size", "device", "nproc"),
    }

    @property
    def sampler(self) -> SamplerConfig:
        """How to sample."""
        return SamplerConfig(
            steps=self.num_steps,
            solver=self.chosen("solver"),
            grid=self.chosen("grid"),
            diffusion=self.chosen("diffusion"),
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
        )


def run(words: list[str]) -> None:
    """Run ``advect impute`` with the words after it. Raises UserError."""
    with sync_errors():
        places, flags = _places(words)
        a = parse_impute(flags)
    if a.nproc != 1:
        launch_processes("impute", words, a.nproc, a.device)
    files = answer_run(
        named_checkpoint(places[0], a.checkpoint),
        places[1],
        a.draws,
        a.sampler,
        seed=a.seed,
        batch_size=a.batch_size,
        cond=a.cond,
        ema=a.use_ema if a.ema_decay is None else a.ema_decay,
        output_dir=a.output_dir,
        overwrite=a.overwrite,
        part_size=a.part_size,
        posterior=a.chosen("posterior"),
        device=a.device,
    )
    for line in describe_files(files, individual=False):
        logger.info(line)


def _places(words: list[str]) -> tuple[list[Path], list[str]]:
    """RUN and FILE, anywhere among the flags, and these."""
    places, rest = [], list(words)
    while len(places) < 2:
        rest = place_first(rest, ImputeArguments) if rest else rest
        if not rest or rest[0].startswith("-"):
            break
        places.append(Path(rest.pop(0)))
    if len(places) < 2 and not asks_help(words):
        raise UserError(
            "advect impute needs a run and a file, such as: advect impute runs/people people.csv --draws 5"
        )
    return places, rest


def parse_impute(flags: list[str]) -> ImputeArguments:
    """Parse the words after ``advect impute RUN FILE``. Raises UserError."""
    about = (
        "Draw what is empty (or NaN) in a file of the form of the training data, given what is known there, by a flow"
        " trained with --mask: files draw-1, draw-2 ... as the one given, what was known in them unchanged, in"
        " RUN/imputed/seed-SEED.\n\n"
        "advect impute runs/people people.csv --draws 5"
    )
    a = parse_words(ImputeArguments, flags, prog="advect impute RUN FILE", description=about)
    parse_conditions(a.cond)
    if a.ema_decay is not None and not a.use_ema:
        raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")
    return a
