"""The flags of ``advect report``."""

from __future__ import annotations

from dataclasses import dataclass

from advect.core.errors import UserError
from advect.runs.arguments import parse_words


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """What one call of ``advect report`` asks for."""

    num_samples: int = 1000
    """Samples for each point of the quality curve, at most as many as the training data."""
    nfes: tuple[int, ...] | None = None
    """Numbers of network evaluations at which quality is measured."""
    seed: int = 0
    """Seed of the samples."""
    measure: bool = True
    """Measure anew; --no-measure makes the page of what is in the run folder."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU where there is one."""


def parse_report(flags: list[str]) -> ReportArguments:
    """Parse the words after ``advect report RUN``. Raises UserError."""
    about = "Measure a run and write a report."
    a = parse_words(ReportArguments, flags, prog="advect report RUN", description=about)
    if not a.measure and (a.nfes or a.num_samples != ReportArguments.num_samples):
        raise UserError("--no-measure measures nothing, so --nfes and --num-samples would be ignored; leave them out")
    return a
