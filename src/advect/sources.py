"""Source distributions p_0, and the start x0 of each sample at t = 0."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from advect.core import random
from advect.core.bounds import Share
from advect.core.categorical import draw_uniform
from advect.core.errors import UserError
from advect.core.random import CounterRng, Generator, Stream, stream_seed
from advect.core.registry import register
from advect.core.types import NULL, Conditions, without_padding

Shape = tuple[int, ...]


class SourceDistribution(ABC):
    """Distribution of x0 of any shape (B, *S)."""

    part_kind: ClassVar[str] = "source"
    standard_normal: ClassVar[bool] = False
    """Whether it is N(0, I), as scores and conversions need."""
    has_density: ClassVar[bool] = False
    """Whether it has :meth:`log_prob`."""
    discrete: ClassVar[bool] = False
    """Whether draws are tokens, for discrete flow matching: rows of K numbers with a single 1, or a mask without."""
    fits_data: ClassVar[bool] = False
    """Whether a run builds it by ``from_data(x1)``, whose plain arguments are flags."""

    def sample(
        self,
        shape: Sequence[int],
        generator: Generator = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Sample x0 of ``shape`` (B, *S)."""
        if not dtype.is_floating_point:
            raise UserError(f"a source samples real numbers, not {dtype}; give the data as floats, x.float()")
        return self._draw(tuple(shape), generator, device, dtype)

    def sample_like(self, x1: Tensor, generator: Generator = None) -> Tensor:
        """Sample x0 with the shape, device and dtype of x1 (B, *S)."""
        return self.sample(x1.shape, generator, device=x1.device, dtype=x1.dtype)

    def log_prob(self, x0: Tensor, *, jitter: float = 0.0) -> Tensor:
        """The log density (B,) at x0 (B, *S) of a draw plus Gaussian noise of deviation ``jitter``, in nats.

        Raises UserError for a source without density.
        """
        raise UserError(f"{type(self).__name__} has no density; start a flow that needs one from Gaussian()")

    @abstractmethod
    def _draw(self, shape: Shape, generator: Generator, device: torch.device | None, dtype: torch.dtype) -> Tensor:
        """Sample x0 of ``shape``."""


@register("gaussian")
@dataclass(frozen=True)
class Gaussian(SourceDistribution):
    """The standard Gaussian N(0, I)."""

    standard_normal = True
    has_density = True

    def log_prob(self, x0: Tensor, *, jitter: float = 0.0) -> Tensor:
        return MatchedGaussian(1.0).log_prob(x0, jitter=jitter)

    def _draw(self, shape: Shape, generator: Generator, device: torch.device | None, dtype: torch.dtype) -> Tensor:
        return random.normal(shape, generator, device=device, dtype=dtype)


@register("matched")
@dataclass(frozen=True, eq=False)
class MatchedGaussian(SourceDistribution):
    """``N(mean, std^2)``, with the mean and deviation of the data: one number, or one for each element (*S).

    :meth:`from_data` measures both. Raises UserError unless std > 0 and both are finite, and for samples of another
    shape.

    Args:
        per_feature: the deviation of each element of a sample, not of all.
        centre: take the mean, too, not 0.
    """

    fits_data = True
    has_density = True
    part_builder = "from_data"
    part_examples = ({"std": 0.5, "mean": 3.0},)

    std: float | Sequence | Tensor
    mean: float | Sequence | Tensor = 0.0

    def __post_init__(self) -> None:
        std = torch.as_tensor(self.std)
        if not bool(((std > 0) & torch.isfinite(std)).all()):
            least = float(std.min())
            raise UserError(f"MatchedGaussian.std must be finite and > 0, got {least}; constant features have none")
        if not bool(torch.isfinite(torch.as_tensor(self.mean)).all()):
            raise UserError(f"MatchedGaussian.mean must be finite, got {self.mean}; 0 is usual")

    def log_prob(self, x0: Tensor, *, jitter: float = 0.0) -> Tensor:
        std, mean = (torch.as_tensor(v, device=x0.device, dtype=x0.dtype) for v in (self.std, self.mean))
        std = torch.hypot(std, torch.full_like(std, jitter)).expand(x0.shape[1:])
        z = (x0 - mean) / std
        return -(z.square() / 2 + std.log() + math.log(2 * math.pi) / 2).flatten(1).sum(1)

    @staticmethod
    def from_data(x: Tensor | Iterable[Tensor], *, per_feature: bool = False, centre: bool = False) -> MatchedGaussian:
        """Match x (N, *S), whole or in batches, in float64.

        Takes the overall deviation, or that of each element if ``per_feature``; and the mean if ``centre``. NaN, which
        are holes, do not count. Raises UserError where there is nothing to match.
        """
        count, mean, square = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for batch in [x] if isinstance(x, Tensor) else x:
            rows = batch.double() if per_feature else batch.double().flatten()
            # Moments of the batches join by Chan, Golub & LeVeque 1983.
            n = (~rows.isnan()).sum(0).double()
            centre_here, total = rows.nansum(0) / n.clamp(min=1), count + n
            gap, share = centre_here - mean, n / total.clamp(min=1)
            square = square + (rows - centre_here).square().nansum(0) + gap.square() * (count * share)
            mean, count = mean + gap * share, total
        if not bool(count.all()):
            raise UserError("MatchedGaussian.from_data needs a value of each element, or one in all, got none")
        std = (square / count).sqrt()
        if not per_feature:
            return MatchedGaussian(float(std), float(mean) if centre else 0.0)
        return MatchedGaussian(std.float(), mean.float() if centre else 0.0)

    def _draw(self, shape: Shape, generator: Generator, device: torch.device | None, dtype: torch.dtype) -> Tensor:
        z = random.normal(shape, generator, device=device, dtype=dtype)
        std, mean = (torch.as_tensor(v, device=device, dtype=dtype) for v in (self.std, self.mean))
        for name, value in (("std", std), ("mean", mean)):
            if value.ndim and value.shape != z.shape[1:]:
                raise UserError(
                    f"MatchedGaussian.{name} has shape {tuple(value.shape)}, and a sample {tuple(z.shape[1:])}; "
                    "give one number, or one for each element of a sample"
                )
        return z * std + mean


