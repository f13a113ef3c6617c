"""Measurements of ``advect report``: quality against cost, classes, memorisation, trajectories."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from advect.core.errors import UserError, printable
from advect.core.files import atomic_write, atomic_write_text, make_folder
from advect.core.types import LENGTH
from advect.data import Dataset
from advect.data.captions import condition_words
from advect.data.modality import condition_columns
from advect.data.tokens.modality import TokensModality
from advect.evaluation.budget import (
    FEATURES,
    NFES,
    PIXELS_ALONE,
    SAMPLES,
    STEPS,
    Clock,
    Scope,
    Speed,
    Sweep,
    calibration_sampler,
    choose_scope,
    compared_solvers,
    differences,
    plan_points,
)
from advect.evaluation.evaluator import EvalRows, Evaluator, SampleRequest
from advect.evaluation.features import FIT_ROWS, FeatureSpace
from advect.evaluation.learned_network import TooSlow
from advect.evaluation.workspace import MemoryWorkspace, open_cache
from advect.metrics.base import LABELS, EvalContext, Metric, find_metrics
from advect.metrics.class_accuracy import ClassAccuracyMetric
from advect.metrics.flow_calibration import CalibrationMetric, draws_given
from advect.metrics.marginals import MEASURES
from advect.metrics.memorisation import PERCENTILE, Memorisation, MemorisationMetric
from advect.metrics.privacy import PrivacyMetric
from advect.metrics.statistics import SampleStatistics, subsample
from advect.model.conditions import encoded
from advect.model.flow import Flow

FORMAT = 1
TIMES = 10
"""Stored times of trajectories."""

TEXTS, TEXT_LENGTH = 5, 160
"""Stored times of tokens, and most characters of each."""


def measure_quality(
    flow: Flow,
    dataset: Dataset,
    out_dir: Path,
    *,
    samples: int | None = None,
    nfes: Sequence[int] | None = None,
    seed: int = 0,
    step: int | None = None,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Measure a flow against its data; write quality.json, neighbours.npz and trajectories.npz to ``out_dir``.

    Frechet distance for each solver and number of network evaluations (NFE), of at most ``samples`` samples, at most
    the number of training rows, from the same noise. Classes, memorisation and, for vectors in three dimensions or
    more, marginals use the last point's samples. ``step`` is the flow's, for the record. Files are written atomically,
    quality.json last; returns its content. With a ``clock`` samples and NFEs that are not given are fewer, if its time
    asks for it, as "limits" tells, which is all there is, without a file, if the time is too short for anything.
    Raises UserError for fewer than two rows of a split, and NFEs that a solver cannot meet.
    """
    if min(len(dataset.held_out), len(dataset.train)) < 2:
        raise UserError(
            f"{dataset.name} has {len(dataset.train)} training and {len(dataset.held_out)} held-out samples, too few"
            " to measure with; give more data, or --no-measure"
        )
    clock = clock or Clock()
    whole = Scope(samples or SAMPLES, tuple(nfes or NFES), count=flow.modality.trajectories)
    sweep = plan_points(flow, whole.nfes)  # raises before anything is measured
    space, left_out = _feature_space(flow, dataset, clock)
    scope, limits = whole, {}
    if math.isfinite(clock.seconds):
        speed = Speed.measure(space, clock.now)
        scope = choose_scope(space, speed, sweep, clock.left, samples, nfes)
        limits = {"seconds": clock.seconds, "whole_seconds": whole.seconds(space, speed, sweep)}
    if scope is None:
        return {"limits": {**limits, "left_out": ["all measurements"]}}
    folder = make_folder(out_dir, "out_dir")
    found = _measure(space, scope, scope.points(sweep), clock, seed, folder)
    nfes = [nfe for nfe in scope.nfes if nfe <= max(found["frechet"]["curves"][compared_solvers(flow)[0]]["nfe"])]
    left_out += differences(replace(scope, nfes=tuple(nfes)), whole, space)
    limits = {**limits, "left_out": left_out, "nfes": nfes} if left_out else {}
    result = {"format": FORMAT, "seed": seed, "step": step, "limits": limits, **found}
    atomic_write_text(folder / "quality.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _measure(
    space: FeatureSpace, scope: Scope, points: Sweep, clock: Clock, seed: int, folder: Path
) -> dict[str, Any]:
    """All measurements; writes neighbours.npz and trajectories.npz to a folder."""
    rows, work = EvalRows.choose(space.dataset, scope.samples, reference=scope.reference), MemoryWorkspace()
    near, held_out = scope.neighbours, scope.reference
    evaluator = Evaluator(space, _metrics(space), rows, work, open_cache(), neighbours=near, held_out=held_out)
    calibrated = _measure_calibration(space, scope, seed)
    context, floor = evaluator.context, evaluator.floor
    assert context is not None and floor is not None
    curves, final = _measure_curves(evaluator, points, scope.paths, clock, seed)
    numbers = evaluator.compare(final, context, [name for name in ("marginals",) if name in evaluator.compared])
    memory = MemorisationMetric().details(final, context)
    _write_arrays(folder / "neighbours.npz", {k: v for k, v in vars(memory).items() if isinstance(v, Tensor)})
    (folder / "trajectories.npz").unlink(missing_ok=True)
    words: list[str] = []
    texts: dict[str, Any] = {}
    if scope.steps and space.flow.discrete:
        texts = {"texts": text_states(space, steps=scope.steps, count=scope.count, seed=seed)}
    elif scope.steps:
        t, x, words = trajectories(space, context, steps=scope.steps, count=scope.count, seed=seed)
        _write_arrays(folder / "trajectories.npz", {"t": t, "x": x})
    last = compared_solvers(space.flow)[-1]
    return {
        "data": _describe_data(space, context),
        "frechet": _describe_curves(evaluator, context, curves, floor["frechet"], len(rows.floor)),
        "samples_by": {"solver": last, "nfe": curves[last]["nfe"][-1]},
        "fidelity": _describe_classes(evaluator, final, context),
        "marginals": _describe_marginals(numbers, floor),
        "memorisation": {**_describe_memorisation(memory), "train": len(_train(context))},
        "privacy": vars(PrivacyMetric().details(final, context, memory)),
        "captions": words,
        **texts,
        **({"calibration": calibrated} if calibrated else {}),
    }


