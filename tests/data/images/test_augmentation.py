"""Augmented data sets, and flows trained on them: nothing of it is in samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import advect as package
from advect.config.build import build_dataset
from advect.config.config import DataConfig, data
from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import AUGMENTATION, Batch, DataSpec, drop_conditions
from advect.data import Dataset
from advect.data.images.augmentation import Flip, Geometric
from advect.data.images.packing import pack
from advect.losses import FlowMatching
from advect.networks import DiT, Vector
from advect.solvers import integrate
from runs import assert_same_end


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of 8 x 8 in two classes."""
    place, draw = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for i in range(30):
        file = place / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    return place


def opened(place: Path, augment: str | None, form: str = "image-folder", **options: object) -> Dataset:
    made = DataConfig(data_format=form, data_dir=place, augment=augment, options=options)
    return build_dataset(made)


def told(batch: Batch) -> Tensor:
    assert batch.cond is not None
    return batch.cond[AUGMENTATION]


def test_folder_pack_and_array_are_augmented_alike(folder: Path, tmp_path: Path) -> None:
    images = opened(folder, "geometric", image_size=8, held_out=0.0)
    pack(folder, tmp_path / "pack", image_size=8)
    x = images.transform.inverse(images.train.fetch(np.arange(30)).x1).byte().numpy()
    np.save(tmp_path / "x.npy", x)
    packed = opened(tmp_path / "pack", "geometric", "packed", held_out=0.0)
    array = opened(tmp_path / "x.npy", "geometric", "array-file", held_out=0.0)
    batches = [d.train.fetch(np.arange(30), CounterRng(4, 9, 30)) for d in (images, packed, array)]
    assert told(batches[0]).isnan().any() and not torch.equal(batches[0].x1, images.train.fetch(np.arange(30)).x1)
    for batch in batches[1:]:
        assert torch.equal(batch.x1, batches[0].x1)
        assert torch.equal(told(batch).nan_to_num(9), told(batches[0]).nan_to_num(9))
    assert images.fingerprint == opened(folder, "none", image_size=8, held_out=0.0).fingerprint


def test_only_training_batches_are_changed_and_labels_stay(folder: Path) -> None:
    images = opened(folder, "flip", image_size=8, held_out=0.4)
    n, rest = len(images.train), len(images.held_out)
    plain, drawn = images.train.fetch(np.arange(n)), images.train.fetch(np.arange(n), CounterRng(0, 0, n))
    flipped = told(drawn)[:, 0] == 1
    assert 0 < flipped.sum() < n and torch.equal(drawn.x1[flipped], plain.x1[flipped].flip(3))
    assert torch.equal(drawn.cond["label"], plain.cond["label"]) and AUGMENTATION not in plain.cond
    held = images.held_out.fetch(np.arange(rest), CounterRng(0, 0, rest))
    assert torch.equal(held.x1, images.held_out.fetch(np.arange(rest)).x1) and AUGMENTATION not in held.cond
    assert images.spec.augmentation == 1 and images.spec.conditions.keys() == {"label"}


def test_unconditioned_changes_are_not_told(folder: Path) -> None:
    images = opened(folder, "flip", image_size=8, augment_conditioned=False)
    assert images.spec.augmentation == 0
    assert AUGMENTATION not in images.train.fetch(np.arange(9), CounterRng(0, 0, 9)).cond


def test_defaults_follow_the_kind_of_images_and_their_number(folder: Path, monkeypatch) -> None:
    assert opened(folder, None).augmentation == "geometric"
    monkeypatch.setattr("advect.data.images.augmentation.FEW", 10)
    assert opened(folder, None).augmentation == "flip"
    assert build_dataset(data("digits")).augmentation == "none"


def test_what_cannot_be_augmented_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="--augment flip needs images, and moons has vector data; leave it out"):
        build_dataset(data("moons", augment="flip"))
    with pytest.raises(UserError, match="--augment symmetries needs square images, and these are 8 x 6; take flip"):
        opened(folder, "symmetries", image_size=(8, 6))
    with pytest.raises(UserError, match="a condition cannot be called 'augmentation'"):
        DataSpec((1, 2, 2), "image", {AUGMENTATION: opened(folder, "none").spec.conditions["label"]})


