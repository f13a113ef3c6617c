"""A network with two heads, velocity and score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import Batch, Conditions, Network, PathSample
from advect.losses.base import Loss, LossInput
from advect.losses.flow_matching import FlowMatching
from advect.paths import AffinePath

Heads = Callable[[Tensor, Tensor, Conditions | None], Tensor]
"""``net(x_t (B, C, ...), t (B,), cond) -> (B, 2 C, ...)``: velocity channels, then score channels."""


def split_heads(output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, 2 C, ...) into velocity and score (B, C, ...). Raises UserError for another number of channels."""
    if output.shape != (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:]):
        raise UserError(
            f"a network with two heads must put out twice the channels of x_t {tuple(x_t.shape)}, "
            f"got {tuple(output.shape)}"
        )
    velocity, score = output.chunk(2, 1)
    return velocity, score


def velocity_head(net: Heads) -> Network:
    """The velocity (B, C, ...)."""
    return lambda x_t, t, cond=None: split_heads(net(x_t, t, cond), x_t)[0]


def score_head(net: Heads) -> Network:
    """The score (B, C, ...)."""
    return lambda x_t, t, cond=None: split_heads(net(x_t, t, cond), x_t)[1]


@dataclass(frozen=True, kw_only=True)
class StochasticInterpolantLoss(Loss):
    """``flow + score_weight score``: joint training of both heads, for SDEs with any diffusion.

    Albergo et al. 2023, "Stochastic interpolants", section 2; Tong et al. 2024, "Simulation-free Schroedinger
    bridges". ``score`` uses the path and times of ``flow``: denoising score matching weighted by sigma^2 on an
    affine path, else the conditional score. Raises UserError for a negative weight.
    """

    flow: FlowMatching = field(default_factory=FlowMatching)
    score_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.score_weight >= 0:
            raise UserError(
                f"StochasticInterpolantLoss.score_weight must be >= 0, got {self.score_weight}; 1 is usual"
            )
        _ = self.score

    @cached_property
    def score(self) -> FlowMatching:
        """Loss of the score head."""
        affine = isinstance(self.flow.path, AffinePath)
        return replace(self.flow, prediction="score", loss_space="noise" if affine else "score")

    def sample(self, batch: Batch, generator: Generator = None) -> LossInput:
        return self.score.sample(batch, generator)

    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        velocity, score = split_heads(output, sample.x_t)
        loss = self.flow.error(velocity, sample) + self.score_weight * self.score.error(score, sample)
        return self.score.importance_weight(sample.t, loss)

    def state_dict(self) -> dict[str, list[float]]:
        return self.flow.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.flow.load_state_dict(state)
