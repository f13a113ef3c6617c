"""advect sample RUN [flags]: draw samples from a run folder, a checkpoint or a weight file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advect.commands.base import launch_processes, split_place
from advect.config.flags import parse_words
from advect.core.errors import UserError
from advect.distributed.comm import sync_errors
from advect.model.conditions import number_or_name, parse_conditions
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import describe_files, sample_run

logger = logging.getLogger(__name__)

SHARED = True


@dataclass(frozen=True, kw_only=True)
class SampleArguments:
    """Flags of ``advect sample``."""

    num_samples: int = 64
    """How many samples."""
    num_steps: int | None = None
    """Solver steps; by default as many as the run's own sample grids."""

    solver: Literal["euler", "midpoint", "heun", "rk4", "ab2", "dpmpp2m", "dopri5", "euler-maruyama"] | None = None
    """Solver; by default that of the run's own sample grids. euler: order 1. midpoint, heun: order 2, two evaluations
    a step. ab2, dpmpp2m: order 2, one evaluation; dpmpp2m is exact where the data's prediction stands still. rk4:
    order 4, four evaluations. dopri5: adaptive. euler-maruyama, heun: with --diffusion.
    """

    grid: Literal["uniform", "cosine", "edm", "shifted"] | None = None
    """Where the steps lie: evenly; dense at both ends; as EDM's noise levels; more near the noise."""

    diffusion: str | None = None
    """Sample the stochastic equation with this g(t): a number such as 0.5, or a name such as sigma; more of it forgets
    errors and needs more steps.
    """

    seed: int = 0
    """The same seed gives the same samples."""

    cond: tuple[str, ...] = ()
    """Conditions as NAME=VALUE, such as label=7; the value is the label in the data. NAME=cycle takes each value in
    turn, NAME=none samples without; conditions that are not named are drawn as often as in the data.
    """

    guidance: float = 1.0
    """Scale of classifier-free guidance: 1 is none, 2 or 3 follows the condition more closely."""
    guidance_interval: tuple[float, float] | None = None
    """Times LO HI between which guidance acts; by default all."""
    use_ema: bool = True
    """Use the averaged weights."""
    ema_decay: float | None = None
    """Use the average of this decay, one of those that the run was trained with."""
    save_individual: bool = False
    """Write each image to a file of its own, too."""
    output_dir: Path | None = None
    """Folder for the samples, a picture and their facts; by default RUN/generated/seed-SEED."""
    overwrite: bool = False
    """Replace other samples that are there already."""
    batch_size: int = 256
    """Samples drawn at once."""

    part_size: int | None = None
    """More samples than this, 10,000 by default, are written in parts of at most this many, which several processes
    share. A call that has been ended goes on after its whole parts when it is repeated.
    """

    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""
    nproc: int = 1
    """Processes on this machine, on a GPU each where there are any; as torchrun --nproc_per_node starts them."""

    @property
    def sampler(self) -> SamplerConfig:
        """How to sample."""
        return SamplerConfig(
            steps=self.num_steps,
            solver=self.solver,
            grid=self.grid,
            diffusion=number_or_name(self.diffusion),
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
        )


def run(words: list[str]) -> None:
    """Run ``advect sample`` with the words after it. Raises UserError."""
    place, flags = split_place(words, "advect sample")
    with sync_errors():
        a = parse_sample(flags)
    if a.nproc != 1:
        launch_processes("sample", words, a.nproc, a.device)
    files = sample_run(
        place,
        a.num_samples,
        a.sampler,
        seed=a.seed,
        batch_size=a.batch_size,
        cond=a.cond,
        ema=a.use_ema if a.ema_decay is None else a.ema_decay,
        save_individual=a.save_individual,
        output_dir=a.output_dir,
        overwrite=a.overwrite,
        part_size=a.part_size,
        device=a.device,
    )
    for line in describe_files(files, individual=a.save_individual):
        logger.info(line)


def parse_sample(flags: list[str]) -> SampleArguments:
    """Parse the words after ``advect sample RUN``. Raises UserError."""
    a = parse_words(SampleArguments, flags, prog="advect sample RUN", description="Draw samples from a trained flow.")
    parse_conditions(a.cond)
    if a.ema_decay is not None and not a.use_ema:
        raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")
    return a
