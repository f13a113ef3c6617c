"""The features in which samples are compared with data, and the units that both are brought to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import Category, Conditions, without_padding
from advect.data import Components, Dataset, Expression, PixelScale, Split, count_noise
from advect.data.cells.conditions import CellSplit
from advect.data.cells.transform import Chain
from advect.data.tables.columns import Categories
from advect.data.tables.transform import TableTransform
from advect.evaluation.feature_network import SIDE, FeatureNetwork
from advect.metrics.base import COLUMNS, LABELS
from advect.metrics.statistics import CONDITION, FEATURES, SAMPLES, VALUES, subsample
from advect.model.flow import Flow

DIRECT_LIMIT, COMPONENTS, FIT_ROWS = 512, 128, 10_000
"""Most dimensions that are compared as they are; principal components beyond them, and rows they are fitted to."""

FIT_VALUES = 30_000_000
"""Principal components are fitted to so many values at most, and two rows a component at least."""

MOST_VALUES = 1000
"""Single values of a sample that are kept, evenly chosen."""

BATCH = 256

_OTHERS = ("frechet", "sliced_wasserstein", "wasserstein", "energy", "mmd", "two_sample")
USUAL = {
    "image": ("frechet", "kernel", "manifolds", "class_shares", "straightness"),
    "vector": (*_OTHERS, "marginals", "straightness"),
    "sequence": (*_OTHERS, "marginals", "straightness"),
    "cells": (*_OTHERS, "marginals", "energy_within", "straightness"),
    "table": (*_OTHERS, "columns", "straightness"),
}
"""The metrics that are usual for each kind of data, in the order of a table."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """The network in whose features images are compared, and how images are prepared for it."""

    features: Path | None = None
    """File with the network, such as the Inception of 2015; a TorchScript file runs the code in it. By default the
    values themselves up to 512 of them, else 128 principal components.
    """

    feature_size: int = SIDE
    """Height and width that it wants; 224 for DINOv2."""
    feature_mean: tuple[float, ...] = (128.0,)
    """What it wants subtracted from values of 0 to 255, one number or three; 123.7 116.3 103.5 for DINOv2."""
    feature_std: tuple[float, ...] = (128.0,)
    """What it wants them divided by then; 58.4 57.1 57.4 for DINOv2."""
    feature_bf16: bool = False
    """Compute in bfloat16: faster where the device has it, and comparable with the same only."""

    def __post_init__(self) -> None:
        changed = [f.name for f in fields(self) if f.name != "features" and getattr(self, f.name) != f.default]
        if self.features is None and changed:
            raise UserError(f"--{changed[0].replace('_', '-')} does nothing without --features; give it, too")

    def network(self, device: torch.device) -> FeatureNetwork | None:
        """The network on a device; None where none is named. Raises UserError for a file or values that do not do."""
        if self.features is None:
            return None
        return FeatureNetwork(
            self.features,
            size=self.feature_size,
            mean=self.feature_mean,
            std=self.feature_std,
            bf16=self.feature_bf16,
            device=device,
        )


@dataclass(frozen=True)
class Features:
    """A ``map`` of samples (n, *S) to features (n, d = ``dimensions``), float32.

    Attributes:
        name: in words.
        identity: equal ones are comparable, up to rounding.
        exact: equal ones are equal to the last bit.
        sha256: of the network's file.
        variance_kept: share of the training data's variance, in (0, 1].
        standardise: whether they are single values, each with its unit.
    """

    name: str
    identity: str
    exact: str
    dimensions: int
    map: Callable[[Tensor], Tensor]
    sha256: str | None = None
    variance_kept: float = 1.0
    standardise: bool = False

    def to_dict(self) -> dict[str, str | int]:
        """What a protocol says of them."""
        facts: dict[str, str | int] = {"name": self.name, "identity": self.identity, "dimensions": self.dimensions}
        return facts if self.sha256 is None else {**facts, "sha256": self.sha256}


@dataclass(frozen=True)
class Projection:
    """From x (N, *S) to (N, d): the values up to DIRECT_LIMIT of them, else principal components."""

    pca: Any = None

    @classmethod
    def fit(cls, train: Tensor, *, seed: int = 0) -> Projection:
        """Fit to at most FIT_ROWS rows of train (N, *S), the same on any number of threads."""
        if train[0].numel() <= DIRECT_LIMIT:
            return cls()
        from sklearn.decomposition import PCA  # takes a second to import
        from threadpoolctl import threadpool_limits

        chosen = train[subsample(len(train), FIT_ROWS, seed).sort().values].flatten(1).float().numpy()
        with threadpool_limits(1):
            return cls(PCA(min(COMPONENTS, len(chosen) - 1), random_state=seed % 2**32).fit(chosen))

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).float()
        return flat if self.pca is None else torch.from_numpy(self.pca.transform(flat.numpy()))


class FeatureSpace:
    """Samples of a flow and rows of its data, in the same units and features.

    Images, vectors and sequences are compared in data units, padding being 0; tables by distances in model units and
    by columns in their own, rounded as samples are; cells in expression: real ones as measured, samples of components
    with molecules counted, as ``advect sample`` writes them.

    Args:
        flow, dataset: a flow and its data.
        network: gives the features; by default the flow's components of expression, else values or their principal
            components.
        keep: kept beside features: VALUES, of a table all columns, else at most MOST_VALUES; SAMPLES, of samples
            alone.

    Raises:
        UserError: a network for other data than images.
    """

    def __init__(
        self, flow: Flow, dataset: Dataset, network: FeatureNetwork | None = None, *, keep: Iterable[str] = ()
    ) -> None:
        self.flow, self.dataset, self.network, self.keep = flow, dataset, network, frozenset(keep)
        stored = flow.facts.get("kind")
        self.kind = stored if stored in ("cells", "table") else flow.spec.kind
        self.categories = {name: c for name, c in flow.spec.conditions.items() if isinstance(c, Category)}
        self._scale = Expression(**flow.facts["expression"]) if self.kind == "cells" else None
        plain = {**flow.facts.get("expression", {}), "space": "expression"}
        self._counting = {**flow.facts, "expression": plain}  # scaled by each cell's own size, as data are
        if network is not None and self.kind != "image":
            raise UserError(
                f"--features {network.name} is for images, and this flow makes {self.kind} data; leave it out"
            )

    @property
    def offers(self) -> set[str]:
        """What these data have of what metrics need."""
        labels = {LABELS} if self.categories and len(self.dataset.held_out) else set()
        values = set() if self.kind == "image" else {VALUES, COLUMNS} if self.kind == "table" else {VALUES}
        return {SAMPLES} | labels | values

    @property
    def categorical(self) -> tuple[bool, ...]:
        """Of a table, whether each column is one of categories."""
        transform = self.flow.transform
        columns = transform.columns if isinstance(transform, TableTransform) else ()
        return tuple(isinstance(column, Categories) for column in columns)

    def samples(self, x: Tensor, cond: Conditions, *, first: int, seed: int) -> dict[str, Tensor]:
        """What is kept of samples x (n, *S) of the flow; ``first`` is the index of the first one."""
        parts = []
        for i in range(0, len(x), BATCH):
            some, part = x[i : i + BATCH], {name: value[i : i + BATCH] for name, value in cond.items()}
            if self._scale is not None:
                some = self._scale.forward(some)
                if self.flow.facts.get("counted"):
                    rng = CounterRng(stream_seed(seed, Stream.COUNTS), 0, len(some), start=first + i)
                    some = count_noise(some, self._counting, rng)
            kept = self._kept(some, part)
            parts.append(kept | ({SAMPLES: self._near(some).float()} if SAMPLES in self.keep else {}))
        return _joined(parts)

    def data(self, split: Split, places: Tensor) -> dict[str, Tensor]:
        """What is kept of the rows of a split at ``places`` (n,)."""
        return _joined([self._kept(*self._rows(split, some)) for some in places.split(BATCH)])

    def whole(self, split: Split, places: Tensor) -> Tensor:
        """Whole rows (n, *S) of a split, in the units of distances."""
        return torch.cat([self._near(self._rows(split, some)[0]) for some in places.split(BATCH)]).float()

    def states(self, x: Tensor) -> Tensor:
        """States (n, *S) on the way to a sample, in the units of distances."""
        return self._near(x if self._scale is None else self._scale.forward(x)).float()

    @cached_property
    def features(self) -> Features:
        """The features, fitted at the first use."""
        if self.network is not None:
            return self._of_network(self.network)
        parts = self.flow.transform.parts if isinstance(self.flow.transform, Chain) else ()
        components = next((part for part in parts if isinstance(part, Components)), None)
        if components is not None:
            k, identity = len(components.components), f"components of {self.dataset.fingerprint}"
            return Features(f"the flow's {k} components of expression", identity, self._exact(), k, components.forward)
        return self._of_data()

    def _of_network(self, network: FeatureNetwork) -> Features:
        scale = self.flow.transform
        low, high = (scale.low, scale.high) if isinstance(scale, PixelScale) else (0.0, 255.0)
        to_bytes = lambda x: network((x - low) * (255 / (high - low)))
        exact = f"{network.identity}, {self._exact()}"
        return Features(network.name, network.identity, exact, network.dimensions, to_bytes, network.sha256)

    def _of_data(self) -> Features:
        """The values themselves, or principal components of training rows."""
        train, (values, usual) = self.dataset.train, _words(self.flow.spec.kind)
        one = self.whole(train, torch.zeros(1, dtype=torch.int64))
        size = one[0].numel()
        if size <= DIRECT_LIMIT:
            name = {"table": "the table's scaled columns", "cells": "expression"}.get(self.kind, usual)
            identity, exact = f"values of {size} dimensions", f"values of {size} dimensions, {self._exact()}"
            return Features(name, identity, exact, size, Projection(), standardise=self.kind != "image")
        count = max(2 * COMPONENTS, min(FIT_ROWS, FIT_VALUES // size))
        fitted = Projection.fit(self.whole(train, subsample(len(train), count, 0).sort().values))
        k, digest = int(fitted.pca.n_components_), hashlib.sha256()
        for array in (fitted.pca.mean_, fitted.pca.components_):
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        return Features(
            name=f"the first {k} principal components of the training data's {size:,} {values}",
            identity=f"{k} principal components of training data {self.dataset.fingerprint}",
            exact=f"principal components {digest.hexdigest()}, {self._exact()}",
            dimensions=k,
            map=fitted,
            variance_kept=float(fitted.pca.explained_variance_ratio_.sum()),
        )

    def _rows(self, split: Split, places: Tensor) -> tuple[Tensor, Conditions]:
        """Rows of data (n, *S) in data units, or cells as measured expression, and their conditions."""
        batch = split.fetch(places.numpy())
        cond = batch.cond or {}
        if isinstance(split, CellSplit):
            return split.expression(places.numpy()), cond
        return without_padding(self.flow.transform.inverse(batch.x1), cond), cond

    def _near(self, x: Tensor) -> Tensor:
        """Where distances are taken: tables in model units."""
        return self.flow.transform.forward(x) if self.kind == "table" else x

    def _kept(self, x: Tensor, cond: Conditions) -> dict[str, Tensor]:
        kept = {FEATURES: self.features.map(self._near(x))}
        if VALUES in self.keep:
            flat = x.flatten(1)
            if self.kind == "table":
                kept[VALUES] = flat
            else:
                chosen = torch.linspace(0, flat.shape[1] - 1, min(MOST_VALUES, flat.shape[1])).round().long()
                kept[VALUES] = flat[:, chosen].float()
        return kept | {CONDITION + name: cond[name] for name in self.categories}

    def _exact(self) -> str:
        """The flow's transform to data units."""
        transform = self.flow.transform
        digest = hashlib.sha256(json.dumps(transform.to_config(), sort_keys=True).encode())
        for name, value in sorted(transform.tensors().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return f"units {digest.hexdigest()}"


def _words(kind: str) -> tuple[str, str]:
    return ("pixels", "pixel space") if kind == "image" else ("values", "data space")


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
