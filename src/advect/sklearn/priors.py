"""Priors of parameters, and bijections between the inside of their support and R^d.

Parameters of independent laws with a distribution function F are mapped by z = Phi^-1(F(theta)), with which the prior
itself becomes N(0, I): a posterior then ends smoothly where the prior does, and a flow from N(0, I) learns only what
the observation adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from scipy.special import betainccinv, betaincinv, ndtr, ndtri
from torch import distributions as laws

from advect.core.errors import UserError
from advect.core.random import CounterRng, LayerRng, Stream, stream_seed

_TINY = 1e-300
"""Least probability of a tail: z lies within 37 deviations."""

_SUM = 1e-6
"""By how much the sum of a point of the simplex may differ from 1."""

_FAR = 500.0
"""Most that a latent of :class:`Mapped` may be away from 0, as exp overflows beyond 709."""


class _Beta(type(stats.beta)):
    """SciPy's law, with inverses that answer NaN in tails too thin for them, where SciPy's own warn."""

    def _ppf(self, q: Any, a: Any, b: Any) -> Any:
        return betaincinv(a, b, q)

    def _isf(self, x: Any, a: Any, b: Any) -> Any:
        return betainccinv(a, b, x)


beta = _Beta(a=0.0, b=1.0, name="beta")


class Prior(ABC):
    """A support of parameters theta (n, D), with a law or without, and its bijection with latents z (n, d).

    Attributes:
        size: D.
        latent: d, less than D on a simplex, where densities are per unit of all parameters but the last.
        law: whether there is a law, with samples and a density, beside the support.
        normal: whether latents are N(0, I) under it.
    """

    size: int
    latent: int
    law: bool = True
    normal: bool = True

    @property
    def edges(self) -> np.ndarray:
        """Mask (d,) of latents of parameters whose support may end."""
        return np.ones(self.latent, bool)

    @abstractmethod
    def contains(self, theta: np.ndarray) -> np.ndarray:
        """Mask (n,) of rows in the closed support."""

    @abstractmethod
    def to_latent(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents z (n, d) and log |det dz/dtheta| (n,) of rows of the support, both float64; on its edge, those of
        the nearest point inside.
        """

    @abstractmethod
    def to_theta(self, z: np.ndarray) -> np.ndarray:
        """Rows (n, D) float64 inside the support, whatever z is but NaN."""

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        """Log density (n,), -inf outside the support. Raises UserError without a law."""
        self.check_law("a density")
        inside, found = self.contains(theta), np.full(len(theta), -np.inf)
        z, log_det = self.to_latent(theta[inside])
        found[inside] = log_det + _log_phi(z).sum(1)
        return found

    def sample(self, n: int, seed: int) -> np.ndarray:
        """n draws (n, D), of which row i depends on the seed and i alone. Raises UserError without a law."""
        self.check_law("samples")
        rng = CounterRng(stream_seed(seed, Stream.PRIOR), 0, n)
        return self.to_theta(rng.normal((n, self.latent), dtype=torch.float64).numpy())

    def check_law(self, what: str) -> None:
        """Raise UserError if there is none, and so not ``what`` is asked for."""
        if not self.law:
            raise UserError(
                f"the prior is a support alone, without {what}; give a torch distribution, or finite (low, high) for "
                "a uniform one"
            )


