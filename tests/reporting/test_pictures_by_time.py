"""Pictures by time: as many samples as some seconds allow, by a clock of the test's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import advect as library
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.reporting import sample_grids
from advect.reporting.sample_grids import SampleGridCallback


class World:
    """A run in which a step of 8 samples takes ``3 * 8 * each`` seconds, and an evaluation of a sample ``each``."""

    def __init__(self, run: Path, folder: Path, each: float, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
        self.time, self.each, self.loss_draws, self.rows = 0.0, each, [], []
        flow = library.load(run)
        self.sample = flow.sample
        flow.sample = self.sampled
        monkeypatch.setattr(sample_grids, "monotonic", lambda: self.time)
        monkeypatch.setattr("advect.training.callbacks.time.monotonic", lambda: self.time)
        monkeypatch.setattr(sample_grids, "held_out_loss", self.lost)
        data = build_dataset(parse_config(run / "config.yaml")[1].data)
        options = {"every": None, "samples": 64, "seed": 3, "loggers": ()}
        metrics = SimpleNamespace(write=self.rows.append)
        loss: Any = None
        self.watch = SampleGridCallback(flow, loss, data.held_out, folder, metrics=metrics, **options)  # type: ignore[arg-type]
        state = SimpleNamespace(progress=SimpleNamespace(step=0), net=torch.nn.Identity(), ema=None)
        self.trainer: Any = SimpleNamespace(
            state=state,
            clock=0.0,
            loader=SimpleNamespace(global_batch=8),
            limits=SimpleNamespace(max_minutes=limits.get("max_minutes")),
            flush=lambda: True,
        )
        self.drawn: list[Any] = []

    def sampled(self, n: int, **options: Any) -> Any:
        made = self.sample(n, **options)
        self.time += self.each * len(made.x) * made.nfe
        self.drawn.append(made)
        return made

    def lost(self, *_: Any, draws: int, **__: Any) -> float:
        self.loss_draws.append(draws)
        self.time += self.each * draws
        return 1.0

    def train(self, seconds: float) -> None:
        self.watch.on_start(self.trainer)
        while self.time < seconds:
            self.trainer.state.progress.step += 1
            self.time += 24 * self.each
            self.trainer.clock = self.time
            self.watch.on_step(self.trainer)

    def finish(self) -> None:
        self.trainer.clock = self.time
        self.watch.on_end(self.trainer, "finished")


@pytest.mark.parametrize("each", [1e-3, 0.01, 0.1, 0.5, 1.0])
def test_the_first_picture_is_there_within_a_minute_however_slow_the_network(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: float
) -> None:
    world = World(digits_run, tmp_path, each, monkeypatch)
    while not world.drawn:
        world.train(world.time + 24 * each)
    assert world.time < 60 and len(list(tmp_path.glob("step-*.png"))) == 1


def test_a_slow_networks_pictures_are_the_first_of_the_same_samples_and_the_last_has_all(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "advect")
    world = World(digits_run, tmp_path, 0.02, monkeypatch)
    world.train(400)
    early = world.drawn[-1]
    assert 4 <= len(early.x) < 64 and len(world.drawn) >= 4
    assert len(set(world.loss_draws)) == 1 and world.rows[-1]["held_out_draws"] == world.loss_draws[0]
    assert sum("pictures have about" in message for message in caplog.messages) == 1
    world.finish()
    whole = world.drawn[-1]
    assert len(whole.x) == 64
    torch.testing.assert_close(whole.x[: len(early.x)], early.x, rtol=1e-4, atol=1e-4)


def test_the_last_picture_keeps_to_the_minutes(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(digits_run, tmp_path, 0.02, monkeypatch, max_minutes=2)
    world.train(105)
    world.finish()
    assert 4 <= len(world.drawn[-1].x) < 64 and world.time < 122
