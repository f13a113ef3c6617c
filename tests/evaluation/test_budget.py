"""What a report measures in the time it has."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import advect as library
from advect.cli import run as command
from advect.commands.report import report
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.core.errors import UserError
from advect.evaluation import budget, quality
from advect.evaluation.budget import (
    NFES,
    Clock,
    Scope,
    Speed,
    budget_seconds,
    choose_scope,
    describe_limits,
    plan_points,
)
from advect.evaluation.features import FeatureSpace
from advect.evaluation.quality import measure_quality


@pytest.fixture(scope="module")
def space(digits_run: Path) -> FeatureSpace:
    return FeatureSpace(library.load(digits_run), build_dataset(parse_config(digits_run / "config.yaml")[1].data))


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """No features are learned, which takes time by the wall clock."""
    monkeypatch.setattr(FeatureSpace, "learned", lambda self, cache, **_: self)


class Slow:
    """A clock by which an evaluation of a sample takes ``each`` seconds."""

    def __init__(self, flow: Any, each: float) -> None:
        self.time, sample = 0.0, flow.sample

        def timed(n: int, **options: Any) -> Any:
            made = sample(n, **options)
            self.time += each * made.nfe * len(made.x)
            return made

        flow.sample = timed

    def __call__(self) -> float:
        return self.time


def test_a_report_takes_a_tenth_of_the_training_within_bounds() -> None:
    found = [budget_seconds(seconds) for seconds in (0, 100, 600, 86_400)]
    assert found == pytest.approx([20, 20, 60, 120])


def test_the_chosen_scope_fits_and_a_slower_flow_has_less(space: FeatureSpace) -> None:
    before, sweep = Scope(10**9, (1, 64)), plan_points(space.flow, NFES)
    for each in (1e-6, 1e-3, 1e-2, 0.05, 0.1):
        speed = Speed(each, 1e-5, 1e-9)
        scope = choose_scope(space, speed, sweep, 60, None, None)
        assert scope is not None and scope.seconds(space, speed, sweep) <= budget.USED * 60
        assert scope.samples <= before.samples and max(scope.nfes) <= 64
        before = scope
    assert choose_scope(space, Speed(1e-6, 1e-5, 1e-9), sweep, 60, None, None) == Scope(1000, NFES)
    assert choose_scope(space, Speed(10, 1e-5, 1e-9), sweep, 60, None, None) is None
    least = choose_scope(space, Speed(1e-3, 1e-5, 1e-9), sweep, -5, None, None)  # the data took all the time
    assert least is not None and least.samples == 50 and least.steps == 0


def test_what_is_asked_for_is_kept_and_the_rest_is_smaller(space: FeatureSpace) -> None:
    slow = Speed(0.05, 1e-5, 1e-9)
    many = choose_scope(space, slow, plan_points(space.flow, NFES), 60, 400, None)
    assert many is not None and many.samples == 400 and max(many.nfes) <= 4
    far = choose_scope(space, slow, plan_points(space.flow, (2, 128)), 60, None, (2, 128))
    assert far is not None and far.nfes == (2, 128) and far.samples == 50


@pytest.mark.usefixtures("pixels")
def test_a_slow_flow_is_measured_by_less_in_its_time_and_the_same_again(digits_run: Path, tmp_path: Path) -> None:
    dataset = build_dataset(parse_config(digits_run / "config.yaml")[1].data)
    flow = library.load(digits_run)
    now = Slow(flow, 0.01)
    found = measure_quality(flow, dataset, tmp_path / "a", clock=Clock(30, now))
    assert now() <= 30
    limits, curves = found["limits"], found["frechet"]["curves"]
    n, most = found["frechet"]["samples"], max(limits["nfes"])
    assert limits["left_out"][:2] == [
        f"{n:,} samples a point instead of {len(dataset.train):,}",
        f"at most {most} evaluations instead of 64",
    ]
    again = measure_quality(library.load(digits_run), dataset, tmp_path / "b", samples=n, nfes=limits["nfes"])
    assert again["frechet"]["curves"] == curves and again["fidelity"] == found["fidelity"]
    assert again["memorisation"] == found["memorisation"] and again["limits"] == {}


@pytest.mark.usefixtures("pixels")
def test_points_for_which_the_time_does_not_last_are_left_out(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, flow = build_dataset(parse_config(digits_run / "config.yaml")[1].data), library.load(digits_run)
    now = Slow(flow, 0.01)
    monkeypatch.setattr(quality.Speed, "measure", lambda space, now: Speed(1e-5, 0, 0))  # it was faster then
    found = measure_quality(flow, dataset, tmp_path, clock=Clock(60, now))
    nfes = found["frechet"]["curves"]["midpoint"]["nfe"]
    assert nfes == found["limits"]["nfes"][1:] and max(nfes) < 64 and now() < 1.5 * 60


@pytest.mark.usefixtures("pixels")
def test_a_report_says_what_it_left_out_and_how_to_have_it(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    monkeypatch.setattr("advect.commands.report.Clock", lambda seconds, spent: Clock(seconds, lambda: 0.0))
    monkeypatch.setattr(quality.Speed, "measure", lambda space, now: Speed(0.02, 1e-5, 1e-9))
    command(["report", str(run)])
    told, page = capsys.readouterr().out, (run / "report.html").read_text()
    found = json.loads((run / "evaluation/quality.json").read_text())
    assert found["limits"]["seconds"] == 20 and found["frechet"]["samples"] == 50
    for text in (told, page):
        assert "this report has 50 samples a point instead of 899" in text
        assert f"advect report {run} --full" in text and f"advect report {run} --num-samples 50 --nfes 1 2 4" in text
    monkeypatch.setattr(quality.Speed, "measure", lambda space, now: Speed(60, 1e-5, 1e-9))
    before = (run / "evaluation/quality.json").read_bytes()
    page, found = report(run, seconds=None)
    assert "20 seconds are too short to measure this flow in" in page.read_text() and "frechet" not in found
    assert (run / "evaluation/quality.json").read_bytes() == before
    for words, message in (
        ("--minutes 2 --full", "--minutes 2 bounds nothing beside --full; leave one out"),
        ("--minutes 0", "--minutes must be above 0"),
        ("--no-measure --full", "--no-measure measures nothing; leave --full out"),
        ("--num-samples 1", "--num-samples must be at least 2"),
    ):
        with pytest.raises(UserError, match=message):
            command(["report", str(run), *words.split()])


def test_features_that_take_too_long_are_left_out_and_told(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("advect.evaluation.learned_network.foretold", lambda _: 13.0)  # of 12, two fifths of 30
    dataset, options = build_dataset(parse_config(digits_run / "config.yaml")[1].data), {"samples": 50, "nfes": (2,)}
    found = measure_quality(
        library.load(digits_run), dataset, tmp_path / "out", clock=Clock(30, lambda: 0.0), **options
    )
    assert found["limits"]["left_out"][0] == "pixels instead of the features of a network trained on these data"
    assert found["frechet"]["features"] == "pixel space, black 0 and white 1"


def test_no_clock_is_no_limit() -> None:
    assert Clock().left == math.inf


def test_a_report_is_repeated_with_its_checkpoint_and_data(tmp_path):
    limits = {"seconds": 20, "whole_seconds": 60, "left_out": ["fewer samples"], "nfes": [1, 2]}
    found = {"limits": limits, "frechet": {"samples": 50}, "seed": 3}
    given = {"--checkpoint": "epoch-2", "--data": "my data.csv"}
    said = describe_limits(found, tmp_path / "run", given)
    again = f"advect report {tmp_path / 'run'} --checkpoint epoch-2 --data 'my data.csv'"
    assert f"{again} --full" in said[0]
    assert said[1] == f"These figures again: {again} --num-samples 50 --nfes 1 2 --seed 3"
    assert "--data" not in " ".join(describe_limits(found, tmp_path / "run", dict.fromkeys(given)))


def test_the_start_counts() -> None:
    assert Clock(20, lambda: 100.0, spent=6.0).left == 14.0
