"""Flags that the commands which draw from a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from advect.config.section import Section, part
from advect.core.bounds import BatchSize, Count, GuidanceScale, Processes, Seed, Share, Steps, Time
from advect.core.errors import UserError
from advect.model.conditions import parse_conditions
from advect.model.sampler_config import SamplerConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawArguments(Section):
    """Flags of ``advect sample``, ``advect impute`` and ``advect forecast``."""

    seed: Seed = 0
    """The same seed gives the same samples."""
    cond: tuple[str, ...] = ()
    """Conditions as NAME=VALUE, such as label=7, the label in the data. NAME=cycle takes each value in turn, NAME=none
    none; others follow the data's frequencies.
    """
    guidance: GuidanceScale = 1.0
    """Scale of classifier-free guidance: 1 is none, 2 or 3 follows the condition more closely."""
    guidance_interval: tuple[Time, Time] | None = None
    """Times LO HI between which guidance acts; default all."""

    solver: str | None = part("solver", "sde-solver", default=None)
    """Solver; default that of the run's sample grids. With --diffusion: ab2, the default, euler-maruyama or heun."""
    num_steps: Steps | None = None
    """Solver steps; default those of the run's sample grids."""
    grid: str | None = part("grid", default=None)
    """Placement of the steps; default that of the run's sample grids."""
    diffusion: str | None = part("diffusion", default=None, number=("constant", "scale"))
    """Sample the SDE with this g(t): a number such as 0.5, or a name such as sigma; larger values forget errors and
    need more steps.
    """

    checkpoint: str | None = None
    """Checkpoint of the run: epoch-50, step-1000, best or latest, the default."""
    use_ema: bool = True
    """Use the averaged weights."""
    ema_decay: Share | None = None
    """Use the average of this decay, one of the run's."""

    output_dir: Path | None = None
    overwrite: bool = False
    """Replace what another call has drawn."""
    batch_size: BatchSize = 256
    """Samples drawn at once."""
    part_size: Count | None = None
    """Most samples in memory at once, default 10,000. Processes share such parts, and a repeated call resumes after
    complete ones.
    """
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU if available."""
    nproc: Processes = 1
    """Local processes, one a GPU if there are any, as by torchrun --nproc_per_node."""

    groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "solver": ("solver", "num_steps", "grid", "diffusion"),
        "weights": ("checkpoint", "use_ema", "ema_decay"),
        "processes": ("batch_size", "part_size", "device", "nproc"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_conditions(self.cond)
        if self.ema_decay is not None and not self.use_ema:
            raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")

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

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of the functions of ``advect.model`` that draw into a folder."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "cond": self.cond,
            "ema": self.use_ema if self.ema_decay is None else self.ema_decay,
            "output_dir": self.output_dir,
            "overwrite": self.overwrite,
            "part_size": self.part_size,
            "device": self.device,
        }
