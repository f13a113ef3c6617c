"""Conventions and shared types.

Time runs from the source (noise) at ``t = 0`` to the data at ``t = 1``. For an affine path::

    x_t = alpha_t x_1 + sigma_t x_0        alpha_0 = 0, sigma_0 = 1, alpha_1 = 1, sigma_1 = 0
    u_t = alpha_t' x_1 + sigma_t' x_0      the conditional velocity, the regression target
    dX_t = u_t(X_t) dt                     sampling, from t = 0 to t = 1

Names in code: ``x0, x1, t, x_t, u_t, alpha, sigma, d_alpha, d_sigma``. The batch axis is first: ``x (B, *S)``, ``t
(B,)``; conditions are a dict of tensors ``(B, ...)`` or None.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, Protocol

import torch
from msgspec import Meta
from torch import Tensor

from advect.core import random
from advect.core.bounds import Finite
from advect.core.errors import UserError
from advect.core.random import Generator

Conditions = dict[str, Tensor]

NULL = -1
"""Value of a categorical condition that is not given, embedded as a learned null; continuous ones use a row of NaN."""

LENGTH = "length"
"""Condition (B,) with the number of real steps of a sequence (L, C); never dropped."""

GIVEN = "given"
"""Condition (B, *S) in model units of a flow that answers questions, never dropped: an entry's known value, NaN where
it is to be drawn, or infinity where the training data lack it, so that it is neither known nor learned.
"""

STEP = "length of the step"
"""Condition (B, 1) of networks of two times, made from these by ``TwoTimes``; no name of data."""

AUGMENTATION = "augmentation"
"""Condition (B, k) of how training images were changed, never dropped; a row of NaN, or its absence as in sampling,
says that they were not.
"""

RESERVED = (LENGTH, GIVEN, AUGMENTATION, STEP)
"""Conditions that are no labels."""


StepKind = Literal["any", "halves", "to-data"]
"""Steps that a network of two times has learned: from any time to any later one; [0, 1], its halves, their halves and
so on; or those to t = 1.
"""


class Network(Protocol):
    """Interface of networks: ``net(x_t (B, *S), t (B,), cond) -> (B, *S)``.

    Networks of two times take t (B, 2) too, the start and end of a step, and put out the average velocity over it.
    """

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """Data in model units: ``x1 (B, *S)``, conditions ``(B, ...)``, and start points ``x0 (B, *S)`` if the data have
    them.
    """

    x1: Tensor
    cond: Conditions | None = None
    x0: Tensor | None = None

    def __post_init__(self) -> None:
        check_floating(x1=self.x1, x0=self.x0)

    def __len__(self) -> int:
        return len(self.x1)

    def to(self, device: torch.device) -> Batch:
        """Move to ``device``."""
        if self.x1.device == device:
            return self
        cond = None if self.cond is None else {k: v.to(device, non_blocking=True) for k, v in self.cond.items()}
        x0 = None if self.x0 is None else self.x0.to(device, non_blocking=True)
        return Batch(self.x1.to(device, non_blocking=True), cond, x0)


@dataclass(frozen=True)
class PathSample:
    """Sample of a conditional path: ``x_t, u_t, x0, x1 (B, *S)`` and ``t (B,)``.

    For networks of two times t is (B, 2): x_t lies at the first. ``target`` (B, *S) marks the elements that a loss
    counts, by default all.
    """

    x_t: Tensor
    t: Tensor
    u_t: Tensor
    x0: Tensor
    x1: Tensor
    target: Tensor | None = None


Frequencies = tuple[Annotated[float, Meta(ge=0, le=1)], ...]
"""Shares of values, of sum one."""


@dataclass(frozen=True)
class Category:
    """Categorical condition with values ``0 .. len(names) - 1``, or ``NULL``.

    ``frequencies`` are the shares of the values in the training data, of sum one. ``names`` are the labels in the
    data, as text; where the data have numbers, and names for these, ``numbers`` are those.
    """

    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    frequencies: Frequencies
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = len(self.names), len(self.frequencies), len(self.numbers) or len(self.names)
        if len(set(sizes)) > 1:
            raise UserError(
                f"a category has {' and '.join(map(str, sizes))} names, frequencies and numbers; give one of each"
            )


@dataclass(frozen=True)
class Quantity:
    """Continuous condition: d standardised numbers, or a row of NaN if not given.

    ``names``, ``mean`` and ``std`` have d entries, the latter in data units; ``examples`` are rows (d) of the data in
    data units, sampled if no value is requested.

    Dates, times and whole numbers beyond 2^53 are counted in ``step`` units from ``origin``: times in ``unit`` ("D",
    "s", "ms", "us" or "ns") since 1970, UTC where the data have offsets.
    """

    names: tuple[str, ...]
    mean: tuple[Finite, ...]
    std: tuple[Annotated[float, Meta(gt=0, le=sys.float_info.max)], ...]
    examples: Annotated[tuple[tuple[Finite, ...], ...], Meta(min_length=1)]
    unit: Literal["", "D", "s", "ms", "us", "ns"] = ""
    origin: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    step: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 1

    def __post_init__(self) -> None:
        sizes = {len(self.names), len(self.mean), len(self.std), *map(len, self.examples)}
        if len(sizes) > 1:
            raise UserError(f"a quantity has names, moments and examples of {sorted(sizes)} numbers; give d of each")
        if not self.examples:
            raise UserError("a quantity has no examples to sample where no value is asked for; give a row at least")


@dataclass(frozen=True)
class Length:
    """Condition ``LENGTH``: 1 .. len(frequencies) real steps, with their shares in the training data."""

    frequencies: Annotated[Frequencies, Meta(min_length=1)]


Condition = Category | Quantity | Length


@dataclass(frozen=True)
class Code:
    """Elements of vectors (B, D) that code one of several categories, from ``start`` on, with the ``shares`` of +1.

    Of several elements the category's is +1 and the others are -1; one alone is +1 or -1. The shares are those of the
    training data.
    """

    start: Annotated[int, Meta(ge=0)]
    shares: Annotated[tuple[Annotated[float, Meta(gt=0, lt=1)], ...], Meta(min_length=1)]

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.shares)


def code_places(codes: Sequence[Code]) -> tuple[Tensor, ...]:
    """Elements (m, k) of all codes of the same number k of elements, for each k."""
    sizes = sorted({code.size for code in codes})
    starts = {k: torch.tensor([code.start for code in codes if code.size == k]) for k in sizes}
    return tuple(starts[k][:, None] + torch.arange(k) for k in sizes)


@dataclass(frozen=True)
class DataSpec:
    """Shape of one sample, modality and conditions of the data.

    ``modality`` is a registered name: ``"image"`` (C, H, W), ``"vector"``, ``"table"`` and ``"cells"`` (D,),
    ``"sequence"`` (L, C), ...; sequences with the condition ``LENGTH`` are zero after their last real step.
    ``codes`` are those of categories in vectors (D,), in their order; other elements are numbers.
    ``augmentation`` is the size of the condition ``AUGMENTATION`` of training samples, 0 for none.
    """

    shape: tuple[int, ...]
    modality: str
    conditions: dict[str, Condition]
    augmentation: int = 0
    codes: tuple[Code, ...] = ()

    def __post_init__(self) -> None:
        ends = [0, *(code.start + code.size for code in self.codes)]
        if any(code.start < end for code, end in zip(self.codes, ends, strict=False)) or ends[-1] > self.shape[0]:
            raise UserError(f"codes of categories overlap, or end beyond element {self.shape[0]}; take another file")
        for name in RESERVED:
            if name in self.conditions and not isinstance(self.conditions[name], Length):
                raise UserError(f"a condition cannot be called {name!r}, which has a meaning of its own; rename it")


@dataclass(frozen=True)
class Entries:
    """The entries of a sample (*S), each known or not as a whole.

    ``groups`` (*S) int64 numbers the entry of each element from 0 on: a column of a table, a pixel of an image, a
    channel at a step. ``names`` are those of columns, if they have any.
    """

    groups: Tensor
    names: tuple[str, ...] = ()

    def of(self, shape: Sequence[int]) -> Tensor:
        """The groups of samples of this shape; images may have another size than the data set's."""
        if tuple(shape) == tuple(self.groups.shape):
            return self.groups
        channels, height, width = shape
        return torch.arange(height * width).reshape(1, height, width).expand(channels, height, width)

    @cached_property
    def first(self) -> Tensor:
        """Place in a flattened sample of the first element of each element's entry, (D,) int64."""
        places = self.groups.flatten()
        firsts = torch.full((int(places.max()) + 1,), len(places))
        return firsts.scatter_reduce(0, places, torch.arange(len(places)), "amin")[places]

    def count(self, shape: Sequence[int] | None = None) -> int:
        """Number of entries."""
        if shape is None or tuple(shape) == tuple(self.groups.shape):
            return self._count
        return math.prod(shape[1:])

    @cached_property
    def _count(self) -> int:
        return max(int(self.groups.max()) + 1, len(self.names))  # a column of one value has no element


