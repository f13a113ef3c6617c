"""Pairs that a flow makes, kept on the disk, and the flows that learn them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import advect as package
from advect.checkpoint.tensor_files import load_weights
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.core.errors import UserError
from advect.data.pairs import PairedDataset
from advect.metrics import energy_distance
from advect.model.pairs import open_pairs, start_facts
from advect.solvers import integrate
from forked import advect_ranks, ranks

LEAN = "--num-epochs 1 --batch-size 32 --sample-every 0 --no-measure --iterations 1"


def opened(run: Path, pairs: Path) -> PairedDataset:
    return open_pairs(pairs, build_dataset(parse_config(run / "config.yaml")[1].data))[0]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("store", ["float32", "bf16", "uint8"])
def test_a_pair_is_a_start_and_the_end_the_flow_carries_it_to(
    advect: Callable[..., None], digits_run: Path, tmp_path: Path, store: str
) -> None:
    words = f"--num-pairs 100 --pair-solver heun --pair-steps 4 --guidance 2 --store {store} --output-dir out"
    advect("reflow", digits_run, words, LEAN)
    source, flow = opened(digits_run, tmp_path / "out/pairs-1"), package.load(digits_run)
    assert (len(source.held_out), len(source.train)) == (5, 95)
    places = np.array([40, 3, 94])
    batch = source.train.fetch(places)
    assert batch.x0 is not None and batch.cond is not None
    x1 = integrate(flow.velocity(batch.cond, guidance=2.0), batch.x0, solver="heun", steps=4)
    grey = 2 / 255  # of data in -1 .. 1
    if store == "uint8":
        inside = (x1.abs() <= 1).nonzero(as_tuple=True)
        assert (batch.x1 - x1)[inside].abs().max() <= grey / 2 + 1e-4
        assert batch.x1.abs().max() <= 1
    else:
        rounding = 2.0**-8 if store == "bf16" else 1e-5
        assert bool(((batch.x1 - x1).abs() <= rounding * x1.abs().clamp(min=1e-3) + 1e-5).all())
    told = json.loads((tmp_path / "out/pairs-1/pairs.json").read_text())
    noise = flow.sample(100, steps=1, solver="euler", seed=told["seed"], trajectory=True, model_units=True).x[0]
    assert torch.equal(noise[places + 5], batch.x0)


def test_guided_pairs_are_learned_with_their_conditions_alone(
    advect: Callable[..., None], digits_run: Path, tmp_path: Path
) -> None:
    for guidance, dropout in ((1, None), (3, 0.0)):
        advect(
            "reflow", digits_run, f"--num-pairs 40 --pair-steps 1 --guidance {guidance} --output-dir", guidance, LEAN
        )
        config = parse_config(tmp_path / str(guidance) / "2-rectified/config.yaml")[1]
        assert config.method.label_dropout == dropout
    with pytest.raises(UserError, match="trained with --label-dropout 0"):
        package.load(tmp_path / "3/2-rectified").sample(2, guidance=2)


def test_real_data_are_carried_back_to_the_noise_they_come_from(
    advect: Callable[..., None], moons_run: Path, tmp_path: Path
) -> None:
    advect("reflow", moons_run, "--num-pairs 100 --real-share 0.25 --pair-steps 40 --output-dir out", LEAN)
    source, flow = opened(moons_run, tmp_path / "out/pairs-1"), package.load(moons_run)
    batch = source.train.fetch(np.arange(97 - 25, 97))  # the real ones come last
    train = build_dataset(parse_config(moons_run / "config.yaml")[1].data).train
    real = train.fetch(np.arange(len(train))).x1
    assert bool((batch.x1[:, None] == real).all(2).any(1).all())
    assert batch.x0 is not None
    again = integrate(flow.velocity(batch.cond), batch.x0, solver="midpoint", steps=40)
    torch.testing.assert_close(again, batch.x1, atol=2e-3, rtol=0)


def test_a_jitter_becomes_a_part_of_the_next_flows_noise(advect: Callable[..., None], tmp_path: Path) -> None:
    advect("train moons --width 8 --sigma-min 0.75 --max-steps 2 --sample-every 0 --run-dir run")
    advect("reflow run --num-pairs 4000 --pair-steps 1", LEAN)
    x0 = opened(Path("run"), Path("run/reflow/pairs-1")).train.fetch(np.arange(3800)).x0
    assert x0 is not None
    assert float(x0.std()) == pytest.approx(1.25, rel=0.03)
    assert package.load("run/reflow/2-rectified").initial_noise.source.std == 1.25
    assert start_facts({"kind": "empirical", "noise": 3.0}, 4.0) == {"kind": "empirical", "noise": 5.0}
    with pytest.raises(UserError, match="--source sparse and --sigma-min"):
        start_facts({"kind": "sparse"}, 0.1)


def test_one_step_after_reflow_draws_what_took_many_before(advect: Callable[..., None]) -> None:
    small = "--width 64 --batch-size 256 --learning-rate 3e-3 --lr-warmup-steps 20 --sample-every 0 --ema-decay 0.99"
    advect("train moons --num-epochs 20 --run-dir run", small)
    advect("reflow run --iterations 1 --distill --num-epochs 15 --num-pairs 4000 --no-measure")
    held_out = build_dataset(parse_config(Path("run/config.yaml"))[1].data).held_out
    source = build_dataset(parse_config(Path("run/config.yaml"))[1].data)
    real = source.transform.inverse(held_out.fetch(np.arange(len(held_out))).x1)

    def gap(run: str, steps: int) -> float:
        x = package.load(run).sample(2000, steps=steps, solver="euler", seed=5).x
        return energy_distance(x, real, unbiased=True)

    before, after, distilled = gap("run", 1), gap("run/reflow/2-rectified", 1), gap("run/reflow/distilled", 1)
    assert gap("run", 50) < 0.02 and before > 0.3
    assert after < 0.05 and distilled < 0.03
    first = parse_config(Path("run/reflow/2-rectified/config.yaml"))[1]
    last = parse_config(Path("run/reflow/distilled/config.yaml"))[1]
    assert (first.method.times, last.method.times, last.output.sample_steps) == ("stratified", "start", 1)
    assert first.training.pairs == Path("run/reflow/pairs-1").absolute()


def kill_before(pattern: str) -> None:
    def hook(name: str, arguments: tuple) -> None:
        if name in ("open", "os.rename") and re.search(pattern, " ".join(map(str, arguments))):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")
def test_a_call_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(
    moons_run: Path, tmp_path: Path
) -> None:
    call = f"reflow {moons_run} --num-pairs 5000 --pair-steps 1 --distill --save-every 40 {LEAN} --output-dir"
    advect_ranks(1, f"{call} whole", cwd=tmp_path)
    for pattern in (
        r"generated/\.part-00001.*x1\.npy",
        r"pairs\.json",
        r"2-rectified/checkpoints/\.step-00000080.*model",
        r"pairs-2/generated/\.part-00002.*part\.json",
        r"distilled/checkpoints/\.step-00000040.*model",
    ):
        with ranks(1, f"{call} out", cwd=tmp_path, before=kill_before, arguments=(pattern,)) as run:
            assert [rank.code for rank in run.wait()] == [-9]
    advect_ranks(1, f"{call} out", cwd=tmp_path)
    for name in ("pairs-1", "pairs-2"):
        assert content(tmp_path / "out" / name).keys() == content(tmp_path / "whole" / name).keys()
    for name in ("pairs-1/generated", "pairs-2/generated"):
        ours, theirs = (content(tmp_path / place / name) for place in ("out", "whole"))
        assert {k: v for k, v in ours.items() if k != "plan.json"} == {
            k: v for k, v in theirs.items() if k != "plan.json"
        }
    last = sorted((tmp_path / "whole/distilled/checkpoints").glob("step-*"))[-1]
    for name in ("model.safetensors", "ema.safetensors"):
        tensors = [
            load_weights(tmp_path / place / "distilled/checkpoints" / last.name / name) for place in ("out", "whole")
        ]
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked processes")
def test_two_processes_make_the_pairs_of_one(moons_run: Path, tmp_path: Path) -> None:
    call = f"reflow {moons_run} --num-pairs 8000 --pair-steps 1 --real-share 0.5 {LEAN} --max-steps 2 --output-dir"
    advect_ranks(1, f"{call} one", cwd=tmp_path)
    said = advect_ranks(2, f"{call} two", cwd=tmp_path)
    one, two = (content(tmp_path / name / "pairs-1") for name in ("one", "two"))
    assert one == two and len([name for name in one if name.endswith("x0.npy")]) == 2
    assert "2 processes (ddp)" in said[0].out and said[1].out == ""


def test_damaged_pairs_are_refused_in_training_and_mended_by_repeating(
    advect: Callable[..., None], moons_run: Path, tmp_path: Path
) -> None:
    call = ("reflow", moons_run, "--num-pairs 60 --pair-steps 1 --output-dir out", LEAN)
    advect(*call)
    before = content(tmp_path / "out/pairs-1")
    file = next((tmp_path / "out/pairs-1").rglob("x1.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    again = f"train --config {tmp_path}/out/2-rectified/config.yaml --run-dir again"
    with pytest.raises(UserError, match="part-00000-of-00001 is missing or damaged; repeat advect reflow"):
        advect(again)
    assert not (tmp_path / "again").exists()
    advect(*call)
    assert content(tmp_path / "out/pairs-1") == before
    advect(again)


def test_mistakes_are_told_and_nothing_is_written(
    advect: Callable[..., None], moons_run: Path, digits_run: Path, tmp_path: Path
) -> None:
    for run, words, told in (
        (moons_run, "--num-pairs 19", "--num-pairs must be at least 20 and at most 1,000,000,000, got 19"),
        (moons_run, "--iterations 0", "--iterations must be at least 1"),
        (moons_run, "--guidance 2", "no conditions|trained with"),
        (digits_run, "--guidance 2 --real-share 0.5", "--real-share 0.5 and --guidance 2.0 contradict"),
        (moons_run, "--real-share 1", "--real-share must be at least 0 and below 1"),
        (moons_run, "--store uint8", "--store uint8 does not go with vector data"),
        (moons_run, "--pair-solver dopri5 --pair-steps 3", "chooses its own steps"),
        (moons_run, "--pair-solver eulr", "--pair-solver"),
        (moons_run, "--width 7", "its network must stay"),
        (moons_run, "--path vp", "--path vp contradicts advect reflow"),
        (moons_run, "--nfes 0", "--nfes must be at least 1"),
        (moons_run, "--no-measure --nfes 3", "--no-measure measures nothing"),
        (moons_run, "--features nowhere.pt", "--features is for images"),
        (digits_run, "--features nowhere.pt", "features nowhere.pt is no file"),
        (moons_run, "--max-minutes 1", "give --max-steps or --num-epochs"),
        (moons_run, "--pairs somewhere", "--pairs .* contradicts advect reflow"),
        (tmp_path, "", "holds no checkpoint"),
    ):
        with pytest.raises(UserError, match=told):
            advect("reflow", run, words, "--output-dir out")
        assert not (tmp_path / "out").exists(), words
    with pytest.raises(UserError, match="--coupling pairs and --pairs PATH go together"):
        advect("train moons --coupling pairs --run-dir out")
    with pytest.raises(UserError, match="holds no complete pairs"):
        advect("train moons --coupling pairs --pairs nowhere --run-dir out")
    with pytest.raises(UserError, match=r"--init-from .* has another network"):
        advect("train moons --width 9 --init-from", moons_run, "--run-dir out")
    with pytest.raises(UserError, match=r"belongs to another network: net\.first"):
        advect("train moons --width 16 --mask random --init-from", moons_run, "--run-dir out")
    assert not (tmp_path / "out").exists()


def test_pairs_of_another_call_or_for_other_data_are_refused(
    advect: Callable[..., None], moons_run: Path, digits_run: Path, tmp_path: Path
) -> None:
    advect("reflow", moons_run, "--num-pairs 60 --pair-steps 1 --output-dir out", LEAN)
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match="num_pairs was 60 there and is 61 here; repeat that call"):
        advect("reflow", moons_run, "--num-pairs 61 --pair-steps 1 --output-dir out", LEAN)
    with pytest.raises(UserError, match="were made for other data"):
        advect("train digits --coupling pairs --pairs out/pairs-1 --run-dir other")
    assert content(tmp_path / "out") == before and not (tmp_path / "other").exists()


def test_weights_to_begin_with_are_the_averaged_ones(advect: Callable[..., None], moons_run: Path) -> None:
    words = f"train moons --width 16 --init-from {moons_run} --max-steps 1 --learning-rate 1e-12 --run-dir more"
    advect(words, "--sample-every 0")
    averaged = package.load(moons_run).net.state_dict()
    for name, value in package.load("more", ema=False).net.state_dict().items():
        torch.testing.assert_close(value, averaged[name], atol=1e-6, rtol=0)
    shutil.copytree(moons_run, "copy")
    advect("train moons --width 16 --init-from copy --max-steps 1 --run-dir gone --sample-every 0")
    shutil.rmtree("copy")
    advect("train --resume-from gone --max-steps 2")  # what it began with is not asked for again
    assert math.isfinite(float(package.load("gone").sample(2, steps=1).x.sum()))


def test_fewer_pairs_than_a_batch_are_learned(advect: Callable[..., None], tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.random.default_rng(0).normal(size=(60, 2)))
    advect("train --data", tmp_path / "small.npy", "--run-dir s --max-steps 2 --width 16 --sample-every 0")
    advect("reflow s --max-steps 2 --no-measure --pair-steps 1 --sample-every 0 --num-pairs 30")
    assert (Path("s") / "reflow" / "2-rectified" / "checkpoints").is_dir()


def test_a_flow_that_answers_questions_is_refused_before_pairs_are_made(advect: Callable[..., None]) -> None:
    advect("train moons --width 16 --mask random --max-steps 2 --sample-every 0 --run-dir masked")
    with pytest.raises(UserError, match="was trained with --mask random"):
        advect("reflow masked --num-pairs 20 --max-steps 2")
    assert not Path("masked/reflow").exists()
