"""How long a run takes, told from its first seconds."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from advect.core.progress import rough_duration
from advect.training import StopCriteria
from advect.training.callbacks import Forecast


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"),
        (42.4, "42 seconds"),
        (100, "1.7 minutes"),
        (3000, "50 minutes"),
        (5400, "1.5 hours"),
        (86400, "24 hours"),
        (4 * 86400, "4.0 days"),
    ],
)
def test_a_length_of_time_in_words(seconds: float, words: str) -> None:
    assert rough_duration(seconds) == words


def told(
    caplog: pytest.LogCaptureFixture,
    pace: float,
    steps: int,
    minutes: float | None = None,
    needed: int = 100,
    early: bool = False,
) -> list[str]:
    """What is told of a run of ``pace`` seconds a step, whose first step takes 3 seconds more."""
    trainer: Any = SimpleNamespace(
        state=SimpleNamespace(progress=SimpleNamespace(step=0)),
        clock=0.0,
        limits=StopCriteria(steps=steps, max_minutes=minutes),
    )
    caplog.set_level(logging.INFO)
    watch = Forecast(needed, early=early)
    watch.on_start(trainer)
    while trainer.state.progress.step < steps and trainer.clock < 60 * (minutes or 1e9):
        trainer.state.progress.step += 1
        trainer.clock = 3 + pace * trainer.state.progress.step
        watch.on_step(trainer)
    watch.on_end(trainer, "finished")
    return [record.message for record in caplog.records]


def test_the_length_is_told_once_without_the_first_steps(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, 0.1, 5970) == ["this run takes about 10 minutes here, at 10 steps a second"]


def test_a_run_that_may_end_early_takes_at_most_that(caplog: pytest.LogCaptureFixture) -> None:
    found = told(caplog, 0.1, 5970, early=True)
    assert found == ["this run takes at most about 10 minutes here, at 10 steps a second"]


def test_the_steps_that_minutes_allow_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, 0.1, 10**6, 10) == ["10 minutes allow about 5,970 steps here, at 10 steps a second"]


@pytest.mark.parametrize(
    ("pace", "minutes", "steps", "time"),
    [(0.1, 1, "570 steps", "about 5."), (0.1, 0.1, "30 steps", "about 5."), (9, 0.1, "1 step", "")],
)
def test_minutes_too_short_to_learn_in_are_told_with_those_that_would_do(
    caplog: pytest.LogCaptureFixture, pace: float, minutes: float, steps: str, time: str
) -> None:
    last = told(caplog, pace, 10**6, minutes, needed=3000)[-1]
    assert f"--max-minutes {minutes:g} is time for {steps}, and learning takes some 3,000" in last
    assert time in last
