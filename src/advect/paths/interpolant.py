"""Paths given by an interpolant of both ends and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import PathSample, expand_right
from advect.paths.base import Path, check_ends, check_point, require_x0

Psi = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``psi(x0 (B, *S), x1 (B, *S), t (B, 1, ..., 1)) -> x_t (B, *S)``, row by row."""


@dataclass(frozen=True)
class InterpolantPath(Path):
    """``x_t = psi(x0, x1, t)`` for any differentiable psi, with ``u_t = d psi / dt`` by differentiation.

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
        time = expand_right(t, x1).to(x1.dtype)
        x_t = self.psi(x0, x1, time)
        if x_t.shape != x1.shape:
            raise UserError(
                f"InterpolantPath.psi must return the shape of x0 and x1, {tuple(x1.shape)}, got {tuple(x_t.shape)}"
            )
        return x_t, self._slope(x0, x1, time, keep_graph=x_t.requires_grad)

    def _slope(self, x0: Tensor, x1: Tensor, time: Tensor, *, keep_graph: bool) -> Tensor:
        """d psi / dt (B, *S), as the gradient of ``sum w d psi / dt``, linear in w, with respect to w."""
        with torch.inference_mode(False), torch.enable_grad():
            at = time if time.requires_grad else time.clone().requires_grad_()
            x_t = self.psi(x0, x1, at)
            w = torch.zeros_like(x_t, requires_grad=True)
            if not x_t.requires_grad:
                return torch.zeros_like(x_t)
            (pulled,) = torch.autograd.grad(x_t, at, w, create_graph=True, allow_unused=True)
            if pulled is None:
                return torch.zeros_like(x_t)
            (slope,) = torch.autograd.grad(pulled.sum(), w, create_graph=keep_graph)
        return slope if keep_graph else slope.detach()
