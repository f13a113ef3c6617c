"""Transforms of expression: library sizes and logarithms, principal components, chains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from msgspec import Meta
from torch import Tensor

from advect.core.bounds import Finite
from advect.core.errors import UserError
from advect.data.transforms import Transform, check_entries, transform_from_config

Space = Literal["expression", "counts"]


@dataclass(frozen=True, kw_only=True)
class Expression(Transform):
    """Expression of counts, ``log(1 + counts * target_sum / library)``, per gene.

    In the space "expression" these values are the data units; the inverse sets negatives and values nearer to 0 than
    to ``smallest`` to exactly 0. In the space "counts" data units are counts of a cell with the given library size,
    optionally rounded.

    Args:
        space: data units, "expression" or "counts".
        target_sum: sum of a cell's scaled counts, > 0; None for no scaling.
        log1p: whether to take the logarithm.
        library: library size (sum of a cell's counts over all genes) of returned counts, > 0.
        non_negative: whether the inverse is clamped at 0; counts always are.
        integer: whether counts are rounded.
        smallest: smallest positive expression in the data, >= 0; 0 sets no positive value to 0.

    Raises:
        UserError: target_sum or library is not positive, or the space is unknown.
    """

    space: Space = "expression"
    target_sum: Finite | None = 1e4
    log1p: bool = True
    library: Finite = 1e4
    non_negative: bool = True
    integer: bool = True
    smallest: Annotated[float, Meta(ge=0, le=1e30)] = 0.0
    kind: ClassVar[str] = "expression"

    def __post_init__(self) -> None:
        if self.space not in ("expression", "counts"):
            raise UserError(f"space must be 'expression' or 'counts', got {self.space!r}")
        for name, value in (("target_sum", self.target_sum), ("library", self.library)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be a finite number > 0, got {value}; 10000 is usual")

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        if self.space == "expression":
            return x
        x = x if self.target_sum is None else x * (self.target_sum / self.library)
        return x.log1p() if self.log1p else x

    def inverse(self, x: Tensor) -> Tensor:
        if self.space == "counts":
            return self.counts(x)
        x = x.to(torch.float32)
        return torch.where(x < self.smallest / 2, 0.0, x.clamp(min=0)) if self.non_negative else x

    def unrounded(self, x: Tensor) -> Tensor:
        return x.to(torch.float32) if self.space == "expression" else self._scaled(x)

    def counts(self, x: Tensor, library: Tensor | None = None) -> Tensor:
        """Counts (B, D) of expression x (B, D) for library sizes (B,), default ``library``."""
        x = self._scaled(x, library).clamp(min=0)
        return x.round() if self.integer else x

    def _scaled(self, x: Tensor, library: Tensor | None = None) -> Tensor:
        x = x.to(torch.float32)
        x = x.expm1() if self.log1p else x
        if self.target_sum is None:
            return x
        sizes = torch.full_like(x[:, 0], self.library) if library is None else library.to(x)
        return x * (sizes / self.target_sum)[:, None]

    def log_det(self, elements: int) -> float:
        if self.space == "counts":
            raise UserError("counts have no density; build the data with space='expression' for log-densities")
        return 0.0

    def to_config(self) -> dict[str, Any]:
        names = ("space", "target_sum", "log1p", "library", "non_negative", "integer", "smallest")
        return {"kind": self.kind} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True, eq=False)
class Components(Transform):
    """Scores on k principal components, ``V (x - mean)``; the inverse is ``mean + V^T z``.

    Forward then inverse projects on the components; inverse then forward is the identity.

    Args:
        components: V (k, D), orthonormal rows.
        mean: (D,).

    Raises:
        UserError: the shapes do not fit.
    """

    components: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    kind: ClassVar[str] = "components"
    mixes: ClassVar[str] = "principal components"

    def __post_init__(self) -> None:
        if self.components.ndim != 2 or self.mean.shape != self.components.shape[1:]:
            raise UserError(
                f"components must be (k, D) and mean (D,), got {tuple(self.components.shape)} and"
                f" {tuple(self.mean.shape)}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Components) and all(
            torch.equal(value, other.tensors()[name]) for name, value in self.tensors().items()
        )

    def __hash__(self) -> int:
        return hash((self.kind, tuple(self.components.shape)))

    def forward(self, x: Tensor) -> Tensor:
        v, mean = self.components.to(x.device), self.mean.to(x.device)
        return (x.to(torch.float32) - mean) @ v.T

    def inverse(self, x: Tensor) -> Tensor:
        return torch.addmm(self.mean.to(x.device), x.to(torch.float32), self.components.to(x.device))

    def log_det(self, elements: int) -> float:
        k, features = self.components.shape
        raise UserError(
            f"{k} components of {features} genes have no density per gene; leave pca out for log-densities"
        )

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Components:
        check_entries(cls.kind, config)
        return cls(**tensors)

    def tensors(self) -> dict[str, Tensor]:
        return {"components": self.components, "mean": self.mean}


@dataclass(frozen=True)
class Chain(Transform):
    """Composition of transforms, applied in order; the inverse reverses it."""

    parts: Sequence[Transform]
    kind: ClassVar[str] = "chain"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise UserError("a chain needs at least one transform, got none; Identity() changes nothing")

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part.forward(x)
        return x

    def inverse(self, x: Tensor) -> Tensor:
        for part in reversed(self.parts):
            x = part.inverse(x)
        return x

    def unrounded(self, x: Tensor) -> Tensor:
        for part in reversed(self.parts):
            x = part.unrounded(x)
        return x

    def log_slopes(self, shape: Sequence[int]) -> Tensor:
        return torch.stack([part.log_slopes(shape) for part in self.parts]).sum(0)

    def log_det(self, elements: int) -> float:
        return sum(part.log_det(elements) for part in self.parts)

    @property
    def mixes(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return next((part.mixes for part in self.parts if part.mixes), "")

    def to_config(self) -> dict[str, Any]:
        return {"kind": self.kind, "parts": [part.to_config() for part in self.parts]}

    def tensors(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": t for i, part in enumerate(self.parts) for name, t in part.tensors().items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Chain:
        """Build the parts, each with the ``tensors`` whose names start with its index."""
        check_entries(cls.kind, config, "parts")
        return cls(
            [
                transform_from_config(
                    part, {k.removeprefix(f"{i}."): t for k, t in tensors.items() if k.startswith(f"{i}.")}
                )
                for i, part in enumerate(config["parts"])
            ]
        )
