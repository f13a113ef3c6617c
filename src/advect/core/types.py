"""The convention, stated once, and the few types that every layer shares.

Time runs from the source (noise) at ``t = 0`` to the data at ``t = 1``. For an affine path::

    x_t = alpha_t x_1 + sigma_t x_0        alpha_0 = 0, sigma_0 = 1, alpha_1 = 1, sigma_1 = 0
    u_t = alpha_t' x_1 + sigma_t' x_0      the conditional velocity, the regression target
    dX_t = u_t(X_t) dt                     sampling, from t = 0 to t = 1

Names in code are these symbols: ``x0, x1, t, x_t, u_t, alpha, sigma, d_alpha, d_sigma``. The batch axis
comes first: ``x (B, *S)``, ``t (B,)``, and a condition is a dict of tensors ``(B, ...)`` or None.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from advect.core import random
from advect.core.errors import UserError
from advect.core.random import Generator

Conditions = dict[str, Tensor]

NULL = -1
"""The value of a categorical condition that says "not given": networks embed it as a learned null token.

A continuous condition says so with a row of NaN.
"""

LENGTH = "length"
"""The name of the condition (B,) that tells how many steps of a sequence (L, C) are real; it is never dropped."""


class Network(Protocol):
    """What objectives and samplers ask of a network: ``net(x_t (B, *S), t (B,), cond) -> (B, *S)``."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """Data in model units: ``x1 (B, *S)`` and, for each condition, a tensor ``(B, ...)``.

    ``x0 (B, *S)``, where the data bring it, is where the flow starts instead of noise, such as control cells.
    """

    x1: Tensor
    cond: Conditions | None = None
    x0: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x1)

    def to(self, device: torch.device) -> Batch:
        """Return this batch on ``device``."""
        if self.x1.device == device:
            return self
        cond = None if self.cond is None else {k: v.to(device, non_blocking=True) for k, v in self.cond.items()}
        x0 = None if self.x0 is None else self.x0.to(device, non_blocking=True)
        return Batch(self.x1.to(device, non_blocking=True), cond, x0)


@dataclass(frozen=True)
class PathSample:
    """A point of a conditional path: ``x_t, u_t, x0, x1 (B, *S)`` and ``t (B,)``."""

    x_t: Tensor
    t: Tensor
    u_t: Tensor
    x0: Tensor
    x1: Tensor


@dataclass(frozen=True)
class Category:
    """A categorical condition: its values are ``0 .. len(names) - 1``, or ``NULL`` where it is not given.

    ``frequencies`` are the shares of the values in the training data; they sum to one.
    """

    names: tuple[str, ...]
    frequencies: tuple[float, ...]


@dataclass(frozen=True)
class Quantity:
    """A continuous condition, a vector of d standardised numbers, or a row of NaN where it is not given.

    ``names`` (d) are those of its entries, ``mean`` and ``std`` (d) their moments in the training data, in its own
    units, and ``examples`` some rows (d) of the data in those units, from which values are drawn when none are named.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    examples: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Length:
    """The condition called ``LENGTH``: 1 .. len(frequencies) real steps, with their shares in the training data."""

    frequencies: tuple[float, ...]


Condition = Category | Quantity | Length


@dataclass(frozen=True)
class DataSpec:
    """What a network and a sampler need to know about the data: shape of one sample, modality and conditions.

    ``modality`` is the registered name of an ``advect.data.modality.Modality``, such as ``"image"`` (C, H, W),
    ``"vector"`` (D,) or ``"sequence"`` (L, C); samples of the last are zero after their last real step where the data
    have the condition ``LENGTH``.
    """

    shape: tuple[int, ...]
    modality: str
    conditions: dict[str, Condition]


def expand_right(t: Tensor, x: Tensor) -> Tensor:
    """Reshape t (B,) to (B, 1, ..., 1) so that it broadcasts over x (B, *S)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def check_pair(x0: Tensor, x1: Tensor, t: Tensor | None = None) -> None:
    """Raise UserError unless x0 and x1 are both (B, *S), on one device, and t is (B,)."""
    if x0.shape != x1.shape:
        raise UserError(f"x0 and x1 must have the same shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")
    if x0.device != x1.device:
        raise UserError(f"x0 and x1 must be on one device, got {x0.device} and {x1.device}; move one with .to()")
    if t is not None and t.shape != x1.shape[:1]:
        raise UserError(f"t must have shape ({len(x1)},), one time a sample, got {tuple(t.shape)}")


def drop_conditions(cond: Conditions | None, probability: float, generator: Generator = None) -> Conditions | None:
    """Replace, sample by sample, all conditions (B, ...) by null with ``probability`` (Ho & Salimans 2022, alg. 1)."""
    if not cond or probability == 0:
        return cond
    first = next(iter(cond.values()))
    drop = random.uniform((len(first),), generator, device=first.device) < probability
    null = null_conditions(cond)
    return {name: torch.where(expand_right(drop, value), null[name], value) for name, value in cond.items()}


def null_conditions(cond: Conditions) -> Conditions:
    """The same conditions, none of them given: whole numbers are NULL, others NaN; a length stays."""
    return {
        name: value if name == LENGTH else torch.full_like(value, math.nan if value.is_floating_point() else NULL)
        for name, value in cond.items()
    }


def is_null(value: Tensor) -> Tensor:
    """Which samples (B,) are without this condition (B, ...)."""
    missing = value.isnan() if value.is_floating_point() else value == NULL
    return missing.flatten(1).any(1) if missing.ndim > 1 else missing


def real_steps(cond: Conditions | None, x: Tensor) -> Tensor | None:
    """Which steps of sequences x (B, L, C) are real, (B, L), or None where all are."""
    if not cond or LENGTH not in cond:
        return None
    return torch.arange(x.shape[1], device=x.device) < cond[LENGTH][:, None]


def without_padding(x: Tensor, cond: Conditions) -> Tensor:
    """x with zeros after the last real step of each sample, where it is a sequence (n, L, C) with lengths."""
    real = real_steps(cond, x)
    return x if real is None else torch.where(real[:, :, None], x, 0.0)
