"""Measurements of ``advect report``: quality against cost, classes, memorisation, trajectories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import atomic_write, atomic_write_text, make_folder
from advect.data import Dataset
from advect.evaluation.evaluator import EvalRows, Evaluator, SampleRequest
from advect.evaluation.features import FIT_ROWS, FeatureSpace
from advect.evaluation.workspace import MemoryWorkspace, open_cache
from advect.metrics.base import LABELS, EvalContext, find_metrics
from advect.metrics.class_accuracy import ClassAccuracyMetric
from advect.metrics.marginals import MEASURES
from advect.metrics.memorisation import PERCENTILE, Memorisation, MemorisationMetric
from advect.metrics.statistics import SampleStatistics, subsample
from advect.model.flow import Flow
from advect.model.sampler_config import plan_sweep

NFES = (1, 2, 4, 8, 16, 32, 64)
SOLVERS = ("euler", "midpoint")

REFERENCE = 10_000
"""Most held-out rows for comparison."""

FORMAT = 1
TIMES, STEPS = 10, 36
"""Stored times of trajectories, and their steps of the midpoint method."""


def measure_quality(
    flow: Flow,
    dataset: Dataset,
    out_dir: Path,
    *,
    samples: int = 1000,
    nfes: Sequence[int] = NFES,
    seed: int = 0,
    step: int | None = None,
) -> dict[str, Any]:
    """Measure a flow against its data; write quality.json, neighbours.npz and trajectories.npz to ``out_dir``.

    Frechet distance for each solver and number of network evaluations (NFE), of at most ``samples`` samples, at most
    the number of training rows, from the same noise. Classes, memorisation and, for vectors in three dimensions or
    more, marginals use the last point's samples. ``step`` is the flow's, for the record. Files are written atomically,
    quality.json last; returns its content. Raises UserError for fewer than two rows of a split, and NFEs that a solver
    cannot meet.
    """
    if min(len(dataset.held_out), len(dataset.train)) < 2:
        raise UserError(
            f"{dataset.name} has {len(dataset.train)} training and {len(dataset.held_out)} held-out samples, too few"
            " to measure with; give more data, or --no-measure"
        )
    sweep = plan_sweep(flow.sampler, flow.nfe, solvers=SOLVERS, nfes=nfes)
    evaluator = _evaluator(flow, dataset, samples)
    n, folder = len(evaluator.rows.floor), make_folder(out_dir, "out_dir")
    context, floor, final = evaluator.context, evaluator.floor, None
    assert context is not None and floor is not None
    curves: dict[str, dict[str, list]] = {solver: {"nfe": [], "steps": [], "distance": []} for solver in SOLVERS}
    for sampler in sweep:
        final = evaluator.sample(SampleRequest(n=n, sampler=sampler, seed=seed), title=str(sampler))
        assert final is not None
        curve = curves[str(sampler.solver)]
        curve["nfe"].append(flow.nfe(sampler))
        curve["steps"].append(sampler.steps)
        curve["distance"].append(evaluator.compare(final, context, ("frechet",))["frechet"])
    assert final is not None
    numbers = evaluator.compare(final, context)
    memory = MemorisationMetric().details(final, context)
    _write_arrays(folder / "neighbours.npz", {k: v for k, v in vars(memory).items() if isinstance(v, Tensor)})
    t, x = trajectories(evaluator.space, context, seed=seed)
    _write_arrays(folder / "trajectories.npz", {"t": t, "x": x})
    result = {
        "format": FORMAT,
        "seed": seed,
        "step": step,
        "data": _describe_data(evaluator.space, context),
        "frechet": _describe_curves(evaluator, context, curves, floor["frechet"], n),
        "samples_by": {"solver": SOLVERS[-1], "nfe": curves[SOLVERS[-1]]["nfe"][-1]},
        "fidelity": _describe_classes(evaluator, final, context),
        "marginals": _describe_marginals(numbers, floor),
        "memorisation": _describe_memorisation(memory),
    }
    atomic_write_text(folder / "quality.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def trajectories(space: FeatureSpace, context: EvalContext, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Trajectories of some samples from noise (t = 0) to data (t = 1).

    Returns times t (T,) and states (T, n, *S) in data units, model units for tables; vectors in three dimensions or
    more as the first two principal components of training rows.
    """
    flow = space.flow
    count = flow.modality.trajectories
    states = flow.sample(count, steps=STEPS, solver="midpoint", seed=seed, trajectory=True).x
    places = torch.linspace(0, STEPS, TIMES).round().long()
    x = torch.stack([space.states(state) for state in states[places]])
    if x.ndim == 3 and x.shape[2] > 2:
        from sklearn.decomposition import PCA  # takes a second to import

        train = context.train_samples
        assert train is not None
        pca = PCA(2, random_state=0).fit(train[subsample(len(train), FIT_ROWS, seed)].double().numpy())
        x = torch.from_numpy(pca.transform(x.flatten(0, 1).double().numpy())).float().reshape(*x.shape[:2], 2)
    return places / STEPS, x


