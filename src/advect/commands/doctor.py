"""advect doctor [PRESET|RUN] [flags]: diagnose the machine, a run, or --data PATH."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from advect.config.arguments import TrainArguments
from advect.config.flags import parse_words, place_first
from advect.config.presets import PRESETS
from advect.config.section import Section
from advect.core.bounds import CountOrZero, Seed
from advect.core.errors import UserError
from advect.distributed.context import only_warnings
from advect.doctor.examine import examine_data, examine_machine, examine_run
from advect.doctor.report import is_healthy, show, to_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class DoctorArguments(Section):
    """Flags of ``advect doctor``."""

    data: str | None = None
    """File or folder of your data, read as by advect train --data; its flags may follow, also after a PRESET. With a
    RUN, where its data are now, for --samples.
    """

    samples: CountOrZero = 0
    """Of a run: number of samples to compare with the data; 500 is usual, 0 is none."""
    look: Annotated[int, Meta(ge=2, le=10**9)] = 2000
    """Of data: most samples examined, evenly spaced."""
    copies: Path | None = None
    """Of data: write the list of all copies to this CSV file."""
    seed: Seed = 0
    """Of a run: seed of the samples."""
    run_dir: Path = Path("runs")
    """Of the machine: folder of runs."""
    json: bool = False
    """Print the findings as JSON."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU if available."""


_BESIDE_DATA = {name: 1 for name in ("--look", "--device", "--samples", "--copies")}
_BESIDE_DATA |= {name: 0 for name in ("--json", "--help", "--help-all", "-h")}
"""Own flags among those of ``advect train``, with their numbers of values."""


def run(words: list[str]) -> None:
    """Run ``advect doctor``; exit with 1 if there is a problem. Raises UserError."""
    text, healthy = doctor(words)
    logger.info(text)
    if not healthy:
        sys.exit(1)


def doctor(words: list[str]) -> tuple[str, bool]:
    """Text for ``advect doctor``, and whether there is no problem. Raises UserError."""
    if words and words[0].startswith("-"):
        words = place_first(words, TrainArguments, DoctorArguments)
    what = words[0] if words and not words[0].startswith("-") else None
    own, training = (words[1:] if what else words), []
    of_data = what in PRESETS or (what is None and any(word.partition("=")[0] == "--data" for word in words))
    if of_data:
        own, training = _split_flags(words, _BESIDE_DATA)
    prog = "advect doctor [PRESET | RUN]"
    a = parse_words(DoctorArguments, own, prog=prog, description="Say what is wrong, and what to try.")
    if a.samples and (what is None or of_data):
        raise UserError(f"--samples {a.samples} is for a run; name one: advect doctor runs/digits --samples 500")
    if a.copies and not of_data:
        raise UserError(f"--copies {a.copies} is for data; name them: advect doctor --data PATH --copies {a.copies}")
    if what and a.data and not of_data and not a.samples:
        raise UserError(f"--data {a.data} of a run is where its data are now, for --samples 500; give both or neither")
    with only_warnings():
        if of_data:
            findings = examine_data(training, look=a.look, device=a.device, copies=a.copies)
        elif what:
            findings = examine_run(Path(what), samples=a.samples, seed=a.seed, device=a.device, data=a.data)
        else:
            findings = examine_machine(a.run_dir, device=a.device)
    return to_json(findings) if a.json else show(findings), is_healthy(findings)


def _split_flags(words: list[str], own: dict[str, int]) -> tuple[list[str], list[str]]:
    """Flags in ``own`` with their values, and all other words."""
    mine, others, left = [], [], 0
    for word in words:
        name, equals, _ = word.partition("=")
        if left:
            mine, left = [*mine, word], left - 1
        elif name in own:
            mine, left = [*mine, word], 0 if equals else own[name]
        else:
            others.append(word)
    return mine, others
