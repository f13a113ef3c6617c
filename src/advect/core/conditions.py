"""What can be done to any dict of conditions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advect.core import random
from advect.core.random import Generator
from advect.core.shapes import expand_right
from advect.core.types import LENGTH, NULL, Conditions


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