def _measure_calibration(space: FeatureSpace, scope: Scope, seed: int) -> dict[str, Any] | None:
    """Calibration given the conditions of held-out rows by a sampler of few evaluations; None where there is none."""
    n = min(scope.calibration, len(space.dataset.held_out))
    if not n or not CalibrationMetric.needs <= space.offers:
        return None
    flow, held_out, sampler = space.flow, space.dataset.held_out, calibration_sampler(space.flow)
    places = subsample(len(held_out), n, 0)

    def data(rows: range) -> tuple[Tensor, dict[str, Any]]:
        batch = held_out.fetch(places[rows.start : rows.stop].numpy())
        return flow.transform.inverse(batch.x1), encoded(batch.cond)

    def fill(rows: range, bar: tqdm) -> dict[str, Tensor]:
        found = draws_given(flow, n, rows, data, draws=scope.draws, seed=seed, **sampler.arguments())
        bar.update(len(rows))
        return found

    by = f"{sampler.solver}, {flow.nfe(sampler) or 'adaptive'} evaluations a draw"
    reduce = lambda parts: {**CalibrationMetric().reduce(parts, flow), "by": by}
    return MemoryWorkspace().map_rows("calibration", n, fill, reduce, title="calibration")


def _measure_curves(
    evaluator: Evaluator, points: Sweep, paths: float, clock: Clock, seed: int
) -> tuple[dict[str, dict[str, list]], SampleStatistics]:
    """NFE, steps and distances of each solver, and the samples of the last one's most evaluations.

    Numbers of evaluations for which the time does not last, at the speed so far, are left out; ``paths`` evaluations a
    sample are still to come.
    """
    context, final, calls = evaluator.context, None, 0
    assert context is not None
    solvers = compared_solvers(evaluator.flow)
    curves: dict[str, dict[str, list]] = {solver: {"nfe": [], "steps": [], "distance": []} for solver in solvers}
    began = clock.now()
    for nfe, group in groupby(points, key=lambda point: point[0]):
        ways = [way for _, way in group]
        next_calls = len(ways) * nfe
        if final is not None and (clock.now() - began) / calls * (next_calls + paths) > clock.left:
            break
        for way in ways:
            x = evaluator.sample(SampleRequest(n=len(evaluator.rows.floor), sampler=way, seed=seed), title=str(way))
            assert x is not None
            final = x if str(way.solver) == solvers[-1] else final
            curve = curves[str(way.solver)]
            curve["nfe"].append(nfe)
            curve["steps"].append(way.steps)
            curve["distance"].append(evaluator.compare(x, context, ("frechet",))["frechet"])
        calls += next_calls
    assert final is not None
    return curves, final


