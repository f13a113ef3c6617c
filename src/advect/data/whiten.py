"""Decorrelation of vectors, fitted to their mean and shrunk covariance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.records import as_record
from advect.data.transforms import Transform, transform_from_config

if TYPE_CHECKING:
    from advect.data.tables.rules import Constraints

FLOOR = 1e-6
"""Variance added to each element before whitening, in standard deviations squared."""

_SHRINKAGE = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
_FOLDS, _FOLDED = 5, 5000


@dataclass(frozen=True, eq=False)
class Whiten(Transform):
    """``inner``, then ``z = root^-1 (y - mean)`` of its model units y (B, D), so that z has mean 0 and covariance 1.

    Args:
        inner: a transform to model units.
        mean: (D,) float64, of y.
        root: (D, D) float64, lower triangle of positive diagonal: the Cholesky factor of the covariance of y.

    Raises UserError if root is no such matrix, or mean of another length.
    """

    inner: Transform
    mean: Tensor
    root: Tensor
    kind: ClassVar[str] = "whiten"
    mixes: ClassVar[str] = "whitened"

    def __post_init__(self) -> None:
        root = self.root
        fits = root.shape == (*self.mean.shape, len(self.mean)) and bool((root.diagonal() > 0).all())
        if not fits or not bool(torch.isfinite(root).all()) or bool(root.triu(1).any()):
            raise UserError(f"root must be a finite lower triangle with a positive diagonal, got {tuple(root.shape)}")

    @classmethod
    def fit(cls, inner: Transform, y: Tensor) -> Whiten:
        """Fit mean and covariance of y (N, D), in the model units of ``inner``.

        Its off-diagonal part is shrunk by the share, of a few, that makes held-out rows of five folds likeliest, and
        ``FLOOR`` is added to each variance, as in scikit-learn's GaussianMixture.

        Raises UserError for rows with holes.
        """
        if bool(y.isnan().any()):
            raise UserError("rows with holes are not whitened, which mixes their entries; give whiten=False")
        some = y[:_FOLDED].double()
        share = max(_SHRINKAGE, key=lambda share: _gaussian_score(some, share)) if len(some) > _FOLDS else 1.0
        mean = y.mean(0, dtype=torch.float64)
        covariance = torch.stack([(z := part - mean).mT @ z for part in y.split(4096)]).sum(0) / len(y)
        return cls(inner, mean, torch.linalg.cholesky(_shrunk(covariance, share)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner.forward(x) - self.mean.to(x.device)
        return torch.linalg.solve_triangular(self.root.to(y.device), y.mT, upper=False).mT.contiguous().float()

    def inverse(self, x: Tensor) -> Tensor:
        return self.inner.inverse(self._coloured(x))

    def unrounded(self, x: Tensor) -> Tensor:
        return self.inner.unrounded(self._coloured(x))

    def _coloured(self, x: Tensor) -> Tensor:
        return (x.double() @ self.root.to(x.device).mT + self.mean.to(x.device)).float()

    def centred(self, x: Tensor) -> Tensor:
        return self.inner.centred(x)

    @property
    def unit(self) -> float:
        return self.inner.unit

    @property
    def constraints(self) -> Constraints | None:
        return self.inner.constraints

    def log_det(self, elements: int) -> float:
        return self.inner.log_det(elements) - self.root.diagonal().log().sum().item()

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "inner": self.inner.to_config()}

    def tensors(self) -> dict[str, Tensor]:
        return {
            "mean": self.mean,
            "root": self.root,
            **{f"inner.{name}": value for name, value in self.inner.tensors().items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Transform:
        inner = {name.removeprefix("inner."): value for name, value in tensors.items() if name.startswith("inner.")}
        own = as_record(config, dict[str, dict[str, Any]], "the whiten transform")
        return cls(transform_from_config(own["inner"], inner), tensors["mean"], tensors["root"])


def _shrunk(covariance: Tensor, share: float) -> Tensor:
    """Covariance (D, D), its off-diagonal part less ``share``, plus the floor; 1 for a constant element."""
    variance = covariance.diagonal()
    return covariance * (1 - share) + torch.diag(share * variance + torch.where(variance > 1e-12, FLOOR, 1.0))


def _gaussian_score(y: Tensor, share: float) -> float:
    """Mean held-out log density, up to a constant, of Gaussians of the shrunk covariance of y (N, D)."""
    total, fold = 0.0, torch.arange(len(y)) % _FOLDS
    for k in range(_FOLDS):
        rest = y[fold != k]
        mean, centred = rest.mean(0), rest - rest.mean(0)
        root = torch.linalg.cholesky(_shrunk(centred.mT @ centred / len(rest), share))
        z = torch.linalg.solve_triangular(root, (y[fold == k] - mean).mT, upper=False)
        total -= z.square().sum().item() / 2 + root.diagonal().log().sum().item() * z.shape[1]
    return total / len(y)
