"""Methods that estimate E[x_1 | x_t, y] by the derivative of the denoiser, see :mod:`advect.solvers.posterior.base`.

They differ in what they take for the covariance C of x_1 given x_t in ``p(y | x_t) = N(A D, noise^2 + A C A^T)``; a
nonlinear A is replaced by its derivative at D. Their estimate is ``D + C A^T v``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import NonNegative, Positive, bounded
from advect.core.errors import UserError
from advect.core.registry import register
from advect.solvers.posterior.base import (
    GuidedMethod,
    LocalDenoiser,
    Observation,
    Reward,
    conjugate_gradients,
    dot,
)

_ITERATIONS = 100  # of A alone, which costs no network


@register("dps")
@bounded
@dataclass(frozen=True)
class DPS(GuidedMethod):
    """Diffusion posterior sampling, for any differentiable A: p(y | x_t) is taken for p(y | x_1 = D).

    Chung et al. 2023, "Diffusion posterior sampling for general noisy inverse problems". Biased: C is left out of
    p(y | x_t), so that samples follow y too closely and spread too little. Here ``v = scale r / noise^2`` of the
    residual r = y - A(D), but never so large that the estimate passes y, which takes the place of the paper's step
    size, as that depends on the number of steps.

    Args:
        scale: factor of the gradient.
    """

    scale: NonNegative = 1.0

    def estimate(self, near: LocalDenoiser, ask: Observation) -> Tensor:
        rest, a = ask.near(near.data)
        pulled = a.pull(rest)
        move = near.covariance(pulled)
        size = dot(rest, rest)
        largest = _aligned(dot(pulled, move).abs(), move) / _aligned(size, move)  # of A C A^T along r
        weight = self.scale / largest.clamp(min=ask.noise**2)
        return near.data + torch.where(torch.isfinite(weight), weight, 0.0).to(move.dtype) * move


@register("pigdm")
@bounded
@dataclass(frozen=True)
class PiGDM(GuidedMethod):
    """Pseudoinverse guidance: x_1 given x_t is taken for N(D, r_t^2 I), r_t^2 = s^2 sigma^2 / (sigma^2 + s^2 alpha^2).

    Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems"; Pokle et al. 2024, "Training-free
    linear image inverses via flows". Exact for data N(m, s^2 I); biased otherwise, as where elements correlate
    or have several modes.

    Args:
        data_std: deviation s of the data in model units.
    """

    data_std: Positive = 1.0

    def estimate(self, near: LocalDenoiser, ask: Observation) -> Tensor:
        rest, a = ask.near(near.data)
        r2 = 1 / (1 / self.data_std**2 + (near.alpha / near.sigma) ** 2)
        v = conjugate_gradients(lambda v: ask.noise**2 * v + r2 * a.push(a.pull(v)), rest, _ITERATIONS)
        return near.data + near.covariance(a.pull(v))


@register("mmps")
@bounded
@dataclass(frozen=True)
class MMPS(GuidedMethod):
    """Moment matching: C = sigma^2 / alpha dD/dx, the covariance of x_1 given x_t, by conjugate gradients.

    Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization". Exact for Gaussian
    data and a linear A, up to the steps; biased where x_1 given x_t is not Gaussian. An iteration costs a derivative
    of the network.

    Args:
        iterations: of conjugate gradients, at most.
    """

    iterations: Annotated[int, Meta(ge=1, le=1000)] = 5

    def estimate(self, near: LocalDenoiser, ask: Observation) -> Tensor:
        rest, a = ask.near(near.data)
        matrix = lambda v: ask.noise**2 * v + a.push(near.covariance(a.pull(v)))
        v = conjugate_gradients(matrix, rest, self.iterations)
        return near.data + near.covariance(a.pull(v))


@register("reward")
@bounded
@dataclass(frozen=True)
class RewardGuidance(GuidedMethod):
    """Guidance by a log-reward or a classifier's log-probability: v is its gradient at D.

    Samples are of about ``p(x_1) exp(scale r(x_1))``; DPS with another likelihood. Exact for Gaussian data and a
    linear r. A steep r needs more steps.

    Args:
        scale: factor of the log-reward.
    """

    asks = Reward
    scale: NonNegative = 1.0

    def estimate(self, near: LocalDenoiser, ask: Reward) -> Tensor:
        at = near.data.detach().requires_grad_()
        with torch.enable_grad():
            value = ask.function(at)
            if value.shape != at.shape[:1] or not value.requires_grad:
                raise UserError(
                    f"a log-reward must be one number a sample, ({len(at)},), with a gradient in x, got shape "
                    f"{tuple(value.shape)}{'' if value.requires_grad else ' without a gradient'}"
                )
            (slope,) = torch.autograd.grad(value.sum(), at)
        return near.data + self.scale * near.covariance(slope)


def _aligned(scalar: Tensor, x: Tensor) -> Tensor:
    """Scalars (B, 1, ...) to broadcast over x (B, *S)."""
    return scalar.reshape(len(scalar), *[1] * (x.ndim - 1))
