"""Interface of conditional paths, and argument checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.types import PathSample, check_pair, expand_right


class Path(ABC):
    """Conditional law p_t(x | z) and velocity, from the source at t = 0 to the data at t = 1.

    z is (x0, x1) or, for a Gaussian source, x1.
    """

    part_kind: ClassVar[str] = "path"
    width: ClassVar[str | None] = None
    """Argument set by a run's sigma_min; None for a path without noise."""

    @abstractmethod
    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, generator: Generator = None) -> PathSample:
        """Sample x_t (B, *S) between x0 and x1 (B, *S) at t (B,), with its velocity u_t.

        Raises UserError for different shapes, devices or dtypes and, except on a GPU, which would stall, t outside [0,
        1].
        """

    @abstractmethod
    def conditional_velocity(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """u_t(x | z) (B, *S) at any x (B, *S), with z = (x0, x1), or z = x1 without x0."""

    @abstractmethod
    def conditional_score(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """Gradient of log p_t(x | z) (B, *S) at any x (B, *S). Raises UserError where there is no density."""

    def interpolant(self, t: Tensor) -> InterpolantCoefficients:
        """The path as one of x1, x0 and noise. Raises UserError for a path without noise, which has no score."""
        raise UserError(f"{type(self).__name__} has no noise, and so no score; take BrownianBridge or AffinePath")


class InterpolantCoefficients(NamedTuple):
    """Of ``x_t = alpha x1 + beta x0 + gamma z`` with z ~ N(0, I) drawn apart, and derivatives, each shaped like t.

    Albergo et al. 2023, "Stochastic interpolants"; z is the source itself where that is Gaussian noise, and beta 0.
    The score is ``-E[z | x_t] / gamma``.
    """

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    d_alpha: Tensor
    d_beta: Tensor
    d_gamma: Tensor


def check_ends(x0: Tensor, x1: Tensor, t: Tensor) -> None:
    """Raise UserError unless x0 and x1 are alike and floating, and t is (B,) in [0, 1]."""
    check_pair(x0, x1, t)
    if x0.dtype != x1.dtype or not x1.is_floating_point():
        raise UserError(
            f"x0 and x1 must have one floating dtype, got {x0.dtype} and {x1.dtype}; cast both with .float()"
        )
    if t.device != x1.device:
        raise UserError(f"t must be on the device of x1, {x1.device}, got {t.device}; move it with .to()")
    if t.device.type == "cpu" and len(t):
        low, high = (float(end) for end in t.aminmax())
        if not 0 <= low <= high <= 1:
            raise UserError(f"t must lie in [0, 1] (0 is noise, 1 is data), got values from {low:.4g} to {high:.4g}")


def check_point(x: Tensor, t: Tensor, x1: Tensor, x0: Tensor | None) -> None:
    """Raise UserError unless x is like x1, and as :func:`check_ends`."""
    if x.shape != x1.shape or x.dtype != x1.dtype or x.device != x1.device:
        raise UserError(f"x must be like x1, {tuple(x1.shape)} {x1.dtype}, got {tuple(x.shape)} {x.dtype}")
    check_ends(x1 if x0 is None else x0, x1, t)


def require_x0(x0: Tensor | None, path: str) -> Tensor:
    """x0. Raises UserError for None."""
    if x0 is None:
        raise UserError(f"{path} has a law given both ends only; pass x0 as well as x1")
    return x0


def align(coefficient: Tensor, x: Tensor) -> Tensor:
    """Coefficient (B,) as (B, 1, ..., 1) in the dtype of x (B, *S)."""
    return expand_right(coefficient, x).to(x.dtype)
