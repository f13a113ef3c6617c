"""The learned velocity field of a run, with what following it needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.types import Conditions, DataSpec, is_null, real_steps
from advect.data import Transform
from advect.losses.flow_matching import Kind
from advect.model.conditions import ConditionValue, resolve_conditions
from advect.paths import AffinePath, BrownianBridge, Path, Schedule
from advect.solvers import Velocity, guided_velocity
from advect.sources import Gaussian, SourceDistribution


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How a flow is followed when a caller says nothing else: solver, its steps and where they lie."""

    solver: str = "midpoint"
    steps: int = 50
    grid: str = "uniform"


class VelocityField:
    """A network with what sampling needs: the data's shape, conditions and transform, the path and its source.

    ``net(x_t (B, *S), t (B,), cond)`` gives the ``prediction`` in model units. ``margin`` is the objective's: how far
    t stays from 0 and 1 where a conversion or the path is infinite. ``null`` says that the network was trained without
    its conditions, too, which guidance and unconditional samples need. ``facts`` are those of the data's
    ``Dataset.facts()``, from which samples are written in the data's own format.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: DataSpec,
        transform: Transform,
        *,
        path: Path | None = None,
        source: SourceDistribution | None = None,
        prediction: Kind = "velocity",
        margin: float = 1e-3,
        null: bool = True,
        sampler: Sampler | None = None,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.net, self.spec, self.transform = net, spec, transform
        self.path, self.source, self.prediction = path or AffinePath(), source or Gaussian(), prediction
        self.margin, self.null, self.facts = margin, null, facts or {}
        self.sampler, self.device, self.autocast = sampler or Sampler(), device or torch.device("cpu"), autocast

    @cached_property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one sample in data units; for tables and components it is not that of the spec."""
        return tuple(self.transform.inverse(torch.zeros(1, *self.spec.shape)).shape[1:])

    def velocity(
        self,
        cond: Conditions | None = None,
        *,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
    ) -> Velocity:
        """The velocity ``u(x (B, *S), t (B,)) -> (B, *S)`` in model units, under conditions (B,), guided if asked."""
        self.net.eval()
        return guided_velocity(self._velocity, cond, guidance, interval=interval)

    def output(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """What the network says, (B, *S), in the precision that it was trained in."""
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            return self.net(x_t, t, cond)

    def _velocity(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        inside = t if self.prediction == "velocity" else t.clamp(self.margin, 1 - self.margin)
        output = self.output(x_t, inside, cond)
        if self.prediction == "velocity":
            return output
        assert isinstance(self.path, AffinePath)
        return self.path.convert(output.to(x_t.dtype), x_t, inside, self.prediction, "velocity")

    def conditions(
        self,
        n: int,
        cond: Mapping[str, ConditionValue] | None = None,
        seed: int = 0,
        *,
        rows: range | None = None,
    ) -> Conditions:
        """The conditions that :meth:`sample` uses: for each whole numbers (n,) or, standardised, (n, d).

        With ``rows``, a range within 0 .. n, those of these samples alone.
        """
        values = resolve_conditions(self.spec, n, cond, seed, rows)
        if not self.null and any(is_null(value).any() for value in values.values()):
            raise UserError("the flow was trained with --label-dropout 0, so it knows no missing condition; give all")
        return values

    def _given(self, n: int, cond: Mapping[str, ConditionValue] | None) -> Conditions:
        named = {**dict.fromkeys(self.spec.conditions), **(cond or {})}
        return self.conditions(n, named)

    def _on_device(self, cond: Conditions) -> Conditions:
        return {name: value.to(self.device) for name, value in cond.items()}

    @cached_property
    def span(self) -> tuple[float, float]:
        """0 and 1, but a little inside where the path is infinitely fast, which training leaves out as well."""
        if isinstance(self.path, BrownianBridge):
            return self.margin, 1 - self.margin
        if not isinstance(self.path, AffinePath):
            return 0.0, 1.0
        start, end = self.path.schedule.finite_ends()
        return 0.0 if start else self.margin, 1.0 if end else 1 - self.margin

    def _schedule(self, what: str, *, score: bool) -> Schedule:
        """The schedule of an affine path; with ``score``, of one whose velocity gives the score."""
        if not isinstance(self.path, AffinePath):
            raise UserError(
                f"{what} needs an affine path, and this flow has {self.path}; take a solver such as midpoint"
            )
        if score and not (self.path.gaussian_source and isinstance(self.source, Gaussian)):
            raise UserError(
                f"{what} needs the score, which follows from the velocity only where noise is Gaussian and drawn apart"
                " from the data; this flow was trained with another source or coupling: take a solver such as midpoint"
            )
        return self.path.effective_schedule


def without_padding(x: Tensor, cond: Conditions) -> Tensor:
    """x with zeros after the last real step of each sample, where it is a sequence (n, L, C) with lengths."""
    real = real_steps(cond, x)
    return x if real is None else torch.where(real[:, :, None], x, 0.0)
