"""Priors as users name them: distributions of torch, bounds, supports by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from torch import distributions as laws

from advect.core.errors import UserError
from advect.sklearn.priors import Bounds, Correlated, Mapped, Marginals, Prior, Product, Simplex, beta


def prior_of(prior: Any, size: int | None = None) -> Prior:
    """A prior from a distribution of torch, several that are independent, (low, high), "positive", "simplex" or None.

    Finite (low, high) are a uniform law; with an infinite one of them, "positive", "simplex" and None (all reals) the
    support is known and the law is not. ``size`` is the number of parameters, if it is known.
    """
    if isinstance(prior, Prior):
        found = prior
    elif isinstance(prior, laws.Distribution):
        found = _of_law(prior)
    elif prior is None or isinstance(prior, str):
        found = _of_support(prior, size)
    elif isinstance(prior, list | tuple) and prior and all(isinstance(p, laws.Distribution) for p in prior):
        found = Product([_of_law(p) for p in prior])
    elif isinstance(prior, list | tuple) and len(prior) == 2:
        found = _of_bounds(prior[0], prior[1], size)
    else:
        raise UserError(
            f"prior must be a torch distribution, a list of them, (low, high), 'positive', 'simplex' or None, "
            f"got {type(prior).__name__}"
        )
    if size is not None and found.size != size:
        raise UserError(f"the prior has {found.size} parameters, and theta has {size} columns; give one for each")
    return found


def _of_support(name: str | None, size: int | None) -> Prior:
    if name not in (None, "positive", "simplex"):
        raise UserError(f"prior {name!r} is not known; give 'positive', 'simplex', (low, high) or a distribution")
    if size is None:
        raise UserError(f"prior {name!r} is a support alone, without samples; give a torch distribution")
    if name == "simplex":
        return Simplex(np.ones(size), law=False)
    return Bounds(np.full(size, 0.0 if name else -np.inf), np.full(size, np.inf))


def _of_bounds(low: Any, high: Any, size: int | None) -> Prior:
    try:
        low, high = np.broadcast_arrays(*(np.atleast_1d(np.asarray(bound, float)) for bound in (low, high)))
        low, high = (np.array(np.broadcast_to(bound, size or len(low))) for bound in (low, high))
    except (TypeError, ValueError):
        raise UserError(f"prior (low, high) must be two numbers or arrays ({size or 'D'},) of them") from None
    if low.ndim != 1 or not (np.nextafter(np.nextafter(low, np.inf), np.inf) < high).all():
        raise UserError(f"prior (low, high) must have low < high for each parameter, got {low} and {high}")
    if np.isfinite(low).all() and np.isfinite(high).all():
        return Marginals(stats.uniform(low, high - low), len(low))
    return Bounds(low, high)


_UNIVARIATE: dict[type, Callable[[Any, Callable[[Any], np.ndarray]], Any]] = {
    laws.Uniform: lambda p, of: stats.uniform(of(p.low), of(p.high) - of(p.low)),
    laws.Normal: lambda p, of: stats.norm(of(p.loc), of(p.scale)),
    laws.LogNormal: lambda p, of: stats.lognorm(of(p.scale), scale=np.exp(of(p.loc))),
    laws.Gamma: lambda p, of: stats.gamma(of(p.concentration), scale=1 / of(p.rate)),
    laws.InverseGamma: lambda p, of: stats.invgamma(of(p.concentration), scale=of(p.rate)),
    laws.Beta: lambda p, of: beta(of(p.concentration1), of(p.concentration0)),
    laws.Exponential: lambda p, of: stats.expon(scale=1 / of(p.rate)),
    laws.Laplace: lambda p, of: stats.laplace(of(p.loc), of(p.scale)),
    laws.Cauchy: lambda p, of: stats.cauchy(of(p.loc), of(p.scale)),
    laws.StudentT: lambda p, of: stats.t(of(p.df), of(p.loc), of(p.scale)),
    laws.Gumbel: lambda p, of: stats.gumbel_r(of(p.loc), of(p.scale)),
    laws.HalfNormal: lambda p, of: stats.halfnorm(scale=of(p.scale)),
    laws.HalfCauchy: lambda p, of: stats.halfcauchy(scale=of(p.scale)),
}
"""Laws with distribution functions that are exact in both tails, as SciPy has them."""


def _of_law(law: laws.Distribution) -> Prior:
    """Raises UserError for laws of whole numbers, matrices and angles."""
    name = type(law).__name__
    base: Any = law
    while isinstance(base, laws.Independent):
        base = base.base_dist
    shape = law.batch_shape + law.event_shape
    if len(shape) > 1 or (law.batch_shape and base.event_shape) or isinstance(base, laws.VonMises):
        raise UserError(
            f"the prior {name} is no law of a vector of parameters; give a list of laws, one after another"
        )
    try:
        discrete = base.support.is_discrete
    except NotImplementedError:
        discrete = False
    if discrete:
        raise UserError(f"the prior {name} is one of whole numbers, which a flow cannot draw; give a continuous one")
    for kind, make in _UNIVARIATE.items():
        if isinstance(base, kind):
            size = int(np.prod(shape, dtype=int))
            of = lambda value, shape=base.batch_shape: value.detach().double().expand(shape).reshape(-1).numpy()
            return Marginals(make(base, of), size)
    if isinstance(base, laws.MultivariateNormal):
        return Correlated(base)
    if isinstance(base, laws.Dirichlet):
        return Simplex(base.concentration.detach().double().numpy())
    return Mapped(law)
