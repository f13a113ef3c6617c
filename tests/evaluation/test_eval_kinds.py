"""``advect eval`` on tables, cells and sequences: the units in which they are compared, and what is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import advect as library
from advect.commands.evaluate import evaluate
from advect.config.arguments import parse_config
from advect.config.build import build_dataset
from advect.data import Cells, Dataset
from advect.evaluation.features import FeatureSpace
from advect.evaluation.protocol import EvalConfig
from advect.metrics import column_gaps, frechet_distance, variance_r2, zero_share
from advect.metrics.statistics import VALUES

QUICK = "--width 8 --depth 1 --max-steps 2 --batch-size 16 --sample-every 0 --log-every 1 --held-out 0.3 --run-dir run"


def measured(**request: Any) -> dict[str, Any]:
    request = {"num_steps": (1,), **request}
    _, result = evaluate(Path("run"), EvalConfig(output=Path("a.json"), **request))
    return result


def values(result: dict[str, Any]) -> dict[str, float]:
    (point,) = result["points"]
    assert point["metrics"].keys() == result["floor"]["metrics"].keys()
    return {name: told["mean"] for name, told in point["metrics"].items()}


def dataset() -> Dataset:
    return build_dataset(parse_config(Path("run/config.yaml"))[1].data)


def everything(split) -> Any:
    return split.fetch(np.arange(len(split)))


@pytest.fixture
def cells(advect: Callable[..., None]) -> None:
    """240 cells of two types in ``c.h5ad``: most genes are silent in most cells."""
    anndata, pd = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    kinds = np.arange(240) % 2
    rates = 0.4 * np.exp(rng.normal(size=(2, 30)))[kinds]
    counts = rng.poisson(rates).astype(np.float32)
    obs = pd.DataFrame({"type": np.array(["a", "b"])[kinds]}, [f"c{i}" for i in range(240)])
    anndata.AnnData(counts, obs).write_h5ad("c.h5ad")


@pytest.mark.parametrize("space", ["expression", "counts"])
def test_cells_of_components_are_counted_before_they_meet_real_counts(
    space: str, cells: None, advect: Callable[..., None]
) -> None:
    anndata = pytest.importorskip("anndata")
    advect(f"train --data c.h5ad --conditions type --pca 5 --space {space}", QUICK)
    result = measured(num_samples=168, seed=3)
    found = values(result)
    assert {"energy_within_type", "zero_error", "variance_r2", "mmd", "two_sample"} <= found.keys()
    assert result["protocol"]["features"]["name"] == "the flow's 5 components of expression"
    # Held-out cells as they are in the file, and samples as advect sample writes them.
    real = Cells("c.h5ad", conditions=["type"], held_out=0.3, standardise=False)
    y = everything(real.held_out).x1
    advect("sample run --num-samples 168 --num-steps 1 --seed 3 --output-dir out")
    drawn = anndata.read_h5ad("out/samples.h5ad").X
    x = torch.from_numpy(np.asarray(drawn.todense() if hasattr(drawn, "todense") else drawn))
    assert zero_share(x) > 0.3 and zero_share(y) > 0.3
    zeros = ((x == 0).double().mean(0) - (y == 0).double().mean(0)).abs().mean()
    assert found["zero_error"] == pytest.approx(float(zeros), abs=1e-6)
    if space == "counts":  # each cell has a size of its own, by which its expression is scaled
        assert (x == x.round()).all()
        whole = x.sum(1, keepdim=True)
        scaled = (x * (1e4 / whole.clamp(min=1))).log1p()
        assert found["variance_r2"] == pytest.approx(variance_r2(scaled, y), abs=0.3)
        return
    assert found["variance_r2"] == pytest.approx(variance_r2(x, y), rel=1e-3)
    own = library.load("run").transform.parts[1]
    assert found["frechet"] == pytest.approx(frechet_distance(own.forward(x), own.forward(y)), rel=1e-3)
    # Without counting no zero is left in what components say.
    assert zero_share(library.load("run").sample(168, steps=1, seed=3).x) < 0.3
    assert result["floor"]["metrics"]["zero_error"] < 0.1


def test_cells_in_counts_are_compared_in_expression(cells: None, advect: Callable[..., None]) -> None:
    advect("train --data c.h5ad --conditions type --space counts", QUICK)
    found = values(measured(num_samples=100))
    y = everything(Cells("c.h5ad", conditions=["type"], held_out=0.3, standardise=False).held_out).x1
    flow = library.load("run")
    counts = flow.sample(100, steps=1).x
    x = flow.transform.parts[0].forward(counts)
    assert found["frechet"] == pytest.approx(frechet_distance(x, y), rel=1e-4)


def test_of_many_genes_some_are_looked_at_and_distances_are_in_components(
    advect: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    anndata = pytest.importorskip("anndata")
    monkeypatch.setattr("advect.evaluation.features.COMPONENTS", 4)
    x = np.random.default_rng(0).poisson(0.5, (200, 1500)).astype(np.float32)
    anndata.AnnData(x).write_h5ad("c.h5ad")
    advect("train --data c.h5ad", QUICK)
    result = measured(num_samples=40)
    features = result["protocol"]["features"]
    assert features["dimensions"] == 4 and features["identity"].startswith("4 principal components of training data ")
    flow, source = library.load("run"), dataset()
    here, again = (FeatureSpace(flow, source, keep={VALUES}) for _ in range(2))
    kept = here.data(source.held_out, torch.arange(7))
    assert kept[VALUES].shape == (7, 1000) and kept["features"].shape == (7, 4)
    assert here.features.exact == again.features.exact != features["identity"]


def test_tables_are_compared_by_columns_and_by_scaled_distances(advect: Callable[..., None]) -> None:
    pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    lines = [
        f"{rng.normal():.6f},{rng.integers(9)},{'ab'[i % 2]},{'' if i % 3 else round(rng.normal(), 5)}\n"
        for i in range(200)
    ]
    Path("t.csv").write_text("x,n,kind,gap\n" + "".join(lines))
    advect("train --data t.csv", QUICK)
    found = values(measured(num_samples=140))
    assert {"column_gap", "largest_column_gap", "association_error", "wasserstein"} <= found.keys()
    assert not {"mean_r2", "zero_error"} & found.keys()
    flow, source = library.load("run"), dataset()
    x = flow.sample(140, steps=1).x
    y = flow.transform.inverse(everything(source.held_out).x1)
    gaps = column_gaps(x, y, categorical=[False, False, True, False])
    assert found["column_gap"] == pytest.approx(float(gaps.mean()), abs=1e-9) and x.isnan().any() and y.isnan().any()
    forward = flow.transform.plain.forward
    assert found["frechet"] == pytest.approx(frechet_distance(forward(x), forward(y)), rel=1e-4)
    # The marginals of scaled columns are there for the asking.
    assert "correlation_error" in values(measured(num_samples=60, metrics=("marginals",)))


def test_sequences_of_several_lengths_are_compared_with_zeros_after_their_ends(advect: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    np.savez("s.npz", values=rng.normal(3, 1, (90, 4, 2)), lengths=rng.integers(1, 5, 90))
    advect("train --data s.npz --heads 2", QUICK)
    found = values(measured(num_samples=63))
    flow, source = library.load("run"), dataset()
    batch = everything(source.held_out)
    x = flow.sample(63, steps=1).x
    z = flow.modality.feature_space(x)
    assert (batch.x1[:, 3] == 0).any() and (z[:, 3] == 0).any()
    assert found["frechet"] == pytest.approx(frechet_distance(z, batch.x1), rel=1e-4)
    assert found["zero_error"] >= 0


def test_a_result_of_each_kind_is_json_without_nan(advect: Callable[..., None]) -> None:
    np.save("v.npy", np.random.default_rng(0).normal(size=(120, 3)))
    advect("train --data v.npy", QUICK)
    values(measured(num_samples=50, repeat=2))
    text = Path("a.json").read_text()
    assert "NaN" not in text and json.loads(text)["points"][0]["metrics"]["energy"]["std"] >= 0
