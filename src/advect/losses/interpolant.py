"""Joint regression of velocity and score, for stochastic differential equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from advect.core.bounds import NonNegative
from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import Conditions, Network, PathSample
from advect.losses.flow_matching import FlowMatching
from advect.paths import AffinePath, Path
from advect.paths.base import align

Heads = Callable[[Tensor, Tensor, Conditions | None], Tensor]
"""``net(x_t (B, C, ...), t (B,), cond) -> (B, 2 C, ...)``: the prediction of the flow, then that of the noise z."""


def split_heads(output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, 2 C, ...) into both heads (B, C, ...). Raises UserError for another number of channels."""
    if output.shape != (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:]):
        raise UserError(
            f"a network with two heads must put out twice the channels of x_t {tuple(x_t.shape)}, "
            f"got {tuple(output.shape)}"
        )
    first, second = output.chunk(2, 1)
    return first, second


def velocity_head(net: Heads) -> Network:
    """The first head, the velocity (B, C, ...) unless another prediction was trained."""
    return lambda x_t, t, cond=None: split_heads(net(x_t, t, cond), x_t)[0]


def score_head(net: Heads, path: Path) -> Network:
    """The score (B, C, ...) of the second head on ``path``, minus its noise over gamma; not where gamma is 0."""

    def score(x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        return -split_heads(net(x_t, t, cond), x_t)[1] / align(path.interpolant(t).gamma, x_t)

    return score


@register("stochastic-interpolant")
@dataclass(frozen=True, kw_only=True)
class StochasticInterpolantLoss(FlowMatching):
    """A regression of the velocity and of the score, for SDEs on any path with noise; needs --score-network.

    ``flow + score_weight E w(t) |eta - z|^2`` on ``x_t = alpha x1 + beta x0 + gamma z`` (Albergo et al. 2023,
    "Stochastic interpolants"; Tong et al. 2024, "Simulation-free Schrödinger bridges via score and flow matching").
    The second head eta predicts the path's noise, of unit variance up to both ends; the score is -eta / gamma, so that
    this is the regression of the score with the weight gamma^2: sigma^2 t (1 - t) on a Brownian bridge.

    Args:
        score_weight: weight of the score in the sum.

    Raises UserError for a negative weight and a path without noise: on an affine path x0 is the noise if it is
    Gaussian and drawn apart from x1, else there is only the jitter sigma_min > 0.
    """

    learns_score: ClassVar[bool] = True

    score_weight: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.path, AffinePath) and self.path.gaussian_source and not self._plain_noise():
            raise UserError(
                "the source or coupling is not that of an AffinePath with gaussian_source=True; set it to False, and "
                "sigma_min > 0"
            )
        self.path.interpolant(torch.tensor([0.5]))

    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        prediction, eta = split_heads(output, sample.x_t)
        score = self.weighted(eta - self.noise(sample), sample)
        loss = self.error(prediction, sample) + self.score_weight * score
        return self.importance_weight(sample.t, loss)

    def noise(self, sample: PathSample) -> Tensor:
        """z (B, *S) of a path sample."""
        path = self.path
        if isinstance(path, AffinePath) and path.gaussian_source and path.sigma_min == 0:
            return sample.x0
        alpha, beta, gamma, *_ = (align(c, sample.x_t) for c in path.interpolant(sample.t))
        return (sample.x_t - alpha * sample.x1 - beta * sample.x0) / gamma
