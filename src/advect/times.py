"""Distributions of the training time t in [0, 1], given by quantile functions.

Any can be stratified: ``Stratified(LogitNormal())``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from advect.core import random
from advect.core.bounds import Share, Time
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.registry import get, register
from advect.distributed.comm import all_rows

_TOP = 1 - 2**-24


class TimeDistribution(ABC):
    """Distribution of t on [0, 1]."""

    part_kind: ClassVar[str] = "times"
    stratify: ClassVar[bool] = True
    """Whether runs stratify it, see :class:`Stratified`."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """Quantiles t (n,) at levels u (n,) in [0, 1)."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """p(t) (n,) at t (n,) in [0, 1]."""

    def sample(self, n: int, generator: Generator = None, device: torch.device | None = None) -> Tensor:
        """Draw t (n,) in float32."""
        return self.quantile(random.uniform((n,), generator, device=device))

    def within(self, t_eps: float) -> TimeDistribution:
        """Same law on [t_eps, 1 - t_eps], 0 <= t_eps < 1/2, for losses infinite at an end."""
        return Within(self, t_eps) if t_eps else self

    def importance_weight(self, t: Tensor, loss: Tensor) -> Tensor:
        """Losses (B,) at t (B,), weighted for an unbiased expectation; changed by importance sampling only."""
        return loss

    def state_dict(self) -> dict[str, list[float]]:
        """Checkpoint state as plain numbers; usually empty."""
        return {}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore ``state_dict``."""
        assert not state, "a distribution with a state takes it itself"


@dataclass(frozen=True)
class Within(TimeDistribution):
    """``t = t_eps + (1 - 2 t_eps) s`` for s from ``base``; clamping would pile up tails at the ends."""

    base: TimeDistribution
    t_eps: float

    def quantile(self, u: Tensor) -> Tensor:
        return self._map(self.base.quantile(u))

    def density(self, t: Tensor) -> Tensor:
        s, width = self._inverse(t), 1 - 2 * self.t_eps
        return torch.where((s >= 0) & (s <= 1), self.base.density(s.clamp(0, 1)) / width, 0.0)

    def sample(self, n: int, generator: Generator = None, device: torch.device | None = None) -> Tensor:
        return self._map(self.base.sample(n, generator, device))

    def importance_weight(self, t: Tensor, loss: Tensor) -> Tensor:
        return self.base.importance_weight(self._inverse(t), loss)

    def _map(self, s: Tensor) -> Tensor:
        return self.t_eps + (1 - 2 * self.t_eps) * s

    def _inverse(self, t: Tensor) -> Tensor:
        return (t - self.t_eps) / (1 - 2 * self.t_eps)


@register("uniform")
@dataclass(frozen=True)
class Uniform(TimeDistribution):
    """Independent uniform t on [0, 1)."""

    stratify = False

    def quantile(self, u: Tensor) -> Tensor:
        return u

    def density(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@register("stratified")
@dataclass(frozen=True)
class Stratified(TimeDistribution):
    """One draw of ``base`` in each of B equiprobable bins, in random order.

    Keeps the loss's expectation and lowers its variance. With a CounterRng bins span the global batch of all
    processes.
    """

    stratify = False

    base: TimeDistribution = field(default_factory=Uniform)

    def quantile(self, u: Tensor) -> Tensor:
        return self.base.quantile(u)

    def density(self, t: Tensor) -> Tensor:
        return self.base.density(t)

    def sample(self, n: int, generator: Generator = None, device: torch.device | None = None) -> Tensor:
        places, bins = random.permutation(n, generator, device=device)
        u = places.add(random.uniform((n,), generator, device=device)).div_(bins)
        return self.base.quantile(u.clamp_(max=_TOP))

    def importance_weight(self, t: Tensor, loss: Tensor) -> Tensor:
        return self.base.importance_weight(t, loss)

    def state_dict(self) -> dict[str, list[float]]:
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.base.load_state_dict(state)


@register("start")
@dataclass(frozen=True)
class Constant(TimeDistribution):
    """Constant t in [0, 1], without density.

    Args:
        t: the time.
    """

    stratify = False

    t: Time = 0.0

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.t)

    def density(self, t: Tensor) -> Tensor:
        return torch.where(t == self.t, math.inf, 0.0)

    def within(self, t_eps: float) -> TimeDistribution:
        return Constant(min(max(self.t, t_eps), 1 - t_eps))


