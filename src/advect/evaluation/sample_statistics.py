"""What is kept of a set of samples of any size: its moments, and some of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from advect.evaluation.subsampling import rows
from advect.metrics import GaussianFit, Moments

ROWS = 10_000
"""At most so many rows of a set are kept, whatever its size; moments are those of all rows."""

FEATURES, VALUES, CONDITION = "features", "values", "cond."
"""Names of what is kept of a row: its features, some of its values, and after the last one each condition."""

_SEED = 0


@dataclass(frozen=True)
class SampleStatistics:
    """``count`` samples: the moments of all their features, and for some of them all that is known.

    ``rows`` holds tensors (k, ...) by name, of k = min(count, ROWS) samples that are drawn without repetition, in
    random order, so that the first of them are a sample of all. FEATURES (k, d) are always there.
    """

    count: int
    moments: Moments
    rows: Mapping[str, Tensor]

    @classmethod
    def of(cls, parts: Iterable[Mapping[str, Tensor]], count: int) -> SampleStatistics:
        """The summary of ``count`` samples that come in parts, each with tensors (n, ...) of the same names.

        The same parts in the same order give the same bits. Raises UserError for features that are not finite.
        """
        chosen = rows(count, ROWS, _SEED)
        slots = torch.full((count,), -1)
        slots[chosen] = torch.arange(len(chosen))
        kept: dict[str, Tensor] = {}
        moments, first = None, 0
        for part in parts:
            features = part[FEATURES]
            here = slots[first : first + len(features)]
            first += len(features)
            found = Moments.of(features, argument="samples")
            moments = found if moments is None else moments + found
            for name, value in part.items():
                target = kept.setdefault(name, value.new_zeros(len(chosen), *value.shape[1:]))
                target[here[here >= 0]] = value[here >= 0]
        assert moments is not None and first == count
        return cls(count, moments, kept)

    @cached_property
    def gaussian(self) -> GaussianFit:
        """The Gaussian of all features."""
        return GaussianFit.from_running(self.moments)

    def tensors(self) -> dict[str, Tensor]:
        """The same as tensors by name, to be kept in a file."""
        return {**self.moments.tensors(), **{f"rows.{name}": value for name, value in self.rows.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SampleStatistics:
        """What :meth:`tensors` gave, to the last bit."""
        moments = Moments.from_tensors(tensors)
        kept = {name.removeprefix("rows."): v for name, v in tensors.items() if name.startswith("rows.")}
        return cls(moments.count, moments, kept)

    def take(self, name: str, limit: int) -> Tensor:
        """At most ``limit`` rows of what is called so."""
        return self.rows[name][:limit]
