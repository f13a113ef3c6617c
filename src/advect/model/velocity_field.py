"""The field of a trained network: velocity, score, and what coordinates follow."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.types import GIVEN, Conditions, DataSpec, StepKind, is_null
from advect.data import Transform
from advect.data.modality import Modality, modality_of
from advect.losses.flow_matching import Kind
from advect.losses.interpolant import split_heads
from advect.losses.variational import PosteriorHead
from advect.model.conditions import ConditionValue, resolve_conditions
from advect.model.coordinates import Coordinates, Rectified
from advect.model.given import still
from advect.model.integrators import coordinates_of, default_sampler, with_score
from advect.model.sampler_config import SamplerConfig
from advect.paths import AffinePath, MixturePath, Path
from advect.paths.base import align
from advect.paths.convert import data_minus_noise
from advect.solvers import (
    Velocity,
    guided_velocity,
)
from advect.sources import Gaussian, SourceDistribution


class VelocityField:
    """Network ``net(x_t (B, *S), t (B,), cond)`` with shape, conditions and transform of the data, path and source.

    The network gives the ``prediction`` in model units and, with ``learned_score``, after it on axis 1 the noise of
    the path (see ``StochasticInterpolantLoss``). A ``head`` turns the network's output into a prediction of data.
    ``t_eps`` keeps t from 0 and 1 as in the loss. ``null``: whether conditions were dropped in training, as guidance
    needs. ``masked``: whether entries were given in training,
    and ``relative`` to which samples were learned, see ``PrefixMask``; ``learns_steps``: the steps that the
    network knows, for ``flow-map``. ``facts``: ``Dataset.metadata``.
    """

    origin: pathlib.Path | None = None
    """Weight file that it was loaded from."""

    def __init__(
        self,
        net: nn.Module,
        spec: DataSpec,
        transform: Transform,
        *,
        path: Path | None = None,
        source: SourceDistribution | None = None,
        prediction: Kind = "velocity",
        head: PosteriorHead | None = None,
        learned_score: bool = False,
        t_eps: float = 1e-3,
        null: bool = True,
        masked: bool = False,
        learns_steps: StepKind | None = None,
        relative: bool = False,
        sampler: SamplerConfig | None = None,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.net, self.spec, self.transform = net, spec, transform
        self.path, self.source = path or AffinePath(), source or Gaussian()
        self.head, self.prediction = head, prediction if head is None else "data"
        self.learned_score, self.t_eps, self.null, self.facts = learned_score, t_eps, null, facts or {}
        self.masked, self.relative = masked, relative
        self.learns_steps: StepKind | None = learns_steps
        self.sampler, self.device, self.autocast = (
            sampler or default_sampler(self.path),
            device or torch.device("cpu"),
            autocast,
        )

    @cached_property
    def modality(self) -> Modality:
        """Writing, plotting and comparison of samples."""
        return modality_of(self.spec, self.transform, self.facts)

    @cached_property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of a sample in data units."""
        return tuple(self.transform.inverse(torch.zeros(1, *self.spec.shape)).shape[1:])

    def velocity(
        self, cond: Conditions | None = None, *, guidance: float = 1.0, interval: tuple[float, float] | None = None
    ) -> Velocity:
        """Velocity ``u(x (B, *S), t (B,)) -> (B, *S)`` in model units, under conditions (B,), with guidance."""
        self.check_continuous("the velocity")
        self.net.eval()
        return guided_velocity(self._velocity, cond, guidance, interval=interval)

    @property
    def discrete(self) -> bool:
        """Whether it is a flow of tokens, whose network gives logits."""
        return isinstance(self.path, MixturePath)

    def check_continuous(self, what: str) -> None:
        """Raise UserError for a flow of tokens, which jumps and has no ODE that ``what`` needs."""
        if self.discrete:
            raise UserError(
                f"{what} is of a flow along an ODE, and tokens jump; take sample, logits, or log_prob_bound for their "
                "likelihood"
            )

    def logits(
        self, cond: Conditions | None = None, *, guidance: float = 1.0, interval: tuple[float, float] | None = None
    ) -> Velocity:
        """Logits ``(x (B, L, K), t (B,)) -> (B, L, K)`` of a flow of tokens, like :meth:`velocity`.

        They are of each token of the data as the other ones tell it; see :class:`advect.paths.MixturePath`.
        """
        if not self.discrete:
            raise UserError("logits are of flows of tokens, and this one has a velocity; take velocity")
        self.net.eval()
        return guided_velocity(self._velocity, cond, guidance, interval=interval)

    def output(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Network output (B, *S), or (B, 2 C, ...) with a learned score, in the training precision."""
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            return self.net(x_t, t, cond)

    def score(
        self, cond: Conditions | None = None, *, guidance: float = 1.0, interval: tuple[float, float] | None = None
    ) -> Velocity:
        """Score ``s(x (B, *S), t (B,)) -> (B, *S)`` in model units, like :meth:`velocity`, clear of both ends of time.

        The learned one, or that of the velocity. Raises UserError where the velocity does not give it.
        """
        self.net.eval()
        if not self.learned_score:
            with_score("the score", self.path, self.source)
        return guided_velocity(self._score, cond, guidance, interval=interval)

    def denoiser(
        self, cond: Conditions | None = None, *, guidance: float = 1.0, interval: tuple[float, float] | None = None
    ) -> Velocity:
        """E[x_1 | x_t] (B, *S) of x (B, *S), t (B,) in model units, like :meth:`velocity`, clear of both ends of time.

        Raises UserError for a path that is not affine.
        """
        self.net.eval()
        if not isinstance(self.path, AffinePath):
            raise UserError(f"E[x_1 | x_t] follows from the velocity on an affine path, and this flow has {self.path}")
        return guided_velocity(self._denoised, cond, guidance, interval=interval)

    def _denoised(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        inside = t.clamp(self._t_eps, 1 - self._t_eps)
        return self._converted(self._predicted(x_t, inside, cond), x_t, inside, "data")

    def _score(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        inside = t.clamp(self._t_eps, 1 - self._t_eps)
        if self.learned_score:
            eta = split_heads(self.output(x_t, inside, cond), x_t)[1].to(x_t.dtype)
            return -eta / align(self.path.interpolant(inside).gamma, x_t)
        return self._converted(self._predicted(x_t, inside, cond), x_t, inside, "score")

    def _converted(self, prediction: Tensor, x_t: Tensor, t: Tensor, kind: Kind) -> Tensor:
        if self.prediction == kind:
            return prediction.to(x_t.dtype)
        assert isinstance(self.path, AffinePath)
        return self.path.convert(prediction.to(x_t.dtype), x_t, t, self.prediction, kind)

    def _predicted(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """The ``prediction`` (B, *S)."""
        output = self.output(x_t, t, cond)
        if self.head is not None:
            return self.head.mean(output, x_t, t)
        return split_heads(output, x_t)[0] if self.learned_score else output

    def _velocity(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        if self.prediction == "velocity":
            return self._predicted(x_t, t, cond)
        # A prediction of data has a value everywhere, only the division by sigma has not.
        inside = t.clamp(self._t_eps, 1 - self._t_eps)
        prediction = self._predicted(x_t, t if self.prediction == "data" else inside, cond)
        return self._converted(prediction, x_t, inside, "velocity")

    def _velocity_and_noise(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """Velocity and predicted noise of the path (B, 2 C, ...), clear of both ends of time."""
        prediction, eta = split_heads(self.output(x_t, t, cond), x_t)
        return torch.cat([self._converted(prediction, x_t, t, "velocity"), eta.to(x_t.dtype)], 1)

    def _rectified_velocity(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        """The prediction of data less that of noise, which :class:`Rectified` follows."""
        assert isinstance(self.coordinates, Rectified)
        output = self._predicted(x_t, t, cond).to(x_t.dtype)
        return data_minus_noise(output, x_t, self.coordinates.schedule.coefficients(t.double()), self.prediction)

    def conditions(
        self,
        n: int,
        cond: Mapping[str, ConditionValue] | Sequence[str] | None = None,
        seed: int = 0,
        *,
        rows: range | None = None,
    ) -> Conditions:
        """Conditions of :meth:`sample`, integers (n,) or standardised (n, d), of ``rows`` if given."""
        values = resolve_conditions(self.spec, n, cond, seed, rows)
        if not self.null and any(is_null(value).any() for value in values.values()):
            raise UserError("the flow was trained with --label-dropout 0, so it knows no missing condition; give all")
        return values

    def _given(self, n: int, cond: Mapping[str, ConditionValue] | None) -> Conditions:
        named = {**dict.fromkeys(self.spec.conditions), **(cond or {})}
        return self.conditions(n, named)

    def _on_device(self, cond: Conditions) -> Conditions:
        return {name: value.to(self.device) for name, value in cond.items()}

    @property
    def _t_eps(self) -> float:
        return self.t_eps or 1e-3

    @cached_property
    def coordinates(self) -> Coordinates:
        """Where the ODE is solved: samples, encodings and densities are of one law."""
        return coordinates_of(self.path, self.source, self.prediction, self._t_eps)

    def _field(
        self,
        coordinates: Coordinates,
        cond: Conditions,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
        *,
        noise: bool = False,
    ) -> Velocity:
        """The field that ``coordinates`` follow, in model units, under conditions (B,), guided if asked.

        With ``noise`` it is the velocity and the predicted noise.
        """
        self.net.eval()
        net = self._rectified_velocity if isinstance(coordinates, Rectified) else self._velocity
        net = self._velocity_and_noise if noise else net
        cond = self._on_device(cond)
        if self.discrete:  # the solver holds known tokens, which a network sees as any others
            cond = {name: value for name, value in cond.items() if name != GIVEN}
        field = guided_velocity(net, cond, guidance, interval=interval)
        return still(field, cond[GIVEN]) if GIVEN in cond else field
