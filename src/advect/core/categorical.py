"""Categories as rows of K numbers on the last axis: one of them is 1, or none is, which is the mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advect.core.errors import UserError
from advect.core.random import Generator, uniform


def one_hot(codes: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows (*S, size) of codes (*S) int64 in 0 .. size - 1; all zero for -1."""
    rows = torch.zeros(size + 1, size, dtype=dtype, device=codes.device)
    rows[:size].fill_diagonal_(1)
    return rows[torch.where(codes < 0, size, codes)]


def codes_of(x: Tensor) -> Tensor:
    """Codes (*S) int64 of rows x (*S, K), by the largest number; -1 for rows of zeros."""
    return torch.where((x != 0).any(-1), x.argmax(-1), -1)


def has_token(x: Tensor) -> Tensor:
    """Whether each row of x (*S, K) is a category, (*S) bool, and not the mask or padding."""
    return x.sum(-1) > 0.5


def draw(p: Tensor, generator: Generator = None) -> Tensor:
    """Codes (B, *S) int64 drawn from probabilities p (B, *S, K), by one uniform number each."""
    u = uniform(
        p.shape[:-1], generator, device=p.device, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32
    )
    ends = p.cumsum(-1)
    return (ends <= (u * ends[..., -1])[..., None]).sum(-1).clamp_(max=p.shape[-1] - 1)


def draw_uniform(
    shape: Sequence[int],
    generator: Generator = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Rows of ``shape`` (B, *S, K), each of the K categories with the same probability."""
    u = uniform(shape[:-1], generator, device=device, dtype=torch.float64)
    return one_hot((u * shape[-1]).long().clamp_(max=shape[-1] - 1), shape[-1], dtype)


def check_rows(name: str, x: Tensor) -> None:
    """Raise UserError unless x (B, *S, K) has rows of zeros with at most a single 1; not looked at on a GPU."""
    if x.ndim < 2:
        raise UserError(f"{name} must be (B, *S, K), a row of K numbers a token, got {tuple(x.shape)}")
    if x.device.type != "cpu":
        return
    total = x.sum(-1)
    if not bool(((x == 0) | (x == 1)).all()) or not bool((total <= 1).all()):
        raise UserError(
            f"{name} must hold categories, rows of K numbers of which one is 1 and the others 0, got other numbers; "
            "one_hot(codes, K) of advect.core.categorical makes them"
        )
