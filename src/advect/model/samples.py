"""Result of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.types import Conditions, DataSpec
from advect.data.modality import labels_of


@dataclass(frozen=True)
class Samples:
    """Samples x (n, *S), or trajectories (len(times), n, *S), with their conditions (n, ...).

    ``encoded`` are the conditions as network inputs, ``cond`` the same by the data's labels and units. ``nfe`` is the
    number of velocity evaluations a sample; guided ones count once.
    """

    x: Tensor
    encoded: Conditions
    nfe: float
    spec: DataSpec
    times: tuple[float, ...] | None = None

    @property
    def cond(self) -> dict[str, np.ndarray]:
        """The conditions (n, ...) as labels and numbers of the data, which flows take; see ``labels_of``."""
        return labels_of(self.encoded, self.spec)

    def __len__(self) -> int:
        return len(self.x)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.x, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return tuple(self.x.shape)

    if not TYPE_CHECKING:  # a checker would take every name to exist

        def __getattr__(self, name: str) -> Any:
            """Raise AttributeError; for a name of a tensor, with where that is."""
            fix = f"; the tensor is samples.x: use samples.x.{name}" if hasattr(Tensor, name) else ""
            raise AttributeError(f"Samples has no attribute {name!r}{fix}")

    @overload
    def __getitem__(self, rows: slice) -> Samples: ...
    @overload
    def __getitem__(self, rows: Any) -> Tensor: ...

    def __getitem__(self, rows: Any) -> Samples | Tensor:
        """Some of the samples, which are no trajectories, by a slice; what else x is indexed by gives a tensor."""
        if not isinstance(rows, slice):
            return self.x[rows]
        cond = {name: value[rows] for name, value in self.encoded.items()}
        return Samples(self.x[rows], cond, self.nfe, self.spec)

    @staticmethod
    def concatenate(parts: Sequence[Samples]) -> Samples:
        """Samples, no trajectories, one after the other."""
        cond = {name: torch.cat([part.encoded[name] for part in parts]) for name in parts[0].encoded}
        nfe = sum(part.nfe * len(part.x) for part in parts) / sum(len(part.x) for part in parts)
        return Samples(torch.cat([part.x for part in parts]), cond, nfe, parts[0].spec)


def checked_rows(n: int, rows: range | None) -> range:
    """Requested rows of n samples, default all."""
    if rows is not None and not (0 <= rows.start < rows.stop <= n and rows.step == 1):
        raise UserError(f"rows must be a range within 0 .. {n}, not empty, of step 1, got {rows}")
    return range(n) if rows is None else rows