def expand_right(t: Tensor, x: Tensor) -> Tensor:
    """Reshape t (B,) to (B, 1, ..., 1) to broadcast over x (B, *S)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def check_floating(**tensors: Tensor | None) -> None:
    """Raise UserError for a tensor of whole numbers, in which a flow cannot move."""
    for name, x in tensors.items():
        if x is not None and not x.is_floating_point():
            raise UserError(f"{name} holds {x.dtype}, and a flow needs real numbers; give {name}.float(), scaled")


def check_pair(x0: Tensor, x1: Tensor, t: Tensor | None = None) -> None:
    """Raise UserError unless x0 and x1 are both (B, *S), on one device, and t is (B,)."""
    if x0.shape != x1.shape:
        raise UserError(f"x0 and x1 must have the same shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")
    if x0.device != x1.device:
        raise UserError(f"x0 and x1 must be on one device, got {x0.device} and {x1.device}; move one with .to()")
    if t is not None and t.shape != x1.shape[:1]:
        raise UserError(f"t must have shape ({len(x1)},), one time a sample, got {tuple(t.shape)}")
    check_floating(x0=x0, x1=x1)


def drop_conditions(cond: Conditions | None, probability: float, generator: Generator = None) -> Conditions | None:
    """Replace conditions (B, ...) by null, sample by sample: all with ``probability``, and each of several on its own.

    All together is what classifier-free guidance needs (Ho & Salimans 2022, alg. 1). Of K > 1 conditions each is then
    missing with the same probability p by itself too, so that the network learns every subset: a subset of m < K is
    missing in a share (1 - p) p^m (1 - p)^(K - m) of the samples. The reserved ones are never dropped.
    """
    names = [name for name in cond or {} if name not in RESERVED]
    if not cond or not names or probability == 0:
        return cond
    first = cond[names[0]]
    draws = 1 if len(names) == 1 else 1 + len(names)
    drop = random.uniform((len(first), draws), generator, device=first.device) < probability
    null, dropped = null_conditions(cond), dict(cond)
    for i, name in enumerate(names):
        missing = drop[:, 0] | drop[:, min(1 + i, draws - 1)]
        dropped[name] = torch.where(expand_right(missing, cond[name]), null[name], cond[name])
    return dropped


def null_conditions(cond: Conditions) -> Conditions:
    """Null values for all conditions: NULL for integers, NaN for floats; the reserved ones stay."""
    return {
        name: value if name in RESERVED else torch.full_like(value, math.nan if value.is_floating_point() else NULL)
        for name, value in cond.items()
    }


def is_null(value: Tensor) -> Tensor:
    """Mask (B,) of samples without this condition (B, ...)."""
    missing = value.isnan() if value.is_floating_point() else value == NULL
    return missing.flatten(1).any(1) if missing.ndim > 1 else missing


def real_steps(cond: Conditions | None, x: Tensor) -> Tensor | None:
    """Mask (B, L) of real steps of sequences x (B, L, *C), or None if all are."""
    if not cond or LENGTH not in cond:
        return None
    return torch.arange(x.shape[1], device=x.device) < cond[LENGTH][:, None]


def without_padding(x: Tensor, cond: Conditions) -> Tensor:
    """x with zeros after the last real step of sequences (n, L, C), or tokens (n, L), with lengths."""
    real = real_steps(cond, x)
    return x if real is None else torch.where(expand_right(real, x), x, 0.0)
