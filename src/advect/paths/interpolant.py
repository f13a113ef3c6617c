"""Paths given by an interpolant of both ends and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp

from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import PathSample, expand_right
from advect.paths.base import Path, check_ends, check_point, require_x0

Psi = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``psi(x0 (B, *S), x1 (B, *S), t (B, 1, ..., 1)) -> x_t (B, *S)``, row by row."""


@dataclass(frozen=True)
class InterpolantPath(Path):
    """``x_t = psi(x0, x1, t)`` for any differentiable psi, with ``u_t = d psi / dt`` by forward-mode differentiation.

    psi goes from x0 to x1, row by row, deterministically: there is no conditional score. Lipman et al. 2023, "Flow
    matching for generative modeling", with psi of both ends as in Albergo & Vanden-Eijnden 2023,
    "Building normalizing flows with stochastic interpolants".
    """

    psi: Psi

    def __post_init__(self) -> None:
        if not callable(self.psi):
            raise UserError(f"InterpolantPath.psi must be a function of (x0, x1, t), got {self.psi!r}")

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, generator: Generator = None) -> PathSample:
        x_t, u_t = self._point(x0, x1, t)
        return PathSample(x_t=x_t, t=t, u_t=u_t, x0=x0, x1=x1)

    def conditional_velocity(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """d psi(x0, x1, t) / dt (B, *S), whatever x. Raises UserError without x0."""
        x0 = require_x0(x0, "InterpolantPath")
        check_point(x, t, x1, x0)
        return self._point(x0, x1, t)[1]

    def conditional_score(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """Raises UserError: the conditional law is a point."""
        raise UserError("an InterpolantPath has no score; use BrownianBridge or AffinePath")

    def _point(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        check_ends(x0, x1, t)
        time = expand_right(t, x1).to(x1.dtype).contiguous()  # an expanded t has no room for tangents
        x_t, u_t = jvp(lambda s: self.psi(x0, x1, s), (time,), (torch.ones_like(time),))[:2]
        if x_t.shape != x1.shape:
            raise UserError(
                f"InterpolantPath.psi must return the shape of x0 and x1, {tuple(x1.shape)}, got {tuple(x_t.shape)}"
            )
        return x_t, u_t
