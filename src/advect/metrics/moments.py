"""Mean and covariance of samples that come in batches, in memory that does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.metrics.samples import check_samples


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
