"""Statistics of a set of samples: moments of all features, and some rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed

ROWS = 10_000
"""Most rows stored of a set; moments use all."""

BLOCK = 512
"""Rows per update of the moments."""

FEATURES, VALUES, SAMPLES, CONDITION = "features", "values", "samples", "cond."
"""Names of rows: features, values, whole samples and, as a prefix, conditions."""


def subsample(n: int, limit: int, seed: int) -> Tensor:
    """At most ``limit`` of the indices 0 .. n - 1, in random order of ``seed``."""
    return CounterRng(stream_seed(seed, Stream.SUBSAMPLE), 0, n).permutation()[:limit]


def check_samples(x: Tensor, argument: str, *, at_least: int = 1) -> Tensor:
    """x (N, *S) as (N, D). Raises UserError for fewer than ``at_least`` rows and non-finite values."""
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
    """x (N, *S) and y (M, *S) as (N, D) and (M, D), float64. Raises UserError as :func:`check_samples`, and for
    different D.
    """
    a = check_samples(x, "x", at_least=at_least).double()
    b = check_samples(y, "y", at_least=at_least).to(a)
    if a.shape[1] != b.shape[1]:
        raise UserError(f"x and y must have the same features, got {a.shape[1]} and {b.shape[1]}; compare one shape")
    return a, b


@dataclass(frozen=True)
class Moments:
    """``count``, ``mean (D,)`` and ``scatter (D, D) = sum (x - mean)(x - mean)^T`` of samples, float64, CPU.

    ``a + b`` are the moments of the union (Chan, Golub & LeVeque 1983), stable far from the origin.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def zero(cls, dimensions: int) -> Moments:
        """No samples in D dimensions."""
        zeros = torch.zeros(dimensions, dtype=torch.float64)
        return cls(0, zeros, zeros[:, None] * zeros)

    @classmethod
    def from_samples(cls, x: Tensor, *, argument: str = "x") -> Moments:
        """Moments of x (N, *S), N >= 1. Raises UserError for non-finite values."""
        x = check_samples(x, argument).to("cpu", torch.float64)
        mean = x.mean(0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of the union of one part or more."""
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
        """Unbiased covariance (D, D). Raises UserError for fewer than 2 samples."""
        if self.count < 2:
            raise UserError(f"a covariance needs 2 samples or more, got {self.count}; give more samples")
        return self.scatter / (self.count - 1)

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name, for a file."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """Exact inverse of :meth:`to_tensors`."""
        return cls(int(tensors["count"]), tensors["mean"], tensors["scatter"])


@dataclass(frozen=True)
class GaussianFit:
    """Gaussian with ``mean (D,)`` and covariance ``root root^T``, ``root (D, R)``, float64, CPU; R may be < D.

    Storing the root keeps the precision of nearly constant directions.
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def from_samples(cls, x: Tensor, *, argument: str = "x") -> GaussianFit:
        """Mean and unbiased covariance of x (N, *S), N >= 2; N may be less than D."""
        x = check_samples(x, argument, at_least=2).to("cpu", torch.float64)
        mean = x.mean(0)
        _, r = torch.linalg.qr((x - mean) / (len(x) - 1) ** 0.5, mode="r")
        return cls(mean, r.T)

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor) -> GaussianFit:
        """Gaussian of ``mean (D,)`` and symmetric ``covariance (D, D)`` of any rank.

        Raises UserError for shapes that do not match, non-finite values and negative eigenvalues.
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
        """Gaussian of ``moments``. Raises UserError for fewer than 2 samples."""
        return cls.from_moments(moments.mean, moments.covariance)

    def influence(self, other: GaussianFit, x: Tensor) -> Tensor:
        """First-order effect (N,) on :meth:`distance` of more weight on each row of x (N, D), from this Gaussian.

        ``2 z.(m_1 - m_2) + |z|^2 - z^T T z`` less its mean, for ``z = x - m_1`` and the linear optimal map T from this
        Gaussian to the other, within the span of this covariance.
        """
        z = x.to(self.mean) - self.mean
        u, s, _ = torch.linalg.svd(self.root, full_matrices=False)
        kept = s > 1e-6 * s.max().clamp(min=torch.finfo(s.dtype).tiny)
        u, s = u[:, kept], s[kept]
        v, overlap, _ = torch.linalg.svd(s[:, None] * (u.T @ other.root), full_matrices=False)
        moved = (((z @ u) / s) @ v).square() @ overlap
        effect = 2 * z @ (self.mean - other.mean) + z.square().sum(1) - moved
        return effect - effect.mean()

    def distance(self, other: GaussianFit) -> float:
        """``|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))`` (Dowson & Landau 1982, squared).

        With ``C_i = A_i A_i^T`` the trace of the root is the sum of the singular values of ``A_1^T A_2``. Raises
        UserError for different dimensions.
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
    """Moments of ``count`` samples, and ``rows``, tensors (k, ...) by name of min(count, ROWS) random ones, with
    FEATURES.
    """

    count: int
    moments: Moments
    rows: Mapping[str, Tensor]

    @classmethod
    def from_parts(cls, parts: Iterable[Mapping[str, Tensor]], count: int) -> SampleStatistics:
        """Statistics of ``count`` samples in parts of tensors (n, ...) with the same names.

        The result does not depend on the parts, to the last bit. Raises UserError for non-finite features.
        """
        chosen = subsample(count, ROWS, 0)
        slots = torch.full((count,), -1)
        slots[chosen] = torch.arange(len(chosen))
        kept: dict[str, Tensor] = {}
        moments, pending, first = None, None, 0
        for part in parts:
            features = part[FEATURES]
            here = slots[first : first + len(features)]
            first += len(features)
            pending = features if pending is None else torch.cat([pending, features])
            while len(pending) >= BLOCK or (first == count and len(pending)):
                found = Moments.from_samples(pending[:BLOCK], argument="samples")
                moments, pending = found if moments is None else moments + found, pending[BLOCK:]
            for name, value in part.items():
                target = kept.setdefault(name, value.new_zeros(len(chosen), *value.shape[1:]))
                target[here[here >= 0]] = value[here >= 0]
        assert moments is not None and first == count
        return cls(count, moments, kept)

    @cached_property
    def gaussian(self) -> GaussianFit:
        """Gaussian of all features."""
        return GaussianFit.from_running(self.moments)

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors by name, for a file."""
        return {**self.moments.to_tensors(), **{f"rows.{name}": value for name, value in self.rows.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SampleStatistics:
        """Exact inverse of :meth:`to_tensors`."""
        moments = Moments.from_tensors(tensors)
        kept = {name.removeprefix("rows."): v for name, v in tensors.items() if name.startswith("rows.")}
        return cls(moments.count, moments, kept)

    def take(self, name: str, limit: int) -> Tensor:
        """First ``limit`` rows of a name."""
        return self.rows[name][:limit]

    def at(self, places: Tensor) -> SampleStatistics:
        """Statistics of the rows at ``places`` (m,), which may repeat."""
        rows = {name: value[places] for name, value in self.rows.items()}
        return SampleStatistics(len(places), Moments.from_samples(rows[FEATURES]), rows)
