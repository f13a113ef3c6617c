"""All measurements of a trained flow, written where a report finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import atomic_write, atomic_write_text, make_folder
from advect.core.types import Category, Conditions, DataSpec, Quantity
from advect.evaluation import study as record
from advect.evaluation.class_accuracy import Fidelity, measure_fidelity
from advect.evaluation.features import FIT_ROWS, Features
from advect.evaluation.memorisation import PERCENTILE, Memorisation, measure_memorisation
from advect.evaluation.scores import measure_feature_marginals
from advect.evaluation.subsampling import Flow, conditions_like, conditions_of, rows
from advect.evaluation.workspace import Progress, Tick, ticking
from advect.metrics import GaussianFit, check_samples
from advect.solvers import get_solver

NFES = (1, 2, 4, 8, 16, 32, 64)
SOLVERS = ("euler", "midpoint")
HELD_OUT_LIMIT = 10_000


@dataclass(frozen=True)
class Quality:
    """Squared Frechet distances to held-out data, in squared data units.

    Attributes:
        samples: how many samples each set has, the training data's for the floor included.
        held_out: how many held-out rows they are compared with.
        floor: the distance of that many training rows, which a perfect flow would reach.
        curves: for each solver its distances by the number of network evaluations a sample (NFE).
        final: the samples (n, *S) of the last solver at its largest NFE.
    """

    samples: int
    held_out: int
    features: Features
    floor: float
    curves: dict[str, dict[int, float]]
    final: Tensor = field(repr=False)

    @property
    def best(self) -> tuple[str, int, float]:
        """Solver, NFE and distance of the smallest distance; of equal ones, the cheapest."""
        points = [(d, nfe, solver) for solver, curve in self.curves.items() for nfe, d in curve.items()]
        distance, nfe, solver = min(points)
        return solver, nfe, distance


def plan(nfes: Sequence[int], solvers: Sequence[str]) -> dict[str, list[int]]:
    """The NFEs that each solver can meet exactly, ascending; UserError when one has none."""
    if not nfes or any(nfe < 1 for nfe in nfes):
        raise UserError(f"nfes must be whole numbers of at least 1, got {list(nfes)}; the default is {list(NFES)}")
    cost = {solver: get_solver(solver).evaluations for solver in solvers}
    chosen = {solver: sorted({nfe for nfe in nfes if nfe % cost[solver] == 0}) for solver in solvers}
    for solver, possible in chosen.items():
        if not possible:
            raise UserError(
                f"nfes {list(nfes)} hold no multiple of {cost[solver]}, which a step of {solver} costs; add one"
            )
    return chosen


def measure_quality(
    flow: Flow,
    train: Tensor,
    held_out: Tensor,
    *,
    features: Features,
    cond: Conditions | None = None,
    samples: int = 1000,
    nfes: Sequence[int] = NFES,
    solvers: Sequence[str] = SOLVERS,
    seed: int = 0,
    tick: Tick = lambda what, nfe: None,
) -> Quality:
    """Measure the distance from the flow's samples to held_out (M, *S), for each solver and NFE.

    ``cond`` holds the conditions (samples,) to ask for. All sets start from the same noise. The distance
    depends on the number of samples, so the floor takes as many rows of train (N, *S). ``tick`` is called with
    the NFE after each set. Raises UserError when ``samples`` exceeds N, and for NFEs that a solver cannot meet.
    """
    if not 2 <= samples <= len(train):
        raise UserError(f"samples must be in 2 .. {len(train)} (the number of training rows), got {samples}")
    held_out = held_out[rows(len(held_out), HELD_OUT_LIMIT, seed)]
    target = GaussianFit.from_samples(features(held_out), argument="held_out")
    real = features(train[rows(len(train), samples, seed)])
    floor = GaussianFit.from_samples(real, argument="train").distance(target)
    curves: dict[str, dict[int, float]] = {}
    x, wanted = train[:0], conditions_of(cond)
    for solver, possible in plan(nfes, solvers).items():
        curves[solver] = {}
        for nfe in possible:
            steps = nfe // get_solver(solver).evaluations
            x = flow.sample(samples, steps=steps, solver=solver, seed=seed, cond=wanted).detach().cpu()
            fit = GaussianFit.from_samples(features(x), argument=f"samples of {solver} with NFE {nfe}")
            curves[solver][nfe] = fit.distance(target)
            tick(f"{solver} at NFE {nfe}", nfe)
    return Quality(samples, len(held_out), features, floor, curves, x)


def draw_trajectories(
    flow: Flow, count: int, *, cond: Conditions | None = None, times: int = 10, steps: int = 36, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Follow ``count`` samples, of conditions (count,), by the midpoint method.

    Returns ``times`` evenly spaced times t (T,) from 0 (noise) to 1 (data) and the states (T, count, *S) in
    data units. Raises UserError unless 2 <= times <= steps + 1.
    """
    if not 2 <= times <= steps + 1:
        raise UserError(f"times must be in 2 .. {steps + 1} (steps + 1), got {times}")
    wanted = conditions_of(cond)
    states = flow.sample(count, steps=steps, solver="midpoint", seed=seed, cond=wanted, trajectory=True)
    places = torch.linspace(0, steps, times).round().long()
    return places / steps, states.detach().cpu()[places]


