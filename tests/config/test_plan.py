"""Sizes of a run from its data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import advect as package
from advect.checkpoint.manifest import checkpoint_step, find_weights, named_checkpoint, read_best
from advect.config.config import TrainingConfig
from advect.config.plan import (
    FEW_ELEMENTS,
    WARMUP_SHARE,
    batch_for,
    find_troubles,
    make_plan,
    recipe_of,
    resolve,
)
from advect.config.presets import PRESETS
from advect.core import registry
from advect.core.errors import UserError
from advect.data import ArrayFile
from advect.training import CosineDecay, LearningRate
from runs import assert_same_end

OPEN = TrainingConfig()
SMALL = "--width 16 --depth 1 --num-samples 8"


@pytest.mark.parametrize("rows", [3, 100, 1000, 10_000, 100_000, 10_000_000])
@pytest.mark.parametrize("modality", registry.choices("modality"))
def test_a_plan_learns_and_ends_whatever_the_rows(modality: str, rows: int) -> None:
    recipe = recipe_of(modality)
    for gpu, most in ((False, recipe.cpu_steps), (True, recipe.gpu_steps)):
        plan = make_plan(OPEN, recipe, rows, gpu=gpu)
        assert recipe.least_steps <= plan.steps <= most
        assert plan.warmup * WARMUP_SHARE <= plan.steps
        assert plan.batch <= max(rows // 4, 8) and plan.batch & (plan.batch - 1) == 0


def test_what_is_given_stays_and_any_number_of_processes_follows_one_plan() -> None:
    recipe = recipe_of("vector")
    given = OPEN.replaced(batch_size=32, num_epochs=2.5, lr_warmup_steps=500)
    plan = make_plan(given, recipe, 1000)
    assert (plan.batch, plan.steps, plan.warmup) == (32, 79, 500)  # ceil(2.5 * 1000 / 32)
    assert make_plan(given, recipe, 1000, world=2).steps == 40
    one, four = (make_plan(OPEN, recipe, 5000, world=world) for world in (1, 4))
    assert one == four
    config = replace(PRESETS["arrays"].config, training=OPEN)
    found, plan = resolve(config, "vector", 1000, 10, world=3)  # 3 does not divide 128
    again, same = resolve(found, "vector", 1000, 10, world=3)
    assert again == found and same.steps == plan.steps and plan.batch == 3 * (found.training.batch_size or 0)
    long = make_plan(OPEN.replaced(max_minutes=60), recipe, 10**7)
    assert long.steps > recipe.cpu_steps  # the time ends it, not the default


@pytest.mark.parametrize("rows", [7, 135, 999, 20_001])
def test_a_resolved_configuration_has_the_same_plan(rows: int) -> None:
    for name in ("arrays", "images", "table", "cells", "sequences"):
        config = PRESETS[name].config
        config = replace(config, training=config.training.replaced(max_steps=None))
        modality = {"arrays": "vector", "images": "image", "sequences": "sequence"}.get(name, name)
        found, plan = resolve(config, modality, rows, 10)
        again, same = resolve(found, modality, rows, 10)
        assert again == found and (same.batch, same.steps, same.warmup) == (plan.batch, plan.steps, plan.warmup)
        assert found.training.early_stopping == ("yes" if rows <= 20_000 else "no")
        assert resolve(config, modality, rows, 10, elements=65)[0].training.early_stopping == "no"


def test_presets_with_sizes_of_their_own_keep_them() -> None:
    for name in ("digits", "moons", "fashion-mnist", "cifar10", "celeba64"):
        t = PRESETS[name].config.training
        found, _ = resolve(PRESETS[name].config, "image", 5000, 100)
        assert found.training == t.replaced(early_stopping="no")
    t = PRESETS["celeba64"].config.training
    assert (t.batch_size, t.num_epochs, t.lr_warmup_steps, t.ema_decay) == (32, 100, 1000, 0.9999)


def test_a_replanned_rate_is_continuous_and_ends_at_zero() -> None:
    rate = LearningRate(peak=1.0, warmup=10, total=1000, schedule=CosineDecay())
    shorter = rate.replanned(200, 400)
    assert shorter(200) == pytest.approx(rate(200)) and shorter(400) == pytest.approx(0, abs=1e-12)
    assert all(shorter(n) > shorter(n + 1) for n in range(200, 400))
    twice = shorter.replanned(300, 900)
    assert twice(300) == pytest.approx(shorter(300)) and twice(900) == pytest.approx(0, abs=1e-12)
    again = shorter.replanned(400, 800)  # more time for a finished run
    assert again(400) == pytest.approx(0.5) and again(800) == pytest.approx(0, abs=1e-12)
    assert rate.replanned(0, 40).warmup == 2


def data(folder: Path, rows: int = 120) -> Path:
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32))
    return folder / "x.npy"


def test_the_schedule_ends_with_the_minutes_and_a_resumed_run_keeps_to_it(
    advect: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()  # a clock that every look moves by two milliseconds, so that a busy machine changes nothing
    monkeypatch.setattr("advect.training.guards.time", SimpleNamespace(monotonic=lambda: 0.002 * next(ticks)))
    words = f"train --data {data(tmp_path)} {SMALL} --num-epochs 1e6 --sample-every 0 --log-every 1"
    advect(f"{words} --max-minutes 0.05 --save-every 20 --keep-last 0 --run-dir whole")
    rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    assert rates[-1] < 0.02 * max(rates)  # annealed, though the epochs would have taken hours
    state = json.loads((sorted(Path("whole/checkpoints").glob("step-*"))[-1] / "state/run.json").read_text())
    assert state["plans"] and state["plans"][-1][1] == state["step"]
    decided = state["plans"][-1][0]
    first = next(p for p in sorted(Path("whole/checkpoints").glob("step-*")) if int(p.name[5:]) > decided)
    advect(f"train --resume-from {first} --run-dir resumed --max-minutes 0.05")
    assert_same_end(Path("whole"), Path("resumed"), state["step"], since=int(first.name[5:]))


def test_a_run_ends_when_the_held_out_loss_rises_and_its_best_checkpoint_is_taken(
    advect: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = "--width 128 --depth 4 --learning-rate 5e-3 --num-samples 8 --sample-every 0 --dropout 0"
    advect(f"train --data {data(tmp_path, 40)} {words} --run-dir run")
    kept = yaml.safe_load(Path("run/config.yaml").read_text())["training"]
    assert kept["early_stopping"] == "yes" and kept["batch_size"] == 8
    best = read_best(Path("run/checkpoints"))
    losses = {
        row["step"]: row["eval_held_out_loss"]
        for row in map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
        if "eval_held_out_loss" in row
    }
    assert best is not None and best.value == min(losses.values()) < losses[max(losses)]
    assert max(losses) < 3000  # ten measurements after the lowest
    assert find_weights(Path("run")).name == best.name
    there, here = package.load("run/checkpoints/best"), package.load("run")
    assert torch.equal(there.sample(2, seed=0).x, here.sample(2, seed=0).x)
    last = named_checkpoint(Path("run"), "latest").name
    assert checkpoint_step(Path(last)) == max(losses) > checkpoint_step(Path(best.name))
    assert "--early-stopping no" in caplog.text
    advect("report run --num-samples 20 --nfes 2")
    assert json.loads(Path("run/evaluation/quality.json").read_text())["step"] == checkpoint_step(Path(best.name))
    advect("reflow run --iterations 1 --num-pairs 64 --num-epochs 1 --no-measure --sample-every 0")
    (flow,) = Path("run/reflow").glob("*-rectified")
    assert yaml.safe_load((flow / "config.yaml").read_text())["training"]["early_stopping"] == "no"


def test_a_dry_run_and_the_doctor_tell_the_plan_and_the_time(
    advect: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advect.config.threads.trial_step", lambda *given: lambda rows: clock.append(0.02 * rows))
    monkeypatch.setattr("advect.config.threads.time", SimpleNamespace(perf_counter=lambda: sum(clock)))
    clock: list[float] = []
    advect(f"train --data {data(tmp_path, 300)} {SMALL} --device cpu --dry-run")
    *yaml_lines, line = caplog.messages
    rows = len(ArrayFile(tmp_path / "x.npy").train)
    assert line.startswith(f"# plan: 3,000 steps (the fewest that learning takes, for {rows} rows), batches of 64")
    assert line.endswith("about 64 minutes on this machine")  # 64 rows a step, 1.28 s
    assert yaml.safe_load("\n".join(yaml_lines))["training"]["batch_size"] is None
    assert not Path("runs").exists()
    advect(f"train --data {tmp_path / 'x.npy'} {SMALL} --device cpu --dry-run --batch-size 1000 --max-minutes 5")
    assert caplog.messages[-1].endswith("about 5.0 minutes on this machine")
    advect(f"train --data {tmp_path / 'x.npy'} {SMALL} --device cpu --dry-run --max-minutes 5")
    assert "batches of 16 rather than 64, as time is short" in caplog.messages[-1]
    advect(f"doctor --data {tmp_path / 'x.npy'} {SMALL} --device cpu")
    assert "time here, about" in caplog.text


def test_few_large_samples_have_small_batches_and_short_minutes_smaller_ones() -> None:
    recipe = recipe_of("vector")
    assert [make_plan(OPEN, recipe, 653, elements=n).batch for n in (FEW_ELEMENTS, FEW_ELEMENTS + 1)] == [128, 32]
    plan = make_plan(OPEN, recipe, 10_000)  # 256, 7,813 steps, of which learning takes 3,000
    assert [batch_for(plan, minutes, 0.2) for minutes in (10, 5, 2.5, 0.01)] == [256, 128, 64, 16]


def test_a_run_goes_on_with_the_batch_that_its_minutes_allowed(
    advect: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "advect")
    monkeypatch.setattr("advect.commands.train.seconds_per_step", lambda *_, **__: 1.0)
    monkeypatch.setattr("advect.commands.train.SLOWER", 100.0)
    line = f"train --data {data(tmp_path, 300)} {SMALL} --device cpu --run-dir run --sample-every 0 --max-minutes 20"
    advect(f"{line} --max-steps 4")
    assert "batches of 32 rather than 64, as time is short" in caplog.text
    monkeypatch.setattr("advect.commands.train.seconds_per_step", lambda *_, **__: 1e-6)
    advect(f"{line} --max-steps 6 --resume auto")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["training"]["batch_size"] == 32
    assert json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 6
    advect(f"{line.replace('run-dir run', 'run-dir other')} --max-steps 2 --batch-size 48")
    assert yaml.safe_load(Path("other/config.yaml").read_text())["training"]["batch_size"] == 48


@pytest.mark.parametrize("preset", ["cifar10", "fashion-mnist", "images", "arrays", "cells", "table", "sequences"])
def test_pictures_rows_and_checkpoints_come_by_time(preset: str) -> None:
    out = PRESETS[preset].config.output
    assert (out.log_every, out.sample_every, out.save_every) == (None, None, None)


TROUBLES = {
    "few steps": ({"max_steps": 20}, "20 steps are too few to learn from such data: 3,000 are planned at least"),
    "within the warm-up": (
        {"max_steps": 90, "lr_warmup_steps": 100},
        "and 100 are warm-up; give a larger --max-steps",
    ),
    "warm-up": ({"lr_warmup_steps": 1600}, "takes 1,600 of 3,000 steps.*--lr-warmup-steps 150"),
    "average": ({"ema_decay": 0.9999}, "reach back 10,000 steps, more than the 3,000 .*--ema-decay 0.9967"),
    "batch": (
        {"batch_size": 2000},
        "A batch of 2,000 holds each of the 1,000 training rows 2 times; give --batch-size 128",
    ),
    "minutes": ({"max_minutes": 1.0}, "--max-minutes 1 is time for about 600 steps here.*--max-minutes 5 or more"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_plan_that_flags_contradict_is_told(name: str) -> None:
    given, words = TROUBLES[name]
    t = OPEN.replaced(**{"ema_decay": 0.999, **given})
    recipe = recipe_of("vector")
    epochs = {"batch_size": "num_epochs"}.get(next(iter(given)))
    t = t.replaced(num_epochs=6000) if epochs else t  # 3,000 steps, whatever the batch
    found = find_troubles(make_plan(t, recipe, 1000), t, pace=0.1)
    assert len(found) == 1 and re.search(words, f"{found[0].title}; {found[0].fix}"), found


@pytest.mark.parametrize("rows", [3, 150, 20_000])
def test_a_plan_by_default_has_no_trouble(rows: int) -> None:
    for name in ("arrays", "images", "table", "cells", "sequences"):
        config = PRESETS[name].config
        modality = {"arrays": "vector", "images": "image", "sequences": "sequence"}.get(name, name)
        found, plan = resolve(config, modality, rows, 10)
        assert find_troubles(plan, found.training, pace=1.0) == []


def test_rare_values_are_told_before_a_run(advect: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        f"{x:.4f},{'lone' if i == 5 else 'ab'[i % 2]}" for i, x in enumerate(np.random.default_rng(0).normal(size=60))
    ]
    Path("t.csv").write_text("\n".join(["x,kind", *rows]))
    advect(f"train --data t.csv --conditions kind --held-out 0 {SMALL} --device cpu --dry-run")
    note = "# note: 1 value of kind has fewer than 10 training rows, too few to learn from: lone (1); bring more"
    assert note in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--early-stopping yes --held-out 0", "needs held-out rows"),
        ("--early-stopping yes --eval-every 10", "each keep a best checkpoint"),
        ("--num-epochs inf", "--num-epochs must be finite"),
        ("--max-minutes inf", "--max-minutes must be finite"),
    ],
)
def test_what_cannot_be_planned_is_told_and_nothing_is_written(
    advect: Callable[..., None], tmp_path: Path, words: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        advect(f"train --data {data(tmp_path)} {SMALL} {words} --run-dir run")
    assert not Path("run").exists()
