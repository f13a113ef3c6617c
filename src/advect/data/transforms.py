"""Invertible transforms between data units and model units.

Fixed after fitting and stored as a small JSON object, with large parts as tensors, so that samples return to data
units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from advect.core.bounds import CountOrZero, Finite
from advect.core.errors import UserError, did_you_mean
from advect.core.records import as_record
from advect.core.types import Code

if TYPE_CHECKING:
    from advect.data.tables.rules import Constraints

_WIDE = (torch.float64, torch.int32, torch.int64)
"""Types that float32 cannot represent exactly."""

_KINDS: dict[str, type[Transform]] = {}
"""Transforms by the kind in their configuration."""


class Transform(ABC):
    """Map between data units and model units, on its argument's device.

    Model units are float32. Data units are float64 if :func:`needs_float64`, else float32, and finite.
    """

    kind: ClassVar[str]
    mixes: ClassVar[str] = ""
    """How an element in model units mixes entries of the data, so that none is known alone; empty if it does not."""

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls
        if "inverse" in cls.__dict__:
            cls.inverse = _within_range(cls.inverse)  # pyright: ignore[reportAttributeAccessIssue]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Data units (B, *S) of any real type to model units (B, *S) float32."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """Model units (B, *S) to data units (B, *S)."""

    def unrounded(self, x: Tensor) -> Tensor:
        """:meth:`inverse` without the rounding and clamping to a range that leave no derivative."""
        return self.inverse(x)

    def centred(self, x: Tensor) -> Tensor:
        """Data units (B, *S), less a constant if float64, so that distances survive in float32."""
        return x

    @property
    def unit(self) -> float:
        """Power of two by which centred data units are divided so that their squares fit float32; usually 1."""
        return 1.0

    @property
    def constraints(self) -> Constraints | None:
        """Rules that samples in data units obey; None without any."""
        return None

    @property
    def code_places(self) -> tuple[tuple[int, int], ...]:
        """First element and number of elements of each part of vectors (B, D) that codes one of several categories.

        Of several elements the category's is +1 and the others are -1; one alone is +1 or -1.
        """
        return ()

    @abstractmethod
    def log_det(self, elements: int) -> float:
        """log |det d forward / dx| for samples of ``elements`` elements, added to log-densities in model units.

        Constant for all transforms; clamping and rounding in ``inverse`` are ignored.
        """

    def log_slopes(self, shape: Sequence[int]) -> Tensor:
        """log |d forward / dx| of each element of a sample, (*S) float64; their sum is :meth:`log_det`."""
        raise UserError("entries of these data have no density of their own; ask for that of whole samples")

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """JSON object from which :func:`transform_from_config` builds an equal transform, bit for bit."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name, stored beside the configuration for :func:`transform_from_config`."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Transform:
        """Build from :meth:`to_config` without its kind, and :meth:`tensors`.

        By default a transform is a dataclass without tensors, whose annotations say what its entries may be. Raises
        UserError, TypeError or KeyError if they do not fit.
        """
        return as_record({**config, **tensors}, cls, f"the {cls.kind} transform")


def fit_codes(places: Sequence[tuple[int, int]], rows: Iterable[Tensor]) -> tuple[Code, ...]:
    """Codes at :attr:`Transform.code_places`, with their shares in blocks of rows (n, D), NaN where unknown.

    Half a row is added to each category, so that none is impossible.
    """
    counts = torch.zeros(2, 1, dtype=torch.float64)
    for block in rows if places else ():
        counts = counts + torch.stack([(block > 0).sum(0), (~block.isnan()).sum(0)])
    found = []
    for start, size in places:
        plus, of = counts[:, start : start + size]
        shares = (plus + 0.5) / (of + 0.5 * max(size, 2))
        found.append(Code(start, tuple(shares.tolist())))
    return tuple(found)


