"""advect forecast RUN FILE [flags]: draw the steps that follow the series of a file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from advect.checkpoint.manifest import named_checkpoint
from advect.config.draw_arguments import DrawArguments
from advect.config.flags import launch_processes, parse_words
from advect.config.places import split_places
from advect.core.bounds import Count
from advect.distributed.comm import sync_errors
from advect.model.forecast import forecast_run
from advect.model.sampling import describe_files

logger = logging.getLogger(__name__)

SHARED = True

EXAMPLE = "runs/load load.csv --horizon 24 --draws 100"


@dataclass(frozen=True, kw_only=True, eq=False)
class ForecastArguments(DrawArguments):
    """Flags of ``advect forecast``."""

    horizon: Count = 24
    """Steps to draw after the last one of each series."""
    history: Count | None = None
    """Most known steps that they are drawn from; default as many as the sequences of training leave."""
    draws: Count = 100
    """Draws of each series."""
    cond: tuple[str, ...] = ()
    """Conditions that the file lacks, as NAME=VALUE; others follow the data's frequencies."""
    output_dir: Path | None = None
    """Output folder; default RUN/forecasts/seed-SEED."""

    groups: ClassVar = {
        "forecast": ("horizon", "history", "draws", "seed", "cond", "guidance", "guidance_interval"),
        **DrawArguments.groups,
        "output": ("output_dir", "overwrite"),
    }


def run(words: list[str]) -> None:
    """Run ``advect forecast`` with the words after it. Raises UserError."""
    with sync_errors():
        (place, file), flags = split_places(
            words, "advect forecast", ForecastArguments, ("run", "file of series"), EXAMPLE
        )
        a = parse_forecast(flags)
    if a.nproc != 1:
        launch_processes("forecast", words, a.nproc, a.device)
    options = {"draws": a.draws, "history": a.history, "sampler": a.sampler, **a.common}
    files = forecast_run(named_checkpoint(place, a.checkpoint), file, a.horizon, **options)
    for line in describe_files(files, individual=False):
        logger.info(line)


def parse_forecast(flags: list[str]) -> ForecastArguments:
    """Parse the words after ``advect forecast RUN FILE``. Raises UserError."""
    about = (
        "Draw the next steps of each series in a CSV, Parquet or NumPy file, in the form of the training data, by a"
        " flow of sequences trained with --mask prefix: all draws, their quantiles and a picture, in"
        f" RUN/forecasts/seed-SEED.\n\nadvect forecast {EXAMPLE}"
    )
    return parse_words(ForecastArguments, flags, prog="advect forecast RUN FILE", description=about)
