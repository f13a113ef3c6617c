"""An exact step of a flow at an end of time: its inverse and determinant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from advect.core.types import expand_right
from advect.solvers.likelihood import CHUNK, Linearised, make_divergence

Field = Callable[[Tensor], Tensor]

_ITERATIONS, _HISTORY = 60, 12
_ROUNDING = 3e-7
_JACOBIAN = 1 << 24  # elements at once


@dataclass(frozen=True)
class EndStep:
    """The map ``z = keep y + weight field(y)`` of states (B, *S), one step of a flow at an end of time."""

    keep: float
    weight: float
    field: Field

    def __call__(self, y: Tensor) -> Tensor:
        return y.mul(self.keep).add_(self.field(y), alpha=self.weight)

    def inverse(self, z: Tensor) -> Tensor:
        """y, by Anderson's iteration (Walker & Ni 2011), which also converges where the map contracts much."""
        y, ys, rests = z / self.keep, [], []
        best, least = y, torch.full((len(z),), math.inf, dtype=torch.float64, device=z.device)
        for _ in range(_ITERATIONS):
            rest = (z - self(y)) / self.keep
            size = rest.flatten(1).double().norm(dim=1)
            better = size < least
            best = torch.where(expand_right(better, y), y, best)
            least = torch.where(better, size, least)
            if not (least > _ROUNDING * best.flatten(1).double().norm(dim=1)).any():
                break
            ys, rests = [*ys, y][-_HISTORY:], [*rests, rest][-_HISTORY:]
            y = _accelerated(ys, rests)
        return best

    def log_det(self, y: Tensor, trace: Trace) -> Tensor:
        """log |det dz / dy| (B,): exact, or of an estimated trace as if all elements had the same slope.

        The latter is at least the exact one, by Jensen's inequality.
        """
        if trace.options.get("trace", "exact") == "exact":
            return jacobian_log_det(self, y)
        d = y[0].numel()
        slope = self.weight / self.keep * trace(self.field, y) / d
        return d * (math.log(self.keep) + torch.log1p(slope.clamp(min=-0.999)))


def _accelerated(ys: Sequence[Tensor], rests: Sequence[Tensor]) -> Tensor:
    """The next state (B, *S) of states and their residuals, combined to the least residual."""
    y, rest = ys[-1], rests[-1]
    if len(ys) == 1:
        return y + rest
    moves, changes = (torch.stack([b - a for a, b in pairwise(v)], 1).flatten(2).double() for v in (ys, rests))
    gram = changes @ changes.mT
    ridge = 1e-13 * gram.diagonal(dim1=1, dim2=2).sum(1) + 1e-300
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    shares = torch.linalg.solve(gram, changes @ rest.flatten(1).double()[:, :, None])
    step = rest.flatten(1).double() - ((moves + changes).mT @ shares)[:, :, 0]
    return y + step.view_as(y).to(y.dtype)


def jacobian_log_det(field: Field, y: Tensor) -> Tensor:
    """log |det| (B,) of the Jacobian at y (B, *S) of a field whose rows are apart; it costs a backward pass an
    element.
    """
    d, parts = y[0].numel(), []
    for some in y.split(max(1, _JACOBIAN // d**2)):
        rows = [rows for _, rows in Linearised(lambda y, t: field(y), some, some.new_zeros(len(some))).rows(CHUNK)]
        parts.append(torch.linalg.slogdet(torch.cat(rows).movedim(0, 1).double())[1])
    return torch.cat(parts).to(y.dtype)


@dataclass(frozen=True)
class Trace:
    """The divergence (B,) of a field of y alone; ``options`` are those of :func:`advect.solvers.log_prob`."""

    options: dict[str, Any]

    def __call__(self, field: Field, y: Tensor) -> Tensor:
        return make_divergence(lambda y, t: field(y), y, **self.options)(y, y.new_zeros(len(y)))[1]
