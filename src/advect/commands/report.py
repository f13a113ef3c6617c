"""advect report RUN [flags]: measure a run and write its report.html."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from advect.checkpoint.manifest import find_weights, named_checkpoint, read_newest
from advect.config.flags import parse_words
from advect.config.places import split_place
from advect.config.section import Section
from advect.core.bounds import Evaluations, Positive, Seed
from advect.core.errors import UserError
from advect.core.files import claim_folder
from advect.distributed.context import LOADED
from advect.evaluation.budget import Clock, budget_seconds, describe_limits
from advect.evaluation.protocol import open_run
from advect.evaluation.quality import measure_quality
from advect.reporting import write_report
from advect.reporting.run_folder import read_run, training_seconds
from advect.reporting.style import plural

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportArguments(Section):
    """Flags of ``advect report``."""

    checkpoint: str | None = None
    """Checkpoint of the run: epoch-50, step-1000, best or latest, the default."""

    data: str | None = None
    """The data's place if they have moved since the training."""
    minutes: Positive | None = None
    """Most minutes; default a tenth of the training, 20 seconds to two minutes. What is smaller for it is told."""
    full: bool = False
    """Take the time that all measurements take."""
    num_samples: Annotated[int, Meta(ge=2, le=10**12)] | None = None
    """Samples a point of the quality curve, at most the number of training samples; default 1000, fewer if time is
    short.
    """
    nfes: tuple[Evaluations, ...] | None = None
    """Numbers of network evaluations to measure; default 1 2 4 8 16 32 64, fewer if time is short."""
    seed: Seed = 0
    """Seed of the samples."""
    measure: bool = True
    """Measure; --no-measure uses what the run folder holds."""
    output_dir: Path | None = None
    """Folder for the report and its measurements; default RUN."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU if available."""

    groups: ClassVar = {
        "time": ("minutes", "full", "measure"),
        "samples": ("num_samples", "nfes", "seed"),
        "run": ("checkpoint", "data", "output_dir", "device"),
    }


def run(words: list[str]) -> None:
    """Run ``advect report`` with the words after it. Raises UserError."""
    place, flags = split_place(words, "advect report", ReportArguments)
    a = parse_report(flags)
    options = {"samples": a.num_samples, "nfes": a.nfes, "seed": a.seed, "measure": a.measure, "data": a.data}
    seconds = math.inf if a.full or (a.num_samples and a.nfes) else a.minutes and 60 * a.minutes
    options |= {"checkpoint": a.checkpoint, "output_dir": a.output_dir, "seconds": seconds}
    page, results = report(place, device=a.device, spent=time.monotonic() - LOADED, **options)
    given = {"--checkpoint": a.checkpoint, "--data": a.data}
    for line in [*summary(results), *describe_limits(results, place, given)]:
        logger.info(line)
    logger.info(f"report: {page}")


def parse_report(flags: list[str]) -> ReportArguments:
    """Parse the words after ``advect report RUN``. Raises UserError."""
    about = (
        "Measure a run and write RUN/report.html: samples through training, quality against cost, classes, copies of"
        " training data, losses, and the results of advect eval.\n\n"
        "advect report runs/digits --full"
    )
    a = parse_words(ReportArguments, flags, prog="advect report RUN", description=about)
    limits = {"--full": a.full, "--minutes": a.minutes is not None}
    asked = {
        "--nfes": a.nfes,
        "--num-samples": a.num_samples,
        "--checkpoint": a.checkpoint,
        "--data": a.data,
        **limits,
    }
    given = [flag for flag, value in asked.items() if value]
    if not a.measure and given:
        raise UserError(f"--no-measure measures nothing; leave {' and '.join(given)} out")
    if a.minutes is not None and (a.full or (a.nfes and a.num_samples)):
        other = "--full" if a.full else "--nfes and --num-samples"
        raise UserError(f"--minutes {a.minutes:g} bounds nothing beside {other}; leave one out")
    return a


def report(
    run: Path,
    *,
    samples: int | None = None,
    nfes: tuple[Evaluations, ...] | None = None,
    seed: Seed = 0,
    device: str = "auto",
    measure: bool = True,
    data: str | None = None,
    checkpoint: str | None = None,
    output_dir: Path | None = None,
    seconds: float | None = math.inf,
    spent: float = 0.0,
) -> tuple[Path, dict]:
    """Measure a run and write its ``report.html``, in ``output_dir`` or the run; return the file and the measurements.

    ``checkpoint`` names the one measured, default that of :func:`find_weights`. With ``measure`` False the page
    uses existing files. ``seconds`` bounds the time, None by that of the training, with the ``spent`` ones before.
    Raises UserError if ``run`` is no run folder with a checkpoint, or the data have moved or changed.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml; give one such as runs/digits")
    output_dir = output_dir or run
    file = output_dir / "evaluation" / "quality.json"
    with claim_folder(output_dir, "--output-dir", ".report.lock"):
        if not measure:
            return write_report(run, output_dir), read_run(run, output_dir).quality or {}
        clock = Clock(budget_seconds(training_seconds(run)) if seconds is None else seconds, spent=spent)
        find = lambda run: find_weights(named_checkpoint(run, checkpoint))
        read = lambda place: open_run(run, place, True, device, data)
        _, flow, dataset, subject = read_newest(run, read, find)
        options = {"samples": samples, "nfes": nfes, "seed": seed, "step": subject["step"], "clock": clock}
        result = measure_quality(flow, dataset, file.parent, **options)
        notes = (
            [] if "frechet" in result else describe_limits(result, run, {"--checkpoint": checkpoint, "--data": data})
        )
        return write_report(run, output_dir, notes=notes), result


def summary(results: dict) -> list[str]:
    """Main figures of the measurements, as lines; none if there are none."""
    if "frechet" not in results:
        return []
    frechet = results["frechet"]
    best = frechet["best"]
    lines = [
        f"Frechet distance of {frechet['samples']:,} samples to {frechet['held_out']:,} held-out rows"
        f" ({frechet['features']}): {best['distance']:.4g} with {best['solver']} at"
        f" {plural(best['nfe'], 'evaluation')}; the floor, real training data, is {frechet['floor']:.4g}"
    ]
    for name, facts in (results.get("fidelity") or {}).items():
        lines.append(
            f"{name} as asked for, by a classifier trained on held-out data: {facts['share']:.1%} of samples; "
            f"it is right on {facts['classifier_accuracy']:.1%} of real held-out data that it was not fitted to"
        )
    memory = results["memorisation"]
    lines.append(
        f"closer to a training sample than {1 - memory['percentile']:.0%} of held-out data are: "
        f"{memory['share_closer']:.1%} of samples"
    )
    if found := results.get("privacy"):
        lines.append(
            f"equal to a training sample: {found['copies']:.1%} of samples, {found['held_out_copies']:.1%} of held-out"
            f" data; a membership attack has an AUC of {found['membership_auc']:.3f} ± {found['membership_error']:.3f}"
            " (0.5 is guessing)"
        )
    return lines
