"""Feature space of samples and data, and their units."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Category, Conditions, Quantity
from advect.data import Dataset, Split
from advect.evaluation.feature_network import SIDE, FeatureNetwork
from advect.evaluation.learned_network import LearnedNetwork, learned_network
from advect.evaluation.workspace import ReferenceCache
from advect.metrics import calibration, flow_calibration
from advect.metrics.base import CALIBRATED_ROWS, COLUMNS, JUMPS, LABELS, ODE, QUANTITIES, TOKENS
from advect.metrics.flow_calibration import numeric_columns
from advect.metrics.statistics import CONDITION, FEATURES, SAMPLES, VALUES, subsample
from advect.model.flow import Flow

DIRECT_LIMIT, COMPONENTS, FIT_ROWS = 512, 128, 10_000
"""Most dimensions compared directly; beyond, principal components, and rows to fit them."""

FIT_VALUES = 30_000_000
"""Most values to fit principal components, but at least two rows a component."""

MOST_VALUES = 1000
"""Values stored per sample, evenly spaced."""

BATCH = 256


LEARNED, PIXELS = "learned", "pixels"
"""Features that are named, not read from a file."""

PIXEL_UNITS = ", black 0 and white 1"
"""Units of pixels that are compared."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Features of images: their network, and its preparation of images."""

    features: str | None = None
    """File of a network, such as Inception (TorchScript runs the code in it); "learned": a small network trained on
    the training data, the default for images; or "pixels": their values, or 128 components.
    """

    feature_size: int = SIDE
    """Input height and width; 224 for DINOv2."""
    feature_mean: tuple[float, ...] = (128.0,)
    """Mean subtracted from values of 0 to 255, one number or three; 123.7 116.3 103.5 for DINOv2."""
    feature_std: tuple[float, ...] = (128.0,)
    """Divisor after that; 58.4 57.1 57.4 for DINOv2."""
    feature_bf16: bool = False
    """Compute in bfloat16: faster where supported, comparable only with itself."""

    def __post_init__(self) -> None:
        changed = [f.name for f in fields(self) if f.name != "features" and getattr(self, f.name) != f.default]
        if self.features in (None, LEARNED, PIXELS) and changed:
            raise UserError(f"--{changed[0].replace('_', '-')} does nothing without --features FILE; give it, too")

    def network(self, device: torch.device) -> FeatureNetwork | None:
        """Network of the file on a device, or None. Raises UserError for an unusable file or value."""
        if self.features in (None, LEARNED, PIXELS):
            return None
        return FeatureNetwork(
            Path(self.features),
            size=self.feature_size,
            mean=self.feature_mean,
            std=self.feature_std,
            bf16=self.feature_bf16,
            device=device,
        )


