"""Log-density of a flow to a tolerance: each sample takes the steps and traces that it needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import check_floating
from advect.solvers.base import all_finite, not_finite
from advect.solvers.likelihood import CHUNK, ExactDivergence, standard_normal_log_prob
from advect.solvers.row_steps import RowPaths, RowVelocity, Slope, TooRough

TOLERANCE = 1e-3
"""Nats by which a density may be wrong."""

LEAST = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Least tolerances that the rounding of a type leaves room for."""

_STATE = 100.0
_FIRST, _FINEST, _LAST = 24, 24 << 4, 24 << 6
_ROUNDING = 16
_ROWS, _NUMBERS, _STORED = 1024, 1 << 14, 1 << 24


@torch.no_grad()
def log_prob_within(
    velocity: RowVelocity,
    x1: Tensor,
    tolerance: float = TOLERANCE,
    *,
    source: Callable[[Tensor], Tensor] = standard_normal_log_prob,
    t0: float = 0.0,
    t1: float = 1.0,
    chunk: int | None = None,
    slope: Slope | None = None,
) -> Tensor:
    """Log density (B,), in nats, of x1 (B, *S), with an estimated error of at most ``tolerance`` nats for each.

    As :func:`log_prob` with the exact trace. State and integral are solved apart: the states by steps of order 5, the
    trace integrated over them by the rule of Clenshaw & Curtis (1960) with 24, 48, 96 ... intervals, until the last
    coefficients of its polynomial are small. The traces of all times are taken at once, and those of fewer intervals
    kept. A row's density depends on that row alone.

    Args:
        velocity: takes the rows of x1 that it is asked for, as a third argument.
        tolerance: from 1e-4, or in float64 from 1e-8, to 1.
        source, t0, t1, chunk: as in :func:`log_prob`.
        slope: see :class:`RowPaths`; without it data must not be much narrower than the source.

    No trace is asked to be more exact than the rounding of its type. Raises UserError for a tolerance out of range, a
    state that is not finite, and TooRough, which is one, for a velocity or a trace too rough.
    """
    check_floating(x1=x1)
    least = LEAST.get(x1.dtype, 1e-2)
    if not least <= tolerance <= 1:
        raise UserError(
            f"tolerance must be from {least:g} to 1 in {str(x1.dtype)[6:]}, got {tolerance:g}; 1e-3 is usual"
        )
    block = max(1, _STORED // (100 * max(1, x1[0].numel()))) if len(x1) else 1
    parts = []
    for first in range(0, max(1, len(x1)), block):
        some = x1[first : first + block]
        own: RowVelocity = lambda x, t, rows, first=first: velocity(x, t, rows + first)
        parts.append(_within(own, some, tolerance, t0, t1, CHUNK if chunk is None else chunk, slope))
    x0, change = (torch.cat(part) for part in zip(*parts, strict=True))
    return source(x0) + change


def _within(
    velocity: RowVelocity,
    x1: Tensor,
    tolerance: float,
    t0: float,
    t1: float,
    chunk: int,
    slope: Slope | None,
) -> tuple[Tensor, Tensor]:
    """x0 (B, *S), and the integral of the divergence from t1 to t0 (B,)."""
    if not len(x1):
        return x1, x1.new_zeros(0)
    paths = RowPaths(velocity, x1, t1, t0, tolerance / _STATE, slope)
    traces = _Traces(paths, velocity, x1, chunk)
    rows, count = torch.arange(len(x1), device=x1.device), _FIRST
    finest = paths.least_intervals().clamp(max=_FINEST)
    values, integral = traces.more(rows, count, None), x1.new_zeros(len(x1), dtype=torch.float64)
    while True:
        least = (_ROUNDING * torch.finfo(x1.dtype).eps * values.abs().mean(0)).clamp(min=tolerance)
        rough = (_error(values) > least) | (count < finest[rows])
        integral[rows[~rough]] = _on(values, _weights(count)) @ values[:, ~rough]
        if not rough.any():
            return paths.end, ((t0 - t1) * integral).to(x1.dtype)
        rows, count = rows[rough], 2 * count
        if count > _LAST:
            raise TooRough(
                f"the densities of {len(rows)} of {len(x1)} samples are not found to {tolerance:g} nats, as the "
                "velocity is not smooth there; raise tolerance, or give steps"
            )
        values = traces.more(rows, count, values[:, rough])


class _Traces:
    """Divergences of ``velocity`` along paths, at the times of Clenshaw and Curtis."""

    def __init__(self, paths: RowPaths, velocity: RowVelocity, start: Tensor, chunk: int) -> None:
        self.paths, self.velocity, self.start, self.chunk = paths, velocity, start, chunk

    def more(self, rows: Tensor, count: int, known: Tensor | None) -> Tensor:
        """Divergences (count + 1, b) of ``rows`` (b,), of which every second is ``known`` (count / 2 + 1, b)."""
        shares = torch.from_numpy(_shares(count)).to(rows.device)
        if known is not None:
            found = known.new_empty(count + 1, len(rows))
            found[::2] = known
            found[1::2] = self._at(shares[1::2], self.paths.states(shares[1::2], rows), rows)
            return found
        inner = self.paths.states(shares[1:-1], rows)
        return self._at(shares, torch.cat([self.start[None, rows], inner, self.paths.end[None, rows]]), rows)

    def _at(self, shares: Tensor, states: Tensor, rows: Tensor) -> Tensor:
        """Divergences (m, b), in float64, at the ``shares`` (m,) of the span, of states (m, b, *S)."""
        m, b = states.shape[:2]
        flat, all_rows, t0, t1 = states.flatten(0, 1), rows.repeat(m), self.paths.t0, self.paths.t1
        t = (t0 + (t1 - t0) * shares).to(torch.promote_types(states.dtype, torch.float32)).repeat_interleave(b)
        size = max(len(self.start), min(_ROWS, _NUMBERS // max(1, flat[0].numel())))
        parts = []
        for first in range(0, m * b, size):
            some = slice(first, first + size)
            here: Tensor = all_rows[some]
            divergence = ExactDivergence(lambda x, t, here=here: self.velocity(x, t, here), self.chunk)
            parts.append(divergence(flat[some], t[some])[1].double())
            if not all_finite(parts[-1]):
                bad = t[some][~torch.isfinite(parts[-1])]
                raise not_finite("dopri5", bad[0].item())
        return torch.cat(parts).view(m, b)


def _error(values: Tensor) -> Tensor:
    """Estimated errors (b,) of the integrals of values (count + 1, b), by their last Chebyshev coefficients.

    Coefficients twice as far count whole, as they are taken for the first ones: these follow from the fall of the last
    ones over an octave, so that kinks and jumps, whose coefficients fall slowly, are not taken for smooth. Of the
    traces of trained networks along their flows it exceeds the error in 95 rows of 100 or more.
    """
    count = len(values) - 1
    before, last = ((_on(values, part) @ values).square().mean(0).sqrt() for part in _last_coefficients(count))
    fall = (last / before.clamp(min=1e-300)).clamp(max=1.0)
    return torch.maximum(2 * last / count**0.5, 3 * last * fall)


def _on(values: Tensor, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(values.device)


@cache
def _shares(count: int) -> np.ndarray:
    """The count + 1 times of Clenshaw and Curtis in [0, 1], rising."""
    return np.sin(math.pi / 2 * np.arange(count + 1) / count) ** 2


@cache
def _weights(count: int) -> np.ndarray:
    """Their weights, for an even count (Trefethen 2008, "Is Gauss quadrature better than Clenshaw-Curtis?")."""
    k, j = np.arange(count + 1)[:, None], np.arange(count // 2 + 1)
    terms = np.cos(2 * math.pi * k * j / count) * np.where((j == 0) | (j == count // 2), 0.5, 1.0) / (1 - 4.0 * j**2)
    ends = np.where((k[:, 0] == 0) | (k[:, 0] == count), 0.5, 1.0)
    return 2 * ends / count * terms.sum(1)


@cache
def _last_coefficients(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices (count / 4, count + 1) of the second and the last quarter of the Chebyshev coefficients of values."""
    k, quarter = np.arange(count + 1), count // 4
    matrix = np.cos(math.pi * np.outer(k, k) / count) * (2 / count)
    matrix[:, [0, -1]] /= 2
    matrix[-1] /= 2
    return matrix[quarter + 1 : 2 * quarter + 1], matrix[-quarter:]