@register("sparse")
@dataclass(frozen=True, kw_only=True)
class SparseGaussian(SourceDistribution):
    """A Gaussian times a Bernoulli mask: each element is 0 with probability ``dropout``, in [0, 1), else N(0, 1).

    For data with many exact zeros, such as gene expression.

    Args:
        dropout: probability that an element is 0.
    """

    dropout: Share = 0.1

    def _draw(self, shape: Shape, generator: Generator, device: torch.device | None, dtype: torch.dtype) -> Tensor:
        z = random.normal(shape, generator, device=device, dtype=dtype)
        return z * (random.uniform(shape, generator, device=device) >= self.dropout)


@register("masked")
@dataclass(frozen=True)
class Masked(SourceDistribution):
    """Masks in place of all tokens, for discrete flow matching."""

    discrete = True

    def _draw(self, shape: Shape, generator: Generator, device: torch.device | None, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, device=device, dtype=dtype)


@register("uniform")
@dataclass(frozen=True)
class UniformTokens(SourceDistribution):
    """Tokens of the vocabulary with equal probabilities, for discrete flow matching."""

    discrete = True

    def _draw(self, shape: Shape, generator: Generator, device: torch.device | None, dtype: torch.dtype) -> Tensor:
        return draw_uniform(shape, generator, device=device, dtype=dtype)


@dataclass(frozen=True)
class Custom(SourceDistribution):
    """Samples of ``draw(shape, generator, device, dtype)``.

    Use ``advect.core.random`` in ``draw`` for exact resumption. Raises UserError for another shape.
    """

    draw: Callable[[Sequence[int], Generator, torch.device | None, torch.dtype], Tensor]

    def _draw(self, shape: Shape, generator: Generator, device: torch.device | None, dtype: torch.dtype) -> Tensor:
        x0 = self.draw(shape, generator, device, dtype)
        if tuple(x0.shape) != tuple(shape):
            raise UserError(f"Custom.draw was asked for shape {tuple(shape)} and returned {tuple(x0.shape)}")
        return x0