FORMAT = 1


def describe_data(spec: DataSpec, train: Tensor) -> dict[str, Any]:
    """Kind and shape of the data, and the range of the training values, which pictures use."""
    return {
        "kind": spec.kind,
        "shape": list(spec.shape),
        "low": float(train.min()),
        "high": float(train.max()),
        "train": len(train),
    }


def describe_quality(quality: Quality) -> dict[str, Any]:
    """The distances, the space they were taken in, and how many samples they compare."""
    solver, nfe, distance = quality.best
    return {
        "features": quality.features.name,
        "dimensions": quality.features.dimensions,
        "variance_kept": quality.features.variance_kept,
        "samples": quality.samples,
        "held_out": quality.held_out,
        "floor": quality.floor,
        "best": {"solver": solver, "nfe": nfe, "distance": distance},
        "curves": {name: {"nfe": list(c), "distance": list(c.values())} for name, c in quality.curves.items()},
    }


def describe_fidelity(found: Fidelity) -> dict[str, Any]:
    """The shares, and how many rows they were taken from."""
    classes = [{"name": name, "samples": n, "share": share} for name, n, share in found.by_class]
    return vars(found) | {"by_class": classes}


def describe_memorisation(memory: Memorisation) -> dict[str, Any]:
    """The distances in a few numbers."""
    return {
        "percentile": PERCENTILE,
        "threshold": memory.threshold,
        "share_closer": memory.share_closer,
        "median_sample": float(memory.sample_distances.median()),
        "median_held_out": float(memory.held_out_distances.median()),
    }


def memorisation_arrays(memory: Memorisation) -> dict[str, Tensor]:
    """The tensors of a Memorisation by their names."""
    return {name: value for name, value in vars(memory).items() if isinstance(value, Tensor)}


def write_arrays(path: Path, arrays: dict[str, Tensor]) -> None:
    """Write tensors as a compressed .npz without pickle, whole or not at all; float64 becomes float32."""
    plain = {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in arrays.items()}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **plain)

    atomic_write(path, write)


TRAJECTORIES = {"image": 8, "vector": 200, "sequence": 4}


