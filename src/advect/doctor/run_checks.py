"""Verdicts on how the training of a run went, each a function of its figures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from advect.doctor.finding import Finding
from advect.doctor.run_facts import RunFacts

CERTAIN = 3.0
"""Standard errors by which two means must differ before a verdict says that they do."""

FEW_ROWS = 4
"""Logged rows below which nothing is said of a trend."""


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of values (n,) and its standard error, which is infinite for one value."""
    if len(values) < 2:
        return float(values.mean()), math.inf
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


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


def check_divergence(run: RunFacts) -> Finding | None:
    """A loss that is no longer finite, or far above what it has been."""
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
    """Whether the loss has fallen since the start, by more than its noise."""
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
    if steps <= 2 * warmup:
        return f"train longer: --lr-warmup-steps {warmup} takes up most of the {steps} steps, so lower it as well"
    if rate < 1e-5:
        return "raise --learning-rate: 1e-3 for small networks and 2e-4 for large ones are usual"
    return (
        "another --learning-rate, ten times higher or lower; a larger --batch-size against noise; and see with "
        "advect doctor --data PATH that the data are scaled: features near mean 0 and deviation 1, images in [-1, 1]"
    )


def check_still_falling(run: RunFacts) -> Finding | None:
    """A loss that was still falling at the end: the run was too short."""
    n = len(run.loss)
    if n < 4 * FEW_ROWS or run.planned is None or run.last_step < run.planned:
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
    """Gradients that grow while training goes on."""
    norm = run.grad_norm[np.isfinite(run.grad_norm)]
    if len(norm) < 2 * FEW_ROWS:
        return None
    n = len(norm)
    before, last = float(np.median(norm[n // 4 : n // 2])), float(np.median(norm[-max(n // 4, 2) :]))
    clip = run.option("training", "grad_clip", 0.0)
    figures = {"norm in the second quarter": before, "in the last": last, "highest": float(norm.max())}
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
    """Steps that float16 lost to overflow."""
    share = run.skipped / max(run.last_step, 1)
    if not run.skipped or run.skipped <= 20 + 0.005 * run.last_step:  # the scale is found by skipping a few
        return None
    return Finding(
        "problem" if share > 0.1 else "note",
        "float16 skipped steps whose gradients overflowed",
        {"skipped": run.skipped, "steps": run.last_step, "share": share},
        "--half bf16 where the GPU has it, else a lower --learning-rate or --no-mixed-precision",
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
    figures = {"samples a second at first": before, "in the last quarter": last}
    if last > 0.6 * before:
        return Finding("ok", "The speed is steady", figures)
    return Finding(
        "note",
        "The run has become slower",
        figures,
        "see whether other programs use the machine, whether it is hot or short of memory, and whether data come from "
        "a slow disk",
    )


def check_over_fitting(run: RunFacts) -> Finding | None:
    """A held-out loss that rises while the training loss falls."""
    held, steps = run.held_loss, run.held_step
    if len(held) < 3 or len(run.loss) < FEW_ROWS:
        return None
    best = int(held.argmin())
    last = float(np.median(held[-2:]))
    rise = last - float(held[best])
    noise = float(np.median(np.abs(np.diff(held, n=2)))) / math.sqrt(6)
    near = run.loss[np.abs(run.step - steps[best]).argsort()[:3]].mean()
    train = float(run.loss[-3:].mean())
    figures = {
        "lowest held-out loss": float(held[best]),
        "at step": int(steps[best]),
        "held-out loss at the end": last,
        "training loss then": float(near),
        "training loss at the end": train,
    }
    if rise <= max(0.03 * abs(float(held[best])), CERTAIN * noise) or train > near or best > len(held) - 2:
        return Finding("ok", "No over-fitting: the held-out loss has not risen", figures)
    return Finding(
        "problem" if rise > 0.1 * abs(float(held[best])) else "note",
        "The run over-fits: the held-out loss rises while the training loss falls",
        figures,
        f"more data; fewer steps (a checkpoint near step {int(steps[best]):,}, kept with --keep-last 0); a smaller "
        "network; more --dropout or --weight-decay; --horizontal-flip for images",
    )


def check_average(run: RunFacts) -> Finding | None:
    """An average of the weights whose horizon is longer than the run; see :class:`advect.training.Ema`."""
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
    if not run.last_step or run.last_step >= least:
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
