"""Conditions as a person names them, and as a network takes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.core.random import CounterRng, mix
from advect.core.types import NULL, Category, Conditions, DataSpec

ConditionValue = int | str | None | Tensor
"""One value for all samples (its number or its name; "none" or None: not given), "cycle" for each value in turn,
or a tensor (n,) of numbers."""


def resolve_conditions(spec: DataSpec, n: int, cond: Mapping[str, ConditionValue] | None, seed: int) -> Conditions:
    """For each condition of ``spec`` a tensor (n,) of numbers, NULL for not given.

    Conditions that ``cond`` does not name are drawn as often as they occur in the training data; draw i depends on
    the seed and i alone. Raises UserError for an unknown condition or value.
    """
    cond = dict(cond or {})
    for name in cond:
        if name not in spec.conditions:
            where = did_you_mean(name, spec.conditions) if spec.conditions else "; this flow has none"
            raise UserError(f"condition {name!r} is not known{where}")
    values = {}
    for i, (name, category) in enumerate(spec.conditions.items()):
        if name in cond:
            values[name] = _numbers(name, cond[name], category, n)
        else:
            u = CounterRng(mix(seed, 2), i, n).uniform((n,), dtype=torch.float64)
            shares = torch.tensor(category.frequencies, dtype=torch.float64).cumsum(0)
            values[name] = torch.searchsorted(shares, u, right=True).clamp_(max=len(shares) - 1)
    return values


def _numbers(name: str, value: ConditionValue, category: Category, n: int) -> Tensor:
    if isinstance(value, Tensor):
        if value.shape != (n,):
            raise UserError(f"condition {name!r} must have shape ({n},), one a sample, got {tuple(value.shape)}")
        numbers = value.long().cpu()
    elif value == "cycle":
        numbers = torch.arange(n) % len(category.names)
    else:
        numbers = torch.full((n,), _number(name, value, category))
    if ((numbers < NULL) | (numbers >= len(category.names))).any():
        raise UserError(f"condition {name!r} must lie in 0 to {len(category.names) - 1}, got {value}")
    return numbers


def _number(name: str, value: int | str | None, category: Category) -> int:
    if value is None or value == "none":
        return NULL
    if isinstance(value, int):
        return value
    if value in category.names:
        return category.names.index(value)
    if value.isdecimal():
        return int(value)
    raise UserError(f"condition {name!r} has no value {value!r}{did_you_mean(value, category.names)}")
