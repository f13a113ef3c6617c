"""Samples of which some entries are known and the others asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advect.core.errors import UserError


class GivenRows(NamedTuple):
    """Samples of which some entries are known.

    ``values`` (n, *S) are in model units, NaN where asked for; ``conditions`` n values each by name, as in the data,
    None where missing; ``own`` is what ``Modality.write_given`` needs to write known entries as they stood.
    """

    values: Tensor
    conditions: dict[str, Any]
    own: Any = None


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