@register("logit-normal")
@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeDistribution):
    """``logit(t) ~ N(mean, std^2)``, favours the middle (Esser et al. 2024, mean of opposite sign).

    Args:
        mean: mean of logit(t); > 0 favours the data.
        std: standard deviation of logit(t), > 0.
    """

    mean: Annotated[float, Meta(ge=-100, le=100)] = 0.0
    std: Annotated[float, Meta(gt=0, le=100)] = 1.0

    def quantile(self, u: Tensor) -> Tensor:
        normal = torch.special.ndtri(u.double().clamp(min=2.0**-54))
        return torch.sigmoid(self.mean + self.std * normal).to(u.dtype)

    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.std
        p = torch.exp(-z.square() / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))
        return torch.where((t > 0) & (t < 1), p, 0.0)


@register("logistic")
@dataclass(frozen=True, kw_only=True)
class Logistic(TimeDistribution):
    """``logit(t) ~ logistic(mean, scale)``, favours the middle with more near both ends than ``logit-normal``.

    Scale 1 and mean 0 would be uniform times.

    Args:
        mean: mean of logit(t); > 0 favours the data.
        scale: scale of logit(t), its standard deviation over pi / sqrt(3).
    """

    mean: Annotated[float, Meta(ge=-100, le=100)] = 0.0
    scale: Annotated[float, Meta(gt=0, lt=1)] = 0.6

    def quantile(self, u: Tensor) -> Tensor:
        inner = u.double().clamp(2.0**-54, 1 - 2.0**-53)
        return torch.sigmoid(self.mean + self.scale * torch.logit(inner)).to(u.dtype)

    def density(self, t: Tensor) -> Tensor:
        z = (torch.logit(t) - self.mean) / self.scale
        p = torch.sigmoid(z) * torch.sigmoid(-z) / (self.scale * t * (1 - t))
        return torch.where((t > 0) & (t < 1), p, 0.0)


@register("u-shaped")
@dataclass(frozen=True, kw_only=True)
class UShaped(TimeDistribution):
    """``p(t) = a cosh(a (t - 1/2)) / (2 sinh(a / 2))``, favours both ends.

    For reflowed pairs (Lee et al. 2024, "Improving the training of rectified flows").

    Args:
        a: concentration at the ends; towards 0 it is uniform.
    """

    a: Annotated[float, Meta(gt=0, le=80)] = 4.0

    def quantile(self, u: Tensor) -> Tensor:
        return (0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a).clamp(0, 1)

    def density(self, t: Tensor) -> Tensor:
        return self.a * torch.cosh(self.a * (t - 0.5)) / (2 * math.sinh(self.a / 2))


@register("shifted")
@dataclass(frozen=True)
class Shifted(TimeDistribution):
    """``t = s / (s + shift (1 - s))`` for s from ``base``.

    Esser et al. 2024 use sqrt(m / n) for m pixels if n needed no shift.

    Args:
        base: distribution of s, another one's name.
        shift: above 1 favours the noise; 1 changes nothing.
    """

    base: str | TimeDistribution = "uniform"
    shift: Annotated[float, Meta(gt=0, le=1000)] = 3.0

    def __post_init__(self) -> None:
        _ = self._law

    @cached_property
    def _law(self) -> TimeDistribution:
        return get("times", self.base)() if isinstance(self.base, str) else self.base

    def quantile(self, u: Tensor) -> Tensor:
        s = self._law.quantile(u)
        return s / (s + self.shift * (1 - s))

    def density(self, t: Tensor) -> Tensor:
        rest = 1 + (self.shift - 1) * t
        return self._law.density(self.shift * t / rest) * self.shift / rest.square()

    def importance_weight(self, t: Tensor, loss: Tensor) -> Tensor:
        return self._law.importance_weight(self.shift * t / (1 + (self.shift - 1) * t), loss)

    def state_dict(self) -> dict[str, list[float]]:
        return self._law.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self._law.load_state_dict(state)


