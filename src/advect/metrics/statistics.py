"""What is kept of a set of samples of any size: moments of all its features, and some of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng

ROWS = 10_000
"""Most rows of a set that are kept; moments are those of all rows."""

FEATURES, VALUES, SAMPLES, CONDITION = "features", "values", "samples", "cond."
"""What may be kept of a row: features, single values, the whole sample and, after the last prefix, each condition."""


def subsample(n: int, limit: int, seed: int) -> Tensor:
    """At most ``limit`` of the indices 0 .. n - 1, chosen by the seed, in random order."""
    return CounterRng(seed, 0, n).permutation()[:limit]


def check_samples(x: Tensor, argument: str, *, at_least: int = 1) -> Tensor:
    """Flatten x (N, *S) to (N, D); UserError for fewer than ``at_least`` rows and for NaN or infinite values."""
    if x.ndim < 2 or len(x) < at_least:
        raise UserError(
            f"{argument} must be (N, ...) with N >= {at_least}, got shape {tuple(x.shape)}; give more samples"
        )
    x = x.detach().flatten(1)
    if x.is_floating_point() and not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise UserError(f"{argument} has NaN or infinite values in {bad} of {len(x)} samples; leave those out")
    return x


def check_pair(x: Tensor, y: Tensor, *, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Both sets (N, *S) and (M, *S) as (N, D) and (M, D), float64; UserError where D differs, and as above."""
    a = check_samples(x, "x", at_least=at_least).double()
    b = check_samples(y, "y", at_least=at_least).to(a)
    if a.shape[1] != b.shape[1]:
        raise UserError(f"x and y must have the same features, got {a.shape[1]} and {b.shape[1]}; compare one shape")
    return a, b


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
    def zero(cls, dimensions: int) -> Moments:
        """Those of no samples in D dimensions, the start of a sum."""
        zeros = torch.zeros(dimensions, dtype=torch.float64)
        return cls(0, zeros, zeros[:, None] * zeros)

    @classmethod
    def from_samples(cls, x: Tensor, *, argument: str = "x") -> Moments:
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

    def to_tensors(self) -> dict[str, Tensor]:
        """The same as tensors by name, to be kept in a file."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """What :meth:`to_tensors` gave, to the last bit."""
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


@dataclass(frozen=True)
class SampleStatistics:
    """``count`` samples: the moments of all their features, and for some of them all that is known.

    ``rows`` holds tensors (k, ...) by name, of k = min(count, ROWS) samples that are drawn without repetition, in
    random order, so that the first of them are a sample of all. FEATURES (k, d) are always there.
    """

    count: int
    moments: Moments
    rows: Mapping[str, Tensor]

    @classmethod
    def from_parts(cls, parts: Iterable[Mapping[str, Tensor]], count: int) -> SampleStatistics:
        """The summary of ``count`` samples that come in parts, each with tensors (n, ...) of the same names.

        The same parts in the same order give the same bits. Raises UserError for features that are not finite.
        """
        chosen = subsample(count, ROWS, 0)
        slots = torch.full((count,), -1)
        slots[chosen] = torch.arange(len(chosen))
        kept: dict[str, Tensor] = {}
        moments, first = None, 0
        for part in parts:
            features = part[FEATURES]
            here = slots[first : first + len(features)]
            first += len(features)
            found = Moments.from_samples(features, argument="samples")
            moments = found if moments is None else moments + found
            for name, value in part.items():
                target = kept.setdefault(name, value.new_zeros(len(chosen), *value.shape[1:]))
                target[here[here >= 0]] = value[here >= 0]
        assert moments is not None and first == count
        return cls(count, moments, kept)

    @cached_property
    def gaussian(self) -> GaussianFit:
        """The Gaussian of all features."""
        return GaussianFit.from_running(self.moments)

    def to_tensors(self) -> dict[str, Tensor]:
        """The same as tensors by name, to be kept in a file."""
        return {**self.moments.to_tensors(), **{f"rows.{name}": value for name, value in self.rows.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SampleStatistics:
        """What :meth:`to_tensors` gave, to the last bit."""
        moments = Moments.from_tensors(tensors)
        kept = {name.removeprefix("rows."): v for name, v in tensors.items() if name.startswith("rows.")}
        return cls(moments.count, moments, kept)

    def take(self, name: str, limit: int) -> Tensor:
        """At most ``limit`` rows of what is called so."""
        return self.rows[name][:limit]
