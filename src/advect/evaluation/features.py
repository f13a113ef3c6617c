"""The space in which sets of samples are compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.evaluation.feature_network import FeatureNetwork
from advect.evaluation.inception import SIDE
from advect.evaluation.subsampling import rows

DIRECT_LIMIT, COMPONENTS, FIT_ROWS = 512, 128, 10_000


@dataclass(frozen=True)
class Features:
    """Maps x (N, *S) to (N, d): the values themselves up to 512 dimensions, else 128 principal components.

    Attributes:
        name: the space in words.
        dimensions: d.
        variance_kept: the share of the training data's variance that lies in them, in (0, 1].
    """

    name: str
    dimensions: int
    variance_kept: float
    projection: Any = None

    @classmethod
    def fit(cls, train: Tensor, *, kind: str, seed: int = 0, space: str | None = None) -> Features:
        """Choose the space for train (N, *S); components are fitted to at most 10,000 of its rows.

        ``space`` is what the units of train are called, where they are not those of the data.
        """
        values, usual = ("pixels", "pixel space") if kind == "image" else ("values", "data space")
        dimension = train[0].numel()
        if dimension <= DIRECT_LIMIT:
            return cls(space or usual, dimension, 1.0)
        from sklearn.decomposition import PCA  # takes a second to import

        chosen = train[rows(len(train), FIT_ROWS, seed).sort().values].flatten(1).float().numpy()
        pca = PCA(min(COMPONENTS, len(chosen) - 1), random_state=seed % 2**32).fit(chosen)
        count = int(pca.n_components_)
        name = f"the first {count} principal components of the training data's {dimension:,} {values}"
        return cls(name, count, float(pca.explained_variance_ratio_.sum()), pca)

    @property
    def identity(self) -> str:
        """What equal features need to have in common, as of a network its hash."""
        if self.projection is None:
            return f"values of {self.dimensions} dimensions"
        digest = hashlib.sha256()
        for array in (self.projection.mean_, self.projection.components_):
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
        return f"principal components {digest.hexdigest()}"

    def __call__(self, x: Tensor) -> Tensor:
        """Map x (N, *S) to (N, d), float32."""
        flat = x.flatten(1).float()
        return flat if self.projection is None else torch.from_numpy(self.projection.transform(flat.numpy()))


@dataclass(frozen=True, kw_only=True)
class FeatureArguments:
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