@register("importance")
class Importance(TimeDistribution):
    """Times of large loss, reweighted exactly to the uniform expectation.

    Each of ``bins`` equal parts of [0, 1] has a probability mixing its running mean loss with a share ``floor`` of
    uniform; losses are divided by the density (Kahn & Marshall 1953). Only training losses update the means, which are
    the state.

    Args:
        bins: equal parts of [0, 1].
        momentum: momentum of the running mean losses.
        floor: share of uniform times; 1 is uniform.
    """

    def __init__(
        self,
        *,
        bins: Annotated[int, Meta(ge=2, le=65_536)] = 32,
        momentum: Share = 0.99,
        floor: Annotated[float, Meta(gt=0, le=1)] = 0.2,
    ) -> None:
        self.bins, self.momentum, self.floor = bins, momentum, floor
        self._loss = torch.ones(bins, dtype=torch.float64)

    def __repr__(self) -> str:
        return f"Importance(bins={self.bins}, momentum={self.momentum}, floor={self.floor})"

    def probabilities(self) -> Tensor:
        """Bin probabilities (bins,) float64."""
        share = self._loss / self._loss.sum().clamp(min=1e-300)
        return (1 - self.floor) * share + (1 - (1 - self.floor) * share.sum()) / self.bins

    def _bin(self, t: Tensor) -> Tensor:
        return (t * self.bins).long().clamp(0, self.bins - 1)

    def quantile(self, u: Tensor) -> Tensor:
        p = self.probabilities().to(u.device)
        edges = torch.cat([p.new_zeros(1), p.cumsum(0)])
        edges = edges / edges[-1]
        k = (torch.searchsorted(edges, u.double(), right=True) - 1).clamp(0, self.bins - 1)
        t = (k + (u.double() - edges[k]) / (edges[k + 1] - edges[k])) / self.bins
        return t.to(u.dtype).clamp(0, _TOP)

    def density(self, t: Tensor) -> Tensor:
        return (self.probabilities().to(t.device)[self._bin(t)] * self.bins).to(t.dtype)

    def importance_weight(self, t: Tensor, loss: Tensor) -> Tensor:
        weighted = loss / self.density(t).to(loss.dtype)
        if torch.is_grad_enabled():  # a held-out loss, measured without gradients, is not trained on
            self.update(all_rows(t), all_rows(loss.detach()))  # every process learns from the whole batch
        return weighted

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Update the mean of each bin with losses (B,) at t (B,), ignoring non-finite ones."""
        finite = torch.isfinite(loss)
        here = (self._bin(t)[None] == torch.arange(self.bins, device=t.device)[:, None]) & finite
        count = here.sum(1)
        mean = (here * loss.double().where(finite, 0.0)).sum(1) / count.clamp(min=1)
        self._loss = self._loss.to(t.device)
        self._loss = torch.where(count > 0, torch.lerp(mean, self._loss, self.momentum), self._loss)

    def state_dict(self) -> dict[str, list[float]]:
        """Running mean losses."""
        return {"loss": self._loss.tolist()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore them. Raises UserError for another number of bins."""
        if len(state["loss"]) != self.bins:
            raise UserError(f"these importance times have {len(state['loss'])} bins, and this object {self.bins}")
        self._loss = torch.tensor(state["loss"], dtype=torch.float64)
