"""The Frechet distance between Gaussians fitted to two sets of samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.metrics.base import check_samples


@dataclass(frozen=True)
class Moments:
    """``count``, ``mean (D,)`` and ``scatter (D, D) = sum (x - mean)(x - mean)^T`` of samples, float64 on the CPU.

    Those of two disjoint sets add up to those of their union by ``a + b`` (Chan, Golub & LeVeque 1983, eq. 2.1),
    whatever the batches or processes the samples came in; orders differ by rounding alone, about 1e-15 of the values.
    No difference of large numbers is taken, so that values far from the origin lose nothing.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def none(cls, dimensions: int) -> Moments:
        """Those of no samples in D dimensions, the start of a sum."""
        zeros = torch.zeros(dimensions, dtype=torch.float64)
        return cls(0, zeros, zeros[:, None] * zeros)

    @classmethod
    def of(cls, x: Tensor, *, argument: str = "x") -> Moments:
        """Those of x (N, *S), N >= 1. Raises UserError for values that are not finite."""
        x = check_samples(x, argument).to("cpu", torch.float64)
        mean = x.mean(0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """The moments of all samples of one part or more, such as one a process."""
        first, *others = parts
        return sum(others, first)

    def __add__(self, other: Moments) -> Moments:
        if self.mean.shape != other.mean.shape:
            raise UserError(
                f"moments must have the same dimension, got {len(self.mean)} and {len(other.mean)}; "
                "add samples of one shape"
            )
        count = self.count + other.count
        if not self.count or not other.count:
            return other if not self.count else self
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter.addr_(gap, gap, alpha=self.count * other.count / count)
        return Moments(count, self.mean + gap * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (D, D). Raises UserError for fewer than 2 samples."""
        if self.count < 2:
            raise UserError(f"a covariance needs 2 samples or more, got {self.count}; give more samples")
        return self.scatter / (self.count - 1)

    def tensors(self) -> dict[str, Tensor]:
        """The same as tensors by name, to be kept in a file."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """What :meth:`tensors` gave, to the last bit."""
        return cls(int(tensors["count"]), tensors["mean"], tensors["scatter"])


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
