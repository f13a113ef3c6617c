"""Numbers that are not finite never lose what an evaluation has measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from advect.cli import run
from advect.commands.evaluate import infinite
from advect.evaluation.evaluator import Evaluator


def test_what_is_not_finite_is_named() -> None:
    found = {"a": 1.0, "b": math.nan, "c": {"mean": 1.0, "standard_error": math.inf}, "d": {"n": 3}, "e": "words"}
    assert infinite(found) == dict.fromkeys(("b", "c"), "is not finite for these rows")


def test_an_evaluation_without_a_deviation_is_written_without_it(
    moons_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Evaluator.measure

    def broken(self: Evaluator, *args: object, **kwargs: object) -> object:
        found = measure(self, *args, **kwargs)  # type: ignore[arg-type]
        found["metrics"]["energy"] = math.nan
        return found

    monkeypatch.setattr(Evaluator, "measure", broken)
    monkeypatch.setattr(Evaluator, "measure_flow", lambda self, options, n: {"bits_per_dim": {"mean": math.nan}})
    file = tmp_path / "e.json"
    words = ["--metrics", "energy", "sliced_wasserstein", "--num-samples", "60", "--num-steps", "2"]
    run(["eval", str(moons_run), *words, "--output", str(file)])
    result = json.loads(file.read_text())
    assert "sliced_wasserstein" in result["points"][0]["metrics"] and "energy" not in result["points"][0]["metrics"]
    assert result["left_out"]["energy"] == result["left_out"]["bits_per_dim"] == "is not finite for these rows"
    assert result["flow"] == {}
