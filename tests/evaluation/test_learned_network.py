"""Features of images by a network trained on their training part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from advect.data import Digits
from advect.data.arrays import Arrays
from advect.evaluation import learned_network as module
from advect.evaluation.corruptions import CORRUPTIONS, KINDS, corrupt
from advect.evaluation.learned_network import LearnedNetwork, learned_network, train
from advect.evaluation.workspace import ReferenceCache
from advect.metrics import frechet_distance


@pytest.fixture(scope="module")
def network() -> LearnedNetwork:
    return LearnedNetwork(train(Digits()))


def images(split) -> torch.Tensor:
    return (split.fetch(np.arange(len(split))).x1 + 1) * 8  # 0 to 16


def test_it_recognises_corruptions_and_classes_of_held_out_images(network: LearnedNetwork) -> None:
    assert network.good_enough and network.corruptions > 0.6 > 4 / KINDS
    assert network.classes["label"] > 0.9


def test_a_blend_of_two_images_is_far_from_real_ones_where_pixels_hardly_see_it(network: LearnedNetwork) -> None:
    data = Digits()
    x, y = images(data.train), images(data.held_out)
    blended = 0.65 * x + 0.35 * x.roll(1, 0)
    times = lambda f: frechet_distance(f(blended), f(y)) / frechet_distance(f(x), f(y))
    assert times(network) > 30 and times(lambda v: v.flatten(1)) < 6


def test_training_rows_are_no_farther_than_held_out_ones_from_each_other(network: LearnedNetwork) -> None:
    data = Digits()
    z, w = network(images(data.train)), network(images(data.held_out))
    within = frechet_distance(w[::2], w[1::2])
    assert frechet_distance(z[:449], w[1::2]) < 1.3 * within
    assert z.var(0).mean() == pytest.approx(1, rel=0.05)


def test_training_depends_on_no_random_state_and_is_done_once(
    network: LearnedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(123)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    cache, device = ReferenceCache(tmp_path), torch.device("cpu")
    found = learned_network(Digits(), cache, device)
    assert found is not None and found.identity == network.identity
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads
    monkeypatch.setattr(module, "train", None)
    again = learned_network(Digits(), cache, device)
    assert again is not None and again.identity == network.identity


def test_what_does_not_serve_is_left_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "advect")
    cache, device = ReferenceCache(tmp_path), torch.device("cpu")
    few = Arrays(np.random.default_rng(0).integers(0, 256, (60, 1, 16, 16), np.uint8), held_out=0.2)
    assert learned_network(few, cache, device) is None and "fewer than the 100 and 20 it takes" in caplog.text
    monkeypatch.setattr(module, "GOOD_ENOUGH", 1.01)
    assert learned_network(Digits(), cache, device) is None and "of corrupted held-out images" in caplog.text


def test_every_corruption_changes_the_images_it_is_asked_to_and_no_other() -> None:
    x = torch.rand(2 * KINDS, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kinds = torch.arange(len(x)) % KINDS
    y = corrupt(x, kinds, torch.Generator().manual_seed(1))
    changed = (y != x).flatten(1).any(1)
    assert torch.equal(changed, kinds > 0) and len(CORRUPTIONS) == KINDS - 1
