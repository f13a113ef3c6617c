"""advect impute RUN FILE [flags]: draw the empty entries of a file, several times."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from advect.checkpoint.manifest import named_checkpoint
from advect.config.draw_arguments import DrawArguments
from advect.config.flags import launch_processes, parse_words
from advect.config.places import split_places
from advect.config.section import part
from advect.core.bounds import Count
from advect.distributed.comm import sync_errors
from advect.model.answers import answer_run
from advect.model.sampling import describe_files

logger = logging.getLogger(__name__)

SHARED = True

EXAMPLE = "runs/people people.csv --draws 5"


@dataclass(frozen=True, kw_only=True, eq=False)
class ImputeArguments(DrawArguments):
    """Flags of ``advect impute``."""

    draws: Count = 5
    """Draws of each row, a file each: multiple imputation."""
    cond: tuple[str, ...] = ()
    """Conditions that the file lacks as NAME=VALUE, such as label=7; NAME=none if it is not known."""
    posterior: str | None = part("posterior", default=None)
    """Posterior sampling, for flows trained without --mask, with its own steps: pigdm or mmps, say."""
    output_dir: Path | None = None
    """Output folder; default RUN/imputed/seed-SEED."""

    groups: ClassVar = {
        "draws": ("draws", "seed", "cond", "guidance", "guidance_interval"),
        **DrawArguments.groups,
        "solver": (*DrawArguments.groups["solver"], "posterior"),
        "output": ("output_dir", "overwrite"),
    }


def run(words: list[str]) -> None:
    """Run ``advect impute`` with the words after it. Raises UserError."""
    with sync_errors():
        (place, file), flags = split_places(words, "advect impute", ImputeArguments, ("run", "file"), EXAMPLE)
        a = parse_impute(flags)
    if a.nproc != 1:
        launch_processes("impute", words, a.nproc, a.device)
    source, posterior = named_checkpoint(place, a.checkpoint), a.chosen("posterior")
    files = answer_run(source, file, a.draws, a.sampler, posterior=posterior, **a.common)
    for line in describe_files(files, individual=False):
        logger.info(line)


def parse_impute(flags: list[str]) -> ImputeArguments:
    """Parse the words after ``advect impute RUN FILE``. Raises UserError."""
    about = (
        "Draw what is empty (or NaN) in a file of the form of the training data, given what is known there, by a flow"
        " trained with --mask: files draw-1, draw-2 ... as the one given, what was known in them unchanged, in"
        f" RUN/imputed/seed-SEED.\n\nadvect impute {EXAMPLE}"
    )
    return parse_words(ImputeArguments, flags, prog="advect impute RUN FILE", description=about)
