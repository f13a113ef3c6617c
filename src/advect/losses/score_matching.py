"""Denoising score matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator
from advect.core.registry import register
from advect.core.types import Batch, PathSample
from advect.losses.base import Loss, LossInput
from advect.losses.flow_matching import FlowMatching
from advect.masks import Mask
from advect.paths import AffinePath
from advect.times import Stratified, TimeDistribution

Weighting = Literal["sigma2", "uniform", "likelihood"]


@register("score-matching")
@dataclass(frozen=True, kw_only=True)
class ScoreMatching(Loss):
    """A regression of the score of the noised data.

    ``E lambda(t) |s - grad log p_t(x_t | x1)|^2`` on an affine path from Gaussian noise (Vincent 2011; Song et al.
    2021, "Score-based generative modeling through stochastic differential equations"). ``prediction="noise"``
    predicts -sigma s. ``weighting`` is lambda:

    - "sigma2": sigma^2, the loss of the noise, |sigma s + x0|^2, finite at the ends (Ho et al. 2020);
    - "uniform": 1, which grows like 1 / sigma^2 towards the data;
    - "likelihood": g^2 = 2 sigma (sigma alpha' / alpha - sigma'), a bound of the likelihood (Song et al. 2021,
      "Maximum likelihood training of score-based diffusion models");
    - any function of t (B,) to lambda (B,).

    lambda / sigma^2 and the times of scores stay in [t_eps, 1 - t_eps]. Raises UserError for an unknown weighting or
    prediction.
    """

    path: AffinePath = field(default_factory=AffinePath)
    times: TimeDistribution = field(default_factory=Stratified)
    weighting: Weighting | Callable[[Tensor], Tensor] = "sigma2"
    prediction: Literal["score", "noise"] = "score"
    t_eps: float = 1e-3
    cond_dropout: float = 0.0
    mask: Mask | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weighting, str) and self.weighting not in get_args(Weighting):
            fix = did_you_mean(self.weighting, get_args(Weighting))
            raise UserError(f"ScoreMatching.weighting {self.weighting!r} is not known{fix}")
        if self.prediction not in ("score", "noise"):
            raise UserError(f"ScoreMatching.prediction must be 'score' or 'noise', got {self.prediction!r}")
        if not self.path.gaussian_source:
            raise UserError(
                "ScoreMatching needs x0 to be Gaussian noise drawn apart from x1, not "
                "gaussian_source=False; take FlowMatching"
            )
        _ = self.regression

    @cached_property
    def regression(self) -> FlowMatching:
        """Equivalent regression of the noise: |s - s*|^2 = |noise - noise*|^2 / sigma^2."""
        return FlowMatching(
            path=self.path,
            times=self.times,
            weight=None if self.weighting == "sigma2" else self._weight,
            prediction=self.prediction,
            loss_space="noise",
            t_eps=self.t_eps,
            cond_dropout=self.cond_dropout,
            mask=self.mask,
        )

    def _weight(self, t: Tensor) -> Tensor:
        c = self.path.coefficients(t.clamp(self.t_eps, 1 - self.t_eps))
        scale = c.sigma.square()
        if callable(self.weighting):
            return self.weighting(t) / scale
        if self.weighting == "likelihood":
            return 2 * c.sigma * (c.sigma * c.d_alpha / c.alpha - c.d_sigma) / scale
        return 1 / scale

    def sample(self, batch: Batch, generator: Generator = None) -> LossInput:
        if batch.x0 is not None:
            raise UserError("ScoreMatching draws its own noise, and the data bring x0; take FlowMatching")
        return self.regression.sample(batch, generator)

    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        return self.regression.compare(output, sample)

    def state_dict(self) -> dict[str, list[float]]:
        return self.times.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.times.load_state_dict(state)
