"""advect ema RUN --length 0.05: average weights over any length, after advect train --posthoc-ema."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from torch import Tensor

from advect.checkpoint.manifest import checkpoint_step, named_checkpoint, read_newest
from advect.checkpoint.tensor_files import save_tensors
from advect.config.flags import parse_words
from advect.config.places import split_place
from advect.config.section import Section
from advect.core.errors import UserError
from advect.core.files import atomic_write, check_name, claim_folder
from advect.model.load import AVERAGE, METADATA, ModelMetadata, read_model_metadata
from advect.training import find_checkpoint
from advect.training.ema import LONGEST
from advect.training.posthoc_ema import SNAPSHOTS, Fit, Profiles, Snapshot, combine, read_snapshots
from advect.training.state import DATA, MODEL

logger = logging.getLogger(__name__)

MAX_ERROR = 0.1
"""Largest accepted error of a profile."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EmaArguments(Section):
    """Flags of ``advect ema``."""

    checkpoint: str | None = None
    """Checkpoint of the run: epoch-50, step-1000, best or latest; averages end at its step"""

    length: tuple[Annotated[float, Meta(gt=0, lt=LONGEST)], ...] = ()
    """Lengths of the averages: standard deviation of their weights in time, as a share of the run; 0.05 averages over
    about the last tenth.
    """

    step: Annotated[int, Meta(ge=0)] | None = None
    """Step of a snapshot in RUN/ema at which averages end; default the newest."""
    output: Path | None = None
    """Output file, for one length; default RUN/ema/length-LENGTH-step-STEP.safetensors."""
    overwrite: bool = False
    """Replace the file of --output."""


@dataclass(frozen=True)
class AverageFile:
    """A written average, and the error of its profile (``posthoc_ema.Fit``)."""

    file: Path
    length: float
    step: int
    error: float


def run(words: list[str]) -> None:
    """Run ``advect ema`` with the words after it. Raises UserError."""
    place, flags = split_place(words, "advect ema", EmaArguments)
    about = "Average the weights of a run that was trained with --posthoc-ema, over any length of it."
    made = rebuild(place, parse_words(EmaArguments, flags, prog="advect ema RUN", description=about))
    for average in made:
        error = f"profile within {average.error:.2%}"
        logger.info(f"length {average.length} at step {average.step:,}: {average.file} ({error})")
    logger.info(f"next: advect sample {shlex.quote(str(made[-1].file))}")


def rebuild(run: Path, a: EmaArguments) -> list[AverageFile]:
    """Write averages of a run trained with --posthoc-ema, as weight files.

    Raises UserError, before writing, for a length out of reach, a missing or damaged snapshot, and an existing file.
    """
    _check(a)
    if a.output is not None:
        check_name(a.output, "--output")
    folder = run if (run / SNAPSHOTS).is_dir() else find_checkpoint(run).parent.parent
    end = a.step
    if a.checkpoint is not None:
        end = checkpoint_step(find_checkpoint(named_checkpoint(folder, a.checkpoint)))
    for last in (False, False, True):
        snapshots = read_snapshots(folder / SNAPSHOTS, end)
        try:
            return _rebuild(folder, snapshots, a)
        except UserError:
            if last or all(snapshot.path.is_dir() for snapshot in snapshots):
                raise
            # else a living run has thinned them out meanwhile
    raise AssertionError


def _rebuild(folder: Path, snapshots: Sequence[Snapshot], a: EmaArguments) -> list[AverageFile]:
    step = snapshots[-1].step
    fits = _fit(snapshots, a.length)
    metadata, beside = read_newest(folder, _facts)
    places = [a.output or folder / SNAPSHOTS / f"length-{length}-step-{step:08d}.safetensors" for length in a.length]
    written = []
    with claim_folder(places[0].parent, "--output", ".ema.lock"):
        _check(a)  # again, as another call may have written meanwhile
        _write_beside(beside, places[0].parent)
        averages = combine(snapshots, [fit.factors for fit in fits])
        for file, length, fit, weights in zip(places, a.length, fits, averages, strict=True):
            written.append(AverageFile(file, length, step, fit.error))
            _write(file, weights, metadata, {"length": length, "step": step, "error": fit.error})
    return written


def _facts(checkpoint: Path) -> tuple[ModelMetadata, bytes | None]:
    """Metadata of a checkpoint, and the file of its tensors, if it has any."""
    metadata = read_model_metadata(checkpoint / MODEL)
    return metadata, (checkpoint / DATA).read_bytes() if metadata.tensors else None


def _check(a: EmaArguments) -> None:
    if not a.length or len(set(a.length)) < len(a.length):
        got = " ".join(map(str, a.length)) or "none"
        raise UserError(f"--length needs one or more different lengths, such as 0.05 0.1, got {got}")
    if a.step is not None and a.checkpoint is not None:
        raise UserError(f"--step {a.step} and --checkpoint {a.checkpoint} both name the end; give one of them")
    if a.output is None:
        if a.overwrite:
            raise UserError("--overwrite is about the file of --output; give that, or leave it out")
    elif len(a.length) > 1:
        raise UserError(f"--output {a.output} is one file for {len(a.length)} lengths; leave it out, or give one")
    elif a.output.suffix != ".safetensors":
        raise UserError(f"--output {a.output} should end in .safetensors, which is what is written")
    elif a.output.exists() and not a.overwrite:
        raise UserError(f"--output {a.output} is there already; name another file, or give --overwrite")


def _fit(snapshots: Sequence[Snapshot], lengths: Sequence[float]) -> list[Fit]:
    stored = [(snapshot.updates, length) for snapshot in snapshots for length in snapshot.lengths]
    profiles = Profiles([updates for updates, _ in stored], [length for _, length in stored])
    now = snapshots[-1].updates
    fits = [profiles.fit(now, length) for length in lengths]
    for length, fit in zip(lengths, fits, strict=True):
        if fit.error > MAX_ERROR:
            low, high = profiles.reach(now, MAX_ERROR)
            raise UserError(
                f"--length {length} cannot be rebuilt from the {len(snapshots)} snapshots up to step "
                f"{snapshots[-1].step}: its profile would be {fit.error:.0%} off; they reach from {low:.3g} to "
                f"{high:.3g}, and a smaller --posthoc-every or other --posthoc-lengths reach farther"
            )
    return fits


def _write_beside(content: bytes | None, folder: Path) -> None:
    """Write the metadata's tensors beside the weights. Raises UserError if another run's are there."""
    if content is None:
        return
    there = folder / DATA
    if there.is_file() and there.read_bytes() != content:
        raise UserError(f"{there} belongs to another run; name a file in another folder with --output")
    there.parent.mkdir(exist_ok=True)
    atomic_write(there, lambda path: path.write_bytes(content))


def _write(file: Path, weights: dict[str, Tensor], metadata: ModelMetadata, average: dict[str, float]) -> None:
    note = {METADATA: metadata.to_text(), AVERAGE: json.dumps(average)}
    atomic_write(file, lambda path: save_tensors(path, weights, note))