def _evaluator(flow: Flow, dataset: Dataset, samples: int) -> Evaluator:
    space, cache = FeatureSpace(flow, dataset), open_cache()
    shape = space.whole(dataset.train, torch.zeros(1, dtype=torch.int64)).shape[1:]
    names = ["frechet", "memorisation"]
    names += ["class_accuracy"] if LABELS in space.offers else []
    names += ["marginals"] if len(shape) == 1 and shape[0] > 2 else []
    metrics, _ = find_metrics(names, (), space.offers, space.modality.name)
    needs = {need for metric in metrics.values() for need in metric.needs}
    space = FeatureSpace(flow, dataset, keep=needs).learned(cache)
    rows = EvalRows.choose(dataset, samples, reference=REFERENCE)
    return Evaluator(space, metrics, rows, MemoryWorkspace(), cache)


def _describe_data(space: FeatureSpace, context: EvalContext) -> dict[str, Any]:
    """Shape of the data in words and numbers, and the range of the training values, for pictures."""
    train = context.train_samples
    assert train is not None
    return {
        "modality": space.modality.name,
        "words": space.modality.describe(train.shape[1:]),
        "marginals": space.modality.marginals,
        "shape": list(train.shape[1:]),
        "low": float(train.min()),
        "high": float(train.max()),
        "train": len(space.dataset.train),
    }


def _describe_curves(
    evaluator: Evaluator, context: EvalContext, curves: Mapping[str, Any], floor: float, samples: int
) -> dict[str, Any]:
    """Distances, features, and numbers of samples."""
    features = evaluator.space.features
    points = [
        (*point, solver)
        for solver, c in curves.items()
        for point in zip(c["distance"], c["nfe"], c["steps"], strict=True)
    ]
    distance, nfe, steps, solver = min(points)  # of equal distances, the cheapest
    return {
        "features": features.name,
        "dimensions": features.dimensions,
        "variance_kept": features.variance_kept,
        "samples": samples,
        "held_out": context.held_out.count,
        "floor": floor,
        "best": {"solver": solver, "nfe": nfe, "steps": steps, "distance": distance},
        "curves": curves,
    }


def _describe_classes(evaluator: Evaluator, samples: SampleStatistics, context: EvalContext) -> dict[str, Any]:
    """Class accuracy for each categorical condition."""
    metric = evaluator.compared.get("class_accuracy")
    if not isinstance(metric, ClassAccuracyMetric):
        return {}
    found = metric.details(samples, context)
    classes = lambda of: [{"name": name, "samples": n, "share": share} for name, n, share in of.by_class]
    return {name: vars(of) | {"by_class": classes(of)} for name, of in found.items()}


def _describe_marginals(samples: Mapping[str, float], floor: Mapping[str, float]) -> dict[str, dict[str, float]]:
    names = [name for name in (*MEASURES, "zero_error") if name in samples and name in floor]
    return {name: {"samples": samples[name], "floor": floor[name]} for name in names}


def _describe_memorisation(memory: Memorisation) -> dict[str, float]:
    """Summary of the distances."""
    return {
        "percentile": PERCENTILE,
        "threshold": memory.threshold,
        "share_closer": memory.share_closer,
        "median_sample": float(memory.sample_distances.median()),
        "median_held_out": float(memory.held_out_distances.median()),
    }


def _write_arrays(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Write tensors atomically as a compressed .npz without pickle; float64 becomes float32."""
    plain = {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in arrays.items()}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plain)

    atomic_write(path, write)
