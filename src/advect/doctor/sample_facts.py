"""Samples of a run, drawn and measured beside its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng
from advect.core.types import NULL, Category, Conditions
from advect.data import Source, Split
from advect.doctor.sample_checks import SampleFacts
from advect.evaluation import Features, conditions_like, measure_fidelity, measure_memorisation
from advect.metrics import nearest_neighbours
from advect.runs.arguments import parse_config
from advect.runs.build import build_source
from advect.runs.loading import load

DATA_LIMIT, CLUSTERS = 5000, 10


def gather_samples(run: Path, samples: int, *, seed: int = 0, device: str = "auto") -> SampleFacts:
    """Draw ``samples`` samples of a run and compare them with its data.

    Raises UserError where the run has no checkpoint, its data have moved or are too few, or ``samples`` is below 16.
    """
    if samples < 16:
        raise UserError(f"--samples must be at least 16, got {samples}; 500 is usual")
    flow = load(run, device=device)
    folder = run if (run / "config.yaml").is_file() else run.absolute().parent.parent
    source = build_source(parse_config(folder / "config.yaml")[1].data)
    train, cond = rows_of(source, source.train, DATA_LIMIT)
    held_out, held_cond = rows_of(source, source.held_out, DATA_LIMIT)
    asked = conditions_like(cond, samples, seed)
    x = flow.sample(samples, seed=seed, cond={**asked} if asked else None).detach().cpu()
    return compare(x, asked, (train, cond), (held_out, held_cond), source, seed=seed)


def compare(
    x: Tensor,
    asked: Conditions | None,
    train: tuple[Tensor, Conditions | None],
    held_out: tuple[Tensor, Conditions | None],
    source: Source,
    *,
    seed: int = 0,
) -> SampleFacts:
    """Measure samples x (n, *S), drawn for the conditions ``asked``, beside data with theirs, all in data units."""
    fine = torch.isfinite(x.flatten(1)).all(1)
    count, data = int(fine.sum()), train[0]
    if count < 2 or len(data) < 2:
        return SampleFacts(samples=len(x), data=len(data), infinite=len(x) - count, shares={})
    x = x[fine]
    asked = {name: value[fine] for name, value in asked.items()} if asked else None
    features = Features.fit(data, kind=source.spec.kind, seed=seed)
    scale = _scale(features(data)) if source.spec.kind != "image" else torch.ones(1)
    own, real = features(x) / scale, features(data) / scale
    name = next((n for n, c in source.spec.conditions.items() if isinstance(c, Category)), None)
    groups, shares, faithful = "clusters", {}, None
    if name is not None and train[1] and asked:
        category = source.spec.conditions[name]
        assert isinstance(category, Category)
        labels = train[1][name]
        seen = labels[nearest_neighbours(own, real).indices[:, 0]]
        groups, shares = f"classes of {name}", _shares(labels, seen, list(category.names))
        if held_out[1] and len(held_out[0]) > 1:
            found = measure_fidelity(
                x,
                asked[name],
                (data, labels),
                (held_out[0], held_out[1][name]),
                features=features,
                category=category,
                standardise=source.spec.kind == "vector" and features.projection is None,
                seed=seed,
            )
            faithful = (found.share, found.classifier_accuracy) if found else None
    else:
        shares = _clusters(own, real, seed)
    return SampleFacts(
        samples=len(fine),
        data=len(data),
        infinite=len(fine) - count,
        spread=_spread(own, seed),
        data_spread=_spread(real, seed),
        groups=groups,
        shares=shares,
        faithful=faithful,
        share_closer=measure_memorisation(x, data, held_out[0]).share_closer if len(held_out[0]) > 1 else None,
    )


def rows_of(source: Source, split: Split, limit: int) -> tuple[Tensor, Conditions | None]:
    """At most ``limit`` samples (n, *S) of a split, evenly spaced, in data units, and their conditions (n, ...)."""
    if not len(split):
        return torch.empty(0, *source.spec.shape), None
    places = np.linspace(0, len(split) - 1, min(len(split), limit)).round().astype(np.int64)
    batches = [split.fetch(places[i : i + 256]) for i in range(0, len(places), 256)]
    x = torch.cat([source.transform.inverse(b.x1) for b in batches])
    names = batches[0].cond or {}
    return x, {name: torch.cat([(b.cond or {})[name] for b in batches]) for name in names} or None


def _scale(x: Tensor) -> Tensor:
    deviation = x.std(0)
    return torch.where(deviation > 0, deviation, 1)


def _spread(x: Tensor, seed: int) -> float:
    """The mean distance between two different rows of x (N, d), over at most 1,000 of them."""
    few = x[CounterRng(seed, 1, len(x)).permutation()[:1000]].double()
    return float(torch.pdist(few).mean())


def _shares(data: Tensor, samples: Tensor, names: list[str]) -> dict[str, tuple[float, float]]:
    """The share of each group in the labels (N,) of data and (n,) of samples, both without NULL."""
    a, b = (torch.bincount(v[v != NULL], minlength=len(names)).double() for v in (data, samples))
    pairs = zip((a / a.sum().clamp(min=1)).tolist(), (b / b.sum().clamp(min=1)).tolist(), strict=True)
    return dict(zip(names, pairs, strict=True))


def _clusters(own: Tensor, real: Tensor, seed: int) -> dict[str, tuple[float, float]]:
    """The shares of clusters of the data, found by k-means, in data and samples."""
    from sklearn.cluster import KMeans  # takes a second to import

    count = min(CLUSTERS, len(real) // 20)
    if count < 2:
        return {}
    means = KMeans(count, n_init=1, random_state=seed % 2**32).fit(real.numpy())  # pyright: ignore[reportArgumentType]
    data, samples = torch.from_numpy(means.labels_).long(), torch.from_numpy(means.predict(own.numpy())).long()
    return _shares(data, samples, [f"cluster {i}" for i in range(count)])
