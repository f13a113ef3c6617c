"""advect distill: from a flow to samples in few steps, in the same trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import advect as package
from advect.checkpoint.tensor_files import load_weights
from advect.commands.distill import parse_distill
from advect.commands.reflow import parse_reflow
from advect.config.arguments import parse_config, parse_train
from advect.config.plan import find_fast_times
from advect.core.errors import UserError
from forked import advect_ranks

LEAN = "--batch-size 32 --sample-every 0 --threads 1"


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = run / "checkpoints" / (run / "checkpoints/latest").read_text().strip()
    return load_weights(checkpoint / "model.safetensors")


def content(run: Path) -> dict[str, bytes]:
    checkpoint = run / "checkpoints" / (run / "checkpoints/latest").read_text().strip()
    return {p.name: p.read_bytes() for p in checkpoint.rglob("*.safetensors")}


def test_it_begins_as_the_flow_for_steps_of_any_length(advect: Callable, moons_run: Path, tmp_path: Path) -> None:
    advect("distill", moons_run, LEAN, "--max-steps 1 --learning-rate 1e-12 --output-dir few --no-use-ema")
    plain, few = package.load(moons_run), package.load(tmp_path / "few")
    assert few.learns_steps and not plain.learns_steps and few.sampler.solver == "flow-map" and few.sampler.steps == 4
    x, t = torch.randn(6, 2), torch.full((6,), 0.3)
    for end in (0.3, 0.7, 1.0):
        both = torch.stack([t, torch.full((6,), end)], 1)
        torch.testing.assert_close(few.output(x, both), plain.output(x, t), rtol=1e-4, atol=1e-5)


def test_threads_are_measured_anew(moons_run: Path) -> None:
    """Those of the run suited the machine and the load of its day."""
    assert parse_config(moons_run / "config.yaml")[1].training.threads is not None
    assert parse_distill(moons_run, [])[1].settings.training.threads is None
    assert parse_reflow(moons_run, [])[1].settings.training.threads is None
    assert parse_distill(moons_run, ["--threads", "2"])[1].settings.training.threads == 2


def test_resumed_is_uninterrupted_to_the_bit(advect: Callable, moons_run: Path, tmp_path: Path) -> None:
    for loss in ("mean-flow", "lagrangian"):
        advect("distill", moons_run, LEAN, f"--loss {loss} --max-steps 6 --output-dir whole-{loss}")
        for steps in (2, 6):
            advect("distill", moons_run, LEAN, f"--loss {loss} --max-steps {steps} --output-dir parts-{loss}")
        assert content(tmp_path / f"whole-{loss}") == content(tmp_path / f"parts-{loss}")


def test_samples_are_drawn_in_as_many_steps_as_asked_and_the_velocity_still_has_densities(
    advect: Callable, moons_run: Path, tmp_path: Path
) -> None:
    advect("distill", moons_run, LEAN, "--max-steps 3 --output-dir few")
    advect("sample few --num-samples 5 --num-steps 1 --output-dir one")
    facts = json.loads((tmp_path / "one/samples.json").read_text())
    assert facts["nfe"] == 1 and facts["solver"] == "flow-map"
    flow = package.load(tmp_path / "few")
    again = flow.sample(5, steps=1, seed=0)
    np.testing.assert_array_equal(np.load(tmp_path / "one/samples.npz")["x"], again.x.numpy())
    assert flow.sample(5, steps=3).nfe == 3 and flow.sample(5, solver="midpoint", steps=3).nfe == 6
    assert flow.log_prob(again.x, steps=4).shape == (5,)
    for call in (flow.encode, flow.log_prob):
        with pytest.raises(UserError, match="'flow-map' leads from noise to samples alone"):
            call(again.x, solver="flow-map")
    with pytest.raises(UserError, match="'flow-map' needs a flow that was trained for steps of any length"):
        package.load(moons_run).sample(2, solver="flow-map")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_does(parallel: str, advect: Callable, moons_run: Path, tmp_path: Path) -> None:
    words = f"distill {moons_run} --max-steps 3 --sample-every 0 --threads 1 --loss mean-flow --output-dir"
    advect(words, "one --batch-size 64")
    advect_ranks(2, f"{words} two --batch-size 32 --parallel {parallel}", cwd=tmp_path)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--loss flow-matching", "flow-matching learns no steps of any length; take lagrangian or mean-flow"),
        ("--width 8", "its network must stay"),
        ("--init-from x", "--init-from contradicts advect distill"),
        ("--max-steps 0", "--max-steps"),
        ("--loss shortcut --sample-steps 3", "take 1, 2, 4 ... uniform steps"),
        ("--solver midpoint --loss flow-matching", "flow-matching learns no steps"),
        ("--loss mean-flow --objective-guided 2", "no sample is trained without its conditions"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_folder(
    advect: Callable, moons_run: Path, tmp_path: Path, flags: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        advect("distill", moons_run, LEAN, flags, "--output-dir out")
    assert not (tmp_path / "out").exists()


def test_a_run_whose_data_are_gone_says_so(advect: Callable, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32))
    advect("train --data x.npy --run-dir r --max-steps 2", LEAN)
    shutil.move(tmp_path / "x.npy", tmp_path / "y.npy")
    with pytest.raises(UserError, match=r"are no longer at .*give --data PATH"):
        advect("distill r --max-steps 2", LEAN)
    advect("distill r --max-steps 2 --data y.npy", LEAN)
    assert parse_config(tmp_path / "r/distilled/config.yaml")[1].data.data_dir == tmp_path / "y.npy"


def test_a_solver_of_steps_needs_a_loss_that_learns_them_before_anything_is_written(
    advect: Callable, tmp_path: Path
) -> None:
    for words in ("--dry-run", "--max-steps 1"):
        with pytest.raises(UserError, match=r"does not learn|needs a flow that was trained for steps"):
            advect("train moons --solver flow-map --run-dir out", words)
    assert not (tmp_path / "out").exists()


def test_each_loss_is_drawn_by_steps_that_it_learns(advect: Callable, moons_run: Path, tmp_path: Path) -> None:
    for loss, steps in (("consistency", 1), ("shortcut", 4)):
        advect("distill", moons_run, LEAN, f"--max-steps 1 --loss {loss} --output-dir {loss}")
        assert package.load(tmp_path / loss).sampler.steps == steps
    advect("sample consistency --num-samples 3 --num-steps 4 --solver flow-map --solver-noise 1 --output-dir four")
    with pytest.raises(UserError, match="steps to t = 1 alone"):
        advect("sample consistency --num-samples 3 --num-steps 4 --output-dir other")
    assert package.load(tmp_path / "shortcut").sample(2, solver="midpoint").nfe == 100
    with pytest.raises(UserError, match="advect reflow straightens flows for few steps"):
        advect("reflow shortcut --num-pairs 20 --no-measure")


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("--objective mean-flow", "smooth"),
        ("--loss consistency --network dit", "smooth"),
        ("--loss eulerian --time-embedding fourier", "fourier"),
        ("--loss lagrangian", "sinusoidal"),
        ("--loss flow-matching", "sinusoidal"),
    ],
)
def test_losses_with_derivatives_in_time_embed_it_smoothly_unless_told(flags: str, kind: str) -> None:
    config = parse_train(["digits", *flags.split()])[1].settings
    assert config.network.options.get("time_embedding", "sinusoidal") == kind
    assert bool(find_fast_times(config.method, config.network)) == (kind == "fourier")


def test_a_run_that_is_begun_from_keeps_its_network(tmp_path: Path) -> None:
    config = parse_train(["digits", "--loss", "mean-flow", "--init-from", str(tmp_path)])[1].settings
    assert config.network.options.get("time_embedding", "sinusoidal") == "sinusoidal"
    (told,) = find_fast_times(config.method, config.network)
    assert "derivatives in time" in str(told)
