"""What a run folder says of how the training went, as plain numbers."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advect.checkpoint.manifest import find_checkpoint, verify_checkpoint
from advect.core.errors import UserError
from advect.reporting.run_folder import read_run

Section = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The figures of a run. Arrays (R,) have an entry a logged row, those of ``held_out`` (H,) one a measurement.

    Attributes:
        step, loss, grad_norm, rate, speed, wait: of each row the step, mean loss, mean norm of the gradient, learning
            rate, samples a second, and share of the time spent waiting for data; NaN where a row does not say.
        held_step, held_loss: when the held-out loss was measured, and what it was.
        infinite: rows whose loss or norm was not finite.
        skipped: steps that float16 skipped.
        epoch_step, epochs: the step of the last finished epoch, and how many have ended.
        checkpoint: the step of the newest whole checkpoint; None where there is none.
        damaged: why the newest checkpoint cannot be used; empty where it can.
        idle: seconds since the last row was written.
        seconds: of training, in all.
        config: the sections of config.yaml.
        quality: evaluation/quality.json, where the run was measured.
        typed: the run's folder as one types it.
    """

    step: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray
    rate: np.ndarray
    speed: np.ndarray
    wait: np.ndarray
    held_step: np.ndarray = field(default_factory=lambda: np.zeros(0))
    held_loss: np.ndarray = field(default_factory=lambda: np.zeros(0))
    infinite: int = 0
    skipped: int = 0
    epoch_step: int = 0
    epochs: int = 0
    checkpoint: int | None = None
    damaged: str = ""
    idle: float = 0.0
    seconds: float = 0.0
    config: dict[str, Section] = field(default_factory=dict)
    quality: dict[str, Any] | None = None
    typed: str = "RUN"

    @property
    def last_step(self) -> int:
        """The last step that a row or a checkpoint tells of; 0 where none does."""
        return max(int(self.step[-1]) if len(self.step) else 0, self.epoch_step, self.checkpoint or 0)

    @property
    def planned(self) -> int | None:
        """The step at which the run ends, or None while no epoch has ended that would tell how long one is."""
        t = self.config.get("training", {})
        limits = [t["max_steps"]] if t.get("max_steps") else []
        if self.epochs and t.get("num_epochs"):
            limits.append(math.ceil(self.epoch_step / self.epochs * t["num_epochs"]))
        return min(limits) if limits else None

    def option(self, section: str, name: str, default: Any = None) -> Any:
        """A setting of config.yaml, or the default where the run has none."""
        return self.config.get(section, {}).get(name, default)


def gather_run(path: Path) -> RunFacts:
    """Read a run folder, or a checkpoint inside one. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run folder such as runs/digits, or a preset")
    folder = path if (path / "config.yaml").is_file() else path.absolute().parent.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{path} is not a run folder; for data, type: advect doctor --data {path}")
    run = read_run(folder)
    columns = {
        name: np.array([_number(row.get(key)) for row in run.steps])
        for name, key in (
            ("step", "step"),
            ("loss", "loss"),
            ("grad_norm", "grad_norm"),
            ("rate", "lr"),
            ("speed", "samples_per_s"),
            ("wait", "data_wait"),
        )
    }
    infinite, epoch_step, idle = _rest_of_metrics(folder / "metrics.jsonl")
    checkpoint, damaged = _newest(folder)
    last = run.steps[-1] if run.steps else {}
    return RunFacts(
        **columns,
        held_step=np.array([float(row["step"]) for row in run.held_out]),
        held_loss=np.array([float(row["held_out_loss"]) for row in run.held_out]),
        infinite=infinite,
        skipped=int(last.get("skipped_steps", 0)),
        epoch_step=epoch_step,
        epochs=run.epochs,
        checkpoint=checkpoint,
        damaged=damaged,
        idle=idle,
        seconds=float(last.get("seconds", 0.0)),
        config={name: values for name, values in run.config.items() if isinstance(values, dict)},
        quality=run.quality,
        typed=str(folder),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _rest_of_metrics(file: Path) -> tuple[int, int, float]:
    """Rows that are not finite, the step at which the last epoch ended, and seconds since the last was written."""
    if not file.is_file():
        return 0, 0, math.inf
    infinite, ended = 0, 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            infinite += any(not math.isfinite(row[key]) for key in ("loss", "grad_norm") if key in row)
            ended = max(ended, int(row["step"])) if "epoch_loss" in row else ended
        except (ValueError, KeyError, TypeError):  # the last line of a run that was killed may be half a line
            continue
    return infinite, ended, max(time.time() - file.stat().st_mtime, 0.0)


def _newest(folder: Path) -> tuple[int | None, str]:
    """The step of the newest checkpoint, and what is wrong with it."""
    try:
        checkpoint = find_checkpoint(folder)
    except UserError:
        return None, ""
    found = re.search(r"step-(\d+)", checkpoint.name)
    try:
        return int(verify_checkpoint(checkpoint)["step"]), ""
    except UserError as error:
        return int(found.group(1)) if found else None, str(error)