@dataclass(frozen=True, eq=False)
class Empirical(SourceDistribution):
    """Rows of a data set, sampled uniformly with replacement.

    Args:
        x: the rows (N, *S), N >= 1.
        cond: integer conditions (N,) of the rows, for :meth:`sample_matching`.
        noise: deviation of added Gaussian noise, >= 0.

    Raises:
        UserError: shapes that do not match, or negative noise.
    """

    x: Tensor = field(repr=False)
    _: KW_ONLY
    cond: Conditions = field(default_factory=dict, repr=False)
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or len(self.x) == 0:
            raise UserError(f"Empirical.x must have shape (N, *S) with N >= 1, got {tuple(self.x.shape)}")
        for name, value in self.cond.items():
            if value.is_floating_point() or value.shape != self.x.shape[:1]:
                raise UserError(
                    f"Empirical.cond[{name!r}] must hold {len(self.x)} whole numbers, one a row of x, "
                    f"got {value.dtype} {tuple(value.shape)}"
                )
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UserError(f"Empirical.noise must be finite and >= 0, got {self.noise}; 0 draws the rows themselves")

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to rebuild this: the rows "x", each condition with the prefix "cond."."""
        return {"x": self.x, **{f"cond.{name}": value for name, value in self.cond.items()}}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], *, noise: float = 0.0) -> Empirical:
        """Inverse of :meth:`tensors`."""
        cond = {name.removeprefix("cond."): value for name, value in tensors.items() if name.startswith("cond.")}
        return Empirical(tensors["x"], cond=cond, noise=noise)

    def sample_matching(
        self,
        cond: Conditions | None,
        shape: Sequence[int],
        generator: Generator = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Sample x0 of ``shape`` (B, *S), each among the rows that match ``cond`` (B,), or among all if none does.

        Null conditions, and those that the rows lack, match any row.
        """
        shared = [name for name in self.cond if name in (cond or {})]
        if not cond or not shared:
            return self.sample(shape, generator, device=device, dtype=dtype)
        wanted = torch.stack([cond[name].to(self.x.device) for name in shared], 1)
        kinds, which = wanted.unique(dim=0, return_inverse=True)
        have = torch.stack([self.cond[name] for name in shared], 1)
        fits = ((have[None] == kinds[:, None]) | (kinds[:, None] == NULL)).all(2)
        fits |= ~fits.any(1, keepdim=True)
        return self._rows(shape, generator, device, dtype, fits, which)

    def _draw(self, shape: Shape, generator: Generator, device: torch.device | None, dtype: torch.dtype) -> Tensor:
        whole = torch.ones(1, len(self.x), dtype=torch.bool, device=self.x.device)
        return self._rows(shape, generator, device, dtype, whole, torch.zeros(shape[0], dtype=torch.long))

    def _rows(
        self,
        shape: Sequence[int],
        generator: Generator,
        device: torch.device | None,
        dtype: torch.dtype,
        fits: Tensor,
        which: Tensor,
    ) -> Tensor:
        """Sample row b uniformly among the rows marked by ``fits[which[b]]`` (K, N), at least one for each K."""
        if tuple(shape[1:]) != tuple(self.x.shape[1:]):
            raise UserError(
                f"Empirical.x has samples of shape {tuple(self.x.shape[1:])}, asked for {tuple(shape[1:])}"
            )
        u = random.uniform((shape[0],), generator, device=self.x.device, dtype=torch.float64)
        sizes = fits.sum(1)
        first = sizes.cumsum(0) - sizes
        which = which.to(u.device)
        place = torch.minimum((u * sizes[which]).long(), sizes[which] - 1)
        rows = fits.nonzero()[first[which] + place, 1]
        x0 = self.x[rows].to(device=device, dtype=dtype)
        if self.noise:
            x0 = x0 + self.noise * random.normal(x0.shape, generator, device=x0.device, dtype=dtype)
        return x0


@dataclass(frozen=True)
class InitialNoise:
    """Distribution p_0: source, plus Gaussian noise of standard deviation ``jitter``."""

    source: SourceDistribution
    jitter: float = 0.0

    def sample(
        self, rng: CounterRng, shape: tuple[int, ...], cond: Conditions, *, device: torch.device | None = None
    ) -> Tensor:
        """Sample x0 (n, *S) for the n rows of ``rng``, given conditions (n,); 0 in padding.

        An empirical source samples among rows with the same conditions.
        """
        whole = (rng.count, *shape)
        if isinstance(self.source, Empirical):
            x0 = self.source.sample_matching(cond, whole, rng, device=device)
        else:
            x0 = self.source.sample(whole, rng, device=device)
        if self.jitter > 0:
            x0 = x0 + self.jitter * random.normal(whole, rng, device=x0.device, dtype=x0.dtype)
        return without_padding(x0, cond)

    def replay(self, places: np.ndarray, shape: tuple[int, ...], cond: Conditions, *, seed: int, total: int) -> Tensor:
        """x0 (n, *S) of the samples ``places`` (n,) of ``total``; see :func:`noise_of`."""
        return self.sample(CounterRng.at(stream_seed(seed, Stream.INITIAL_NOISE), 0, places, total=total), shape, cond)


def noise_of(seed: int, rows: range, total: int) -> CounterRng:
    """Random numbers of the initial states of samples ``rows`` of ``total``."""
    return CounterRng(stream_seed(seed, Stream.INITIAL_NOISE), 0, len(rows), start=rows.start, total=total)
