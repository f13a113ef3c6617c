"""Variational flow matching: the posterior of the data given a point of the path, a law for each kind of element.

Eijkelboom et al. 2024, "Variational flow matching for graph generation"; Guzman-Cordero et al. 2025, "Exponential
family variational flow matching for tabular data generation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.registry import register
from advect.core.types import Batch, Code, PathSample, code_places
from advect.couplings import Coupling, Independent
from advect.losses.base import Loss, LossInput
from advect.losses.flow_matching import FlowMatching
from advect.masks import Mask
from advect.paths import AffinePath
from advect.sources import Gaussian, SourceDistribution
from advect.times import Stratified, TimeDistribution
from advect.weights import Weight


@dataclass(frozen=True)
class PosteriorHead:
    """What a network's output (B, *S) says of x1 given x_t: logits of codes, and predictions of other elements.

    A code of k > 1 elements is +1 at its category and -1 elsewhere, with the probabilities softmax(output), so that
    ``E[x1 | x_t] = 2 softmax - 1``; one element alone is +1 with the probability sigmoid(output). Other elements have
    their prediction turned into that of the data. Only samples that are vectors (B, D) have codes.

    Attributes:
        codes: of categories.
        path: affine.
        prediction: of the elements without a code.
        t_eps: distance from 0 and 1 at which conversions are cut where the schedule's derivatives are infinite.
    """

    codes: Sequence[Code]
    path: AffinePath
    prediction: Literal["velocity", "data"] = "velocity"
    t_eps: float = 1e-3

    @cached_property
    def places(self) -> tuple[Tensor, ...]:
        """Elements of the codes, see :func:`code_places`."""
        return code_places(self.codes)

    @cached_property
    def _coded(self) -> Tensor:
        """All elements of codes (n,)."""
        return torch.cat([place.flatten() for place in self.places]) if self.codes else torch.zeros(0).long()

    def numbers(self, x: Tensor) -> Tensor:
        """Which elements (D,) of vectors x (B, D), or all (1, *S) of other samples, belong to no code."""
        if not self.codes:
            return torch.ones_like(x[:1], dtype=torch.bool)
        plain = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        return plain.index_fill(0, self._coded.to(x.device), False)

    def mean(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x1 | x_t] (B, *S) by the output (B, *S) at x_t (B, *S), t (B,)."""
        output = output.to(x_t.dtype)
        if not all(self.path.schedule.finite_ends()):
            t = t.clamp(self.t_eps or 1e-3, 1 - (self.t_eps or 1e-3))
        mean = self.path.convert(output, x_t, t, self.prediction, "data")
        for place in self.places:
            flat, logits = place.flatten().to(x_t.device), output[:, place]
            own = 2 * logits.softmax(2) - 1 if place.shape[1] > 1 else torch.tanh(logits / 2)
            mean = mean.index_copy(1, flat, own.flatten(1))
        return mean

    def surprise(self, output: Tensor, x1: Tensor, target: Tensor | None = None) -> Tensor:
        """Sum (B,) over the codes of the cross-entropy, in nats, of the categories of x1 (B, D).

        ``target`` (B, D) marks the elements that count. A code between categories, as of generated x1, has the mean of
        theirs by its shares.
        """
        total = output.new_zeros(len(output))
        for place in self.places:
            logits, shares = output[:, place], (x1[:, place] + 1) / 2
            if place.shape[1] > 1:
                cost = -(shares * logits.log_softmax(2)).sum(2)
            else:
                cost = F.binary_cross_entropy_with_logits(logits, shares, reduction="none")[:, :, 0]
            total = total + (cost if target is None else cost * target[:, place[:, 0]]).sum(1)
        return total


@register("variational-flow-matching")
@dataclass(frozen=True, kw_only=True)
class VariationalFlowMatching(Loss):
    """A cross-entropy of categories and a regression of numbers, for tables; elsewhere flow matching.

    ``E w(t) (sum of |f - f*|^2 over numbers + sum of -log q(category | x_t) over codes) / their number``, whose
    minimiser q is the posterior of each category given x_t, and f that of :class:`FlowMatching`. The flow has the
    velocity of ``E[x1 | x_t]``: it depends on nothing else of the law of x1 given x_t (Eijkelboom et al. 2024).

    Attributes:
        prediction: of numbers: "velocity" or "data". The weight of the squared error in their law follows.
        weight: maps t (B,) to w (B,).
        t_eps: as in :class:`FlowMatching`.
        cond_dropout: share in [0, 1] of samples without conditions.
        mask: law of the entries that the network is given. They, and those that the data lack, cost nothing.
        codes: which elements of a sample code categories.

    Raises UserError for another path than an affine one, or one of which the data do not tell the velocity.
    """

    learns_posterior: ClassVar[bool] = True

    path: AffinePath = field(default_factory=AffinePath)
    source: SourceDistribution = field(default_factory=Gaussian)
    coupling: Coupling = field(default_factory=Independent)
    times: TimeDistribution = field(default_factory=Stratified)
    weight: Weight | None = None
    prediction: Literal["velocity", "data"] = "velocity"
    t_eps: float = 1e-3
    cond_dropout: float = 0.0
    mask: Mask | None = None
    codes: Sequence[Code] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.path, AffinePath) or (self.path.sigma_min > 0 and not self.path.gaussian_source):
            raise UserError(
                f"VariationalFlowMatching needs a path whose velocity follows from the data, got {self.path}; take "
                "an AffinePath such as CondOT, without jitter if the noise is not Gaussian and drawn apart"
            )
        if self.prediction not in ("velocity", "data"):
            raise UserError(
                f"VariationalFlowMatching.prediction is of numbers, got {self.prediction!r}; take velocity or data"
            )
        _ = self.regression

    @cached_property
    def regression(self) -> FlowMatching:
        """Regression of the numbers, which also draws samples and times."""
        return FlowMatching(
            path=self.path,
            source=self.source,
            coupling=self.coupling,
            times=self.times,
            weight=self.weight,
            prediction=self.prediction,
            t_eps=self.t_eps,
            cond_dropout=self.cond_dropout,
            mask=self.mask,
        )

    @property
    def form(self) -> dict[str, Any]:
        return {**super().form, "posterior": self.path}

    @cached_property
    def head(self) -> PosteriorHead:
        """What the network's output says."""
        return PosteriorHead(tuple(self.codes), self.path, self.prediction, self.t_eps)

    def sample(self, batch: Batch, generator: Generator = None) -> LossInput:
        return self.regression.sample(batch, generator)

    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        numbers = self.head.numbers(output)
        residual = (output - self.regression.target(sample)).square() * numbers
        if sample.target is not None:
            residual = residual * sample.target
        loss = residual.flatten(1).sum(1) + self.head.surprise(output, sample.x1, sample.target)
        loss = loss / (int(numbers.sum()) + len(self.codes))
        if self.weight is not None:
            loss = loss * self.weight(sample.t).to(loss.dtype)
        return self.regression.importance_weight(sample.t, loss)

    def state_dict(self) -> dict[str, list[float]]:
        return self.times.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.times.load_state_dict(state)
