"""Observations of simulators as the condition of a flow, and how far they are from those simulated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advect.config.plan import FEWEST
from advect.core.errors import UserError
from advect.core.types import Condition
from advect.networks.encoders import Encoder
from advect.sklearn.conditioning import LABEL, Conditioning, Reals, quantity_of
from advect.sklearn.embedding import channel_moments
from advect.sklearn.priors import Prior
from advect.sklearn.settings import warn

KEPT, NUMBERS = 2000, 2_000_000
"""Most simulations, and numbers in them, that a fit keeps to tell how far an observation is."""

_FAR = 2.0
"""Ratio of distances to the nearest simulation, of an observation and of simulations at most, that is warned of."""


class Observed(Conditioning):
    """Observations (*shape), as numbers scaled by the moments of the simulations.

    Attributes:
        encoders: of the condition's name, what makes features of the numbers, if any.
    """

    def __init__(self, x: np.ndarray, encoder: Encoder | None = None) -> None:
        """Of simulations (N, *shape)."""
        self.shape = x.shape[1:]
        self.encoders = {} if encoder is None else {LABEL: encoder}
        flat = x.reshape(len(x), -1)
        quantity = quantity_of(flat, [f"x{i}" for i in range(flat.shape[1])])
        if encoder is not None and x.ndim in (3, 4):  # networks treat all steps and pixels alike
            mean, std = channel_moments(x)
            quantity = replace(quantity, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
        self._reals = Reals(quantity)
        some = flat[np.linspace(0, len(flat) - 1, max(2, min(len(flat), KEPT, NUMBERS // flat.shape[1]))).astype(int)]
        self._near = self._scaled(some)
        own = torch.cdist(self._near, self._near).fill_diagonal_(float("inf")).amin(1)
        self._usual = float(own.max())

    @property
    def conditions(self) -> dict[str, Condition]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._reals.conditions

    def _scaled(self, flat: np.ndarray) -> Tensor:
        """Rows (n, d) as a network takes them, over sqrt(d)."""
        return self._reals.rows(flat, len(flat))[LABEL] / flat.shape[1] ** 0.5

    def rows(self, y: Any, n: int) -> dict[str, Tensor]:
        return self._reals.rows(np.asarray(y).reshape(n, -1), n)

    def read(self, x_obs: Any, name: str = "x_obs") -> tuple[np.ndarray, bool]:
        """Observations (B, *shape), and whether it is one alone. Raises UserError for other shapes and NaN."""
        x = as_numbers(x_obs, name)
        single = x.shape == self.shape or (self.shape == (1,) and x.ndim == 0)
        x = x.reshape(1, *self.shape) if single else x
        x = x[:, None] if x.ndim == 1 and self.shape == (1,) else x
        if x.shape[1:] != self.shape or not len(x):
            shape = ", ".join(map(str, self.shape))
            raise UserError(
                f"{name} must have shape ({shape}), as the simulations fitted, or (B, {shape}), got {np.shape(x_obs)}"
            )
        if not np.isfinite(x).all():
            raise UserError(f"{name} holds NaN or infinite values, for which no posterior was learned")
        return x, single

    def warn_if_far(self, x: np.ndarray) -> None:
        """Warn of observations (B, *shape) far outside the simulations, with the largest distance."""
        nearest = torch.cdist(self._scaled(x.reshape(len(x), -1)), self._near).amin(1)
        far = nearest > _FAR * self._usual + 1e-6
        if bool(far.any()):
            warn(
                f"{int(far.sum())} of {len(x)} observations are far outside the simulations: the nearest one is "
                f"{float(nearest.max()):.3g} standard deviations a number away, among simulations at most "
                f"{self._usual:.3g}; the posterior is extrapolated there, so check the simulator or the observation"
            )


def as_numbers(values: Any, name: str) -> np.ndarray:
    """Arrays, tensors and frames as float64. Raises UserError for text."""
    values = values.detach().cpu() if isinstance(values, Tensor) else values
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be numbers, an array of one shape a row, got {type(values).__name__}") from None


def read_pairs(theta: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """theta (N, D) and x (N, *S) as finite float64. Raises UserError otherwise, and for too few rows."""
    theta, x = as_numbers(theta, "theta"), as_numbers(x, "x")
    theta = theta[:, None] if theta.ndim == 1 else theta
    x = x[:, None] if x.ndim == 1 else x
    if theta.ndim != 2 or not theta.shape[1]:
        raise UserError(f"theta must have shape (N, D), a row of parameters each, got {theta.shape}")
    if x.ndim < 2 or len(x) != len(theta) or 0 in x.shape[1:]:
        raise UserError(f"x must have a simulation for each of the {len(theta):,} rows of theta, got shape {x.shape}")
    if len(theta) < FEWEST:
        raise UserError(f"{len(theta)} simulations are too few to learn a posterior from; give {FEWEST} or more")
    if not np.isfinite(theta).all():
        raise UserError("theta holds NaN or infinite values; leave those rows out")
    failed = ~np.isfinite(x.reshape(len(x), -1)).all(1)
    if failed.any():
        raise UserError(f"{int(failed.sum()):,} rows of x hold NaN or infinite values; leave failed simulations out")
    return theta, x


def check_inside(theta: np.ndarray, prior: Prior) -> None:
    """Raise UserError for rows of theta outside the prior."""
    outside = np.flatnonzero(~prior.contains(theta))
    if len(outside):
        raise UserError(
            f"{len(outside):,} rows of theta lie outside the prior, the first is row {outside[0]}: "
            f"{np.array2string(theta[outside[0]], precision=4)}; give the prior that they were drawn from"
        )