class Marginals(Prior):
    """Independent parameters, by a frozen law of SciPy with D entries."""

    def __init__(self, law: Any, size: int) -> None:
        self._law, self.size, self.latent = law, size, size
        low, high = (np.broadcast_to(bound, size).astype(float) for bound in law.support())
        self._low, self._high = np.nextafter(low, np.inf), np.nextafter(high, -np.inf)
        self._closed = low, high
        if not (self._low <= self._high).all():
            raise UserError(f"a parameter of the prior lies between {low.max()} and {high.min()}: nothing is between")

    @property
    def edges(self) -> np.ndarray:
        return np.isfinite(self._closed[0]) | np.isfinite(self._closed[1])

    def contains(self, theta: np.ndarray) -> np.ndarray:
        return np.all(np.isfinite(theta) & (theta >= self._closed[0]) & (theta <= self._closed[1]), axis=1)

    def to_latent(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta = np.clip(theta, self._low, self._high)
        with np.errstate(all="ignore"):  # of numbers near the largest, whose density is 0
            z = _probit(self._law.cdf(theta), self._law.sf(theta))
            log_det = (self._law.logpdf(theta) - _log_phi(z)).sum(1)
        return z, np.where(np.isnan(log_det), -np.inf, log_det)

    def to_theta(self, z: np.ndarray) -> np.ndarray:
        edge = np.where(z < 0, self._low, self._high)
        with np.errstate(all="ignore"):  # of tails too thin for SciPy, which are the edge
            theta = np.where(z < 0, self._law.ppf(ndtr(z)), self._law.isf(ndtr(-z)))
        return np.clip(np.where(np.isnan(theta), edge, theta), self._low, self._high)


class Correlated(Prior):
    """A multivariate normal law, whose latents are whitened by the root of the covariance."""

    def __init__(self, law: laws.MultivariateNormal) -> None:
        self._mean = law.mean.detach().double().numpy()
        self._root = torch.linalg.cholesky(law.covariance_matrix.detach().double()).numpy()
        self.size = self.latent = len(self._mean)

    @property
    def edges(self) -> np.ndarray:
        return np.zeros(self.latent, bool)

    def contains(self, theta: np.ndarray) -> np.ndarray:
        return np.all(np.isfinite(theta), axis=1)

    def to_latent(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = np.linalg.solve(self._root, (theta - self._mean).T).T
        return z, np.full(len(theta), -np.log(np.diag(self._root)).sum())

    def to_theta(self, z: np.ndarray) -> np.ndarray:
        largest = np.finfo(float).max
        return np.clip(self._mean + np.clip(z, -1e100, 1e100) @ self._root.T, -largest, largest)


class Simplex(Prior):
    """Shares of sum 1 under a Dirichlet law, as independent beta variables, each share of what is left.

    (Connor & Mosimann 1969, "Concepts of independence for proportions".) Without a law the map is of the flat one.
    """

    def __init__(self, concentration: np.ndarray, *, law: bool = True) -> None:
        if len(concentration) < 2:
            raise UserError("a simplex needs at least 2 parameters, got 1")
        after = np.cumsum(concentration[::-1])[::-1][1:]
        self._share: Any
        self._rest: Any
        self._share, self._rest = beta(concentration[:-1], after), beta(after, concentration[:-1])
        self.size, self.latent, self.law = len(concentration), len(concentration) - 1, law

    def contains(self, theta: np.ndarray) -> np.ndarray:
        return np.isfinite(theta).all(1) & (theta >= 0).all(1) & (np.abs(theta.sum(1) - 1) <= _SUM)

    def to_latent(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        theta = np.maximum(theta, _TINY)
        left = np.cumsum(theta[:, ::-1], 1)[:, ::-1] / theta.sum(1, keepdims=True)
        share, rest = theta[:, :-1] / theta.sum(1, keepdims=True) / left[:, :-1], left[:, 1:] / left[:, :-1]
        z = _probit(self._share.cdf(share), self._rest.cdf(rest))
        inside = np.clip(share, _TINY, 1 - 2.0**-53)
        return z, (self._share.logpdf(inside) - np.log(left[:, :-1]) - _log_phi(z)).sum(1)

    def to_theta(self, z: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # of tails too thin for SciPy, which are the edge
            share, rest = (np.nan_to_num(x) for x in (self._share.ppf(ndtr(z)), self._rest.ppf(ndtr(-z))))
        share, rest = np.maximum(share, _TINY), np.maximum(rest, _TINY)
        left = np.cumsum(np.log(rest), 1)
        before = np.concatenate([np.zeros((len(z), 1)), left], 1)
        theta = np.exp(before + np.concatenate([np.log(share), np.zeros((len(z), 1))], 1))
        return np.maximum(theta / theta.sum(1, keepdims=True), _TINY)


class Mapped(Prior):
    """Any law of torch, by the bijection that torch has for its support (``biject_to``)."""

    normal = False

    def __init__(self, law: laws.Distribution) -> None:
        self._law, self._support = law, _support(law)
        self.size = int(np.prod(law.batch_shape + law.event_shape, dtype=int))
        try:
            self.latent = len(self._bijection().inv(self._shaped(self.sample(1, 0)))[0].reshape(-1))
        except NotImplementedError:
            raise UserError(
                f"the prior {type(law).__name__} has a support that torch cannot map to the reals, or no samples; "
                "give another, or its (low, high)"
            ) from None

    def _bijection(self) -> Any:
        return laws.biject_to(self._support)

    def _shaped(self, theta: np.ndarray) -> torch.Tensor:
        shape = self._law.batch_shape + self._law.event_shape
        return torch.from_numpy(np.ascontiguousarray(theta, float)).reshape(len(theta), *shape)

    def contains(self, theta: np.ndarray) -> np.ndarray:
        return self._support.check(self._shaped(theta)).reshape(len(theta), -1).all(1).numpy() & np.isfinite(
            theta
        ).all(1)

    def to_latent(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        way, shaped = self._bijection(), self._shaped(theta)
        z = way.inv(shaped).clamp(-_FAR, _FAR)
        log_det = -way.log_abs_det_jacobian(z, shaped)
        return z.reshape(len(theta), -1).numpy(), log_det.reshape(len(theta), -1).sum(1).numpy()

    def to_theta(self, z: np.ndarray) -> np.ndarray:
        way, shape = self._bijection(), self._law.batch_shape + self._law.event_shape
        shape = way.inverse_shape(shape) if hasattr(way, "inverse_shape") else shape
        latents = torch.from_numpy(np.clip(z, -_FAR, _FAR)).reshape(len(z), *shape)
        return way(latents).reshape(len(z), -1).numpy()

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        inside, found = self.contains(theta), np.full(len(theta), -np.inf)
        values = self._law.log_prob(self._shaped(theta[inside])).detach().double()
        found[inside] = values.reshape(int(inside.sum()), -1).sum(1).numpy()
        return found

    def sample(self, n: int, seed: int) -> np.ndarray:
        with LayerRng(stream_seed(seed, Stream.PRIOR)).used():  # torch's laws draw from a global generator otherwise
            return self._law.sample((n,)).detach().double().reshape(n, -1).numpy()


class Bounds(Prior):
    """A support without a law: each parameter between its bounds, any of which is infinite."""

    law = normal = False

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.size = self.latent = len(low)
        self._low, self._high = low, high
        self._kinds = np.isfinite(low) * 1 + np.isfinite(high) * 2
        self._inner = np.nextafter(low, np.inf), np.nextafter(high, -np.inf)

    @property
    def edges(self) -> np.ndarray:
        return self._kinds > 0

    def contains(self, theta: np.ndarray) -> np.ndarray:
        return np.all(np.isfinite(theta) & (theta >= self._low) & (theta <= self._high), axis=1)

    def to_latent(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z, log_det = np.clip(theta, *self._inner), np.zeros(len(theta))
        for i, (kind, low, high) in enumerate(zip(self._kinds, self._low, self._high, strict=True)):
            x = z[:, i].copy()
            if kind == 1:
                z[:, i] = np.log(x - low)
                log_det -= z[:, i]
            elif kind == 2:
                z[:, i] = -np.log(high - x)
                log_det += z[:, i]
            elif kind == 3:
                z[:, i] = _probit((x - low) / (high - low), (high - x) / (high - low))
                log_det -= np.log(high - low) + _log_phi(z[:, i])
        return z, log_det

    def to_theta(self, z: np.ndarray) -> np.ndarray:
        theta = np.array(z, float)
        for i, (kind, low, high) in enumerate(zip(self._kinds, self._low, self._high, strict=True)):
            x = np.clip(theta[:, i], -_FAR, _FAR)
            if kind == 1:
                theta[:, i] = low + np.exp(x)
            elif kind == 2:
                theta[:, i] = high - np.exp(-x)
            elif kind == 3:
                theta[:, i] = low + (high - low) * ndtr(x)
        return np.clip(theta, *self._inner)


class Product(Prior):
    """Independent priors, one after the other."""

    def __init__(self, parts: Sequence[Prior]) -> None:
        self._parts = tuple(parts)
        self.size, self.latent = sum(p.size for p in parts), sum(p.latent for p in parts)
        self.law, self.normal = all(p.law for p in parts), all(p.normal for p in parts)

    @property
    def edges(self) -> np.ndarray:
        return np.concatenate([part.edges for part in self._parts])

    def _split(self, x: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        return np.split(x, np.cumsum(sizes)[:-1], axis=1)

    def _each(self, theta: np.ndarray) -> list[tuple[Prior, np.ndarray]]:
        return list(zip(self._parts, self._split(theta, [p.size for p in self._parts]), strict=True))

    def contains(self, theta: np.ndarray) -> np.ndarray:
        return np.logical_and.reduce([part.contains(x) for part, x in self._each(theta)])

    def to_latent(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = [part.to_latent(x) for part, x in self._each(theta)]
        return np.concatenate([z for z, _ in found], 1), np.sum([log_det for _, log_det in found], 0)

    def to_theta(self, z: np.ndarray) -> np.ndarray:
        each = zip(self._parts, self._split(z, [p.latent for p in self._parts]), strict=True)
        return np.concatenate([part.to_theta(x) for part, x in each], 1)

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        self.check_law("a density")
        return np.sum([part.log_prob(x) for part, x in self._each(theta)], 0)

    def sample(self, n: int, seed: int) -> np.ndarray:
        self.check_law("samples")
        seeds = [stream_seed(seed, Stream.PRIOR, i) for i in range(len(self._parts))]
        return np.concatenate([part.sample(n, own) for part, own in zip(self._parts, seeds, strict=True)], 1)


def _support(law: Any) -> Any:
    """The support, that of the components of a mixture if they share one."""
    if not isinstance(law, laws.MixtureSameFamily):
        return law.support
    found: Any = law.component_distribution.support
    inner = getattr(found, "base_constraint", found)
    if any(torch.is_tensor(getattr(inner, end, None)) for end in ("lower_bound", "upper_bound")):
        raise UserError("the prior mixes laws of several supports; give (low, high) of all of them")
    return found


def _probit(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Phi^-1 of a probability, given with that of its complement, precise in both tails."""
    return np.where(below < 0.5, ndtri(np.maximum(below, _TINY)), -ndtri(np.maximum(above, _TINY)))


def _log_phi(z: np.ndarray) -> np.ndarray:
    """Log density of N(0, 1)."""
    return -0.5 * (z * z + np.log(2 * np.pi))