def _within_range(inverse: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """``inverse`` with the largest number of its type for each infinite one."""

    @wraps(inverse)
    def finite(self: Any, x: Tensor) -> Tensor:
        y = inverse(self, x)
        limit = torch.finfo(y.dtype).max
        return y.clamp(-limit, limit)

    return finite


def check_span(low: Sequence[float], high: Sequence[float], name: str | None = None) -> None:
    """Raise UserError unless float64 holds the differences of the ends (D,) of all features, or of the one named."""
    for feature, (a, b) in enumerate(zip(low, high, strict=True)):
        if math.isinf(float(b) - float(a)):
            raise UserError(
                f"{name or f'feature {feature}'} lies from {a:.6g} to {b:.6g}, further apart than float64 holds; "
                "divide it by 1e10"
            )


def needs_float64(mean: Sequence[float], std: Sequence[float]) -> bool:
    """Whether float32 rounds data with these moments (D,) by more than 4e-6 deviations or overflows.

    A deviation of 0 is of a constant, which float32 must hold exactly.
    """

    def wide(m: float, s: float) -> bool:
        if s == 0:
            return abs(m) > 1e38 or float(np.float32(m)) != m
        return not abs(m) <= 64 * s or abs(m) + 20 * s > 1e38 or s < 1e-30

    return any(wide(m, s) for m, s in zip(mean, std, strict=True))


def plain_unit(size: float) -> float:
    """The power of two below ``size``; 1 if that lies in 1e-12 to 1e12, or is 0."""
    return 1.0 if size == 0 or 1e-12 <= size <= 1e12 else 2.0 ** math.floor(math.log2(size))


@dataclass(frozen=True)
class Identity(Transform):
    """Data units are model units."""

    kind: ClassVar[str] = "identity"

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32)

    def inverse(self, x: Tensor) -> Tensor:
        return x.to(torch.float32)

    def log_slopes(self, shape: Sequence[int]) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.float64)

    def log_det(self, elements: int) -> float:
        return 0.0

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True)
class PixelScale(Transform):
    """Linear map from [low, high] to [-1, 1]; the inverse is clamped to the range.

    Args:
        low: smallest value of the data, black.
        high: largest value of the data, white.
        integer: whether the inverse rounds to whole numbers.

    Raises UserError unless low and high are finite with low < high.
    """

    low: Finite
    high: Finite
    integer: bool = False
    kind: ClassVar[str] = "pixel_scale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(
                f"the pixel range needs finite low < high, got [{self.low}, {self.high}];"
                " for 8-bit images give [0, 255]"
            )
        check_span([self.low], [self.high], "the pixel range")

    @cached_property
    def _dtype(self) -> torch.dtype:
        wide = needs_float64([(self.low + self.high) / 2], [(self.high - self.low) / 4])
        return torch.float64 if wide else torch.float32

    def forward(self, x: Tensor) -> Tensor:
        wide = x.dtype in _WIDE or abs(self.low) + abs(self.high) > 1e38
        y = x.to(self._dtype if wide else torch.float32) - self.low
        return y.mul_(2 / (self.high - self.low)).sub_(1).to(torch.float32)

    def inverse(self, x: Tensor) -> Tensor:
        y = self.unrounded(x)
        if self.integer:
            y = y.round_()
        return y.clamp_(self.low, self.high)

    def unrounded(self, x: Tensor) -> Tensor:
        return (x.to(self._dtype) + 1).mul_((self.high - self.low) / 2).add_(self.low)

    @property
    def unit(self) -> float:
        return plain_unit(self.high / 2 - self.low / 2)

    def log_slopes(self, shape: Sequence[int]) -> Tensor:
        return torch.full(tuple(shape), self.log_det(1), dtype=torch.float64)

    def log_det(self, elements: int) -> float:
        return elements * math.log(2 / (self.high - self.low))

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "low": self.low, "high": self.high, "integer": self.integer}


