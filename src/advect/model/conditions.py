"""Conditions from users' values to network inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from advect.core.errors import UserError, did_you_mean
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import NULL, Category, Condition, Conditions, DataSpec, Length, Quantity

ConditionValue = float | str | None | Sequence[float] | Tensor
"""A value for all samples, "cycle" for each in turn, or a network input.

A value is a category's number or name, a quantity's numbers in data units (or text "a,b,c"), or a length. None or
"none" is the null. A tensor is (n,) integers, or (n, d) standardised numbers for a quantity.
"""


def resolve_conditions(
    spec: DataSpec, n: int, cond: Mapping[str, ConditionValue] | None, seed: int, rows: range | None = None
) -> Conditions:
    """Network inputs for each condition of ``spec``: integers (n,), or standardised (n, d).

    Conditions not in ``cond`` are sampled from the training frequencies, quantities from examples; row i depends on
    seed and i alone. ``rows`` restricts the result. Raises UserError for an unknown condition or value.
    """
    cond = dict(cond or {})
    for name in cond:
        if name not in spec.conditions:
            where = did_you_mean(name, spec.conditions) if spec.conditions else "; this flow has none"
            raise UserError(f"condition {name!r} is not known{where}")
    rows = range(n) if rows is None else rows
    values = {}
    for i, (name, condition) in enumerate(spec.conditions.items()):
        if name not in cond:
            rng = CounterRng(stream_seed(seed, Stream.CONDITIONS), i, len(rows), start=rows.start, total=n)
            u = rng.uniform((len(rows),), dtype=torch.float64)
            values[name] = _sampled(condition, u)
        elif isinstance(condition, Quantity):
            values[name] = _vectors(name, cond[name], condition, n, rows)
        else:
            values[name] = _numbers(name, cond[name], condition, n, rows)
    return values


def _sampled(condition: Condition, u: Tensor) -> Tensor:
    """Values at quantiles u (n,) in [0, 1) of the training data."""
    if isinstance(condition, Quantity):
        examples = _standardised(condition, condition.examples)
        return examples[(u * len(examples)).long()]
    shares = torch.tensor(condition.frequencies, dtype=torch.float64).cumsum(0)
    places = torch.searchsorted(shares, u, right=True).clamp_(max=len(shares) - 1)
    return places + 1 if isinstance(condition, Length) else places


def _numbers(name: str, value: ConditionValue, condition: Category | Length, n: int, rows: range) -> Tensor:
    low, high, null = _range(condition)
    if isinstance(value, Tensor):
        if value.shape != (n,):
            raise UserError(f"condition {name!r} must have shape ({n},), one a sample, got {tuple(value.shape)}")
        numbers = value[rows.start : rows.stop].long().cpu()
    elif value == "cycle":
        numbers = low + torch.arange(rows.start, rows.stop) % (high - low + 1)
    else:
        numbers = torch.full((len(rows),), _number(name, value, condition))
    if (((numbers < low) | (numbers > high)) & (numbers != null)).any():
        raise UserError(f"condition {name!r} must lie in {low} to {high}, got {value}")
    return numbers


def _range(condition: Category | Length) -> tuple[int, int, int]:
    """Minimum, maximum and null of a condition; lengths have no null."""
    if isinstance(condition, Length):
        return 1, len(condition.frequencies), 1
    return 0, len(condition.names) - 1, NULL


def _number(name: str, value: ConditionValue, condition: Category | Length) -> int:
    names = condition.names if isinstance(condition, Category) else ()
    if value is None or value == "none":
        if isinstance(condition, Length):
            raise UserError(f"condition {name!r} is always given; name one of 1 to {len(condition.frequencies)}")
        return NULL
    if isinstance(value, int | float) and float(value).is_integer():
        return int(value)
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    fix = did_you_mean(str(value), names) if names else f"; it is a whole number of 1 to {_range(condition)[1]}"
    raise UserError(f"condition {name!r} has no value {value!r}{fix}")


def _vectors(name: str, value: ConditionValue, quantity: Quantity, n: int, rows: range) -> Tensor:
    d = len(quantity.mean)
    if isinstance(value, Tensor):
        if value.shape != (n, d):
            raise UserError(f"condition {name!r} must have shape ({n}, {d}), a row a sample, got {tuple(value.shape)}")
        return value[rows.start : rows.stop].float().cpu()
    if value is None or value == "none":
        return torch.full((len(rows), d), math.nan)
    if value == "cycle":
        return _standardised(quantity, quantity.examples)[torch.arange(rows.start, rows.stop) % len(quantity.examples)]
    row = _row(name, value)
    if len(row) != d or not all(map(math.isfinite, row)):
        raise UserError(f"condition {name!r} needs {d} finite numbers ({', '.join(quantity.names)}), got {value!r}")
    return _standardised(quantity, [row]).expand(len(rows), d).clone()


def _row(name: str, value: float | str | Sequence[float]) -> list[float]:
    """The numbers in 3.5, (1, 2) or "1,2"."""
    words = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value
    try:
        return [float(word) for word in words]
    except (TypeError, ValueError):
        raise UserError(f"condition {name!r} needs numbers such as 1.5 or 1.5,2; got {value!r}") from None


def _standardised(quantity: Quantity, rows: Sequence[Sequence[float]]) -> Tensor:
    """Rows (n, d) in data units, standardised."""
    x = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(quantity.mean))
    mean, std = (torch.tensor(moments, dtype=torch.float64) for moments in (quantity.mean, quantity.std))
    return ((x - mean) / std).float()


def number_or_name(word: str | None) -> float | str | None:
    """``--diffusion`` as a number if it is one."""
    try:
        return None if word is None else float(word)
    except ValueError:
        return word


def parse_conditions(words: tuple[str, ...]) -> dict[str, str]:
    """``--cond NAME=VALUE ...`` as a dict. Raises UserError for other words."""
    cond: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UserError(f"--cond {word} should be NAME=VALUE, such as label=7")
        cond[name] = value
    return cond
