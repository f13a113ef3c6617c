"""What can be done to any dict of conditions."""

from __future__ import annotations

import torch

from advect.core import random
from advect.core.random import Generator
from advect.core.shapes import expand_right
from advect.core.types import NULL, Conditions


def drop_conditions(cond: Conditions | None, probability: float, generator: Generator = None) -> Conditions | None:
    """Replace, sample by sample, all conditions (B, ...) by NULL with ``probability`` (Ho & Salimans 2022, alg. 1)."""
    if not cond or probability == 0:
        return cond
    first = next(iter(cond.values()))
    drop = random.uniform((len(first),), generator, device=first.device) < probability
    return {name: torch.where(expand_right(drop, value), NULL, value) for name, value in cond.items()}


def null_conditions(cond: Conditions) -> Conditions:
    """The same conditions with every value NULL."""
    return {name: torch.full_like(value, NULL) for name, value in cond.items()}
