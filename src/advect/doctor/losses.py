"""Checks of a run's losses, gradients and training options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from advect.config.plan import long_average, long_warmup, short_run
from advect.doctor.report import Figure, Finding, Share
from advect.doctor.run import FEW_ROWS, RunFacts

CERTAIN = 3.0
"""Standard errors of a significant difference."""

NOTABLE, MEMORISES = 0.25, 0.5
"""Parts of the training loss by which the held-out loss lies above it: to be told, and a problem."""


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of values (n,) and its standard error, infinite for n = 1."""
    if len(values) < 2:
        return float(values.mean()), math.inf
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def check_divergence(run: RunFacts) -> Finding | None:
    """Check for a loss that is not finite or far above its minimum."""
    figures = {"rows not finite": run.infinite, "learning_rate": run.option("training", "learning_rate", math.nan)}
    advice = (
        "lower --learning-rate tenfold, keep --grad-clip 1, lengthen --lr-warmup-steps, train with "
        "--no-mixed-precision, and look at the data: advect doctor --data PATH"
    )
    if run.infinite:
        return Finding("problem", "The loss stopped being finite", figures, advice)
    if len(run.loss) < FEW_ROWS:
        return None
    tail = run.loss[-max(len(run.loss) // 4, 2) :]
    lowest, last = float(run.loss.min()), float(np.median(tail))
    figures |= {"lowest loss": lowest, "loss at the end": last, "highest loss": float(run.loss.max())}
    if last > 2 * lowest + CERTAIN * float(np.std(tail)) / math.sqrt(len(tail)) or last > 1e3:
        return Finding("problem", "The loss has blown up: it is far above the lowest it has been", figures, advice)
    return None


def check_loss(run: RunFacts) -> Finding | None:
    """Check that the loss has fallen by more than its noise."""
    if len(run.loss) < FEW_ROWS:
        return None
    early = run.loss[: max(len(run.loss) // 10, 1)]
    late = run.loss[-max(len(run.loss) // 4, 2) :]
    first, (last, error) = float(early.mean()), mean_and_error(late)
    spread = float(late.std(ddof=1))
    noise = math.hypot(error, spread / math.sqrt(len(early)))
    figures = {"loss at first": first, "at the end": last, "noise of the difference": noise, "steps": run.last_step}
    if first - last > max(CERTAIN * noise, 0.01 * abs(first)):
        return Finding("ok", "The loss has fallen", figures)
    rate = run.option("training", "learning_rate", math.nan)
    warmup = run.option("training", "lr_warmup_steps", 0)
    return Finding(
        "problem",
        "The loss has not fallen beyond its noise",
        {
            **figures,
            "learning_rate": rate,
            "lr_warmup_steps": warmup,
            "batch_size": run.option("training", "batch_size", 0),
        },
        _flat_advice(rate, warmup, run.last_step),
    )


def _flat_advice(rate: float, warmup: int, steps: int) -> str:
    if trouble := long_warmup(steps, warmup):
        return trouble.fix
    if rate < 1e-5:
        return "raise --learning-rate: 1e-3 for small networks and 2e-4 for large ones are usual"
    return (
        "another --learning-rate, ten times higher or lower; a larger --batch-size against noise; and see with "
        "advect doctor --data PATH that the data are scaled: features near mean 0 and deviation 1, images in [-1, 1]"
    )


def check_still_falling(run: RunFacts) -> Finding | None:
    """Check for a loss still falling at the end, without over-fitting."""
    n = len(run.loss)
    if n < 4 * FEW_ROWS or run.planned is None or run.last_step < run.planned or over_fits(run):
        return None
    (before, e1), (last, e2) = mean_and_error(run.loss[n // 2 : 3 * n // 4]), mean_and_error(run.loss[3 * n // 4 :])
    if before - last < max(CERTAIN * math.hypot(e1, e2), 0.03 * abs(before)):
        return None
    return Finding(
        "note",
        "The loss was still falling when the run ended",
        {"third quarter": before, "last quarter": last, "steps": run.last_step},
        "train longer with --num-epochs (a new run) or a larger --max-steps",
    )


def check_gradients(run: RunFacts) -> Finding | None:
    """Check for growing or heavily clipped gradients."""
    norm = run.grad_norm[np.isfinite(run.grad_norm)]
    if len(norm) < 2 * FEW_ROWS:
        return None
    n = len(norm)
    before, last = float(np.median(norm[n // 4 : n // 2])), float(np.median(norm[-max(n // 4, 2) :]))
    clip = run.option("training", "grad_clip", 0.0)
    figures: dict[str, Figure] = {
        "norm in the second quarter": before,
        "in the last": last,
        "highest": float(norm.max()),
    }
    figures |= {"grad_clip": clip}
    if last > 5 * before:
        level = "problem" if last > 20 * before else "note"
        keep = "keep --grad-clip" if clip else "set --grad-clip 1"
        advice = f"{keep}, lower --learning-rate, train with --no-mixed-precision, and look for outliers in the data"
        return Finding(level, "The gradients are growing", figures, advice)
    if clip and last > 10 * clip:
        return Finding(
            "note",
            "Nearly all gradients are cut down by clipping, more than tenfold",
            figures,
            "lower --learning-rate and look at the data's scale; or raise --grad-clip",
        )
    return Finding("ok", "The gradients do not grow", figures)


def check_skipped(run: RunFacts) -> Finding | None:
    """Check the number of steps lost to overflow in float16."""
    share = run.skipped / max(run.last_step, 1)
    if not run.skipped or run.skipped <= 20 + 0.005 * run.last_step:  # a few skips calibrate the loss scale
        return None
    return Finding(
        "problem" if share > 0.1 else "note",
        "float16 skipped steps whose gradients overflowed",
        {"skipped": run.skipped, "steps": run.last_step, "share": Share(share)},
        "--half bf16 where the GPU has it, else a lower --learning-rate or --no-mixed-precision",
    )


class HeldOut(NamedTuple):
    """How the held-out loss ended: "flat", or it "rises" while the training loss falls, or that with its lowest
    "kept" as the checkpoint in use.
    """

    kind: Literal["flat", "rises", "kept"]
    figures: dict[str, Figure]
    rise: float
    """Relative to the lowest."""


def held_out(run: RunFacts) -> HeldOut | None:
    """None where too little is recorded, or both losses have risen."""
    held, steps = run.held_loss, run.held_step
    if len(held) < 3 or len(run.loss) < FEW_ROWS:
        return None
    best = int(held.argmin())
    lowest, last = float(held[best]), float(np.median(held[-2:]))
    noise = float(np.median(np.abs(np.diff(held, n=2)))) / math.sqrt(6)
    near = float(run.loss[np.abs(run.step - steps[best]).argsort()[:3]].mean())
    train = float(run.loss[-3:].mean())
    figures: dict[str, Figure] = {
        "lowest held-out loss": lowest,
        "at step": int(steps[best]),
        "held-out loss at the end": last,
        "training loss then": near,
        "training loss at the end": train,
    }
    rise = (last - lowest) / abs(lowest) if lowest else math.inf
    if last - lowest <= max(0.03 * abs(lowest), CERTAIN * noise):
        return HeldOut("flat", figures, rise)
    if train > near:
        return None
    kept = run.best is not None and abs(run.best - steps[best]) < 1
    return HeldOut("kept" if kept else "rises", figures, rise)


def check_over_fitting(run: RunFacts) -> Finding | None:
    """Check for a held-out loss that rises while the training loss falls."""
    found = held_out(run)
    if found is None:
        return None
    if found.kind == "flat":
        return Finding("ok", "No over-fitting: the held-out loss has not risen", found.figures)
    if found.kind == "kept":
        title = "The held-out loss rises after its lowest, whose checkpoint samples and reports use"
        return Finding("ok", title, found.figures)
    return Finding(
        "problem" if found.rise > 0.1 else "note",
        "The run over-fits: the held-out loss rises while the training loss falls",
        found.figures,
        "--early-stopping yes takes the checkpoint of the lowest; more data; a smaller network; more --dropout or "
        "--weight-decay; --augment geometric for images",
    )


def check_gap(run: RunFacts) -> Finding | None:
    """Check for weights, those that samples come from, with a held-out loss far above the training loss."""
    if not len(run.held_loss) or len(run.loss) < FEW_ROWS:
        return None
    step = run.last_step if run.best is None else run.best
    at = int(np.abs(run.held_step - step).argmin())  # a training loss of later steps would be lower by itself
    held, step = float(run.held_loss[at]), int(run.held_step[at])
    near = run.loss[np.abs(run.step - step).argsort()[:5]]
    train, error = mean_and_error(near)
    gap = held - train
    if gap < NOTABLE * abs(train) or gap < CERTAIN * error:
        return None
    figures: dict[str, Figure] = {"held-out loss": held, "training loss": train, "at step": step}
    knows = gap > MEMORISES * abs(train)
    return Finding(
        "problem" if knows else "note",
        "The held-out loss is far above the training loss: the network knows its training rows by heart"
        if knows
        else "The held-out loss is above the training loss: the network begins to know its training rows by heart",
        figures,
        "more data; a smaller network; more --dropout; fewer steps"
        + ("" if run.best is not None else ", by --early-stopping yes"),
    )


def over_fits(run: RunFacts) -> bool:
    """Whether longer training would make it worse."""
    found = held_out(run)
    return found is not None and found.kind != "flat"


def check_warmup(run: RunFacts) -> Finding | None:
    """Check for a run that ended, or was stopped, within its warm-up, or whose warm-up is most of it."""
    warmup, n = run.option("training", "lr_warmup_steps", 0), run.last_step
    if not n or not warmup:
        return None
    if n <= warmup and run.length > n:
        figures: dict[str, Figure] = {"steps": n, "lr_warmup_steps": warmup, "steps planned": run.length}
        advice = f"advect train --resume-from {run.path} goes on"
        return Finding("problem", "The run stopped within its warm-up, before it learned", figures, advice)
    trouble = long_warmup(run.length, warmup)
    return None if trouble is None else Finding("problem", trouble.title, {"steps": n}, trouble.fix)


def check_average(run: RunFacts) -> Finding | None:
    """Check that the EMA's horizon is shorter than the run; see :class:`advect.training.EMA`."""
    if not run.last_step or not run.option("training", "use_ema", False):
        return None
    decay = float(run.option("training", "ema_decay", 0.0))
    trouble = long_average(run.length, decay)
    figures: dict[str, Figure] = {"ema_decay": decay, "steps planned": run.length}
    return None if trouble is None else Finding("problem", trouble.title, figures, trouble.fix)


def check_length(run: RunFacts) -> Finding | None:
    """Check for too few steps."""
    n = run.last_step
    if not n or over_fits(run) or (run.best is not None and run.best < n):
        return None
    figures: dict[str, Figure] = {"steps": n, "epochs ended": run.epochs, "planned at least": run.least}
    if trouble := short_run(n, run.least):
        return Finding("problem", trouble.title, figures, trouble.fix)
    if n >= min(run.whole or run.least, run.least):
        return None
    advice = "train longer: a larger --num-epochs or --max-steps"
    return Finding("note", "So few steps seldom make good samples", figures, advice)


def check_rate(run: RunFacts) -> Finding | None:
    """Check for an extreme learning rate."""
    rate = run.option("training", "learning_rate")
    if rate is None or 1e-6 <= rate <= 2e-2:
        return None
    return Finding(
        "problem" if rate > 0.5 else "note",
        f"The learning rate is {'far too high' if rate > 0.5 else 'unusually high' if rate > 2e-2 else 'very low'}",
        {"learning_rate": float(rate)},
        "--learning-rate 1e-3 for small networks, 2e-4 for large ones",
    )


LOSS_CHECKS: tuple[Callable[[RunFacts], Finding | None], ...] = (
    check_divergence,
    check_loss,
    check_still_falling,
    check_gradients,
    check_skipped,
    check_over_fitting,
    check_gap,
    check_warmup,
    check_average,
    check_length,
    check_rate,
)
