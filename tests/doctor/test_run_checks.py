"""Each verdict on a run, by figures that must and must not lead to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from advect.doctor import losses
from advect.doctor import run as checks
from advect.doctor.report import Bytes, Finding, Seconds, Share, run_checks, show
from advect.doctor.run import RunFacts
from advect.doctor.samples import (
    QUALITY_CHECKS,
    SAMPLE_CHECKS,
    SampleFacts,
    check_copies,
    check_faithful,
    check_finite,
    check_memorisation,
    check_quality,
    check_shares,
    check_solver,
    check_spread,
)

STEPS = np.arange(100, 4100, 100)
NOISE = np.random.default_rng(0).normal(size=40)
CONFIG = {
    "network": {"network": "mlp"},
    "training": {
        "batch_size": 128,
        "num_epochs": 40,
        "max_steps": None,
        "max_minutes": None,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 100,
        "grad_clip": 1.0,
        "use_ema": True,
        "ema_decay": 0.999,
        "num_workers": 0,
    },
    "method": {"coupling": "independent"},
    "output": {"solver": "midpoint", "sample_steps": 50, "log_every": 100},
}
HEALTHY = RunFacts(
    step=STEPS,
    loss=1 + np.exp(-STEPS / 500) + 0.01 * NOISE,
    grad_norm=0.5 + 0.05 * NOISE,
    rate=np.full(40, 1e-3),
    speed=np.full(40, 1000.0),
    wait=np.full(40, 0.02),
    held_step=STEPS[4::5],
    held_loss=1.02 + np.exp(-STEPS[4::5] / 500),
    epoch_step=4000,
    epochs=40,
    checkpoint=4000,
    nfe=100,
    idle=3600.0,
    seconds=500.0,
    config=CONFIG,
)


def with_options(section: str, **options: object) -> RunFacts:
    return replace(HEALTHY, config={**CONFIG, section: {**CONFIG[section], **options}})


def test_a_healthy_run_is_found_healthy() -> None:
    found = run_checks(HEALTHY, (*checks.RUN_CHECKS, *losses.LOSS_CHECKS, *QUALITY_CHECKS))
    assert {f.level for f in found} == {"ok"}
    assert all(f.figures for f in found)


EMPTY = np.zeros(0)
SICK = {
    "logged": (
        checks.check_logged,
        replace(HEALTHY, step=EMPTY, loss=EMPTY, checkpoint=None, epochs=0, epoch_step=0),
        "problem",
        "--learning-rate",
    ),
    "stopped": (checks.check_progress, replace(HEALTHY, epochs=20, epoch_step=4000), "note", "--resume-from RUN"),
    "stopped without checkpoint": (
        checks.check_progress,
        replace(HEALTHY, epochs=20, epoch_step=4000, checkpoint=None),
        "problem",
        "--save-every",
    ),
    "damaged": (checks.check_checkpoint, replace(HEALTHY, damaged="sum differs"), "problem", "--resume-from"),
    "not finite": (losses.check_divergence, replace(HEALTHY, infinite=1), "problem", "--learning-rate"),
    "blown up": (
        losses.check_divergence,
        replace(HEALTHY, loss=np.where(STEPS > 3000, 50.0, HEALTHY.loss)),
        "problem",
        "--grad-clip",
    ),
    "flat": (losses.check_loss, replace(HEALTHY, loss=1.8 + 0.05 * NOISE), "problem", "--batch-size"),
    "flat in warm-up": (
        losses.check_loss,
        replace(with_options("training", lr_warmup_steps=4000), loss=1.8 + 0.05 * NOISE),
        "problem",
        "--lr-warmup-steps 200, a 20th",
    ),
    "still falling": (
        losses.check_still_falling,
        replace(HEALTHY, loss=2 - STEPS / 4000 + 0.01 * NOISE),
        "note",
        "--num-epochs",
    ),
    "growing gradients": (
        losses.check_gradients,
        replace(HEALTHY, grad_norm=np.exp(STEPS / 1000)),
        "note",
        "--grad-clip",
    ),
    "exploding gradients": (
        losses.check_gradients,
        replace(HEALTHY, grad_norm=np.exp(STEPS / 500)),
        "problem",
        "--learning-rate",
    ),
    "clipped": (losses.check_gradients, replace(HEALTHY, grad_norm=np.full(40, 30.0)), "note", "--learning-rate"),
    "skipped": (losses.check_skipped, replace(HEALTHY, skipped=900), "problem", "--half bf16"),
    "waiting": (checks.check_data_wait, replace(HEALTHY, wait=np.full(40, 0.7)), "problem", "--num-workers 2"),
    "waiting a little": (checks.check_data_wait, replace(HEALTHY, wait=np.full(40, 0.3)), "note", "--num-workers"),
    "slower": (
        checks.check_speed,
        replace(HEALTHY, speed=np.where(STEPS > 2500, 300.0, 1000.0)),
        "note",
        "other programs",
    ),
    "over-fitting": (
        losses.check_over_fitting,
        replace(HEALTHY, held_loss=np.array([1.4, 1.2, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6])),
        "problem",
        "--dropout",
    ),
    "gap": (losses.check_gap, replace(HEALTHY, held_loss=np.full(8, 1.3)), "note", "--early-stopping yes"),
    "by heart": (losses.check_gap, replace(HEALTHY, held_loss=np.full(8, 2.0)), "problem", "more data"),
    "stopped in warm-up": (
        losses.check_warmup,
        replace(HEALTHY, step=STEPS[:1], loss=HEALTHY.loss[:1], epoch_step=100, epochs=1, checkpoint=100),
        "problem",
        "--resume-from RUN",
    ),
    "warm-up": (
        losses.check_warmup,
        with_options("training", lr_warmup_steps=3000),
        "problem",
        "--lr-warmup-steps 200",
    ),
    "average": (losses.check_average, with_options("training", ema_decay=0.9999), "problem", "--ema-decay 0.9975"),
    "short": (
        losses.check_length,
        replace(HEALTHY, step=STEPS[:3], epoch_step=0, checkpoint=300),
        "note",
        "--num-epochs",
    ),
    "rate": (losses.check_rate, with_options("training", learning_rate=1e6), "problem", "--learning-rate"),
    "slow rate": (losses.check_rate, with_options("training", learning_rate=1e-9), "note", "--learning-rate"),
    "few evaluations": (check_solver, replace(HEALTHY, nfe=6), "note", "--num-steps"),
}


@pytest.mark.parametrize("name", SICK)
def test_a_sick_run_is_found_sick(name: str) -> None:
    check, facts, level, words = SICK[name]
    found = check(facts)
    assert found is not None
    assert found.level == level
    assert words in found.advice
    assert found.figures


def test_a_run_that_wrote_a_moment_ago_is_not_said_to_have_stopped() -> None:
    found = checks.check_progress(replace(HEALTHY, epochs=20, epoch_step=4000, idle=1.0))
    assert found is not None and found.level == "ok"


def test_a_run_that_the_held_out_loss_ended_is_finished() -> None:
    early = with_options("training", early_stopping="yes", num_epochs=400)
    early = replace(early, held_step=STEPS, held_loss=1 + np.abs(STEPS - 2000) / 4000, best=2000)
    found = checks.check_progress(early)
    assert found is not None and found.level == "ok" and "ended early" in found.title
    assert checks.check_progress(replace(early, best=3500)).level == "note"  # type: ignore[union-attr]


def test_a_run_without_a_step_is_told_in_words() -> None:
    none = replace(with_options("output", log_every=None), step=EMPTY, loss=EMPTY, checkpoint=None, epochs=0)
    found = checks.check_logged(none)
    assert found is not None and found.figures["log_every"] == "by time" and "log_every by time" in show([found])


def test_the_end_of_a_run_follows_from_its_epochs_or_its_largest_step() -> None:
    assert HEALTHY.planned == 4000
    assert with_options("training", max_steps=500).planned == 500
    assert replace(HEALTHY, epochs=0).planned is None


def test_a_held_out_loss_that_only_wavers_is_no_over_fitting() -> None:
    wavering = np.array([1.4, 1.2, 1.22, 1.19, 1.21, 1.2, 1.22, 1.2])
    found = losses.check_over_fitting(replace(HEALTHY, held_loss=wavering))
    assert found is not None and found.level == "ok"


def test_both_losses_rising_are_no_over_fitting_and_an_over_fitting_run_is_not_told_to_go_on() -> None:
    rising = np.array([1.4, 1.2, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6])
    assert losses.check_over_fitting(replace(HEALTHY, held_loss=rising, loss=1 + STEPS / 4000)) is None
    falling = replace(HEALTHY, loss=2 - STEPS / 4000 + 0.01 * NOISE)
    short = {"step": STEPS // 10, "held_step": HEALTHY.held_step // 10, "epoch_step": 0, "checkpoint": 400}
    assert losses.check_still_falling(falling) is not None
    assert losses.check_still_falling(replace(falling, held_loss=rising)) is None
    assert losses.check_length(replace(falling, **short)) is not None
    assert losses.check_length(replace(falling, **short, held_loss=rising)) is None


def test_the_best_checkpoint_is_judged_where_samples_come_from_it() -> None:
    rising = np.array([1.4, 1.2, 1.05, 1.2, 1.4, 1.8, 2.2, 2.4])
    run = replace(HEALTHY, held_loss=rising)
    assert losses.check_gap(run).level == "problem"  # type: ignore[union-attr]
    best = replace(run, best=int(HEALTHY.held_step[2]))
    assert losses.check_gap(best) is None
    fits = losses.check_over_fitting(best)
    assert fits is not None and fits.level == "ok" and "whose checkpoint" in fits.title
    assert losses.over_fits(best) and losses.over_fits(run) and not losses.over_fits(HEALTHY)


def test_a_few_skips_by_which_the_loss_scale_is_found_are_no_matter() -> None:
    assert losses.check_skipped(replace(HEALTHY, skipped=12)) is None


def quality(distance: float, share: float) -> RunFacts:
    return replace(
        HEALTHY,
        quality={
            "frechet": {
                "floor": 0.1,
                "samples": 1000,
                "best": {"solver": "midpoint", "nfe": 200, "steps": 100, "distance": distance},
                "curves": {"midpoint": {"nfe": [10, 100, 200], "distance": [5.0, 4 * distance, distance]}},
            },
            "memorisation": {"share_closer": share},
        },
    )


def test_what_a_report_measured_is_judged() -> None:
    few = check_quality(quality(0.2, 0.01))
    assert few is not None and few.level == "note" and "--num-steps 100" in few.advice
    older = quality(0.2, 0.01)
    assert older.quality is not None
    del older.quality["frechet"]["best"]["steps"]  # as reports were before they told them
    few = check_quality(older)
    assert few is not None and few.advice == "advect sample --solver midpoint --num-steps 100"
    older.quality["frechet"]["best"]["solver"] = "of another package"
    few = check_quality(older)
    assert few is not None and few.advice == "advect sample --solver of another package"
    at_best = replace(quality(0.2, 0.01), nfe=200)
    near = check_quality(at_best)
    assert near is not None and near.level == "ok"
    copies, none = check_copies(quality(0.2, 0.6)), check_copies(quality(0.2, 0.01))
    assert copies is not None and copies.level == "problem" and copies.figures["measured by"] == "advect report"
    assert none is not None and none.level == "ok"


GOOD = SampleFacts(
    samples=500,
    data=500,
    spread=1.0,
    data_spread=1.05,
    shares={"a": (0.5, 0.52), "b": (0.5, 0.48)},
    faithful=(0.9, 0.95),
    share_closer=0.012,
)
BAD = {
    "not finite": (check_finite, replace(GOOD, infinite=3), "problem"),
    "alike": (check_spread, replace(GOOD, spread=0.3), "problem"),
    "less varied": (check_spread, replace(GOOD, spread=0.7), "note"),
    "wide": (check_spread, replace(GOOD, spread=5.0), "problem"),
    "collapsed": (check_shares, replace(GOOD, shares={"a": (0.5, 0.98), "b": (0.5, 0.02)}), "problem"),
    "shifted": (check_shares, replace(GOOD, shares={"a": (0.5, 0.8), "b": (0.5, 0.2)}), "note"),
    "not as asked": (check_faithful, replace(GOOD, faithful=(0.2, 0.95)), "problem"),
    "copies": (check_memorisation, replace(GOOD, share_closer=0.8), "problem"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_are_found_bad(name: str) -> None:
    check, facts, level = BAD[name]
    found = check(facts)
    assert found is not None and found.level == level and found.advice


def test_good_samples_are_found_good() -> None:
    assert {f.level for f in run_checks(GOOD, SAMPLE_CHECKS)} == {"ok"}


def test_figures_are_shown_in_words_people_use() -> None:
    figures = {"decay": 0.9995, "part": Share(0.0523), "time": Seconds(3725.0), "free": Bytes(3 * 2**29), "n": 12345}
    figures |= {"small": Bytes(2**22), "none": Share(float("nan"))}
    text = show([Finding("ok", "Fine", figures)])  # pyright: ignore[reportArgumentType]
    line = "decay 0.9995; part 5.2%; time 1 h 2 min; free 1.5 GiB; n 12,345; small 4 MiB; none nan"
    assert line in text and text.endswith("nothing is wrong: 0 problems, 0 notes, 1 fine")
