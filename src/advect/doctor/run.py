"""Figures of a run folder, and checks of progress and speed."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advect.checkpoint.manifest import (
    HELD_OUT_LOSS,
    checkpoint_step,
    find_checkpoint,
    read_best,
    read_newest,
    verify_checkpoint,
)
from advect.config.plan import recipe_of
from advect.core.errors import UserError
from advect.core.files import read_file
from advect.core.records import parse_record
from advect.data.modality import Recipe
from advect.doctor.report import Figure, Finding, Seconds, Share
from advect.evaluation.held_out import PATIENCE
from advect.model.load import build_flow, read_model_metadata
from advect.model.sampler_config import SamplerConfig
from advect.reporting.run_folder import read_run
from advect.training.state import MODEL

Section = dict[str, Any]

FEW_ROWS = 4
"""Fewest logged rows to judge a trend."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Figures of a run, from its folder.

    Attributes:
        step, loss, grad_norm, rate, speed, wait: (R,) step, mean loss, mean gradient norm, learning rate, samples
            a second, and share of time waiting for data, by logged row; NaN if missing.
        held_step, held_loss: (H,) steps and values of the watched held-out loss, else of that with pictures.
        best: step of the checkpoint that samples come from, if it is not the last.
        infinite: rows with a non-finite loss or norm.
        skipped: steps skipped by float16 loss scaling.
        total: steps of all epochs as planned, or None.
        epoch_step, epochs: step of the last finished epoch, and number of epochs.
        checkpoint: step of the newest complete checkpoint, or None.
        damaged: damage of the newest checkpoint, or "".
        nfe: network evaluations a sample of the run's own sampler; None without a checkpoint, and if it is adaptive.
        least: steps that learning takes on data of this kind.
        idle, seconds: seconds since the last row, and of training.
        config: sections of config.yaml.
        quality: evaluation/quality.json, or None.
        calibration: that of the report or of ``advect eval``, or None.
        path: run folder as typed.
    """

    step: np.ndarray
    loss: np.ndarray
    grad_norm: np.ndarray
    rate: np.ndarray
    speed: np.ndarray
    wait: np.ndarray
    held_step: np.ndarray = field(default_factory=lambda: np.zeros(0))
    held_loss: np.ndarray = field(default_factory=lambda: np.zeros(0))
    best: int | None = None
    infinite: int = 0
    skipped: int = 0
    total: int | None = None
    epoch_step: int = 0
    epochs: int = 0
    checkpoint: int | None = None
    damaged: str = ""
    nfe: int | None = None
    least: int = Recipe().least_steps
    idle: float = 0.0
    seconds: float = 0.0
    config: dict[str, Section] = field(default_factory=dict)
    quality: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    path: str = "RUN"

    @property
    def last_step(self) -> int:
        """Last step of any row or checkpoint, or 0."""
        return max(int(self.step[-1]) if len(self.step) else 0, self.epoch_step, self.checkpoint or 0)

    @property
    def whole(self) -> int | None:
        """Steps of all epochs; estimated, and None before the end of the first, for runs that did not write it."""
        epochs = self.option("training", "num_epochs")
        estimate = round(self.epoch_step / self.epochs * epochs) if self.epochs and epochs else None
        return self.total or estimate

    @property
    def planned(self) -> int | None:
        """Final step by the configuration, minutes aside; None if unknown."""
        limits = [steps for steps in (self.option("training", "max_steps"), self.whole) if steps]
        return min(limits) if limits else None

    @property
    def length(self) -> int:
        """Steps that the run was to take: as planned, or as many as its minutes allowed."""
        timed = self.option("training", "max_minutes") is not None
        return self.last_step if timed else max(self.planned or 0, self.last_step)

    def option(self, section: str, name: str, default: Any = None) -> Any:
        """Setting of config.yaml, or the default."""
        return self.config.get(section, {}).get(name, default)


def read_facts(path: Path) -> RunFacts:
    """Read a run folder, or that of a checkpoint. Raises UserError if there is none."""
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
    infinite, epoch_step, idle, watched = _rest_of_metrics(folder / "metrics.jsonl")
    held_out = watched or {float(row["step"]): float(row["held_out_loss"]) for row in run.held_out}
    checkpoint, damaged, nfe, least = _newest(folder)
    last, best = run.steps[-1] if run.steps else {}, read_best(folder / "checkpoints")
    return RunFacts(
        **columns,
        held_step=np.array(list(held_out)),
        held_loss=np.array(list(held_out.values())),
        best=checkpoint_step(Path(best.name)) if best and best.metric == HELD_OUT_LOSS else None,
        infinite=infinite,
        skipped=int(last.get("skipped_steps", 0)),
        total=_planned_steps(run.environment),
        epoch_step=epoch_step,
        epochs=run.epochs,
        checkpoint=checkpoint,
        damaged=damaged,
        nfe=nfe,
        least=least,
        idle=idle,
        seconds=float(last.get("seconds", 0.0)),
        config={name: values for name, values in run.config.items() if isinstance(values, dict)},
        quality=run.quality,
        calibration=run.calibration,
        path=str(folder),
    )


def _planned_steps(environment: dict[str, Any]) -> int | None:
    """Steps of all epochs, of the last start."""
    later = environment.get("resumed")
    starts = [environment, *(later if isinstance(later, list) else ())]
    found = [start.get("planned_steps") for start in starts if isinstance(start, dict)]
    return next((steps for steps in reversed(found) if isinstance(steps, int) and steps > 0), None)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _rest_of_metrics(file: Path) -> tuple[int, int, float, dict[float, float]]:
    """Number of non-finite rows, step of the last epoch's end, seconds since the last write, and the held-out losses
    that were watched, by step.
    """
    if not file.is_file():
        return 0, 0, math.inf, {}
    infinite, ended, watched = 0, 0, {}
    for line in read_file(file).decode(errors="replace").splitlines():
        try:
            row = parse_record(line, dict[str, Any], file)
            infinite += any(not math.isfinite(row[key]) for key in ("loss", "grad_norm") if key in row)
            ended = max(ended, int(row["step"])) if "epoch_loss" in row else ended
            if math.isfinite(row.get("eval_held_out_loss", math.nan)):
                watched[float(row["step"])] = float(row["eval_held_out_loss"])
        except (ValueError, KeyError, TypeError):  # a killed run may leave half a line
            continue
    return infinite, ended, max(time.time() - file.stat().st_mtime, 0.0), dict(sorted(watched.items()))


def _newest(folder: Path) -> tuple[int | None, str, int | None, int]:
    """Step of the newest checkpoint, its damage, the evaluations of its sampler, and the steps that its data take."""
    least = Recipe().least_steps

    def read(checkpoint: Path) -> tuple[int, str, int | None, int]:
        step, metadata = int(verify_checkpoint(checkpoint)["step"]), read_model_metadata(checkpoint / MODEL)
        flow = build_flow(metadata, nn.Identity(), torch.device("cpu"))
        return step, "", flow.nfe(SamplerConfig()), recipe_of(metadata.spec.modality).least_steps

    try:
        checkpoint = find_checkpoint(folder)
    except UserError:
        return None, "", None, least
    match = re.search(r"step-(\d+)", checkpoint.name)
    try:
        return read_newest(folder, read)
    except UserError as error:
        return int(match.group(1)) if match else None, str(error), None, least


def check_logged(run: RunFacts) -> Finding | None:
    """Check that a step was logged."""
    if len(run.step):
        return None
    every, rate = run.option("output", "log_every", 0), run.option("training", "learning_rate", 0.0)
    started = run.idle < 120
    return Finding(
        "note" if started else "problem",
        "The run has logged no step yet" if started else "The run ended before it logged a step",
        {"log_every": every or "by time", "learning_rate": rate, "checkpoint at step": run.checkpoint or "none"},
        "train again in a new --run-dir and read its message; if the loss stops being finite, lower --learning-rate "
        "(1e-3 for small networks, 2e-4 for large ones); if it ends too early, lower --log-every",
    )


def check_progress(run: RunFacts) -> Finding | None:
    """Check whether the run finished, is running or was stopped."""
    if not run.last_step:
        return None
    planned = run.planned
    figures = {"step": run.last_step, "of": planned or "unknown", "newest checkpoint": run.checkpoint or "none"}
    if planned and run.last_step >= planned:
        if run.option("training", "max_steps") == planned:
            figures["max_steps"] = planned
        return Finding("ok", "The run did all the steps that it was given", figures)
    waited = int((run.held_step > run.best).sum()) if run.best is not None else 0
    if run.option("training", "early_stopping") == "yes" and waited >= PATIENCE:
        figures |= {"lowest held-out loss at step": run.best or 0}
        return Finding("ok", "The run ended early, as the held-out loss no longer fell", figures)
    each = run.seconds / max(len(run.step), 1)
    if run.idle < max(60.0, 5 * each):
        return Finding("ok", "The run wrote to its metrics a moment ago, and may still be at work", figures)
    if run.checkpoint is None:
        return Finding(
            "problem",
            "The run stopped before its end and left no checkpoint",
            figures,
            "train again with --save-every smaller than the step it reached",
        )
    return Finding(
        "note",
        "The run stopped before its end",
        {**figures, "time since": Seconds(run.idle)},
        f"advect train --resume-from {run.path} continues it bit for bit",
    )


def check_checkpoint(run: RunFacts) -> Finding | None:
    """Check the newest checkpoint for damage."""
    if not run.damaged:
        return None
    return Finding(
        "problem",
        "The newest checkpoint is damaged",
        {"step": run.checkpoint or 0, "why": run.damaged},
        "go on from an older one: advect train --resume-from RUN/checkpoints/step-...",
    )


def check_data_wait(run: RunFacts) -> Finding | None:
    """Check the time that steps wait for data."""
    wait = run.wait[np.isfinite(run.wait)]
    if len(wait) < 2:
        return None
    share, workers = float(np.median(wait[len(wait) // 2 :])), run.option("training", "num_workers", 0)
    figures = {"share of time waiting": Share(share), "num_workers": workers}
    if share < 0.25:
        return Finding("ok", "The steps do not wait for their data", figures)
    more = f"--num-workers {max(2 * workers, 2)}; for images, decode them once into a packed store (advect.data.pack)"
    if run.option("method", "coupling") in ("ot", "conditional-ot"):
        more += "; and --pair-ahead, as pairing is counted here"
    title = "The steps wait for their data"
    return Finding("problem" if share > 0.5 else "note", title, figures, more)


def check_speed(run: RunFacts) -> Finding | None:
    """Check for falling throughput, without the first row (start-up and compilation)."""
    speed = run.speed[1:][np.isfinite(run.speed[1:])]
    if len(speed) < 2 * FEW_ROWS:
        return None
    n = len(speed)
    before, last = float(np.median(speed[: n // 2])), float(np.median(speed[-max(n // 4, 2) :]))
    figures: dict[str, Figure] = {"samples a second at first": before, "in the last quarter": last}
    if last > 0.6 * before:
        return Finding("ok", "The speed is steady", figures)
    return Finding(
        "note",
        "The run has become slower",
        figures,
        "see whether other programs use the machine, whether it is hot or short of memory, and whether data come from "
        "a slow disk",
    )


RUN_CHECKS: tuple[Callable[[RunFacts], Finding | None], ...] = (
    check_logged,
    check_progress,
    check_checkpoint,
    check_data_wait,
    check_speed,
)
