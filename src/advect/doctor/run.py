"""Verdicts on how a run was trained, each a function of its figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from advect.doctor.losses import (
    FEW_ROWS,
    check_divergence,
    check_gradients,
    check_loss,
    check_over_fitting,
    check_skipped,
    check_still_falling,
    over_fits,
)
from advect.doctor.report import Figure, Finding
from advect.doctor.run_facts import RunFacts


def check_logged(run: RunFacts) -> Finding | None:
    """A run that logged nothing: it failed at once, or has not come so far."""
    if len(run.step):
        return None
    every, rate = run.option("output", "log_every", 0), run.option("training", "learning_rate", 0.0)
    started = run.idle < 120
    return Finding(
        "note" if started else "problem",
        "The run has logged no step yet" if started else "The run ended before it logged a step",
        {"log_every": every, "learning_rate": rate, "checkpoint at step": run.checkpoint or "none"},
        "train again in a new --run-dir and read its message; if the loss stops being finite, lower --learning-rate "
        "(1e-3 for small networks, 2e-4 for large ones); if it ends too early, lower --log-every",
    )


def check_progress(run: RunFacts) -> Finding | None:
    """Whether the run is finished, still at work, or was stopped."""
    if not run.last_step:
        return None
    planned = run.planned
    figures = {"step": run.last_step, "of": planned or "unknown", "newest checkpoint": run.checkpoint or "none"}
    if planned and run.last_step >= planned:
        if run.option("training", "max_steps") == planned:
            figures["max_steps"] = planned
        return Finding("ok", "The run did all the steps that it was given", figures)
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
    limit = " --max-minutes None" if run.option("training", "max_minutes") else ""
    return Finding(
        "note",
        "The run stopped before its end",
        {**figures, "minutes since": run.idle / 60},
        f"advect train --resume-from {run.typed}{limit} continues it bit for bit",
    )


def check_checkpoint(run: RunFacts) -> Finding | None:
    """A newest checkpoint that cannot be used."""
    if not run.damaged:
        return None
    return Finding(
        "problem",
        "The newest checkpoint is damaged",
        {"step": run.checkpoint or 0, "why": run.damaged},
        "go on from an older one: advect train --resume-from RUN/checkpoints/step-...",
    )


def check_data_wait(run: RunFacts) -> Finding | None:
    """Steps that wait for their data."""
    wait = run.wait[np.isfinite(run.wait)]
    if len(wait) < 2:
        return None
    share, workers = float(np.median(wait[len(wait) // 2 :])), run.option("training", "num_workers", 0)
    figures = {"share of time waiting": share, "num_workers": workers}
    if share < 0.25:
        return Finding("ok", "The steps do not wait for their data", figures)
    more = f"--num-workers {max(2 * workers, 2)}; for images, decode them once into a packed store (advect.data.pack)"
    if run.option("method", "coupling") in ("ot", "conditional-ot"):
        more += "; and --pair-ahead, as pairing is counted here"
    title = "The steps wait for their data"
    return Finding("problem" if share > 0.5 else "note", title, figures, more)


def check_speed(run: RunFacts) -> Finding | None:
    """A throughput that falls over time; the first row is left out, as it holds start-up and compilation."""
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


def check_average(run: RunFacts) -> Finding | None:
    """An average of the weights whose horizon is longer than the run; see :class:`advect.training.EMA`."""
    if not run.last_step or not run.option("training", "use_ema", False):
        return None
    decay, n = float(run.option("training", "ema_decay", 0.0)), run.last_step
    horizon = 1 / (1 - decay)
    if horizon <= n:
        return None
    return Finding(
        "note",
        "The averaged weights have a horizon longer than the run, and follow their warm-up alone",
        {
            "ema_decay": decay,
            "horizon in steps": horizon,
            "steps trained": n,
            "averaged over by warm-up": (10 + n) / 9,
        },
        f"more steps, or --ema-decay {max(1 - 10 / n, 0.0):.3g}",
    )


def check_length(run: RunFacts) -> Finding | None:
    """A run of so few steps that poor samples are to be expected."""
    least = 500 if run.option("network", "network") == "mlp" else 2000
    if not run.last_step or run.last_step >= least or over_fits(run):
        return None
    return Finding(
        "note",
        "So few steps seldom make good samples",
        {"steps": run.last_step, "usual at least": least, "epochs ended": run.epochs},
        "train longer: a larger --num-epochs or --max-steps",
    )


def check_rate(run: RunFacts) -> Finding | None:
    """A learning rate far from what works."""
    rate = run.option("training", "learning_rate")
    if rate is None or 1e-6 <= rate <= 2e-2:
        return None
    return Finding(
        "problem" if rate > 0.5 else "note",
        f"The learning rate is {'far too high' if rate > 0.5 else 'unusually high' if rate > 2e-2 else 'very low'}",
        {"learning_rate": float(rate)},
        "--learning-rate 1e-3 for small networks, 2e-4 for large ones",
    )


RUN_CHECKS: tuple[Callable[[RunFacts], Finding | None], ...] = (
    check_logged,
    check_progress,
    check_checkpoint,
    check_divergence,
    check_loss,
    check_still_falling,
    check_gradients,
    check_skipped,
    check_data_wait,
    check_speed,
    check_over_fitting,
    check_average,
    check_length,
    check_rate,
)
