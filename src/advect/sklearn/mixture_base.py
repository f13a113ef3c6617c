"""The Gaussian mixture that a flow corrects: chosen by held-out rows, an average of several fits."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from advect.config.build import build_path
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import Conditions
from advect.model.flow import Flow
from advect.networks.mixture_base import Gaussians, WithMixture
from advect.paths import AffinePath
from advect.sklearn.settings import Settings

COUNTS = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64)
"""Numbers of components tried."""

FLOORS = (1e-6, 1e-3, 1e-2)
"""Variances added to each direction, of rows of variance 1, tried."""

_STARTS, _LAST_STARTS, _PATIENCE = 5, 8, 3
"""Starts of expectation maximisation, which has local optima: of each mixture tried, and of those kept."""

_AVERAGED, _MOST = 4, 1024
"""Fits averaged, fewer where they would have more than so many components times columns."""

_COMPARED, _STEPS, _UNRESOLVED = 512, 20, 0.01
"""Most rows and Runge-Kutta steps of compared densities, and an error in nats that they must not have."""

FOLDED = 200
"""Most rows that are held out in five folds, one after the other, as a part would be too few to tell."""

_ROWS, _COLUMNS, _WORK = 10_000, 32, 2e7
"""Most rows and columns for which a mixture is the default, and most rows times components times squared columns, of
which expectation maximisation takes about a minute.
"""

_MINUTES = 5
"""Least ``max_minutes``, if any, that leave time for it."""

REPEATED = 0.05
"""Largest share of rows that repeat others. Rows that are both learned from and held out reward an endless density."""


def usual_base(x: Tensor, minutes: float | None) -> bool:
    """Whether rows x (N, D) are so few, and the ``minutes`` of a fit so many, that a mixture is the default."""
    n, d = x.shape
    work = n * d**2 * min(COUNTS[-1], n // (2 * d))
    return n <= _ROWS and d <= _COLUMNS and work <= _WORK and (minutes is None or minutes >= _MINUTES)


def no_base(settings: Settings, x: Tensor, conditional: bool, stopping: bool) -> str | None:
    """Why a flow of rows x (N, *S) cannot correct a mixture, or None."""
    method = settings.method
    if x.ndim != 2:
        return "X holds images"
    if conditional:
        return "a mixture knows nothing of y"
    if method.masked or bool(x.isnan().any()):
        return "a mixture knows nothing of missing or given values"
    if (method.objective, settings.network.score_network) != ("flow-matching", "none"):
        return "it takes the objective flow-matching"
    if not isinstance(path := build_path(method), AffinePath) or not path.gaussian_source:
        return "it takes an affine path from Gaussian noise and independent coupling"
    if path.sigma_min or float(path.schedule.coefficients(torch.ones(1)).sigma) > 1e-3:
        return "it takes a path without noise at the data"
    repeats = len(x) - len(x.unique(dim=0))
    if not stopping or len(x) - settings.drop_copies * repeats <= FOLDED:
        return f"it takes more than {FOLDED} rows and early_stopping, as held-out rows choose it"
    if repeats > REPEATED * len(x) and not settings.drop_copies:
        return (
            f"{repeats:,} of {len(x):,} rows repeat others, so that held-out rows would choose a spike at each "
            "(options={'drop_copies': True} leaves repeats out)"
        )
    return None


@dataclass(frozen=True)
class MixtureKind:
    """Number of components, and floor of their covariances."""

    components: int
    floor: float


def choose_mixture(train: Tensor, held_out: Tensor, seed: int) -> MixtureKind:
    """The mixture of ``train`` (N, D) that makes ``held_out`` (M, D) likeliest, of :data:`COUNTS` and :data:`FLOORS`.

    Each component has 2 D rows at least, on average. Of a floor, more components are tried until three numbers in turn
    are worse than the best.
    """
    n, d = train.shape
    counts = [k for k in COUNTS if k == 1 or 2 * d * k <= n]
    scores: dict[MixtureKind, float] = {}
    for floor in FLOORS:
        best, waited = -np.inf, 0
        for kind in (MixtureKind(k, floor) for k in counts):
            score = scores[kind] = _fitted(train.numpy(), kind, seed).score(held_out.numpy())
            best, waited = max(best, score), 0 if score > best else waited + 1
            if waited >= _PATIENCE:
                break
    return max(scores, key=lambda kind: scores[kind])


def fit_mixture(x: Tensor, kind: MixtureKind, seed: int) -> Gaussians:
    """Equal mixture of up to four fits to x (N, D), each without another tenth of the rows and from its own start.

    Their mean density varies less with the rows than one of them (bagging; Breiman 1996).
    """
    count = max(1, min(_AVERAGED, _MOST // (kind.components * x.shape[1])))
    if kind.components == 1 or len(x) < 100:
        count = 1
    fold = CounterRng(stream_seed(seed, Stream.HELD_OUT), 1, len(x)).permutation().numpy() % 10
    parts = []
    for i in range(count):
        rows = x.numpy() if count == 1 else x.numpy()[fold != i]
        made = _fitted(rows, kind, seed + i, _LAST_STARTS)
        parts.append((np.asarray(made.weights_) / count, made.means_, made.covariances_))
    return Gaussians.of(*(torch.from_numpy(np.concatenate(values)) for values in zip(*parts, strict=True)))


def _fitted(x: np.ndarray, kind: MixtureKind, seed: int, starts: int = _STARTS) -> GaussianMixture:
    """scikit-learn's mixture of full covariances, by expectation maximisation."""
    # So many iterations as to converge, as scikit-learn warns otherwise.
    made = GaussianMixture(
        kind.components, reg_covar=kind.floor, n_init=starts, max_iter=2000, random_state=seed % 2**32
    )
    return made.fit(np.asarray(x, np.float64))


def improves(flow: Flow, x: Tensor) -> bool:
    """Whether the network of ``flow`` makes rows x (N, D), which it has not seen, likelier than the mixture does.

    By more than two standard errors of the mean difference, and not where the fixed steps of these densities miss that
    of the mixture by as much as 0.01 nats: an unresolved density is not one.
    """
    x = x[:: -(-len(x) // _COMPARED)]
    net: Any = flow.net
    exact = net.gaussians.log_prob(flow.transform.forward(x)) + flow.transform.log_det(x[0].numel())
    plain = copy.copy(flow)
    plain.net = WithMixture(_Zero(), net.gaussians, net.path, net.prediction, flow.t_eps)
    if (plain.log_prob(x, steps=_STEPS).double() - exact).abs().mean() > _UNRESOLVED:
        return False
    gain = flow.log_prob(x, steps=_STEPS).double() - exact
    return bool(gain.mean() > 2 * gain.std() / len(gain) ** 0.5)


class _Zero(nn.Module):
    """A network of output 0."""

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        return torch.zeros_like(x_t)
