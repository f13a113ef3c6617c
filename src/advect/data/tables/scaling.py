"""Scalings of one column's numbers to near-Gaussian values and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import Finite
from advect.core.errors import UserError, did_you_mean
from advect.core.records import as_record
from advect.data.transforms import Standardize

KNOTS = 1000
"""Maximum number of stored quantiles per column."""


class Scaling(ABC):
    """Increasing map of reals, float64 both ways, on its argument's device."""

    kind: ClassVar[str]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Column values (B,) to model units (B,)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Model units (B,) to column values (B,)."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """JSON object from which :func:`scaling_from_config` builds an equal scaling, bit for bit."""


@dataclass(frozen=True)
class StandardScaling(Scaling):
    """Subtract the mean and divide by the standard deviation, > 0."""

    mean: Finite
    std: Finite
    kind: ClassVar[str] = "standard"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UserError(f"standard scaling has mean {self.mean} and std {self.std}; give finite numbers, std > 0")

    @classmethod
    def fit(cls, x: np.ndarray) -> StandardScaling:
        """Fit to x (N,), N >= 1; constants are only centred."""
        fitted = Standardize.fit(x[:, None])
        return cls(fitted.mean[0], fitted.std[0])

    def forward(self, x: Tensor) -> Tensor:
        return (x.double() - self.mean) / self.std

    def inverse(self, z: Tensor) -> Tensor:
        return z.double() * self.std + self.mean

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class QuantileScaling(Scaling):
    """Map the i-th smallest of n numbers to the normal quantile of (i + 1/2) / n, with linear interpolation.

    A repeated number owns an interval of model units: it maps to the interval's normal median, and the interval maps
    back to it. Beyond the ends the map continues with the mean slope.

    Args:
        count: n, the size of the fitted sample.
        values: at most ``KNOTS`` order statistics, evenly spaced in rank from smallest to largest.

    Raises:
        UserError: values are none, more than ``count``, not finite or not sorted.
    """

    count: Annotated[int, Meta(ge=1, lt=2**53)]
    values: Sequence[Finite]
    kind: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        values = array("d", self.values)  # 8 bytes a number: a wide table has as many of these as values
        object.__setattr__(self, "values", values)
        if not 1 <= len(values) <= self.count:
            raise UserError(f"quantile scaling needs 1 to {self.count} values, got {len(values)}")
        if not np.isfinite(values).all() or (np.diff(values) < 0).any():
            raise UserError("quantile scaling needs finite values that rise; sort them")

    @classmethod
    def fit(cls, x: np.ndarray) -> QuantileScaling:
        """Fit the map of x (N,), N >= 1, to standard normal."""
        return cls(len(x), np.sort(x)[_ranks(len(x), min(len(x), KNOTS))].tolist())

    def _knots(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Stored values, their levels in (0, 1) and normal quantiles, each (K,) float64."""
        made = _traced_levels if torch.compiler.is_exporting() else _levels
        levels, normal = made(self.count, len(self.values))
        return torch.tensor(np.asarray(self.values), device=device), levels.to(device), normal.to(device)

    def forward(self, x: Tensor) -> Tensor:
        x = x.double().contiguous()
        values, levels, normal = self._knots(x.device)
        first, after = torch.searchsorted(values, x), torch.searchsorted(values, x, right=True)
        last = len(values) - 1
        middle = (levels[first.clamp(max=last)] + levels[(after - 1).clamp(min=0)]) / 2
        return torch.where(after > first, torch.special.ndtri(middle), _lines(x, values, normal, self._flat))

    def inverse(self, z: Tensor) -> Tensor:
        z = z.double().contiguous()
        values, _, normal = self._knots(z.device)
        return _lines(z, normal, values, self._flat)

    @property
    def _flat(self) -> bool:
        return self.values[0] == self.values[-1]

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "count": self.count, "values": list(self.values)}


@lru_cache(maxsize=64)
def _levels(count: int, knots: int) -> tuple[Tensor, Tensor]:
    """Levels of ``knots`` order statistics of ``count`` numbers and their normal quantiles, each (K,) float64."""
    levels = torch.from_numpy((_ranks(count, knots) + 0.5) / count)
    return levels, torch.special.ndtri(levels)


def _traced_levels(count: int, knots: int) -> tuple[Tensor, Tensor]:
    """:func:`_levels` as constants of a graph: ONNX has no quantile, and a cache must keep no tensors of a trace."""
    from scipy.special import ndtri

    levels = (_ranks(count, knots) + 0.5) / count
    return torch.tensor(levels), torch.tensor(ndtri(levels))


def _ranks(count: int, knots: int) -> np.ndarray:
    return np.rint(np.linspace(0, count - 1, knots)).astype(np.int64)


def _lines(x: Tensor, xs: Tensor, ys: Tensor, flat: bool) -> Tensor:
    """Piecewise linear interpolation at x (B,) of increasing points (xs, ys), each (K,); a shift if they are flat."""
    if flat:
        return x - xs.mean() + ys.mean()
    exporting = torch.compiler.is_exporting()  # ONNX has no search
    place = (xs < x[:, None]).sum(1) if exporting else torch.searchsorted(xs, x)
    right = place.clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
    # A point among equal xs is the caller's to place; here it must only not divide by zero.
    inside = y0 + (x - x0) / torch.where(x1 > x0, x1 - x0, 1.0) * (y1 - y0)
    slope = (ys[-1] - ys[0]) / (xs[-1] - xs[0])
    below, above = ys[0] + (x - xs[0]) * slope, ys[-1] + (x - xs[-1]) * slope
    return torch.where(x < xs[0], below, torch.where(x > xs[-1], above, inside))


SCALINGS: Mapping[str, type[StandardScaling] | type[QuantileScaling]] = {
    cls.kind: cls for cls in (QuantileScaling, StandardScaling)
}


def require_scaling(kind: str) -> type[StandardScaling] | type[QuantileScaling]:
    """Scaling of that name. Raises UserError if unknown."""
    if kind not in SCALINGS:
        raise UserError(f"unknown scaling {kind!r}{did_you_mean(kind, SCALINGS)}")
    return SCALINGS[kind]


ATOM, FAR = 0.05, 10.0
"""Share of a repeated value, and deviations from the mean, from which on numbers are scaled by quantiles."""


def choose_scaling(x: np.ndarray) -> str:
    """Name of the scaling that suits numbers (N,): "quantile" if one value is common or some lie far out.

    A common value, such as no rain, then owns an interval of model units and keeps its share. Of other numbers the
    standard scaling keeps the shape, and so the density.
    """
    common = np.unique(x, return_counts=True)[1].max(initial=0)
    standard = StandardScaling.fit(x)
    far = np.abs(x - standard.mean).max(initial=0) > FAR * standard.std
    return "quantile" if far or max(ATOM * len(x), 3) <= common < len(x) else "standard"


def scaling_from_config(config: Mapping[str, Any]) -> Scaling:
    """Build the scaling that ``to_config`` describes, or raise UserError."""
    entries = dict(config)
    kind = require_scaling(str(entries.pop("kind", None)))
    return as_record(entries, kind, f"the {kind.kind} scaling of a column")
