"""The held-out loss of fixed noise and times, and when it ends training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from advect.core.types import DataSpec
from advect.data.base import ArraySplit
from advect.evaluation.held_out import HeldOutLoss, MemoryStore, held_out_loss, watched_draws
from advect.losses import FlowMatching
from advect.networks import MLP

CPU = torch.device("cpu")


def split(rows: int) -> ArraySplit:
    return ArraySplit(np.arange(2.0 * rows, dtype=np.float32).reshape(rows, 2) / rows)


def test_noise_and_times_are_the_same_at_each_call_and_follow_the_seed() -> None:
    net, data = MLP(2, width=8), split(10)
    one, again, other = (held_out_loss(net, FlowMatching(), data, s, device=CPU, draws=30) for s in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize(("rows", "draws"), [(10, 30), (9, 3), (5000, 2500)])
def test_draws_are_spread_evenly_over_the_rows(rows: int, draws: int) -> None:
    seen: list[torch.Tensor] = []

    def loss(net: Any, batch: Any, rng: Any) -> torch.Tensor:
        seen.append(batch.x1[:, 0])
        return torch.zeros(len(batch))

    held_out_loss(torch.nn.Identity(), loss, split(rows), 0, device=CPU, draws=draws)  # type: ignore[arg-type]
    found = torch.cat(seen)
    expected = torch.arange(draws) % rows if draws >= rows else torch.arange(draws) * rows // draws
    assert torch.allclose(found, 2.0 * expected / rows)


def test_few_rows_are_drawn_equally_often() -> None:
    vectors, images = (DataSpec(shape, kind, {}) for shape, kind in (((3,), "vector"), ((3, 64, 64), "image")))
    for rows in (7, 100, 3000):
        assert watched_draws(vectors, rows) % rows == 0 and watched_draws(vectors, rows) >= 8192
    assert watched_draws(vectors, 10**6) == 8192 and watched_draws(images, 10**6) == 512


class Fake:
    """A trainer whose net holds its step."""

    def __init__(self) -> None:
        self.net = torch.nn.Linear(1, 1)
        progress = SimpleNamespace(step=0, bad_row=0)
        self.state, self.reason, self.clock = SimpleNamespace(net=self.net, ema=None, progress=progress), "", 0.0

    def flush(self) -> bool:
        return True

    def stop(self, reason: str) -> None:
        self.reason = reason

    def train(self, watch: HeldOutLoss, steps: int) -> None:
        trainer: Any = self
        watch.on_start(trainer)
        while not self.reason and self.state.progress.step < steps:
            self.state.progress.step += 1
            torch.nn.init.constant_(self.net.weight, self.state.progress.step)
            watch.on_step(trainer)
        watch.on_end(trainer, self.reason or "finished")


@pytest.mark.parametrize(("every", "least", "ended"), [(10, 0, 130), (10, 200, 200), (None, 0, 160)])
def test_training_ends_after_measurements_without_a_lower_loss_and_the_best_weights_are_kept(
    every: int | None, least: int, ended: int
) -> None:
    trainer, store = Fake(), MemoryStore()
    watch = HeldOutLoss(lambda: abs(trainer.state.progress.step - 100.0), store, every=every, patience=3, least=least)
    trainer.train(watch, 1000)
    assert (trainer.reason, trainer.state.progress.step) == ("early-stopping", ended)
    assert watch.best_step == 100 and store.weights["weight"].item() == 100
    first = 10 if every else 0
    assert [row["step"] for row in store.measured[:2]] == [first, first + (every or 20)]


def test_measurements_grow_apart() -> None:
    trainer, store = Fake(), MemoryStore()
    trainer.train(HeldOutLoss(lambda: -1.0 * trainer.state.progress.step, store, every=None), 1000)
    steps = np.array([row["step"] for row in store.measured])
    assert all(np.diff(steps)[:-1] == np.maximum(20, steps[:-2] // 10)) and steps[-1] == 1000