def _feature_space(flow: Flow, dataset: Dataset, clock: Clock) -> tuple[FeatureSpace, list[str]]:
    """Features of the data, and what the metrics of a report need; what the time does not last for, as text."""
    space, cache = FeatureSpace(flow, dataset), open_cache()
    needs = {need for metric in _metrics(space).values() for need in metric.needs}
    space = FeatureSpace(flow, dataset, keep=needs)
    try:
        return space.learned(cache, seconds=FEATURES * clock.left), []
    except TooSlow:
        return space, [PIXELS_ALONE]


def _metrics(space: FeatureSpace) -> dict[str, Metric]:
    shape = space.whole(space.dataset.train, torch.zeros(1, dtype=torch.int64)).shape[1:]
    names = ["frechet", "memorisation"]
    names += ["class_accuracy"] if LABELS in space.offers else []
    names += ["marginals"] if len(shape) == 1 and shape[0] > 2 and space.modality.marginals else []
    return find_metrics(names, (), space.offers, space.modality.name)[0]


def trajectories(
    space: FeatureSpace, context: EvalContext, *, steps: int = STEPS, count: int, seed: int = 0
) -> tuple[Tensor, Tensor, list[str]]:
    """Trajectories of ``count`` samples from noise (t = 0) to data (t = 1), by so many midpoint steps.

    Returns times t (T,), states (T, n, *S) in data units, model units for tables, vectors in three dimensions or
    more as the first two principal components of training rows; and of images and sequences the conditions in words.
    """
    made = space.flow.sample(count, steps=steps, solver="midpoint", seed=seed, trajectory=True)
    places = torch.linspace(0, steps, TIMES).round().long()
    x = torch.stack([space.states(state) for state in made.x[places]])
    named = {name: value for name, value in made.encoded.items() if name != LENGTH}
    title, words = condition_words(condition_columns(named, space.flow.spec))
    words = [f"{title} {own}" if len(named) == 1 else own for own in words if x.ndim > 3]
    if x.ndim == 3 and x.shape[2] > 2:
        from sklearn.decomposition import PCA  # takes a second to import

        train = _train(context)
        chosen = train[subsample(len(train), FIT_ROWS, seed)].double().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):  # constant data have no variance to share out
            pca = PCA(2, random_state=0).fit(chosen)
        x = torch.from_numpy(pca.transform(x.flatten(0, 1).double().numpy())).float().reshape(*x.shape[:2], 2)
    return places / steps, x, words


def text_states(space: FeatureSpace, *, steps: int, count: int, seed: int = 0) -> dict[str, Any]:
    """States of ``count`` samples of tokens as text, from the source (t = 0) to the data (t = 1), at some times."""
    flow, modality = space.flow, space.modality
    assert isinstance(modality, TokensModality)
    made = flow.sample(count, steps=steps, solver=compared_solvers(flow)[-1], seed=seed, trajectory=True)
    assert made.times is not None
    places = torch.linspace(0, len(made.times) - 1, TEXTS).round().long().tolist()
    states = [modality.texts(made.x[place], made.encoded) for place in places]
    shown = [[printable(text[:TEXT_LENGTH]) for text in row] for row in zip(*states, strict=True)]
    return {"times": [made.times[place] for place in places], "states": shown}


def _train(context: EvalContext) -> Tensor:
    """Whole training rows."""
    assert context.train_samples is not None
    return context.train_samples


def _describe_data(space: FeatureSpace, context: EvalContext) -> dict[str, Any]:
    """Shape of the data in words and numbers, and the range of the training values, for pictures."""
    train = _train(context)
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
