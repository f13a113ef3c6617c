"""The Frechet distance between Gaussians fitted to two sets of samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.metrics.moments import Moments
from advect.metrics.samples import check_samples


@dataclass(frozen=True)
class GaussianFit:
    """A Gaussian in D dimensions: ``mean (D,)`` and ``root (D, R)`` with covariance ``root root^T``, float64, CPU.

    The root is kept in place of the covariance because taking a square root afterwards would lose half of the
    digits in the directions in which the samples hardly vary. R may be less than D.
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def from_samples(cls, x: Tensor, *, argument: str = "x") -> GaussianFit:
        """Fit x (N, *S), N >= 2, by its mean and unbiased covariance; N may be less than the dimension."""
        x = check_samples(x, argument, at_least=2).to("cpu", torch.float64)
        mean = x.mean(0)
        _, r = torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r")
        return cls(mean, r.T)

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor) -> GaussianFit:
        """The Gaussian of ``mean (D,)`` and ``covariance (D, D)``, symmetric and of any rank.

        Raises UserError when the shapes do not match, values are not finite or the covariance has a negative
        eigenvalue beyond rounding.
        """
        mean, covariance = mean.detach().to("cpu", torch.float64), covariance.detach().to("cpu", torch.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(
                f"covariance must be (D, D) for a mean (D,), got {tuple(covariance.shape)} and {tuple(mean.shape)}"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise UserError("mean and covariance must be finite, got NaN or infinite values; fit finite samples")
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        rounding = len(mean) * torch.finfo(torch.float64).eps * float(values.abs().max())
        if float(values[0]) < -max(1e-6 * float(values.abs().max()), rounding):
            raise UserError(
                f"covariance must have eigenvalues >= 0, got {float(values[0]):.3g}; it is not a covariance"
            )
        keep = values > rounding
        return cls(mean, vectors[:, keep] * values[keep].sqrt())

    @classmethod
    def from_running(cls, moments: Moments) -> GaussianFit:
        """The Gaussian of samples that came in batches. Raises UserError for fewer than 2."""
        return cls.from_moments(moments.mean, moments.covariance)

    def distance(self, other: GaussianFit) -> float:
        """``|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))``, the square of Dowson & Landau's (1982) distance.

        With ``C_i = A_i A_i^T`` the trace of the root is the sum of the singular values of ``A_1^T A_2``, which
        holds for any rank and needs no root of a matrix. Raises UserError when the dimensions differ.
        """
        if self.mean.shape != other.mean.shape:
            raise UserError(
                f"both sets must have the same dimension, got {len(self.mean)} and {len(other.mean)}; "
                "compare samples of one shape"
            )
        means = (self.mean - other.mean).square().sum()
        traces = self.root.square().sum() + other.root.square().sum()
        overlap = torch.linalg.svdvals(self.root.T @ other.root).sum()
        return max(0.0, float(means + traces - 2 * overlap))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to x (N, *S) and y (M, *S), N and M >= 2.

    With features of an Inception network this is the FID of Heusel et al. (2017, eq. 6); here it is taken of
    whatever the rows hold. Its units are the square of the data's, and it shrinks as samples are added, so
    compare only values at the same N and M. Raises UserError for fewer than 2 samples, different dimensions
    and values that are not finite.
    """
    return GaussianFit.from_samples(x, argument="x").distance(GaussianFit.from_samples(y, argument="y"))
