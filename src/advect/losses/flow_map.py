"""Losses of flow maps, for samples in one to four steps: a network learns the average velocity of steps of any length.

``u(x, s, e)`` takes a state at s to ``X(x, s, e) = x + (e - s) u(x, s, e)``, where the flow's ODE has it at e >= s;
``u(x, s, s)`` is the velocity v. Each loss asks for an identity that only this u fulfils, with outputs of the network
itself as a target without gradient, beside flow matching at e = s.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from msgspec import Meta
from torch import Tensor

from advect.core import random
from advect.core.bounds import GuidanceScale, Share
from advect.core.derivatives import derivative_along
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.registry import register
from advect.core.types import (
    RESERVED,
    Conditions,
    Network,
    PathSample,
    StepKind,
    expand_right,
    is_null,
    null_conditions,
)
from advect.losses.flow_matching import FlowMatching

ADAPTIVE = 1e-3
"""Mean squared residual at which an adaptive weight stops to grow."""

Power = Annotated[float, Meta(ge=0, le=4)]


@dataclass(frozen=True)
class StepBatch:
    """Steps of a batch: states x (B, *S) at ``start`` (B,), ``end`` (B,), and their conditional ``velocity`` (B, *S).

    ``net`` and ``cond`` are as a loss has them.
    """

    net: Network
    x: Tensor
    start: Tensor
    end: Tensor
    velocity: Tensor
    cond: Conditions | None

    @cached_property
    def length(self) -> Tensor:
        """e - s (B, 1, ...)."""
        return expand_right(self.end - self.start, self.x)

    @cached_property
    def own(self) -> Tensor:
        """The network's velocity (B, *S) at the start."""
        return self.average(self.x, self.start, self.start)

    def average(self, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The network's average velocity (B, *S) of other steps under the same conditions."""
        return self.net(x, torch.stack([start, end], 1), self.cond)

    def along_path(self, velocity: Tensor) -> Tensor:
        """d u / d s (B, *S) where the state moves with ``velocity`` (B, *S)."""
        ones = torch.ones_like(self.start)
        u = lambda x, s: self.average(x, s, self.end)
        return derivative_along(u, (self.x, self.start), (velocity, ones))[1]

    def along_end(self) -> tuple[Tensor, Tensor]:
        """u and d u / d e (B, *S)."""
        u = lambda end: self.average(self.x, self.start, end)
        return derivative_along(u, (self.end,), (torch.ones_like(self.end),))


@dataclass(frozen=True, kw_only=True)
class FlowMapLoss(FlowMatching):
    """A loss of average velocities; what :class:`FlowMatching` says of its arguments holds here.

    Args:
        diagonal: share of the samples with e = s, which learn the velocity by flow matching.
        adaptive: a sample's loss m is divided by (m + 0.001)^adaptive; 1 keeps large targets from ruling images, and
            above 0 the minimiser is not the mean where targets are noisy.
        guided: scale of a classifier-free guidance that the flow map itself learns, 1 for none; samples are then drawn
            with guidance 1.

    Raises UserError for a prediction other than the velocity, paths whose velocity is infinite at an end, and times by
    importance.
    """

    learns_steps: ClassVar[StepKind | None] = "any"

    diagonal: Share = 0.75
    adaptive: Power = 0.0
    guided: GuidanceScale = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = getattr(self, "part_name", type(self).__name__)
        if self.prediction != "velocity" or self.space != "velocity":
            raise UserError(f"{name} learns average velocities, got prediction {self.prediction!r}; take velocity")
        if self._infinite_target:
            raise UserError(
                f"{name} needs a path with a finite velocity at both ends, got {self.path}; take cond-ot, say"
            )
        if self.times.state_dict():
            raise UserError(f"{name} draws pairs of times, which importance times do not know; take stratified")
        if self.guided != 1 and self.cond_dropout == 0:
            raise UserError(
                f"{name}.guided is {self.guided}, but no sample is trained without its conditions; take guided 1, or "
                "data with conditions and label dropout"
            )

    def draw_times(self, n: int, generator: Generator, device: torch.device) -> Tensor:
        a, b = (self._times.sample(n, generator, device) for _ in range(2))
        far = self._far(n, generator, device)
        return torch.stack([torch.where(far, torch.minimum(a, b), a), torch.where(far, torch.maximum(a, b), a)], 1)

    def _far(self, n: int, generator: Generator, device: torch.device) -> Tensor:
        """Which samples (n,) take steps of positive length: exactly the share of the whole batch."""
        places, total = random.permutation(n, generator, device=device)
        return places >= self.diagonal * total

    @torch.no_grad()
    def aim(self, net: Network, sample: PathSample, cond: Conditions | None) -> PathSample:
        start, end = sample.t.unbind(1)
        velocity = self._guided_velocity(net, sample, cond)
        far = (end > start).nonzero().squeeze(1)
        if not len(far):
            return replace(sample, u_t=velocity)
        rows = None if cond is None else {name: value[far] for name, value in cond.items()}
        steps = StepBatch(net, sample.x_t[far], start[far], end[far], velocity[far], rows)
        return replace(sample, u_t=velocity.index_copy(0, far, self.average_of(steps).to(velocity.dtype)))

    @abstractmethod
    def average_of(self, steps: StepBatch) -> Tensor:
        """Target (B, *S) of the average velocity over steps of positive length."""

    def compare(self, output: Tensor, sample: PathSample) -> Tensor:
        loss = self.weighted(output - sample.u_t, replace(sample, t=sample.t[:, 0]))
        return loss / (loss.detach() + ADAPTIVE) ** self.adaptive if self.adaptive else loss

    def _guided_velocity(self, net: Network, sample: PathSample, cond: Conditions | None) -> Tensor:
        """``g u_t + (1 - g) v(x_t | null)`` for samples with a condition (Geng et al. 2025, section 4.2)."""
        names = [name for name in cond or {} if name not in RESERVED]
        if self.guided == 1 or not names:
            return sample.u_t
        assert cond is not None
        labelled = ~torch.stack([is_null(cond[name]) for name in names]).all(0)
        without = net(sample.x_t, sample.t[:, :1].expand(-1, 2), null_conditions(cond))
        return torch.where(
            expand_right(labelled, sample.u_t), torch.lerp(without, sample.u_t, self.guided), sample.u_t
        )


@register("mean-flow")
@dataclass(frozen=True, kw_only=True)
class MeanFlow(FlowMapLoss):
    """Mean flows: the average velocity by its derivative along conditional paths (Geng et al. 2025, "Mean flows for
    one-step generative modeling").

    ``u = u_t + (e - s) (d_s u + u_t . grad u)``, whose mean over x_t is the identity for the flow's own velocity. One
    Jacobian-vector product for each step of positive length.
    """

    derives_time: ClassVar[bool] = True

    def average_of(self, steps: StepBatch) -> Tensor:
        return steps.velocity + steps.length * steps.along_path(steps.velocity)


@register("improved-mean-flow")
@dataclass(frozen=True, kw_only=True)
class ImprovedMeanFlow(FlowMapLoss):
    """Mean flows with the derivative along the network's own velocity, which is no noisy guess (Geng et al. 2025,
    "Improved mean flows").

    ``u = u_t + (e - s) (d_s u + v . grad u)``, one evaluation more than ``mean-flow`` and less variance.
    """

    derives_time: ClassVar[bool] = True

    def average_of(self, steps: StepBatch) -> Tensor:
        return steps.velocity + steps.length * steps.along_path(steps.own)


@register("eulerian")
@dataclass(frozen=True, kw_only=True)
class Eulerian(FlowMapLoss):
    """Self-distillation by the equation of a step's start (Boffi, Albergo & Vanden-Eijnden 2025, "How to build a
    consistency model").

    ``u = v + (e - s) (d_s u + v . grad u)``, with the network's own v throughout.
    """

    derives_time: ClassVar[bool] = True

    def average_of(self, steps: StepBatch) -> Tensor:
        return steps.own + steps.length * steps.along_path(steps.own)


@register("lagrangian")
@dataclass(frozen=True, kw_only=True)
class Lagrangian(FlowMapLoss):
    """Self-distillation by the equation of a step's end (Boffi, Albergo & Vanden-Eijnden 2025, "How to build a
    consistency model").

    ``u = v(X(x, s, e), e) - (e - s) d_e u``: no derivative in the state, nor in a time that
    the network embeds finely.
    """

    def average_of(self, steps: StepBatch) -> Tensor:
        u, slope = steps.along_end()
        arrived = steps.x + steps.length * u
        return steps.average(arrived, steps.end, steps.end) - steps.length * slope


@register("progressive")
@dataclass(frozen=True, kw_only=True)
class Progressive(FlowMapLoss):
    """Self-distillation of a step into one of its two halves (Boffi, Albergo & Vanden-Eijnden 2025, "How to build a
    consistency model").

    ``u(x, s, e) = (u(x, s, m) + u(X(x, s, m), m, e)) / 2`` with m = (s + e) / 2: no derivatives.
    """

    def average_of(self, steps: StepBatch) -> Tensor:
        middle = (steps.start + steps.end) / 2
        first = steps.average(steps.x, steps.start, middle)
        there = steps.x + steps.length / 2 * first
        return (first + steps.average(there, middle, steps.end)) / 2


@register("shortcut")
@dataclass(frozen=True, kw_only=True)
class Shortcut(Progressive):
    """Shortcut models: steps of lengths 1, 1/2, ... 1 / ``finest`` alone, each learned from two of half its length
    (Frans et al. 2024, "One step diffusion via shortcut models").

    Drawn with a power of two of uniform steps: no other is learned.

    Args:
        finest: number of the shortest steps; they learn from two of the velocity.
    """

    learns_steps: ClassVar[StepKind | None] = "halves"

    finest: Annotated[int, Meta(ge=2, le=2**16)] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finest & (self.finest - 1):
            raise UserError(f"Shortcut.finest must be a power of two, got {self.finest}; take 64")

    def draw_times(self, n: int, generator: Generator, device: torch.device) -> Tensor:
        t, far = self._times.sample(n, generator, device), self._far(n, generator, device)
        levels = random.uniform((n, 2), generator, device=device)
        counts = 2 ** (levels[:, 0] * self.finest.bit_length()).floor()  # 1, 2, ... finest steps in all
        start = (levels[:, 1] * counts).floor() / counts
        return torch.stack([torch.where(far, start, t), torch.where(far, start + 1 / counts, t)], 1)

    def average_of(self, steps: StepBatch) -> Tensor:
        shortest = steps.end - steps.start < 1.5 / self.finest
        half = (steps.end - steps.start) / 2
        middle = steps.start + half
        first = steps.average(steps.x, steps.start, torch.where(shortest, steps.start, middle))
        there = steps.x + expand_right(half, steps.x) * first
        return (first + steps.average(there, middle, torch.where(shortest, middle, steps.end))) / 2


@register("consistency")
@dataclass(frozen=True, kw_only=True)
class Consistency(Eulerian):
    """A consistency model in continuous time: steps to the data alone, e = 1 (Song et al. 2023, "Consistency models";
    Lu & Song 2025, "Simplifying, stabilizing and scaling continuous-time consistency models").

    The equation of :class:`Eulerian` at e = 1, its error r normalised to r / (|r| + 0.1), |r| the root mean square.
    Drawn with one step, or with ``noise`` 1.
    """

    learns_steps: ClassVar[StepKind | None] = "to-data"

    diagonal: Share = 0.5

    NORM: ClassVar[float] = 0.1

    def draw_times(self, n: int, generator: Generator, device: torch.device) -> Tensor:
        t = self._times.sample(n, generator, device)
        return torch.stack([t, torch.where(self._far(n, generator, device), 1.0, t)], 1)

    def average_of(self, steps: StepBatch) -> Tensor:
        u = steps.average(steps.x, steps.start, steps.end)
        error = super().average_of(steps) - u
        size = error.flatten(1).square().mean(1).sqrt()
        return u + error / expand_right(size + self.NORM, error)
