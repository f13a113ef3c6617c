"""advect sample RUN [flags]: draw samples from a run folder, a checkpoint or a weight file."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from advect.checkpoint.manifest import named_checkpoint
from advect.config.draw_arguments import DrawArguments
from advect.config.flags import launch_processes, parse_words
from advect.config.places import split_place
from advect.config.section import part
from advect.core.bounds import Count, Pixels, SampleCount
from advect.core.errors import UserError
from advect.distributed.comm import sync_errors
from advect.model.answers import answer_run
from advect.model.sampler_config import SamplerConfig
from advect.model.sampling import describe_files, sample_run

logger = logging.getLogger(__name__)

SHARED = True


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleArguments(DrawArguments):
    """Flags of ``advect sample``."""

    num_samples: SampleCount = 64
    """Number of samples."""
    given: Path | None = None
    """File in the form of the data whose empty, NaN or transparent entries are drawn, the others being known, instead
    of --num-samples: see advect impute. For flows trained with --mask.
    """
    draws: Count = 1
    """Draws of each row of --given."""
    posterior: str | None = part("posterior", default=None)
    """Posterior sampling of what --given asks for, for flows trained without --mask, with its own steps: pigdm or
    mmps, say.
    """
    parents: Path | None = None
    """File of parents, for tables trained with --parent: draws children of each, instead of --num-samples, with its
    key; see docs/data.md.
    """
    image_size: tuple[Pixels, Pixels] | None = None
    """Height and width of the images, if other than those of training; a DiT takes them, in multiples of its patch."""
    output_dir: Path | None = None
    """Output folder; default RUN/generated/seed-SEED."""
    save_individual: bool = False
    """Also write each image to a file of its own."""
    safe_csv: bool = False
    """In samples.csv, put ' before text that a spreadsheet would run as a formula, such as =cmd."""

    groups: ClassVar = {
        "samples": (
            "num_samples",
            "given",
            "draws",
            "parents",
            "seed",
            "cond",
            "guidance",
            "guidance_interval",
            "image_size",
        ),
        **DrawArguments.groups,
        "solver": (*DrawArguments.groups["solver"], "posterior"),
        "output": ("output_dir", "save_individual", "overwrite", "safe_csv"),
    }

    @property
    def sampler(self) -> SamplerConfig:
        """How to sample."""
        return replace(super().sampler, image_size=self.image_size)


def run(words: list[str]) -> None:
    """Run ``advect sample`` with the words after it. Raises UserError."""
    place, flags = split_place(words, "advect sample", SampleArguments)
    with sync_errors():
        a = parse_sample(flags)
    if a.nproc != 1:
        launch_processes("sample", words, a.nproc, a.device)
    source, common = named_checkpoint(place, a.checkpoint), a.common
    if a.given is not None:
        files = answer_run(source, a.given, a.draws, a.sampler, posterior=a.chosen("posterior"), **common)
    else:
        own: Any = {"save_individual": a.save_individual, "safe_csv": a.safe_csv, "parents": a.parents}
        files = sample_run(source, a.num_samples, a.sampler, **common, **own)
    for line in describe_files(files, individual=a.save_individual):
        logger.info(line)


def parse_sample(flags: list[str]) -> SampleArguments:
    """Parse the words after ``advect sample RUN``. Raises UserError."""
    about = (
        "Draw samples from a trained flow: one file in the form of the data, a picture, and samples.json with what was"
        " asked for, in RUN/generated/seed-SEED.\n\n"
        "advect sample runs/digits --num-samples 100 --cond label=7 --guidance 2"
    )
    a = parse_words(SampleArguments, flags, prog="advect sample RUN", description=about)
    alone = {"--num-samples": a.num_samples != SampleArguments.num_samples, "--save-individual": a.save_individual}
    alone |= {"--safe-csv": a.safe_csv, "--image-size": a.image_size is not None}
    if a.given is not None and (other := next((flag for flag, there in alone.items() if there), None)):
        raise UserError(f"{other} and --given contradict each other, as the file says what is drawn; leave one out")
    if a.parents is not None and a.num_samples != SampleArguments.num_samples:
        raise UserError("--num-samples and --parents contradict each other, as children are counted; leave one out")
    if a.parents is not None and a.given is not None:
        raise UserError("--given and --parents contradict each other; leave one out")
    if a.given is None and (a.draws != 1 or a.posterior is not None):
        flag = "--draws" if a.draws != 1 else "--posterior"
        raise UserError(f"{flag} is of each row of --given FILE; give one, or leave it out")
    return a