@dataclass(frozen=True)
class Standardize(Transform):
    """Subtract the mean and divide by the standard deviation, per feature of x (B, D).

    The inverse of a constant feature is its value, whatever the model makes of it.

    Args:
        mean: (D,) in data units.
        std: (D,) in data units, > 0.
        constant: constant features, 0 .. D - 1, whose value is the mean.

    Raises UserError if lengths differ or are 0, a value is not finite, or a deviation not positive.
    """

    mean: Sequence[Finite]
    std: Sequence[Finite]
    constant: Sequence[CountOrZero] = ()
    kind: ClassVar[str] = "standardize"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        object.__setattr__(self, "constant", tuple(int(v) for v in self.constant))
        if not self.mean or len(self.mean) != len(self.std):
            raise UserError(
                f"mean and std need one number a feature each, got {len(self.mean)} and {len(self.std)} numbers"
            )
        if self.constant and not 0 <= min(self.constant) <= max(self.constant) < len(self.mean):
            raise UserError(f"constant features must lie in 0 to {len(self.mean) - 1}, got {list(self.constant)[:9]}")
        for feature, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
                raise UserError(
                    f"feature {feature} has mean {mean} and std {std};"
                    " give finite numbers, std > 0 (1 if it is constant)"
                )

    @classmethod
    def fit(cls, x: np.ndarray, others: np.ndarray | None = None) -> Standardize:
        """Fit mean and deviation of the values, not NaN, of x (N, D); the deviation is 1 where x is constant.

        Reals that differ only in the last bit of float64 count as constant, if those of ``others`` (M, D) are so too.
        Raises UserError for a feature without values.
        """
        low, high = _ends(x, None)
        rest_low, rest_high = (low, high) if others is None or not len(others) else _ends(others, low)
        if np.isnan(low).any():
            raise UserError(f"feature {int(np.isnan(low).argmax())} has no value to train on; leave it out")
        check_span(np.fmin(low, rest_low).tolist(), np.fmax(high, rest_high).tolist())
        slack = np.finfo(np.float64).eps if x.dtype.kind == "f" else 0.0
        constant = high - low <= slack * np.maximum(np.abs(low), np.abs(high))
        far = np.maximum(np.abs(rest_low - low), np.abs(rest_high - low))
        kept = constant if others is None or not len(others) else constant & (far <= slack * np.abs(low))
        # A power of two changes no digit, and squares of 1e200 and of 1e-200 stay in range.
        unit = np.exp2(np.floor(np.log2(np.where(constant, 1.0, high - low))))
        count = len(x) - sum(_blocks(x, lambda part: np.isnan(part).sum(0)))
        mean = unit * (sum(_blocks(x, lambda part: _total(part / unit))) / count)
        square = sum(_blocks(x, lambda part: _total(((part - mean) / unit) ** 2)))
        std = np.where(constant, 1.0, unit * np.sqrt(square / count))
        return cls(np.where(constant, low, mean).tolist(), std.tolist(), np.flatnonzero(kept).tolist())

    @cached_property
    def _moments(self) -> Tensor:
        """Mean and deviation, (2, D) float64."""
        return torch.tensor([self.mean, self.std], dtype=torch.float64)

    @cached_property
    def scale(self) -> Tensor:
        """Deviation of samples, (D,) float64: 0 for constant features."""
        scale = self._moments[1].clone()
        scale[list(self.constant)] = 0.0
        return scale

    @cached_property
    def wide(self) -> bool:
        """Whether data units are float64."""
        return needs_float64(self.mean, self.scale.tolist())

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.float64 if self.wide or x.dtype in _WIDE else torch.float32
        mean, std = self._moments.to(x.device, dtype)
        return (x.to(dtype) - mean).div_(std).to(torch.float32)

    def inverse(self, x: Tensor) -> Tensor:
        dtype = torch.float64 if self.wide else torch.float32
        mean, scale = self._moments[0].to(x.device, dtype), self.scale.to(x.device, dtype)
        return torch.addcmul(mean, x.to(dtype), scale)

    def centred(self, x: Tensor) -> Tensor:
        return x.double() - self._moments[0].to(x.device) if self.wide else x

    @cached_property
    def unit(self) -> float:
        return plain_unit(max(self.scale.tolist()))

    def log_slopes(self, shape: Sequence[int]) -> Tensor:
        return -self._moments[1].log()

    def log_det(self, elements: int) -> float:
        return -sum(math.log(std) for std in self.std)

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, **{name: list(getattr(self, name)) for name in ("mean", "std", "constant")}}


def _ends(x: np.ndarray, default: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value of each feature of x (N, D), float64, without NaN; ``default`` or NaN if all are."""
    low, high = np.fmin.reduce(x, 0).astype(np.float64), np.fmax.reduce(x, 0).astype(np.float64)
    lost = np.isnan(low)
    return (low, high) if default is None else (np.where(lost, default, low), np.where(lost, default, high))


def _total(part: np.ndarray) -> np.ndarray:
    """Sum (D,) of a block (n, D) without its NaN."""
    return part.sum(0, where=~np.isnan(part)) if np.isnan(part).any() else part.sum(0)


def _blocks(x: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
    """Apply ``of`` to float64 blocks of x (N, D), which may exceed memory as a whole."""
    return (of(x[i : i + 4096].astype(np.float64)) for i in range(0, len(x), 4096))


def check_entries(kind: str, config: Mapping[str, Any], *lists: str) -> None:
    """Raise UserError unless the entries of a transform are ``lists`` of objects, and no others."""
    as_record(dict(config), dict[str, list[dict[str, Any]]], f"the {kind} transform")
    for name in {*config, *lists}:
        if name not in config:
            raise UserError(f"the {kind} transform has no {name}; take another file")
        if name not in lists:
            raise UserError(f"the {kind} transform has an entry {name[:40]!r}, which this advect does not know")


def transform_from_config(config: dict[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Transform:
    """Build the transform that ``to_config`` and ``tensors`` describe. Raises UserError if they do not fit."""
    entries = dict(config)
    kind = entries.pop("kind", None)
    if kind not in _KINDS:
        raise UserError(f"unknown transform kind {kind!r}{did_you_mean(str(kind), _KINDS)}")
    try:
        return _KINDS[kind].from_config(entries, tensors or {})
    except (TypeError, KeyError) as error:
        given = sorted([*entries, *(tensors or {})])
        raise UserError(f"the entries of a {kind!r} transform do not fit: {error}; got {given}") from error