def test_it_is_never_dropped_with_the_labels() -> None:
    cond = {"label": torch.arange(50), AUGMENTATION: torch.ones(50, 1)}
    dropped = drop_conditions(cond, 0.9, CounterRng(0, 0, 50))
    assert (dropped["label"] == -1).sum() > 30 and (dropped[AUGMENTATION] == 1).all()


@pytest.mark.parametrize("conditioned", [True, False])
def test_samples_are_of_the_unchanged_images_if_the_network_is_told(conditioned: bool) -> None:
    """Images of 2 x 2 that are bright on the left."""
    torch.manual_seed(0)
    bright = torch.tensor([1.0, -1.0]).expand(64, 1, 2, 2)
    flip, loss_fn = Flip(conditioned=conditioned), FlowMatching()
    sizes = {AUGMENTATION: Vector(flip.size)} if conditioned else {}
    net = DiT((1, 2, 2), size=None, depth=1, width=16, heads=1, patch_size=1, conditions=sizes)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(120):
        x1, change = flip(bright, CounterRng(0, step, 64))
        batch = Batch(x1, {AUGMENTATION: change} if conditioned else None)
        optimizer.zero_grad()
        loss_fn(net, batch, CounterRng(1, step, 64)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        x = integrate(lambda x, t: net(x, t), torch.randn(200, 1, 2, 2), solver="euler", steps=8)
    left = (x[..., 0].mean((1, 2)) > x[..., 1].mean((1, 2))).float().mean()
    assert left > 0.97 if conditioned else 0.3 < left < 0.7


TINY = "--model-channels 8 --channel-mult 1 --attention-resolutions --num-res-blocks 1 --batch-size 8 --log-every 1"


@pytest.fixture(scope="module")
def run_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from advect.cli import run

    out = tmp_path_factory.mktemp("runs")
    words = f"train images --data-dir {folder} --image-size 8 {TINY} --sample-every 0 --save-every 3"
    run(f"{words} --max-steps 6 --run-dir {out}/whole".split())
    run(f"{words} --max-steps 3 --run-dir {out}/parts".split())
    run(f"train --resume-from {out}/parts --max-steps 6".split())
    return out


def test_a_resumed_run_sees_the_same_changes(run_folder: Path) -> None:
    assert_same_end(run_folder / "whole", run_folder / "parts", 6)
    assert "augment: geometric\n" in (run_folder / "whole" / "config.yaml").read_text()


def test_every_use_of_a_flow_is_that_of_unchanged_images(run_folder: Path) -> None:
    flow = package.load(run_folder / "whole", device="cpu")
    assert flow.spec.augmentation == Geometric.size
    seen, real = [], flow.net.forward
    flow.net.forward = lambda x, t, cond=None: seen.append(cond or {}) or real(x, t, cond)
    x = flow.sample(2, steps=1, cond={"label": "a"}, guidance=2).x
    flow.log_prob(x, steps=1, trace="hutchinson", cond={"label": "b"})
    flow.decode(flow.encode(x, steps=1), steps=1)
    flow.straightness(2, steps=1)
    assert len(seen) >= 6 and not any(AUGMENTATION in cond for cond in seen)
    flow.net.forward = real
    x, t, size = torch.randn(2, 3, 8, 8), torch.rand(2), flow.spec.augmentation
    with torch.no_grad():
        absent, null, changed = (
            flow.net(x, t, cond)
            for cond in (None, {AUGMENTATION: torch.full((2, size), torch.nan)}, {AUGMENTATION: torch.ones(2, size)})
        )
    assert torch.equal(absent, null) and not torch.equal(absent, changed)


def test_another_augmentation_of_a_resumed_run_is_refused(run_folder: Path, folder: Path, advect: Callable) -> None:
    words = f"train images --data-dir {folder} --image-size 8 {TINY} --resume-from {run_folder}/whole --max-steps 9"
    with pytest.raises(UserError, match="was trained with --augment geometric, and this run has --augment flip"):
        advect(words, "--augment flip")
