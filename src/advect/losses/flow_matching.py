"""Conditional flow matching with predictions of velocity, data, noise or score."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.core.random import Generator
from advect.core.registry import register
from advect.core.types import GIVEN, LENGTH, Batch, PathSample, drop_conditions, expand_right, real_steps
from advect.couplings import Coupling, Independent
from advect.losses.base import Loss, LossInput
from advect.masks import Mask
from advect.paths import AffinePath, BrownianBridge, CondOT, Path
from advect.sources import Gaussian, SourceDistribution
from advect.times import Stratified, TimeDistribution
from advect.weights import Weight

Kind = Literal["velocity", "data", "noise", "score"]
LossType = Literal["squared", "pseudo-huber"]

C = 0.00054
"""Pseudo-Huber constant c for a root mean square residual."""


@register("flow-matching")
@dataclass(frozen=True, kw_only=True)
class FlowMatching(Loss):
    """A regression of the velocity, or of another prediction.

    ``E w(t) |f - f*|^2``, the mean over elements. The targets u_t, x1, x0 and the conditional score have the marginal
    fields as minimisers (Lipman et al. 2023, "Flow matching for generative modeling", theorem 2).

    Attributes:
        prediction: meaning of the network's output.
        loss_space: space of the loss, default ``prediction``; a data prediction may be trained on the velocity it
            implies.
        weight: maps t (B,) to w (B,).
        t_eps: distance from 0 and 1 at which what is infinite there is cut. Targets are: t stays in [t_eps, 1 - t_eps]
            for scores, bridges, and velocities of schedules with infinite derivatives. The factor between
            ``prediction`` and another ``loss_space`` is: it is taken at the t inside, and every t is trained.
        cond_dropout: share in [0, 1] of samples without conditions, for classifier-free guidance (Ho & Salimans
            2022).
        mask: law of the entries that the network is given. They, and those that the data lack (NaN in x1), cost
            nothing.
        loss_type: of a sample's mean squared residual m: m, or the pseudo-Huber sqrt(m + c^2) - c (Song & Dhariwal
            2023, "Improved techniques for training consistency models", section 3.3), biased unless x_t nearly
            determines the target, as in reflow (Lee, Lin & Fanti 2024, "Improving the training of rectified
            flows").

    Raises UserError for undefined combinations: predictions other than velocity or score without an affine path, and
    scores unless x0 is Gaussian noise independent of x1.
    """

    path: Path = field(default_factory=AffinePath)
    source: SourceDistribution = field(default_factory=Gaussian)
    coupling: Coupling = field(default_factory=Independent)
    times: TimeDistribution = field(default_factory=Stratified)
    weight: Weight | None = None
    prediction: Kind = "velocity"
    loss_space: Kind | None = None
    loss_type: LossType = "squared"
    t_eps: float = 1e-3
    cond_dropout: float = 0.0
    mask: Mask | None = None

    def __post_init__(self) -> None:
        names = {"prediction": Kind, "loss_space": Kind, "loss_type": LossType}
        for name, kind in names.items():
            value = self.space if name == "loss_space" else getattr(self, name)
            if value not in get_args(kind):
                raise UserError(f"FlowMatching.{name} {value!r} is not known{did_you_mean(value, get_args(kind))}")
        if not 0 <= self.cond_dropout <= 1:
            raise UserError(f"FlowMatching.cond_dropout must lie in [0, 1], got {self.cond_dropout}; 0.1 is usual")
        if not 0 <= self.t_eps < 0.5:
            raise UserError(f"FlowMatching.t_eps must lie in [0, 0.5), got {self.t_eps}; 0.001 is usual")
        if self.mask is not None and not isinstance(self.coupling, Independent):
            raise UserError(
                f"a mask needs noise drawn apart from the data, as questions start from it, got coupling "
                f"{type(self.coupling).__name__}; take Independent"
            )
        kinds = {self.prediction, self.space}
        if not isinstance(self.path, AffinePath):
            if len(kinds) > 1 or kinds & {"data", "noise"}:
                raise UserError(
                    f"prediction {self.prediction!r} with loss_space {self.space!r} needs an AffinePath, got "
                    f"{type(self.path).__name__}; predict the velocity"
                )
        elif "score" in kinds and not self._plain_noise():
            raise UserError(
                "a score on an AffinePath needs x0 to be Gaussian noise drawn apart from x1: source Gaussian, "
                "coupling Independent, gaussian_source=True; for a coupling use Bridge, or predict the velocity"
            )

    def _plain_noise(self) -> bool:
        gaussian = isinstance(self.path, AffinePath) and self.path.gaussian_source
        return gaussian and isinstance(self.source, Gaussian) and isinstance(self.coupling, Independent)

    @cached_property
    def _times(self) -> TimeDistribution:
        """The times on the interval where the target is finite."""
        return self.times.within(self.t_eps) if self._infinite_target else self.times

    @property
    def _infinite_target(self) -> bool:
        """Whether the network's target can be infinite at an end of [0, 1]."""
        if isinstance(self.path, AffinePath):
            moving = self.prediction == "velocity" and not all(self.path.schedule.finite_ends())
            return moving or self.prediction == "score"
        return isinstance(self.path, BrownianBridge)

    @property
    def space(self) -> Kind:
        """Space of the loss."""
        return self.loss_space or self.prediction

    def sample(self, batch: Batch, generator: Generator = None) -> LossInput:
        x0 = self.source.sample_like(batch.x1, generator) if batch.x0 is None else batch.x0
        x0, x1, cond = self.coupling.pair(x0, batch.x1, batch.cond, generator)
        real = real_steps(cond, x1)
        if real is not None:  # padding is zero in noise, data and velocity, so that it adds nothing to the loss
            x0 = x0 * real[:, :, None]
        t = self.draw_times(len(x1), generator, x1.device)
        start = t if t.ndim == 1 else t[:, 0]
        if self.mask is None:
            sample = replace(self.path.sample(x0, x1, start, generator), t=t)
            return sample, drop_conditions(cond, self.cond_dropout, generator)
        lengths = (cond or {}).get(LENGTH)
        x1, given = self.mask.relate(x1, self.mask.given(x1, lengths, generator), lengths)
        sample = replace(self.path.sample(x0, x1.nan_to_num(0.0), start, generator), t=t)
        cond = drop_conditions(cond, self.cond_dropout, generator) or {}
        return replace(sample, target=given.isnan()), {**cond, GIVEN: given}

    def draw_times(self, n: int, generator: Generator, device: torch.device) -> Tensor:
        """Times (n,) of the path samples, or (n, 2) those and the ends of steps."""
        return self._times.sample(n, generator, device)

    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        return self.importance_weight(sample.t, self.error(output, sample))

    def importance_weight(self, t: Tensor, loss: Tensor) -> Tensor:
        """Losses (B,) over the density of t (B,); once a step, as importance times learn here."""
        return self._times.importance_weight(t, loss)

    def error(self, output: Tensor, sample: PathSample) -> Tensor:
        """``w(t) |f - f*|^2`` (B,) at a path sample, whatever law t was drawn from."""
        residual = output - self.target(sample)
        if self.space != self.prediction:
            assert isinstance(self.path, AffinePath)
            # Conversions are affine, so that their linear part takes one residual to another.
            inside = sample.t.clamp(self.t_eps, 1 - self.t_eps)
            residual = self.path.convert(residual, torch.zeros_like(residual), inside, self.prediction, self.space)
        return self.weighted(residual, sample)

    def weighted(self, residual: Tensor, sample: PathSample) -> Tensor:
        """The loss (B,) of residuals (B, *S) at a path sample, 0 for elements that are no target."""
        if sample.target is not None:
            residual = residual * sample.target
        loss = residual.square().flatten(1).mean(1)
        if self.loss_type == "pseudo-huber":
            loss = loss / (torch.sqrt(loss + C**2) + C)  # sqrt(m + c^2) - c, which would cancel
        if self.weight is not None:
            loss = loss * self.weight(sample.t).to(loss.dtype)
        return loss

    def target(self, sample: PathSample) -> Tensor:
        """What the network should put out, (B, *S)."""
        match self.prediction:
            case "velocity":
                if isinstance(self.path, AffinePath) and self.path.sigma_min > 0 and self.space != "velocity":
                    return self.path.conditional_velocity(sample.x_t, sample.t, x1=sample.x1)  # of the jitter as well
                return sample.u_t
            case "data":
                return sample.x1
            case "noise":
                assert isinstance(self.path, AffinePath)
                if self.path.sigma_min == 0:
                    return sample.x0
                alpha, sigma, _, _ = (expand_right(c, sample.x_t) for c in self.path.coefficients(sample.t))
                return (sample.x_t - alpha * sample.x1) / sigma
            case "score":
                x0 = None if isinstance(self.path, AffinePath) else sample.x0
                return self.path.conditional_score(sample.x_t, sample.t, x1=sample.x1, x0=x0)

    def state_dict(self) -> dict[str, list[float]]:
        return self.times.state_dict()

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.times.load_state_dict(state)


def rectified_flow(**parts) -> FlowMatching:
    """Rectified flow (Liu et al. 2023, "Flow straight and fast"): straight paths, target x1 - x0.

    ``parts`` are arguments of :class:`FlowMatching`.
    """
    return FlowMatching(path=AffinePath(CondOT()), **parts)
