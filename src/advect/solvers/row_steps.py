"""Dormand-Prince steps that each sample chooses for itself, with states at all times between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.types import expand_right
from advect.solvers.base import SolverError, not_finite
from advect.solvers.dormand_prince import DENSE, ERROR, NODES, STAGES

RowVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``u(x (b, *S), t (b,), rows (b,)) -> (b, *S)`` of some ``rows`` of a batch, each at its own time."""

Slope = Callable[[Tensor, Tensor, Tensor], Tensor | None]
"""``(x (b, *S), u (b, *S), t (b,)) -> (b,)``: size of the gradient of the log density at x, t, or None if unknown."""

_FIRST = 1e-3
"""First step: a longer one passes over what narrow data have near t = 1, and its error may be small by chance."""

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_LEAST = 1e-7
_INTERVAL = 2.0
"""Most steps that an interval of the trace covers: a peak between two nodes would not be seen."""

_FAR = 10.0
_MOST = 2000
"""Most steps of a sample, those refused included."""


class TooRough(SolverError):
    """A velocity that no steps, or no quadrature, follow to a tolerance."""


@dataclass(frozen=True)
class _Steps:
    """Accepted steps of ``rows`` (b,) from ``t`` (b,) over ``h`` (b,), with the terms of their polynomials."""

    rows: Tensor
    t: Tensor
    h: Tensor
    terms: tuple[Tensor, ...]

    def at(self, row: Tensor, theta: Tensor) -> Tensor:
        """States (p, *S) of steps ``row`` (p,) at the fractions ``theta`` (p,), to order 4."""
        start, rise, left, right, bend = (term[row] for term in self.terms)
        theta = expand_right(theta.to(start.dtype), start)
        inner = torch.addcmul(right, bend, 1 - theta)
        inner = torch.addcmul(left, inner, theta)
        return start + theta * torch.addcmul(rise, inner, 1 - theta)


