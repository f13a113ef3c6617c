"""Samples of which some entries are known and the others asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.data.arrays import LABELS, SAMPLES


class GivenRows(NamedTuple):
    """Samples of which some entries are known.

    ``values`` (n, *S) are in model units, NaN where asked for; ``conditions`` n values each by name, as in the data,
    None where missing; ``own`` is what ``Modality.write_given`` needs to write known entries as they stood.
    """

    values: Tensor
    conditions: dict[str, Any]
    own: Any = None


def samples_name(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Name of the samples among the arrays of a file. Raises UserError where none is one."""
    names = [name for name in ("", *SAMPLES, *(arrays if len(arrays) == 1 else ())) if name in arrays]
    if not names:
        raise UserError(f"{path} has {', '.join(arrays) or 'no arrays'}; call the samples x")
    return names[0]


def array_conditions(
    path: Path, arrays: Mapping[str, np.ndarray], names: Iterable[str], count: int
) -> dict[str, list[Any]]:
    """Values of the conditions called ``names`` that a file has, by its usual names for "label".

    Raises UserError unless there are ``count`` of each.
    """
    found = {}
    for name in names:
        key = next((key for key in (name, *(LABELS if name == "label" else ())) if key in arrays), None)
        if key is None:
            continue
        values = arrays[key].reshape(-1) if arrays[key].size == count else arrays[key]
        if len(np.atleast_1d(values)) != count:
            raise UserError(
                f"{path} has an array {key!r} of shape {arrays[key].shape} for {count} samples; give one value each"
            )
        found[name] = values.tolist()
    return found


def check_given(x: Tensor, shape: Sequence[int], what: str = "given") -> None:
    """Raise UserError unless x (n, *shape) has numbers, and NaN for what is asked for; ``what`` names it."""
    if x.shape[1:] != tuple(shape) or not len(x):
        raise UserError(f"{what} must have shape (n, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
    asked = x.isnan()
    if bool(x.isinf().any()):
        row = int(x.isinf().flatten(1).any(1).int().argmax())
        raise UserError(f"{what} has an infinite value in row {row}; give a number, or NaN for what is asked for")
    if not bool(asked.any()):
        raise UserError(f"{what} asks for nothing: all of its values are known; give NaN for what is asked for")
    if bool(asked.all()):
        raise UserError(f"{what} knows nothing: all of its values are NaN; sample without it")


def check_asked(what: str, asked: np.ndarray) -> None:
    """Raise UserError unless some entries (n, K) of a file are asked for, and some known."""
    if not asked.any():
        raise UserError(f"{what} asks for nothing: no entry is empty; leave empty what is to be drawn")
    if asked.all():
        raise UserError(f"{what} knows nothing: all of its entries are empty; sample without it")


def whole_entries(z: Tensor, groups: Tensor) -> Tensor:
    """Model units z (n, *S), NaN where asked for. Raises UserError unless entries (*S) are known or not as a whole."""
    asked, place = z.isnan().flatten(1).long(), groups.flatten().to(z.device)
    zeros = asked.new_zeros(len(asked), int(place.max()) + 1)
    count = zeros.index_add(1, place, asked)[:, place]
    part = (count > 0) & (count < zeros[:1].index_add(1, place, torch.ones_like(asked[:1]))[:, place])
    if bool(part.any()):
        row, element = (int(v) for v in part.nonzero()[0])
        raise UserError(
            f"given knows entry {int(place[element])} of row {row} in part; give all of its values, or NaN for all"
        )
    return z