@dataclass(frozen=True)
class Features:
    """``map`` from samples (n, *S) to features (n, d = ``dimensions``), float32.

    Attributes:
        name: description.
        identity: equal if comparable, up to rounding.
        exact: equal if bitwise equal.
        sha256: hash of the network's file.
        variance_kept: share of the training data's variance, in (0, 1].
        standardise: whether features have different units.
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
        """Description for a protocol."""
        facts: dict[str, str | int] = {"name": self.name, "identity": self.identity, "dimensions": self.dimensions}
        return facts if self.sha256 is None else {**facts, "sha256": self.sha256}


@dataclass(frozen=True)
class Projection:
    """Map x (N, *S) to (N, d): the values, or principal components beyond DIRECT_LIMIT, times ``scale``."""

    pca: Any = None
    scale: float = 1.0

    @classmethod
    def fit(cls, train: Tensor, *, seed: int = 0) -> Projection:
        """Fit to at most FIT_ROWS rows of train (N, *S), independently of the number of threads."""
        if train[0].numel() <= DIRECT_LIMIT:
            return cls()
        from sklearn.decomposition import PCA  # takes a second to import
        from threadpoolctl import threadpool_limits

        chosen = train[subsample(len(train), FIT_ROWS, seed).sort().values].flatten(1).float().numpy()
        with threadpool_limits(1), np.errstate(invalid="ignore", divide="ignore"):  # constant data have no variance
            return cls(PCA(min(COMPONENTS, len(chosen) - 1), random_state=seed % 2**32).fit(chosen))

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).float()
        found = flat if self.pca is None else torch.from_numpy(self.pca.transform(flat.numpy()))
        return found * self.scale


class FeatureSpace:
    """Samples of a flow and rows of its data, in the same units and features.

    Units are the modality's: data units with zero padding; for tables model units for distances and data units for
    columns, rounded as samples are; for cells measured expression, samples as written by ``advect sample``.

    Args:
        flow, dataset: a flow and its data.
        network: feature network of images; default the modality's features, else values or principal components.
        keep: tensors stored beside features: VALUES (all columns of a table, else at most MOST_VALUES), and
            SAMPLES (of samples only).

    Raises:
        UserError: a network for other data than images.
    """

    def __init__(
        self,
        flow: Flow,
        dataset: Dataset,
        network: FeatureNetwork | LearnedNetwork | None = None,
        *,
        keep: Iterable[str] = (),
    ) -> None:
        self.flow, self.dataset, self.network, self.keep = flow, dataset, network, frozenset(keep)
        self.modality = flow.modality
        self.categories = {name: c for name, c in flow.spec.conditions.items() if isinstance(c, Category)}
        if network is not None:
            self.modality.check_features(f"--features {network.name}")

    @property
    def offers(self) -> set[str]:
        """What the data provide of the metrics' needs."""
        labels = {LABELS} if self.categories and len(self.dataset.held_out) else set()
        columns = {COLUMNS} if self.modality.categorical else set()
        found = {SAMPLES} | labels | columns | ({VALUES} if self.modality.marginals else set())
        found |= {TOKENS} if self.modality.tokens else set()
        found.add(JUMPS if self.flow.discrete else ODE)
        if any(isinstance(c, Quantity) for c in self.dataset.spec.conditions.values()):
            found.add(QUANTITIES)
            found |= {CALIBRATED_ROWS} if self._calibrated else set()
        return found

    @cached_property
    def _calibrated(self) -> bool:
        """Whether the held-out rows are enough, and have few columns of numbers, for a claim of calibration."""
        held_out = self.dataset.held_out
        if len(held_out) < calibration.ROWS or len(self.dataset.spec.shape) != 1:
            return False
        row = self.dataset.transform.inverse(held_out.fetch(np.zeros(1, np.int64)).x1)
        return 1 <= len(numeric_columns(self.modality, row.shape[1])) <= flow_calibration.COLUMNS

    def samples(self, x: Tensor, cond: Conditions, *, first: int, seed: int) -> dict[str, Tensor]:
        """Stored tensors of samples x (n, *S), the first having index ``first``."""
        parts = []
        for i in range(0, len(x), BATCH):
            some = self.modality.measured(x[i : i + BATCH], first=first + i, seed=seed)
            stored = self._stored(some, {name: value[i : i + BATCH] for name, value in cond.items()})
            near = {SAMPLES: self.modality.feature_space(some).float()} if SAMPLES in self.keep else {}
            parts.append(stored | near)
        return _joined(parts)

    def data(self, split: Split, places: Tensor) -> dict[str, Tensor]:
        """Stored tensors of the rows of a split at ``places`` (n,)."""
        return _joined([self._stored(*self.modality.data(split, some.numpy())) for some in places.split(BATCH)])

    def whole(self, split: Split, places: Tensor) -> Tensor:
        """Whole rows (n, *S) of a split, in the units of distances."""
        parts = [self.modality.data(split, some.numpy())[0] for some in places.split(BATCH)]
        return torch.cat([self.modality.feature_space(x) for x in parts]).float()

    def states(self, x: Tensor) -> Tensor:
        """Intermediate states (n, *S), in the units of distances."""
        return self.modality.feature_space(self.modality.comparable(x)).float()

    @cached_property
    def features(self) -> Features:
        """Features, fitted at first use."""
        if self.network is not None:
            return self._of_network(self.network)
        components = self.modality.components
        if components is not None:
            k, identity = len(components.components), f"components of {self.dataset.fingerprint}"
            return Features(f"the flow's {k} components of expression", identity, self._exact(), k, components.forward)
        return self._of_data()

    def learned(self, cache: ReferenceCache, *, named: bool = False, seconds: float = math.inf) -> FeatureSpace:
        """With the features of a network trained on the data, where these are images that allow it, in at most so
        many seconds; see :func:`~advect.evaluation.learned_network.learned_network`. Collective.

        Raises UserError if the features are ``named`` and cannot be had.
        """
        if named:
            self.modality.check_features(f"--features {LEARNED}")
        if not self.modality.feature_networks or self.network is not None:
            return self
        network = learned_network(self.dataset, cache, self.flow.device, seconds)
        if named and network is None:
            raise UserError(f"--features {LEARNED} cannot be had for these data; give --features {PIXELS}")
        return FeatureSpace(self.flow, self.dataset, network, keep=self.keep)

    def _of_network(self, network: FeatureNetwork | LearnedNetwork) -> Features:
        exact = f"{network.identity}, {self._exact()}"
        if isinstance(network, LearnedNetwork):
            identity = f"learned {network.identity}"
            return Features(network.name, identity, exact, len(network.scale), network)
        low, high = self.modality.pixel_range or (0.0, 255.0)
        to_bytes = lambda x: network((x - low) * (255 / (high - low)))
        return Features(network.name, network.identity, exact, network.dimensions, to_bytes, network.sha256)

    def _of_data(self) -> Features:
        """The values, or principal components of training rows; of pixels in a range, as shares of it."""
        train, ends, words, scale = self.dataset.train, self.modality.pixel_range, "", 1.0
        if ends is not None:
            words, scale = PIXEL_UNITS, self.modality.transform.unit / (ends[1] - ends[0])
        size = self.whole(train, torch.zeros(1, dtype=torch.int64))[0].numel()
        if size <= DIRECT_LIMIT:
            identity, exact = f"values of {size} dimensions", f"values of {size} dimensions, {self._exact()}"
            standardise = self.modality.marginals
            unit = self.modality.transform.unit
            name = self.modality.space + (words or (f" in units of {unit:.3g}" if unit != 1 else ""))
            scaled = Projection(scale=scale)
            return Features(name, identity + words, exact + words, size, scaled, standardise=standardise)
        count = max(2 * COMPONENTS, min(FIT_ROWS, FIT_VALUES // size))
        rows = subsample(len(train), count, 0).sort().values
        fitted = replace(Projection.fit(self.whole(train, rows)), scale=scale)
        k, digest = int(fitted.pca.n_components_), hashlib.sha256()
        values = self.modality.value_name + words
        for array in (fitted.pca.mean_, fitted.pca.components_):
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        return Features(
            name=f"the first {k} principal components of the training data's {size:,} {values}",
            identity=f"{k} principal components of training data {self.dataset.fingerprint}{words}",
            exact=f"principal components {digest.hexdigest()}, {self._exact()}{words}",
            dimensions=k,
            map=fitted,
            variance_kept=float(fitted.pca.explained_variance_ratio_.sum()),
        )

    def _stored(self, x: Tensor, cond: Conditions) -> dict[str, Tensor]:
        stored = {FEATURES: self.features.map(self.modality.feature_space(x))}
        if self.keep & {VALUES, TOKENS}:
            flat = x.flatten(1)
            if self.modality.categorical or self.modality.tokens:
                stored[VALUES] = flat
            else:
                chosen = torch.linspace(0, flat.shape[1] - 1, min(MOST_VALUES, flat.shape[1])).round().long()
                stored[VALUES] = flat[:, chosen] / self.modality.transform.unit
        return stored | {CONDITION + name: cond[name] for name in self.categories}

    def _exact(self) -> str:
        """Hash of the flow's transform to data units."""
        transform = self.flow.transform
        digest = hashlib.sha256(json.dumps(transform.to_config(), sort_keys=True).encode())
        for name, value in sorted(transform.tensors().items()):
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return f"units {digest.hexdigest()}" + (f" by {transform.unit!r}" if transform.unit != 1 else "")


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
