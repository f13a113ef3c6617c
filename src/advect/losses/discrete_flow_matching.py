"""Discrete flow matching: cross-entropy of the tokens of the data, given a mixture of them and the source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from torch import Tensor

from advect.core.bounds import Share
from advect.core.categorical import check_rows
from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator
from advect.core.registry import register
from advect.core.types import Batch, PathSample, drop_conditions
from advect.losses.base import Loss, LossInput
from advect.paths.mixture import MixturePath, cross_entropy, per_row
from advect.sources import Masked, SourceDistribution
from advect.times import Stratified, TimeDistribution

Objective = Literal["likelihood", "plain"]


@register("discrete-flow-matching")
@dataclass(frozen=True, kw_only=True)
class DiscreteFlowMatching(Loss):
    """Discrete flow matching of tokens: a bound of their likelihood, or a plain cross-entropy.

    The network gives logits (B, L, K) of each token of the data as the others of x_t tell it (see
    :class:`MixturePath`). Samples are drawn by ``tau-leaping``. Rows of zeros in x1 are padding, which costs nothing.

    "likelihood" is an unbiased draw of a bound from above of ``-log p(x1) / L``, nats a token (see
    :meth:`MixturePath.bound`); "plain" is ``-log p(x1^i | x_t)``, the mean over the L tokens of a sample, 0 for
    those that are known without a mask (Gat et al. 2024, "Discrete flow matching", eq. 28).

    Args:
        path: a mixture path from that source.
        source: masks, or uniform tokens.
        times: law of t; the loss is a bound for uniform ones.
        weighting: of the cross-entropies, "likelihood" or "plain".
        cond_dropout: share in [0, 1) of samples without conditions, for classifier-free guidance.
    """

    discrete: ClassVar[bool] = True

    path: MixturePath = field(default_factory=MixturePath)
    source: SourceDistribution = field(default_factory=Masked)
    times: TimeDistribution = field(default_factory=Stratified)
    weighting: Objective = "likelihood"
    cond_dropout: Share = 0.0

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Objective):
            near = did_you_mean(self.weighting, get_args(Objective))
            raise UserError(f"DiscreteFlowMatching.weighting {self.weighting!r} is not known{near}")
        if not isinstance(self.path, MixturePath):
            raise UserError(f"DiscreteFlowMatching.path must be a MixturePath, got {self.path}; take MixturePath()")
        if not self.source.discrete or self.path.masked != isinstance(self.source, Masked):
            raise UserError(
                f"DiscreteFlowMatching needs tokens as its source, those of its path, got {self.source} and "
                f"{self.path}; take Masked() with MixturePath(), or UniformTokens() with MixturePath(masked=False)"
            )

    def sample(self, batch: Batch, generator: Generator = None) -> LossInput:
        x1 = batch.x1
        check_rows("x1", x1)
        if batch.x0 is not None:
            raise UserError("discrete flow matching starts from masks or uniform tokens; leave out x0 of the batch")
        t = self.times.sample(len(x1), generator, x1.device)
        draw = self.path.sample if self.weighting == "plain" else self.path.bound_sample
        sample = draw(self.source.sample_like(x1, generator), x1, t, generator)
        return sample, drop_conditions(batch.cond, self.cond_dropout, generator)

    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        length = sample.x1[0, ..., 0].numel()
        if self.weighting == "likelihood":
            loss = self.path.bound(output, sample) / length
        else:
            log_p = self.path.log_posterior(output, sample.x_t, sample.t)
            loss = per_row(cross_entropy(log_p, sample.x1)) / length
        return self.times.importance_weight(sample.t, loss)

    def state_dict(self) -> dict[str, list[float]]:
        return self.times.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.times.load_state_dict(state)
