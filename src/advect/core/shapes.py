"""One helper aligns time with data; one checks that shapes match."""

from __future__ import annotations

from torch import Tensor

from advect.core.errors import UserError


def expand_right(t: Tensor, x: Tensor) -> Tensor:
    """Reshape t (B,) to (B, 1, ..., 1) so that it broadcasts over x (B, *S)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def check_pair(x0: Tensor, x1: Tensor, t: Tensor | None = None) -> None:
    """Raise UserError unless x0 and x1 are both (B, *S), on one device, and t is (B,)."""
    if x0.shape != x1.shape:
        raise UserError(f"x0 and x1 must have the same shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")
    if x0.device != x1.device:
        raise UserError(f"x0 and x1 must be on one device, got {x0.device} and {x1.device}; move one with .to()")
    if t is not None and t.shape != x1.shape[:1]:
        raise UserError(f"t must have shape ({len(x1)},), one time a sample, got {tuple(t.shape)}")
