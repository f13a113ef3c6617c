"""advect doctor [PRESET|RUN] [flags]: diagnose the machine, a run, or --data PATH."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta

from advect.config.arguments import TrainArguments
from advect.config.flags import parse_words
from advect.config.places import place_first
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
    """Device and output."""

    data: str | None = None
    """File or folder of your data, read as by advect train --data; with a RUN and --samples, where its data are."""
    look: Annotated[int, Meta(ge=2, le=10**9)] = 2000
    """Most samples examined, evenly spaced."""
    copies: Path | None = None
    """Write the list of all samples that repeat an earlier one to this CSV file; --drop-copies leaves them out."""
    samples: CountOrZero = 0
    """Samples to draw and compare with the data; 500 is usual, 0 is none."""
    seed: Seed = 0
    """Seed of these samples."""
    run_dir: Path = Path("runs")
    """Folder of runs, for the room on its disk."""
    json: bool = False
    """Print the findings as JSON."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto takes a GPU if available."""

    groups: ClassVar = {"data": ("data", "look", "copies"), "run": ("samples", "seed"), "machine": ("run_dir",)}


ABOUT = """\
Say what is wrong, and what to try.

  advect doctor                      this machine
  advect doctor --data PATH          your data, and the plan of advect train for them
  advect doctor PRESET               a preset's data and plan
  advect doctor RUN                  a run, finished or not; --samples 500 also judges its samples

Flags of advect train may follow --data PATH or a PRESET, such as --conditions or --batch-size, and are judged too.
Exits with 1 if there is a problem."""

_BESIDE_DATA = {name: 1 for name in ("--look", "--device", "--samples", "--copies")}
_BESIDE_DATA |= {name: 0 for name in ("--json", "--help", "--help-all", "-h")}
"""Own flags among those of ``advect train``, with their numbers of values."""


def run(words: list[str]) -> None:
    """Run ``advect doctor``; exit with 1 if there is a problem. Raises UserError."""
    text, healthy = doctor(words)
    for line in text.split("\n"):
        logger.info(line)
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
    a = parse_words(DoctorArguments, own, prog=prog, description=ABOUT)
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
