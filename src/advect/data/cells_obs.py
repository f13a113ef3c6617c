"""The columns of ``obs`` as conditions, and the cells that are controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from advect.core.errors import UserError, did_you_mean
from advect.core.types import LENGTH, NULL, Category, Quantity

EXAMPLES = 256
"""Rows that a Quantity keeps."""


@dataclass(frozen=True)
class Column:
    """One condition: what the model is told of it, and its values: (N,) int64, or (N, 1) float32, standardised."""

    condition: Category | Quantity
    values: np.ndarray


def column(obs: Any, name: str, argument: str) -> Any:
    """A column of obs. Raises UserError where there is none of that name."""
    if name not in obs.columns:
        fix = did_you_mean(name, map(str, obs.columns)) if len(obs.columns) else "; it has no columns"
        raise UserError(f"{argument} names {name!r}, which obs has not{fix}")
    return obs[name]


def read_columns(
    obs: Any, conditions: Sequence[str], continuous: Sequence[str], *, used: np.ndarray, train: np.ndarray
) -> dict[str, Column]:
    """The conditions by name: names are those that occur among the cells ``used``, figures those of ``train``."""
    for argument, names in (("conditions", conditions), ("continuous", continuous)):
        if isinstance(names, str):
            raise UserError(f"{argument} must be a list of columns, got {names!r}; give [{names!r}]")
    twice = {name for name in conditions if name in continuous or list(conditions).count(name) > 1}
    if twice or LENGTH in (*conditions, *continuous):
        name = min(twice) if twice else LENGTH
        why = "is named twice" if twice else "is a name that sequences keep for themselves; rename the column"
        raise UserError(f"conditions: {name!r} {why}")
    columns = {name: _category(column(obs, name, "conditions"), used, train) for name in conditions}
    return columns | {name: _quantity(column(obs, name, "continuous"), used, train) for name in continuous}


def _category(values: Any, used: np.ndarray, train: np.ndarray) -> Column:
    """Names are in the order that a pandas categorical has, or sorted, numbers as such; NaN and "" are not given."""
    given = values.notna().to_numpy() & (values.astype(str) != "").to_numpy()
    text = values.astype(str).to_numpy(dtype=object)
    present = set(text[used][given[used]])
    if not present:
        raise UserError(f"conditions: column {values.name!r} has no value in any cell; leave it out")
    if values.dtype.kind == "f" and len(present) > max(20, len(used) // 2):
        raise UserError(
            f"conditions: column {values.name!r} has {len(present)} different numbers in {len(used)} cells;"
            " give it to continuous instead"
        )
    order = (
        values.cat.categories.astype(str)
        if hasattr(values, "cat")
        else sorted(present, key=float if values.dtype.kind in "iuf" else None)
    )
    names = [name for name in order if name in present]
    number = {name: i for i, name in enumerate(names)}
    codes = np.array([number.get(t, NULL) if ok else NULL for t, ok in zip(text, given, strict=True)], np.int64)
    counts = np.bincount(codes[train][codes[train] >= 0], minlength=len(names))
    return Column(Category(tuple(names), tuple((counts / max(counts.sum(), 1)).tolist())), codes)


def _quantity(values: Any, used: np.ndarray, train: np.ndarray) -> Column:
    try:
        numbers = values.astype(float).to_numpy()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"continuous: column {values.name!r} does not hold numbers ({error}); give it to conditions"
        ) from error
    if np.isinf(numbers[used]).any():
        raise UserError(f"continuous: column {values.name!r} holds infinity; leave such values empty")
    known = numbers[train][~np.isnan(numbers[train])]
    if not len(known):
        raise UserError(f"continuous: column {values.name!r} has no value in any training cell; leave it out")
    mean, std = float(known.mean()), float(known.std()) or 1.0
    picks = known[np.linspace(0, len(known) - 1, min(len(known), EXAMPLES)).astype(int)]
    quantity = Quantity((str(values.name),), (mean,), (std,), tuple((float(v),) for v in picks))
    return Column(quantity, ((numbers - mean) / std).astype(np.float32)[:, None])


def control_cells(obs: Any, control: str | None) -> np.ndarray:
    """Which cells (N,) are controls, by ``"column=value"``; none are without it.

    Raises:
        UserError: column or value is not there, or all cells are controls.
    """
    if control is None:
        return np.zeros(len(obs), dtype=bool)
    name, equals, value = control.partition("=")
    if not equals:
        raise UserError(f"control must be 'column=value', such as 'perturbation=control', got {control!r}")
    values = column(obs, name, "control")
    here = (values.notna() & (values.astype(str) == value)).to_numpy()
    if not here.any():
        present = sorted(set(values.dropna().astype(str)))
        raise UserError(f"control: no cell has {name} {value!r}{did_you_mean(value, present[:30])}")
    if here.all():
        raise UserError(f"control: all cells have {control}; the flow needs others to lead to")
    return here
