"""Checks of a run's samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.checkpoint.manifest import find_weights, read_newest
from advect.core import registry
from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import NULL, Category, Conditions
from advect.data import Dataset, Split
from advect.doctor.report import Figure, Finding, Share
from advect.doctor.run import RunFacts
from advect.evaluation.features import Projection
from advect.evaluation.protocol import open_run
from advect.metrics import ProbeClassifier, class_accuracy, memorisation, nearest_neighbours

DATA_LIMIT, CLUSTERS = 5000, 10


def gather_samples(
    run: Path, samples: int, *, seed: int = 0, device: str = "auto", data: str | None = None
) -> SampleFacts:
    """Sample a run and compare with its data.

    Raises UserError without a checkpoint, for moved, changed or too few data, or ``samples`` below 16.
    """
    if samples < 16:
        raise UserError(f"--samples must be at least 16, got {samples}; 500 is usual")
    _, flow, source, _ = read_newest(run, lambda place: open_run(run, place, True, device, data), find_weights)
    train, held_out = rows_of(source, source.train, DATA_LIMIT), rows_of(source, source.held_out, DATA_LIMIT)
    made = flow.sample(samples, seed=seed)
    return compare(made.x, made.encoded, train, held_out, source, seed=seed)


def compare(
    x: Tensor,
    asked: Conditions | None,
    train: tuple[Tensor, Conditions | None],
    held_out: tuple[Tensor, Conditions | None],
    source: Dataset,
    *,
    seed: int = 0,
) -> SampleFacts:
    """Measure samples x (n, *S), with conditions ``asked``, beside data and their conditions, in data units."""
    space = source.modality.feature_space
    x, train, held_out = space(x), (space(train[0]), train[1]), (space(held_out[0]), held_out[1])
    fine = torch.isfinite(x.flatten(1)).all(1)
    count, data = int(fine.sum()), train[0]
    if count < 2 or len(data) < 2:
        return SampleFacts(samples=len(x), data=len(data), infinite=len(x) - count, shares={})
    x = x[fine]
    asked = {name: value[fine] for name, value in asked.items()} if asked else None
    features = Projection.fit(data, seed=seed)
    scale = _scale(features(data)) if source.modality.marginals else torch.ones(1)
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
            standardise = source.modality.marginals and features.pca is None
            apart = (features(held_out[0]), held_out[1][name])
            seen = (features(data), labels)
            probe = ProbeClassifier.of_data(apart, seen, standardise=standardise, seed=seed)
            if probe is not None and not probe.mistrust:
                found = class_accuracy(probe, (features(x), asked[name]), category=category, seed=seed)
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
        share_closer=memorisation(x, data, held_out[0]).share_closer if len(held_out[0]) > 1 else None,
    )


def rows_of(source: Dataset, split: Split, limit: int) -> tuple[Tensor, Conditions | None]:
    """At most ``limit`` evenly spaced samples (n, *S) of a split, in data units, and their conditions (n, ...)."""
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
    """Mean distance between rows of x (N, d), of at most 1,000."""
    few = x[CounterRng(stream_seed(seed, Stream.DOCTOR), 1, len(x)).permutation()[:1000]].double()
    return float(torch.pdist(few).mean())


def _shares(data: Tensor, samples: Tensor, names: list[str]) -> dict[str, tuple[float, float]]:
    """Share of each group in the labels (N,) of data and (n,) of samples, without NULL."""
    a, b = (torch.bincount(v[v != NULL], minlength=len(names)).double() for v in (data, samples))
    pairs = zip((a / a.sum().clamp(min=1)).tolist(), (b / b.sum().clamp(min=1)).tolist(), strict=True)
    return dict(zip(names, pairs, strict=True))


def _clusters(own: Tensor, real: Tensor, seed: int) -> dict[str, tuple[float, float]]:
    """Shares of the data's k-means clusters, in data and samples."""
    from sklearn.cluster import KMeans  # takes a second to import

    count = min(CLUSTERS, len(real) // 20)
    if count < 2:
        return {}
    means = KMeans(count, n_init=1, random_state=seed % 2**32).fit(real.numpy())  # pyright: ignore[reportArgumentType]
    data, samples = torch.from_numpy(means.labels_).long(), torch.from_numpy(means.predict(own.numpy())).long()
    return _shares(data, samples, [f"cluster {i}" for i in range(count)])


@dataclass(frozen=True, kw_only=True)
class SampleFacts:
    """Figures of samples beside data.

    Attributes:
        samples, data: numbers compared.
        infinite: non-finite samples, left out of the rest.
        spread, data_spread: mean distance between samples, and between rows of data, in feature space.
        groups: what the shares are of: the classes of a condition, or clusters.
        shares: share of the data and of the samples, by group.
        faithful: share of samples in the class asked for, and a classifier's accuracy on real data.
        share_closer: share of samples nearer to a training row than 99% of held-out rows.
    """

    samples: int
    data: int
    infinite: int = 0
    spread: float = 1.0
    data_spread: float = 1.0
    groups: str = "clusters"
    shares: dict[str, tuple[float, float]]
    faithful: tuple[float, float] | None = None
    share_closer: float | None = None


def check_finite(facts: SampleFacts) -> Finding | None:
    """Check for non-finite samples."""
    if not facts.infinite:
        return None
    return Finding(
        "problem",
        "Samples have NaN or infinite values",
        {"of them": facts.infinite, "samples": facts.samples},
        "sample in float32 with more --num-steps; train with a lower --learning-rate or --no-mixed-precision",
    )


def check_spread(facts: SampleFacts) -> Finding | None:
    """Check the distance between samples against that between data."""
    if not facts.data_spread:
        return None
    ratio = facts.spread / facts.data_spread
    figures: dict[str, Figure] = {
        "mean distance of two samples": facts.spread,
        "of two data": facts.data_spread,
        "ratio": ratio,
        "samples": facts.samples,
    }
    if ratio < 0.75:
        return Finding(
            "problem" if ratio < 0.5 else "note",
            "The samples are less varied than the data: a sign of mode collapse or of too much guidance",
            figures,
            "train longer, a larger network, --guidance 1, --no-use-ema for a short run",
        )
    if ratio > 1.4:
        return Finding(
            "problem" if ratio > 3 else "note",
            "The samples are wider spread than the data: they are not yet like them",
            figures,
            "train longer, more --num-steps, a larger network",
        )
    return Finding("ok", "The samples are as varied as the data", figures)


def check_shares(facts: SampleFacts) -> Finding | None:
    """Check for missing groups, beyond chance."""
    if len(facts.shares) < 2:
        return None
    away = sum(abs(a - b) for a, b in facts.shares.values()) / 2
    chance = sum((a * (1 - a) / max(facts.samples, 1)) ** 0.5 for a, _ in facts.shares.values()) * 0.4
    missing = [name for name, (a, b) in facts.shares.items() if a * facts.samples >= 8 and b < a / 4]
    figures: dict[str, Figure] = {
        "groups": f"{len(facts.shares)} {facts.groups}",
        "share elsewhere": Share(away),
        "by chance": Share(chance),
        "samples": facts.samples,
    }
    if missing:
        worst = missing[0]
        figures |= {"nearly missing": ", ".join(missing[:5])}
        figures |= {
            f"{worst} in {what}": Share(share)
            for what, share in zip(("data", "samples"), facts.shares[worst], strict=True)
        }
        return Finding(
            "problem",
            "Mode collapse: the samples nearly leave out groups of the data",
            figures,
            "train longer, a larger network or --batch-size; for rare classes more data, or ask for them with --cond",
        )
    if away > 0.1 + 2 * chance:
        return Finding(
            "note",
            "The groups' shares in the samples differ from those in the data",
            figures,
            "train longer, or a larger network",
        )
    return Finding("ok", "The samples have all groups of the data in about their shares", figures)


def check_faithful(facts: SampleFacts) -> Finding | None:
    """Check for samples without the class asked for."""
    if facts.faithful is None:
        return None
    share, accuracy = facts.faithful
    figures: dict[str, Figure] = {"as asked for": Share(share), "classifier on real data": Share(accuracy)}
    figures |= {"samples": facts.samples}
    if share < 0.75 * accuracy:
        return Finding(
            "problem" if share < 0.4 * accuracy else "note",
            "Many samples do not show the class asked for",
            figures,
            "train longer, or sample with --guidance 2",
        )
    return Finding("ok", "The samples show the classes asked for", figures)


def check_memorisation(facts: SampleFacts) -> Finding | None:
    """Check for copies of training data."""
    if facts.share_closer is None:
        return None
    return memorised(facts.share_closer, {"samples": facts.samples})


def memorised(share: float, figures: dict[str, Figure]) -> Finding:
    """Finding on the share of samples nearer to training data than 99% of held-out data."""
    figures = {"closer to a training row than 99% of held-out rows": Share(share), "expected": Share(0.01), **figures}
    if share <= 0.1:
        return Finding("ok", "The samples are no copies of the training data", figures)
    return Finding(
        "problem" if share > 0.3 else "note",
        "The run memorises: samples lie closer to training data than new data do",
        figures,
        "fewer epochs, more data, a smaller network, more --dropout, --augment geometric for images",
    )


SAMPLE_CHECKS: tuple[Callable[[SampleFacts], Finding | None], ...] = (
    check_finite,
    check_spread,
    check_shares,
    check_faithful,
    check_memorisation,
)


def check_quality(run: RunFacts) -> Finding | None:
    """Check the distance measured by ``advect report``, and the number of solver steps."""
    frechet = _section(run, "frechet")
    if not frechet:
        return None
    best, floor = frechet["best"], float(frechet["floor"])
    figures: dict[str, Figure] = {
        "Frechet distance": float(best["distance"]),
        "evaluations": int(best["nfe"]),
        "floor (real data)": floor,
        "samples": int(frechet["samples"]),
    }
    own = _own_distance(run, frechet["curves"])
    if own is not None and own[1] > 1.5 * best["distance"] and own[0] < best["nfe"]:
        return Finding(
            "note",
            "The run's own solver takes too few steps",
            {**figures, "evaluations of the run's own": own[0], "their distance": own[1]},
            _sampler_flags(best),
        )
    if best["distance"] <= 5 * floor:
        return Finding("ok", "The samples' distance to held-out data is near that of real data", figures)
    return Finding(
        "note",
        "The samples are much farther from held-out data than real data are",
        figures,
        "train longer, a larger network, more data; or another --times, --weight or --coupling",
    )


def _sampler_flags(best: Mapping[str, Any]) -> str:
    """Flags of a report's best point; older ones do not tell its steps."""
    solver, steps = str(best["solver"]), best.get("steps")
    if steps is None and solver in registry.choices("solver"):
        steps = max(1, round(best["nfe"] / registry.get("solver", solver).evaluations))  # pyright: ignore[reportAttributeAccessIssue]
    return f"advect sample --solver {solver}" + (f" --num-steps {steps}" if steps else "")


def check_copies(run: RunFacts) -> Finding | None:
    """Check the memorisation measured by ``advect report``."""
    found = _section(run, "memorisation")
    return memorised(float(found["share_closer"]), {"measured by": "advect report"}) if found else None


def check_solver(run: RunFacts) -> Finding | None:
    """Check for sample grids with too few evaluations."""
    if run.nfe is None or run.nfe >= 16:
        return None
    output = {name: run.option("output", name) for name in ("solver", "sample_steps")}
    return Finding(
        "note",
        "The run's samples are drawn with few evaluations of the network",
        {**output, "evaluations": run.nfe},
        "--num-steps 50 of advect sample, before the samples are judged",
    )


def _section(run: RunFacts, name: str) -> dict[str, Any]:
    found = (run.quality or {}).get(name)
    return found if isinstance(found, dict) else {}


def _own_distance(run: RunFacts, curves: dict[str, Any]) -> tuple[int, float] | None:
    """The measured number of evaluations nearest to those of the run's sampler, and its distance."""
    curve, own = curves.get(run.option("output", "solver", "")), run.nfe
    if not curve or own is None:
        return None
    place = min(range(len(curve["nfe"])), key=lambda i: abs(curve["nfe"][i] - own))
    return int(curve["nfe"][place]), float(curve["distance"][place])


QUALITY_CHECKS: tuple[Callable[[RunFacts], Finding | None], ...] = (check_quality, check_copies, check_solver)