class RowPaths:
    """Solutions of ``dx = u(x, t) dt`` for each row of x (B, *S) from t0 to t1, by order 5 with steps of its own.

    An error e at time t moves the log density at the start by the gradient of log p_t times e, whatever follows. So
    the Euclidean norm of a step's error is at most ``tolerance (1 + (r / 10)^2) / max(1 + r, slope)``, with r the root
    mean square of the state: 1 + r is that gradient's size for N(0, I), whose log density grows as r^2, and ``slope``
    the size where it is known, as for concentrated data. A row's solution depends on that row alone.

    Attributes:
        end: states (B, *S) at t1.
        evaluations: (B,) of u.

    Raises UserError, with the time, where a state is not finite or a row needs too many steps.
    """

    def __init__(
        self, u: RowVelocity, x: Tensor, t0: float, t1: float, tolerance: float, slope: Slope | None = None
    ) -> None:
        self.t0, self.t1, self._u, self._tolerance, self._slope = t0, t1, u, tolerance, slope
        self.end, self._steps = x.clone(), list[_Steps]()
        self.evaluations = torch.ones(len(x), dtype=torch.long, device=x.device)
        self._solve(x)

    def _solve(self, x: Tensor) -> None:
        span, rows = self.t1 - self.t0, torch.arange(len(x), device=x.device)
        done = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # shares of the span
        h = torch.full_like(done, _FIRST)
        k1 = self._u(x, self._time(done, x), rows)
        for _ in range(_MOST):
            last = h >= (1 - done) * (1 - 1e-9)
            h = torch.where(last, 1 - done, h)
            x_new, k = self._stages(x, k1, done, h, rows)
            self.evaluations[rows] += len(STAGES)
            error = self._error(x, x_new, k, done, h)
            fine = error <= 1
            kept = fine.nonzero()[:, 0]
            if len(kept):
                terms = _terms(x[kept], x_new[kept], [part[kept] for part in k], h[kept], span)
                self._steps.append(_Steps(rows[kept], done[kept], h[kept], terms))
            finished = fine & last
            self.end[rows[finished]] = x_new[finished]
            go = (~finished).nonzero()[:, 0]
            if not len(go):
                return
            accept = expand_right(fine, x)
            x, k1 = torch.where(accept, x_new, x)[go], torch.where(accept, k[-1], k1)[go]
            factor = (_SAFETY * error.clamp(min=1e-10) ** -0.2).clamp(_SHRINK, _GROW)
            done, h, rows = torch.where(fine, done + h, done)[go], (h * factor)[go], rows[go]
            small = h < torch.minimum(torch.full_like(h, _LEAST), 1 - done)
            if small.any():
                raise self._stopped(done[small][0].item(), bool(error[go][small][0].isinf()))
        raise self._stopped(done.min().item(), False)

    def _stopped(self, done: float, infinite: bool) -> SolverError:
        t = self.t0 + (self.t1 - self.t0) * done
        if infinite:
            return not_finite("dopri5", t)
        return TooRough("solver 'dopri5' does not come past t = {t} at this tolerance; raise it, or give steps", t)

    def _time(self, done: Tensor, x: Tensor) -> Tensor:
        return (self.t0 + (self.t1 - self.t0) * done).to(torch.promote_types(x.dtype, torch.float32))

    def _stages(self, x: Tensor, k1: Tensor, done: Tensor, h: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """States at the ends of the steps and the seven slopes."""
        step = expand_right((h * (self.t1 - self.t0)).to(x.dtype), x)
        k, y = [k1], x
        for weights, node in zip(STAGES, NODES, strict=True):
            y = x + step * _weighted(k, weights)
            k.append(self._u(y, self._time(done + node * h, x), rows))
        return y, k

    def _error(self, x: Tensor, x_new: Tensor, k: Sequence[Tensor], done: Tensor, h: Tensor) -> Tensor:
        """Errors (b,) in units of the tolerance; inf where not finite."""
        step = expand_right((h * (self.t1 - self.t0)).to(x.dtype), x)
        error = (step * _weighted(k, ERROR)).flatten(1).norm(dim=1).double()
        size = torch.maximum(x.flatten(1).norm(dim=1), x_new.flatten(1).norm(dim=1)).double() / x[0].numel() ** 0.5
        weight = 1 + size
        if self._slope is not None:
            for state, u, share in ((x, k[0], done), (x_new, k[-1], done + h)):
                steep = self._slope(state, u, self._time(share, x))
                weight = weight if steep is None else torch.maximum(weight, steep.double())
        return (error * weight / (1 + (size / _FAR).square()) / self._tolerance).nan_to_num(
            torch.inf, torch.inf, torch.inf
        )

    def least_intervals(self) -> Tensor:
        """Intervals (B,) of Clenshaw and Curtis of which none is much longer than the steps around it.

        The last step of a row, which its end cuts, does not count.
        """
        least = torch.zeros(len(self.end), dtype=torch.float64, device=self.end.device)
        for steps in self._steps:
            middle, inner = steps.t + steps.h / 2, steps.t + steps.h < 1 - 1e-9
            needed = torch.pi * (middle * (1 - middle)).sqrt() / (_INTERVAL * steps.h)
            rows = steps.rows[inner]
            least[rows] = torch.maximum(least[rows], needed[inner])
        return least

    def states(self, shares: Tensor, rows: Tensor) -> Tensor:
        """States (m, b, *S) of ``rows`` (b,) at the ``shares`` (m,) of the span, in (0, 1)."""
        place = torch.full((len(self.end),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        found = self.end.new_empty(len(shares), len(rows), *self.end.shape[1:])
        for steps in self._steps:
            theta = (shares[:, None] - steps.t) / steps.h
            inside = (theta > 0) & (theta <= 1) & (place[steps.rows] >= 0)
            at, row = inside.nonzero().unbind(1)
            found[at, place[steps.rows[row]]] = steps.at(row, theta[at, row])
        return found


def _weighted(k: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i weights_i k_i."""
    total = k[0] * weights[0]
    for slope, weight in zip(k[1:], weights[1:], strict=False):
        if weight:
            total.add_(slope, alpha=weight)
    return total


def _terms(x: Tensor, x_new: Tensor, k: Sequence[Tensor], h: Tensor, span: float) -> tuple[Tensor, ...]:
    """x and the four terms of the continuous extension of order 4 (Hairer, Norsett & Wanner 1993, II.6)."""
    step = expand_right((h * span).to(x.dtype), x)
    rise = x_new - x
    left = step * k[0] - rise
    return x, rise, left, rise - step * k[-1] - left, step * _weighted(k, DENSE)
