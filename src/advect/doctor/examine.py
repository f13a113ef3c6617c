"""The jobs behind ``advect doctor``: gather the figures, then judge them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from advect.core.errors import UserError
from advect.doctor.finding import Finding
from advect.doctor.machine import MACHINE_CHECKS
from advect.doctor.machine_facts import gather_machine
from advect.doctor.run_checks import RUN_CHECKS
from advect.doctor.run_facts import gather_run
from advect.doctor.sample_checks import QUALITY_CHECKS, SAMPLE_CHECKS

T = TypeVar("T")


def examine_machine(folder: Path = Path("runs"), *, device: str = "auto") -> list[Finding]:
    """What there is to say of this machine; runs are to go to ``folder``."""
    return judge(gather_machine(folder, device), MACHINE_CHECKS)


def examine_run(path: Path, *, samples: int = 0, seed: int = 0, device: str = "auto") -> list[Finding]:
    """What there is to say of a run, from its folder; with ``samples`` > 0 also of so many samples and their data.

    Raises:
        UserError: there is no run at ``path``, or samples are asked for and cannot be drawn.
    """
    facts = gather_run(path)
    findings = judge(facts, (*RUN_CHECKS, *QUALITY_CHECKS))
    if not samples:
        return findings
    if facts.checkpoint is None:
        raise UserError(f"--samples {samples} needs a checkpoint, and {path} has none; leave --samples out")
    from advect.doctor.sample_facts import gather_samples

    return findings + judge(gather_samples(path, samples, seed=seed, device=device), SAMPLE_CHECKS)


def judge(facts: T, checks: Iterable[Callable[[T], Finding | None]]) -> list[Finding]:
    """What the checks find in the facts, in their order."""
    return [finding for check in checks if (finding := check(facts)) is not None]
