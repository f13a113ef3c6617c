"""advect export RUN: write the network and a sampler as files that run without advect."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from advect.checkpoint.manifest import named_checkpoint
from advect.config.flags import parse_words
from advect.config.places import split_place
from advect.config.section import Section, part
from advect.core.bounds import GuidanceScale, SampleCount, Seed, Share, Steps, Time
from advect.core.errors import UserError
from advect.export.files import Format, export
from advect.model.conditions import parse_conditions
from advect.model.load import load

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportArguments(Section):
    """Flags of ``advect export``."""

    format: Format = "torch-export"
    """torch-export, for torch.export.load; or onnx, for ONNX Runtime (pip install 'advect[export]')."""
    output: Path | None = None
    """Output folder; default RUN/exported/FORMAT."""
    overwrite: bool = False
    """Replace the export in the folder."""

    cond: tuple[str, ...] = ()
    """Conditions fixed in the files, as NAME=VALUE, such as label=7; others are their inputs."""
    guidance: GuidanceScale = 1.0
    """Scale of classifier-free guidance of the sampler."""
    guidance_interval: tuple[Time, Time] | None = None
    """Times LO HI between which guidance acts; default all."""
    model_units: bool = False
    """Leave the transform to data units out of the sampler."""

    solver: str | None = part("solver", default=None)
    """Solver; default that of the run's sample grids."""
    num_steps: Steps | None = None
    """Solver steps; default those of the run's sample grids."""
    grid: str | None = part("grid", default=None)
    """Placement of the steps; default that of the run's sample grids."""

    num_samples: SampleCount = 4
    """Rows of example.npz: noise, conditions and samples as advect sample draws them."""
    seed: Seed = 0
    """Seed of example.npz."""

    checkpoint: str | None = None
    """Checkpoint of the run: epoch-50, step-1000, best or latest, the default."""
    use_ema: bool = True
    """Use the averaged weights."""
    ema_decay: Share | None = None
    """Use the average of this decay, one of the run's."""

    groups: ClassVar = {
        "files": ("format", "output", "overwrite"),
        "sampler": ("cond", "guidance", "guidance_interval", "model_units", "solver", "num_steps", "grid"),
        "example": ("num_samples", "seed"),
        "weights": ("checkpoint", "use_ema", "ema_decay"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_conditions(self.cond)
        if self.ema_decay is not None and not self.use_ema:
            raise UserError("--no-use-ema and --ema-decay contradict each other; give one of them")


def run(words: list[str]) -> None:
    """Run ``advect export`` with the words after it. Raises UserError."""
    place, flags = split_place(words, "advect export", ExportArguments)
    about = (
        "Write a trained network, and a sampler of fixed steps with the way to data units, as files of any batch size "
        "that run without advect, with export.json, which names their inputs.\n\n"
        "advect export runs/digits --format onnx --num-steps 20"
    )
    a = parse_words(ExportArguments, flags, prog="advect export RUN", description=about)
    source = named_checkpoint(place, a.checkpoint)
    flow = load(source, ema=a.use_ema if a.ema_decay is None else a.ema_decay, device="cpu")
    files = export(
        flow,
        a.output or default_folder(source, a.format),
        format=a.format,
        steps=a.num_steps,
        solver=a.chosen("solver"),
        grid=a.chosen("grid"),
        cond=parse_conditions(a.cond, flow.spec),
        guidance=a.guidance,
        guidance_interval=a.guidance_interval,
        model_units=a.model_units,
        num_samples=a.num_samples,
        seed=a.seed,
        overwrite=a.overwrite,
    )
    for file in files:
        logger.info(f"{file.stem + ':':9} {file}")


def default_folder(run: Path, name: str) -> Path:
    """``RUN/exported/NAME``, or ``exported/NAME`` outside a run."""
    inside = (folder for folder in (run, *run.absolute().parents) if (folder / "config.yaml").is_file())
    return next(inside, Path()) / "exported" / name
