"""Adaptive Dormand-Prince method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import NonNegative, Steps
from advect.core.errors import UserError
from advect.core.registry import register
from advect.solvers.base import Solver, SolverError, Velocity, expanded_times, not_finite

# Dormand & Prince 1980, RK5(4)7M; Hairer, Norsett & Wanner 1993, table II.5.2. The last row is the solution of
# order 5, and its derivative is the first stage of the next step.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
# Order 5 minus the embedded order 4.
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# The continuous extension of order 4 (Hairer, Norsett & Wanner 1993, II.6, and their code DOPRI5).
DENSE = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)
# The step's controller, with the constants of DOPRI5 (Hairer & Wanner 1996, IV.2).
_SAFETY, _SHRINK, _GROW, _BETA = 0.9, 0.2, 10.0, 0.04
_EXPONENT = 1 / 5 - 0.75 * _BETA

Norm = Callable[[Tensor], float]
"""Size of an error (B, *S) in units of the tolerance; steps with at most 1 are accepted."""


def worst_sample(error: Tensor) -> float:
    """Maximum over the batch of each sample's root mean square."""
    flat = error.flatten(1)
    return torch.linalg.vector_norm(flat, dim=1).amax().item() / math.sqrt(flat.shape[1])


@register("dopri5")
@dataclass(frozen=True)
class DormandPrince(Solver):
    """Adaptive Dormand-Prince method: order 5 with an embedded error of order 4.

    Accepts a step from x to x' if its error divided by ``atol + rtol max(|x|, |x'|)`` is at most 1 in ``norm``. Step
    sizes follow a proportional-integral controller (Gustafsson 1991). Samples of a batch share steps, so they depend
    on each other within the tolerance. Times inside a step use the continuous extension.

    Raises UserError, with the time reached, if ``max_steps`` do not suffice, steps shrink to nothing, or the state is
    not finite.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
        max_steps: limit of steps, including rejected ones.
        norm: size of a scaled error; default that of the worst sample.
    """

    order, evaluations, adaptive = 5, 6, True

    rtol: Annotated[float, Meta(ge=0, le=1)] = 1e-5
    atol: NonNegative = 1e-5
    max_steps: Steps = 1000
    norm: Norm = worst_sample

    def __post_init__(self) -> None:
        if self.rtol == self.atol == 0:
            raise UserError("rtol and atol are both 0, which no step can meet; 1e-5 is usual for both")

    def iterate(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        t, end = grid[0], grid[-1]
        k1 = u(x, expanded_times([t], x)[0])
        h, previous, refused, error = self._first_step(u, x, k1, t, end), 1e-4, False, 0.0
        wanted = iter(grid[1:])
        mark = next(wanted)
        for _ in range(self.max_steps):
            self._check_step(h, t, error)
            last = abs(end - t) <= 1.01 * abs(h)
            after = end if last else t + h
            h = after - t
            x_new, k = _stages(u, x, k1, t, after)
            error = self._error(x, x_new, k, h)
            if not error <= 1:
                h, refused = h / min(1 / _SHRINK, error**_EXPONENT / _SAFETY), True
                continue
            while (mark - after) * h < 0:
                yield _between(x, x_new, k, h, (mark - t) / h)
                mark = next(wanted)
            if mark == after:
                yield x_new
                if last:
                    return
                mark = next(wanted)
            factor = error**_EXPONENT / previous**_BETA / _SAFETY
            factor = min(1 / _SHRINK, max(1.0 if refused else 1 / _GROW, factor))
            x, k1, t, h, previous, refused = x_new, k[-1], after, h / factor, max(error, 1e-4), False
        raise self._stopped(t, f" after max_steps = {self.max_steps}; raise max_steps, or rtol and atol")

    def _stopped(self, t: float, why: str) -> SolverError:
        return SolverError(f"solver {self.name!r} stopped at t = {{t}}{why}", t)

    def _check_step(self, h: float, t: float, error: float) -> None:
        if error == math.inf and abs(h) < 1e-6:
            raise not_finite(self.name, t)
        if abs(h) <= 4 * math.ulp(1.0):
            raise self._stopped(t, ", where its steps have shrunk to nothing; raise rtol and atol")

    def _scaled(self, error: Tensor, size: Tensor) -> float:
        """Norm of an error (B, *S); inf if not finite."""
        value = self.norm(error.div_(size.mul_(self.rtol).add_(self.atol)))
        return value if math.isfinite(value) else math.inf

    @torch.no_grad()
    def _error(self, x: Tensor, x_new: Tensor, k: list[Tensor], h: float) -> float:
        """Scaled error, without gradients: step selection is not part of the flow."""
        error = _combine(k[0] * (h * ERROR[0]), k[1:], ERROR[1:], h)
        return self._scaled(error, torch.maximum(x.abs(), x_new.abs()))

    @torch.no_grad()
    def _first_step(self, u: Velocity, x: Tensor, k1: Tensor, t: float, end: float) -> float:
        """Initial step at one call of u (Hairer, Norsett & Wanner 1993, II.4, "starting step size")."""
        d0, d1 = self._scaled(x.clone(), x.abs()), self._scaled(k1.clone(), x.abs())
        if max(d0, d1) == math.inf:
            raise not_finite(self.name, t)
        span = abs(end - t)
        h0 = min(span, 0.01 * d0 / d1 if min(d0, d1) >= 1e-5 else 1e-6)
        signed = math.copysign(h0, end - t)
        k2 = u(x.add(k1, alpha=signed), expanded_times([t + signed], x)[0])
        d2 = self._scaled(k2 - k1, x.abs()) / h0
        h1 = (0.01 / max(d1, d2)) ** 0.2 if max(d1, d2) > 1e-15 else max(1e-6, h0 * 1e-3)
        return math.copysign(min(100 * h0, h1, span) if h1 > 0 else h0, end - t)


def _combine(x: Tensor, k: Sequence[Tensor], weights: Sequence[float], h: float) -> Tensor:
    """x += h sum_i weights_i k_i, in place."""
    for slope, weight in zip(k, weights, strict=True):
        if weight:
            x.add_(slope, alpha=h * weight)
    return x


def _stages(u: Velocity, x: Tensor, k1: Tensor, t: float, after: float) -> tuple[Tensor, list[Tensor]]:
    """State at ``after`` and the seven slopes, the last one there."""
    h, k, y = after - t, [k1], x
    for weights, time in zip(STAGES, expanded_times([(1 - c) * t + c * after for c in NODES], x), strict=True):
        y = _combine(x.add(k1, alpha=h * weights[0]), k[1:], weights[1:], h)
        k.append(u(y, time))
    return y, k


def _between(x: Tensor, x_new: Tensor, k: list[Tensor], h: float, theta: float) -> Tensor:
    """State at t + theta h, theta in (0, 1), to order 4."""
    rise = x_new - x
    left = (k[0] * h).sub_(rise)
    right = rise.sub(k[-1], alpha=h).sub_(left)
    bend = _combine(k[0] * (h * DENSE[0]), k[1:], DENSE[1:], h)
    inner = right.add_(bend, alpha=1 - theta).mul_(theta).add_(left).mul_(1 - theta).add_(rise)
    return x.add(inner, alpha=theta)
