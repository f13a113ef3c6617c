"""Data laws with closed-form marginals p_t, velocity and score under affine paths.

With data ``sum_k w_k N(m_k, C_k)`` and a Gaussian source, ``p_t = sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I)``,
and fields are posterior means of the conditional ones (Lipman et al. 2023, "Flow matching for generative modeling").
Finite data are the case C_k = 0: perfect memorisation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import expand_right
from advect.paths.affine import AffinePath
from advect.paths.base import align
from advect.paths.convert import refuse


class Posterior(NamedTuple):
    """At ``x = alpha x_1 + sigma x_0``: log p(x) (B,), E[x_1 | x] and grad log p(x), both (B, D)."""

    log_prob: Tensor
    data: Tensor
    score: Tensor


def isotropic_posterior(
    x: Tensor, alpha: Tensor, sigma: Tensor, means: Tensor, variances: Tensor, log_weights: Tensor, chunk: int
) -> Posterior:
    """Posterior for ``sum_k w_k N(m_k, c_k I)``, x (B, D), alpha and sigma (B, 1), means (K, D), c and log w (K,).

    ``v_k = alpha^2 c_k + sigma^2`` must be positive. With posterior weights p_k,

        data = sigma^2 P + alpha r x,   score = alpha P - q x,   P = sum p_k m_k / v_k,  q = sum p_k / v_k,
                                                                 r = sum p_k c_k / v_k

    by online softmax over ``chunk`` components at a time (Milakov & Gimelshein 2018): memory O(chunk (B + D) + B D).
    """
    x = x.double()
    square = x.square().sum(1, keepdim=True)
    top = x.new_full((len(x), 1), -math.inf)
    total, q, r, p = (x.new_zeros(len(x), width) for width in (1, 1, 1, x.shape[1]))
    for first in range(0, len(means), chunk):
        m, c = means[first : first + chunk].double(), variances[first : first + chunk].double()
        v = alpha.square() * c + sigma.square()  # (B, chunk)
        distance = square - 2 * alpha * (x @ m.T) + alpha.square() * m.square().sum(1)
        logits = log_weights[first : first + chunk] - distance / (2 * v) - x.shape[1] / 2 * v.log()
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        fade, e = (top - higher).exp(), (logits - higher).exp()
        w, top = e / v, higher
        total = total * fade + e.sum(1, keepdim=True)
        p = p * fade + w @ m
        q = q * fade + w.sum(1, keepdim=True)
        r = r * fade + (w * c).sum(1, keepdim=True)
    p, q, r = p / total, q / total, r / total
    log_prob = (top + total.log()).squeeze(1) - x.shape[1] / 2 * math.log(2 * math.pi)
    return Posterior(log_prob, sigma.square() * p + alpha * r * x, alpha * p - q * x)


def full_posterior(
    x: Tensor, alpha: Tensor, sigma: Tensor, means: Tensor, values: Tensor, vectors: Tensor, log_weights: Tensor
) -> Posterior:
    """Posterior for ``sum_k w_k N(m_k, Q_k diag(l_k) Q_k^T)``, with values l (K, D) and vectors Q (K, D, D)."""
    centred = x.double()[:, None] - alpha[:, :, None] * means
    z = torch.einsum("bkd,kde->bke", centred, vectors)
    v = alpha.square()[:, :, None] * values + sigma.square()[:, :, None]
    logits = log_weights - (z.square() / v + (2 * math.pi * v).log()).sum(2) / 2
    p = logits.softmax(1)
    score = torch.einsum("bk,kde,bke->bd", p, vectors, -z / v)
    shift = torch.einsum("bk,kde,bke->bd", p, vectors, alpha[:, :, None] * values * z / v)
    return Posterior(logits.logsumexp(1), p @ means + shift, score)


_NO_NOISE = "has no density where sigma = 0, at t = 1 of most schedules; stay at t <= 0.999, say"


class AnalyticMarginals(ABC):
    """Data law on samples of ``shape`` and its marginals under ``path``, with source N(0, I).

    Fields map x (B, *S), t (B,) to (B, *S) in the dtype of x, differentiably, computed in float64. They raise
    UserError for shapes that do not match, t outside [0, 1], or undefined values.
    """

    path: AffinePath

    @property
    @abstractmethod
    def _rows(self) -> Tensor:
        """Means of the components (K, *S)."""

    @property
    def shape(self) -> torch.Size:
        """Shape S of one sample."""
        return self._rows.shape[1:]

    @abstractmethod
    def draw(self, n: int, generator: Generator = None) -> Tensor:
        """Sample n data x1 (n, *S)."""

    @abstractmethod
    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """Posterior at x (B, D), alpha and sigma (B, 1), all float64."""

    @abstractmethod
    def _check_noise(self, sigma: Tensor) -> None:
        """Raise UserError where p_t has no density."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Marginal velocity u_t(x) = alpha' E[x_1 | x] + sigma' E[x_0 | x]."""
        c = self.path.coefficients(self._times(x, t))
        self._check_noise(c.sigma)
        refuse(
            ~(torch.isfinite(c.d_alpha) & torch.isfinite(c.d_sigma)),
            f"{self.path.schedule} has infinite derivatives there; stay 0.001, say, away from that end",
        )
        post = self._posterior(x.flatten(1).double(), c.alpha[:, None], c.sigma[:, None])
        u = c.d_alpha[:, None] * post.data - (c.d_sigma * c.sigma)[:, None] * post.score
        return u.view_as(x).to(x.dtype)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """Gradient of log p_t at x."""
        return self._at(x, t).score.view_as(x).to(x.dtype)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) (B,), in nats."""
        return self._at(x, t).log_prob.to(x.dtype)

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x] = -sigma score."""
        sigma = self.path.coefficients(self._times(x, t)).sigma
        return (-expand_right(sigma, x) * self._at(x, t).score.view_as(x)).to(x.dtype)

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_1 | x_t = x], the ideal denoiser; for finite data and sigma -> 0 the nearest row."""
        c = self.path.coefficients(self._times(x, t))
        sigma = c.sigma.clamp(min=1e-30)[:, None]
        return self._posterior(x.flatten(1).double(), c.alpha[:, None], sigma).data.view_as(x).to(x.dtype)

    def sample(self, n: int, t: float | Tensor = 1.0, generator: Generator = None) -> Tensor:
        """Sample p_t, (n, *S), at t in [0, 1], one number or (n,)."""
        x1 = self.draw(n, generator)
        x0 = random.normal(x1.shape, generator, device=x1.device, dtype=x1.dtype)
        times = torch.as_tensor(t, dtype=x1.dtype, device=x1.device).expand(n)
        return self.path.sample(x0, x1, times, generator).x_t

    def _at(self, x: Tensor, t: Tensor) -> Posterior:
        c = self.path.coefficients(self._times(x, t))
        self._check_noise(c.sigma)
        return self._posterior(x.flatten(1).double(), c.alpha[:, None], c.sigma[:, None])

    def _times(self, x: Tensor, t: Tensor) -> Tensor:
        if x.shape[1:] != self.shape or x.ndim == 0:
            raise UserError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise UserError(f"t must have shape ({len(x)},), one time a sample, got {tuple(t.shape)}")
        if not x.device == t.device == self._rows.device:
            raise UserError(
                f"x, t and the law must be on one device, got {x.device}, {t.device} and {self._rows.device}"
            )
        refuse(~((t >= 0) & (t <= 1)), "t must lie in [0, 1] (0 is noise, 1 is data)")
        return t.double()

    def _check_path(self) -> None:
        if not self.path.gaussian_source:
            raise UserError("exact marginals need a Gaussian source; leave AffinePath.gaussian_source True")


@dataclass(frozen=True, eq=False)
class GaussianMixture(AnalyticMarginals):
    """``sum_k weights_k N(means_k, stds_k^2 I)``, or with full ``covariances``.

    ``means`` (K, *S); ``stds`` > 0, one number or (K,), or positive definite ``covariances`` (K, D, D) of the D
    elements; ``weights`` (K,) > 0, normalised, equal by default. Fields exist where the schedule's derivatives are
    finite.
    """

    means: Tensor = field(repr=False)
    stds: float | Tensor | None = None
    weights: Tensor | None = None
    covariances: Tensor | None = field(default=None, repr=False)
    path: AffinePath = field(default_factory=AffinePath)
    chunk: int = 1024

    def __post_init__(self) -> None:
        self._check_path()
        k = _check_rows(self.means, "GaussianMixture.means", self.chunk)
        if (self.stds is None) == (self.covariances is None):
            raise UserError("GaussianMixture needs either stds or covariances, one of the two")
        if self.stds is not None and (not (self._stds > 0).all() or not torch.isfinite(self._stds).all()):
            raise UserError(f"GaussianMixture.stds must be > 0, got {self.stds}; for points use FiniteData")
        if self.covariances is not None:
            d = self.means[0].numel()
            if self.covariances.shape != (k, d, d):
                raise UserError(
                    f"GaussianMixture.covariances must have shape {(k, d, d)}, got {tuple(self.covariances.shape)}"
                )
            if not torch.allclose(self.covariances, self.covariances.mT) or not (self._spectra[0] > 0).all():
                raise UserError("GaussianMixture.covariances must be symmetric and positive definite")
        if self.weights is not None and (self.weights.shape != (k,) or not (self.weights > 0).all()):
            raise UserError(f"GaussianMixture.weights must be ({k},) numbers > 0, got {self.weights}")

    @property
    def _rows(self) -> Tensor:
        return self.means

    @cached_property
    def _stds(self) -> Tensor:
        stds = torch.as_tensor(self.stds, dtype=torch.float64, device=self.means.device)
        if stds.shape not in ((), self.means.shape[:1]):
            raise UserError(
                f"GaussianMixture.stds must be one number or ({len(self.means)},), got shape {tuple(stds.shape)}"
            )
        return stds.expand(len(self.means))

    @cached_property
    def _spectra(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariances.to(self.means.device).double())  # pyright: ignore[reportOptionalMemberAccess]
        return values, vectors

    @cached_property
    def _shares(self) -> Tensor:
        weights = self.means.new_ones(len(self.means)) if self.weights is None else self.weights
        return weights.to(self.means.device).double() / weights.double().sum().to(self.means.device)

    def draw(self, n: int, generator: Generator = None) -> Tensor:
        device = self.means.device
        u = random.uniform((n,), generator, device=device, dtype=torch.float64)
        k = torch.searchsorted(self._shares.cumsum(0), u, right=True).clamp(max=len(self.means) - 1)
        z = random.normal((n, *self.shape), generator, device=device, dtype=self.means.dtype)
        if self.covariances is None:
            return self.means[k] + align(self._stds[k], z) * z
        values, vectors = self._spectra
        roots = (vectors * values.sqrt()[:, None]).to(z.dtype)
        return self.means[k] + torch.einsum("bde,be->bd", roots[k], z.flatten(1)).view_as(z)

    def given(self, matrix: Tensor, y: Tensor, noise: float) -> GaussianMixture:
        """The law of x_1 given ``y = matrix x_1 + N(0, noise^2 I)``, matrix (M, D) and y (M,): a mixture, too.

        Raises UserError unless noise > 0 and both fit.
        """
        a, means = matrix.double(), self.means.flatten(1).double()
        if a.ndim != 2 or a.shape[1] != means.shape[1] or y.shape != a.shape[:1] or not noise > 0:
            raise UserError(
                f"given needs a matrix (M, {means.shape[1]}), y (M,) and noise > 0, got {tuple(matrix.shape)}, "
                f"{tuple(y.shape)} and {noise}"
            )
        eye = torch.eye(means.shape[1], dtype=a.dtype, device=a.device)
        covariances = (
            self._stds.square()[:, None, None] * eye if self.covariances is None else self.covariances.double()
        )
        across = covariances @ a.mT
        law = torch.distributions.MultivariateNormal(
            means @ a.mT, a @ across + noise**2 * torch.eye(len(a), dtype=a.dtype, device=a.device)
        )
        gain = torch.linalg.solve(law.covariance_matrix, across, left=False)
        log_weights = self._shares.log() + law.log_prob(y.double())
        left = covariances - gain @ across.mT
        return GaussianMixture(
            (means + (gain @ (y.double() - law.mean)[:, :, None])[:, :, 0]).view_as(self.means).to(self.means.dtype),
            covariances=(left + left.mT) / 2,
            weights=(log_weights - log_weights.max()).exp().clamp(min=1e-300),
            path=self.path,
        )

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        means, log_weights = self.means.flatten(1).double(), self._shares.log()
        if self.covariances is not None:
            return full_posterior(x, alpha, sigma, means, *self._spectra, log_weights)
        return isotropic_posterior(x, alpha, sigma, means, self._stds.square(), log_weights, self.chunk)

    def _check_noise(self, sigma: Tensor) -> None:
        """A mixture has a density without noise."""


@dataclass(frozen=True, eq=False)
class FiniteData(AnalyticMarginals):
    """The N rows of ``x`` (N, *S), each with probability 1 / N: perfect memorisation.

    Memory O(chunk (B + D)) beside x. Where sigma = 0, velocity, score, noise and log_prob raise UserError, and
    ``data`` is the nearest row. log_prob is exact to about 1e-16 |x|^2 / sigma^2.
    """

    x: Tensor = field(repr=False)
    path: AffinePath = field(default_factory=AffinePath)
    chunk: int = 1024

    def __post_init__(self) -> None:
        self._check_path()
        _check_rows(self.x, "FiniteData.x", self.chunk)

    @property
    def _rows(self) -> Tensor:
        return self.x

    def draw(self, n: int, generator: Generator = None) -> Tensor:
        u = random.uniform((n,), generator, device=self.x.device, dtype=torch.float64)
        return self.x[(u * len(self.x)).long()]

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        zeros = x.new_zeros(1).expand(len(self.x))
        log_weights = zeros - torch.tensor(len(self.x), dtype=torch.float64, device=x.device).log()
        return isotropic_posterior(x, alpha, sigma, self.x.flatten(1), zeros, log_weights, self.chunk)

    def _check_noise(self, sigma: Tensor) -> None:
        refuse(sigma == 0, f"finite data {_NO_NOISE}")


def _check_rows(rows: Tensor, name: str, chunk: int) -> int:
    if rows.ndim < 2 or 0 in rows.shape or not rows.is_floating_point():
        raise UserError(f"{name} must be a floating tensor (N, *S) with a row at least, got {tuple(rows.shape)}")
    if chunk < 1:
        raise UserError(f"chunk must be at least 1, got {chunk}; 1024 is usual")
    return len(rows)
