"""All measurements of a trained flow, written where a report finds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.files import make_folder, write_text_whole
from advect.core.types import Category, Conditions, DataSpec, Quantity
from advect.evaluation import record
from advect.evaluation.drawing import Flow, conditions_like, rows
from advect.evaluation.features import FIT_ROWS, Features
from advect.evaluation.fidelity import measure_fidelity
from advect.evaluation.marginals import measure_marginals
from advect.evaluation.memorisation import measure_memorisation
from advect.evaluation.progress import Progress, Tick, ticking
from advect.evaluation.quality import HELD_OUT_LIMIT, NFES, SOLVERS, measure_quality, plan
from advect.evaluation.trajectories import draw_trajectories
from advect.metrics import check_samples

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
        "marginals": measure_marginals(quality.final, train, few, seed=seed) if wide else {},
        "memorisation": record.describe_memorisation(memory),
    }
    write_text_whole(folder / "quality.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
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
