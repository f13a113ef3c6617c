"""What ``advect report`` measures, and the files it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advect as library
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.core.errors import UserError
from advect.data import Digits, Moons
from advect.evaluation.quality import measure_quality
from advect.metrics import frechet_distance
from advect.metrics.statistics import subsample


def report(run: Path, folder: Path, **options: Any) -> dict[str, Any]:
    dataset = build_dataset(parse_config(run / "config.yaml")[1].data)
    return measure_quality(library.load(run), dataset, folder, **{"samples": 120, "nfes": (1, 2, 8), **options})


def test_distances_are_those_of_the_samples_and_the_floor_that_of_training_rows(
    moons_run: Path, tmp_path: Path
) -> None:
    found = report(moons_run, tmp_path, seed=3)["frechet"]
    flow, data = library.load(moons_run), Moons()
    units = lambda split, places: flow.transform.inverse(split.fetch(places.numpy()).x1)
    y = units(data.held_out, subsample(len(data.held_out), 1200, 0).sort().values)
    real = units(data.train, subsample(len(data.train), 120, 0).sort().values)
    assert found["floor"] == pytest.approx(frechet_distance(real, y), rel=1e-6)
    assert {solver: curve["nfe"] for solver, curve in found["curves"].items()} == {
        "euler": [1, 2, 8],
        "midpoint": [2, 8],
    }
    for solver, steps in (("euler", (1, 2, 8)), ("midpoint", (1, 4))):
        for n, distance in zip(steps, found["curves"][solver]["distance"], strict=True):
            x = flow.sample(120, steps=n, solver=solver, seed=3).x
            assert distance == pytest.approx(frechet_distance(x, y), rel=1e-6)
    distance = min(d for curve in found["curves"].values() for d in curve["distance"])
    assert found["best"]["distance"] == distance and (found["samples"], found["held_out"]) == (120, 1200)


def test_files_hold_what_a_report_needs_and_are_the_same_again(digits_run: Path, tmp_path: Path) -> None:
    result = report(digits_run, tmp_path / "a")
    names = ["neighbours.npz", "quality.json", "trajectories.npz"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    assert json.loads((tmp_path / "a/quality.json").read_text()) == result
    about = {"modality": "image", "words": "1 x 8 x 8 images", "marginals": False, "shape": [1, 8, 8]}
    assert result["data"] == {**about, "low": 0, "high": 16, "train": len(Digits().train)}
    label = result["fidelity"]["label"]
    assert 0 <= label["share"] < 0.6 < label["classifier_accuracy"] and label["samples"] == 120
    assert sum(c["samples"] for c in label["by_class"]) == 120
    assert result["samples_by"] == {"solver": "midpoint", "nfe": 8} and result["marginals"] == {}
    flow = library.load(digits_run)
    with np.load(tmp_path / "a/trajectories.npz") as saved:
        assert saved["x"].shape == (10, 8, 1, 8, 8) and saved["t"] == pytest.approx(np.arange(10) / 9)
        end = flow.sample(8, steps=36, solver="midpoint")
        assert np.array_equal(saved["x"][-1], end.x.numpy())
    assert result["captions"] == [f"label {label}" for label in end.cond["label"]]
    with np.load(tmp_path / "a/neighbours.npz") as saved:
        assert saved["samples"].shape == (12, 1, 8, 8) and saved["neighbours"].shape == (12, 3, 1, 8, 8)
        assert saved["sample_distances"].shape == (120,) and saved["held_out_distances"].shape == (898,)
    again, other = report(digits_run, tmp_path / "b"), report(digits_run, tmp_path / "c", seed=1)
    assert again == result != other
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_vectors_have_marginals_and_no_more_samples_than_training_rows(advect: Any, tmp_path: Path) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(150, 4)))
    advect("train --data x.npy --width 8 --depth 1 --max-steps 2 --batch-size 16 --sample-every 0 --run-dir run")
    result = report(Path("run"), Path("out"), samples=10_000)
    assert result["frechet"]["samples"] == result["data"]["train"] < 150
    assert {"kolmogorov_smirnov", "correlation_error", "mean_r2"} <= result["marginals"].keys()
    assert all(values.keys() == {"samples", "floor"} for values in result["marginals"].values())
    assert result["fidelity"] == {} and 0 <= result["memorisation"]["share_closer"] <= 1
    with np.load("out/trajectories.npz") as saved:
        assert saved["x"].shape == (10, 200, 2)  # principal components


def test_numbers_of_evaluations_that_a_solver_cannot_meet_are_told(moons_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds none that midpoint can meet, at 2 a step"):
        report(moons_run, tmp_path / "out", nfes=(1,))
    with pytest.raises(UserError, match="must be at least 1 and at most 10,000, got 0"):
        report(moons_run, tmp_path / "out", nfes=(0,))
    assert not (tmp_path / "out").exists()
