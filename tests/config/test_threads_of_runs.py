"""Threads of a run: flag, the run's beginning, the environment, a measurement, in this order; and put back after."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import advect as library
from advect.config import threads
from advect.core.errors import UserError
from advect.core.threads import ThreadChoice
from runs import assert_same_end

TINY = "--width 16 --batch-size 64 --log-every 5 --sample-every 0"


def of_run(folder: str) -> tuple[object, object]:
    """Threads of the configuration and of the environment."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    started = json.loads((Path(folder) / "environment.json").read_text())
    return config["training"]["threads"], [started, *started.get("resumed", [])][-1]["threads"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_below_one_is_refused(advect: Callable[..., None], number: int) -> None:
    with pytest.raises(UserError, match=f"--threads must be at least 1 and at most 1,024, got {number}"):
        advect("train moons --threads", number)


def test_a_resumed_run_keeps_its_threads_and_says_what_changes_them(
    advect: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    advect("train moons --run-dir whole --threads 2 --max-steps 20", TINY)
    advect("train moons --run-dir part --threads 2 --max-steps 10", TINY)
    assert torch.get_num_threads() == 1  # as found
    advect("train --resume-from part --max-steps 20")
    assert_same_end(Path("whole"), Path("part"), 20)
    assert of_run("part") == (2, 2)
    capsys.readouterr()
    advect("train moons --resume auto --run-dir part --max-steps 25", TINY)
    assert "threads: 2 threads" in (out := capsys.readouterr().out) and "as the run began" in out
    advect("train --resume-from part --threads 1 --max-steps 30")
    assert "--threads was 2 there and is 1 here" in capsys.readouterr().out
    assert of_run("part") == (1, 1)


def test_the_environment_wins_over_a_measurement_and_the_flag_over_both(
    advect: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = ThreadChoice(1, "measured: 2 would take 3.0 times as long")
    monkeypatch.setattr(threads, "measure_threads", lambda *_, **__: measured)
    advect("train moons --run-dir one --max-steps 2", TINY)
    assert "measured: 2 would take" in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    advect("train moons --run-dir two --max-steps 2", TINY)
    assert "(OMP_NUM_THREADS=1)" in capsys.readouterr().out
    advect("train moons --run-dir three --threads 64 --max-steps 2", TINY)
    out = capsys.readouterr().out
    assert "64 threads" in out and "are more than the" in out
    assert [of_run(name)[0] for name in ("one", "two", "three")] == [1, 1, 64]


def test_the_trial_leaves_the_run_as_it_is(advect: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with a trial of its steps equals one without, learned times included."""
    flags = f"{TINY} --times importance --max-steps 12"
    advect("train moons --run-dir plain --threads 1", flags)

    def measured(work: Callable[[], object], **_: object) -> ThreadChoice:
        work()
        work()
        return ThreadChoice(1, "measured")

    monkeypatch.setattr(threads, "measure_threads", measured)
    advect("train moons --run-dir tried", flags)
    assert_same_end(Path("plain"), Path("tried"), 12)


def test_an_estimator_takes_the_option_and_puts_the_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    take = library.training.step.Step.take
    note = lambda self, *a, **k: (seen.append(torch.get_num_threads()), take(self, *a, **k))[1]
    monkeypatch.setattr(library.training.step.Step, "take", note)
    x = np.random.default_rng(0).normal(size=(64, 2))
    library.FlowModel(steps=3, hidden=8, early_stopping=False, options={"threads": 2}).fit(x)
    assert set(seen) == {2} and torch.get_num_threads() == 1
    with pytest.raises(UserError, match="threads must be at least 1 and at most 1,024, got 0"):
        library.FlowModel(steps=3, options={"threads": 0}).fit(x)