def study(
    flow: Flow,
    train: Tensor,
    held_out: Tensor,
    out_dir: Path | str,
    *,
    train_cond: Conditions | None = None,
    held_out_cond: Conditions | None = None,
    samples: int = 1000,
    nfes: Sequence[int] = NFES,
    solvers: Sequence[str] = SOLVERS,
    seed: int = 0,
    progress: Progress | bool = False,
    space: str | None = None,
) -> dict[str, Any]:
    """Measure quality, fidelity, marginals, trajectories and memorisation of a flow, and write them to ``out_dir``.

    ``train (N, *S)`` and ``held_out (M, *S)`` are in data units, with conditions (N,) and (M,) for each
    condition of the flow's spec. At most ``samples`` samples are drawn a set, and no more than N, because the
    floor needs as many training rows. ``progress`` is called after each part; True shows a bar. ``space`` is what the
    units are called where they are not the data's. Vectors in three dimensions or more are compared feature by feature
    too, and their trajectories are kept in the training data's first two principal components.

    Writes trajectories.npz, neighbours.npz and, last, quality.json, each whole or not at all and equal for
    equal arguments; returns what quality.json holds. Raises UserError for shapes, conditions and NFEs that do
    not fit, and values that are not finite.
    """
    train, train_cond = _check(flow.spec, train, train_cond, "train")
    held_out, held_out_cond = _check(flow.spec, held_out, held_out_cond, "held_out")
    work = sum(sum(possible) for possible in plan(nfes, solvers).values())
    folder = make_folder(Path(out_dir), "out_dir")
    features = Features.fit(train, kind=flow.spec.kind, seed=seed, space=space)
    data = (train, held_out, train_cond, held_out_cond)
    with ticking(progress, work + 3) as tick:
        quality = measure_quality(
            flow,
            train,
            held_out,
            features=features,
            cond=conditions_like(train_cond, min(samples, len(train)), seed),
            samples=min(samples, len(train)),
            nfes=nfes,
            solvers=solvers,
            seed=seed,
            tick=tick,
        )
        faithful = _fidelity(flow.spec, quality.final, features, *data, seed=seed)
        tick("fidelity", 1)
        few = held_out[rows(len(held_out), HELD_OUT_LIMIT, seed)]
        memory = measure_memorisation(quality.final, train, few)
        tick("nearest neighbours", 1)
        _follow(flow, folder, train, train_cond, seed, tick)
    wide = flow.spec.kind == "vector" and flow.spec.shape[0] > 2
    record.write_arrays(folder / "neighbours.npz", record.memorisation_arrays(memory))
    last = list(quality.curves)[-1]
    result = {
        "format": record.FORMAT,
        "seed": seed,
        "data": record.describe_data(flow.spec, train),
        "frechet": record.describe_quality(quality),
        "samples_by": {"solver": last, "nfe": max(quality.curves[last])},
        "fidelity": faithful,
        "marginals": measure_feature_marginals(quality.final, train, few, seed=seed) if wide else {},
        "memorisation": record.describe_memorisation(memory),
    }
    atomic_write_text(folder / "quality.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _check(spec: DataSpec, x: Tensor, cond: Conditions | None, argument: str) -> tuple[Tensor, Conditions]:
    """Return x (N, *S) and its conditions (N,) on the CPU; UserError unless they are what the spec says."""
    check_samples(x, argument, at_least=2)
    if x.shape[1:] != spec.shape:
        raise UserError(f"{argument} must have samples of shape {spec.shape}, got {tuple(x.shape[1:])}")
    given = cond or {}
    if set(given) != set(spec.conditions):
        raise UserError(
            f"{argument}_cond must hold the flow's conditions {sorted(spec.conditions)}, got {sorted(given)}"
        )
    for name, value in given.items():
        kind = spec.conditions[name]
        shape = (len(x), len(kind.mean)) if isinstance(kind, Quantity) else (len(x),)
        if value.shape != shape:
            raise UserError(f"{argument}_cond[{name!r}] must have shape {shape}, got {tuple(value.shape)}")
    return x.detach().cpu(), {name: value.cpu() for name, value in given.items()}


def _fidelity(
    spec: DataSpec,
    samples: Tensor,
    features: Features,
    train: Tensor,
    held_out: Tensor,
    train_cond: Conditions,
    held_out_cond: Conditions,
    *,
    seed: int,
) -> dict[str, Any]:
    """The fidelity to each categorical condition for which it can be measured, by its name."""
    asked = conditions_like(train_cond, len(samples), seed) or {}
    found = {
        name: measure_fidelity(
            samples,
            asked[name],
            (train, train_cond[name]),
            (held_out, held_out_cond[name]),
            features=features,
            category=category,
            standardise=spec.kind != "image" and features.projection is None,
            seed=seed,
        )
        for name, category in spec.conditions.items()
        if isinstance(category, Category)
    }
    return {name: record.describe_fidelity(f) for name, f in found.items() if f is not None}


def _follow(flow: Flow, folder: Path, train: Tensor, train_cond: Conditions, seed: int, tick: Tick) -> None:
    """Draw and write the trajectories."""
    count = TRAJECTORIES.get(flow.spec.kind, 8)
    cond = conditions_like(train_cond, count, seed)
    t, x = draw_trajectories(flow, count, cond=cond, seed=seed)
    if flow.spec.kind == "vector" and x.shape[2] > 2:
        x = _components(x, train[rows(len(train), FIT_ROWS, seed)])
    record.write_arrays(folder / "trajectories.npz", {"t": t, "x": x})
    tick("trajectories", 1)


def _components(x: Tensor, train: Tensor) -> Tensor:
    """States (T, n, D) in the first two principal components of train (N, D)."""
    from sklearn.decomposition import PCA  # takes a second to import

    pca = PCA(2, random_state=0).fit(train.double().numpy())
    return torch.from_numpy(pca.transform(x.flatten(0, 1).double().numpy())).float().reshape(*x.shape[:2], 2)
