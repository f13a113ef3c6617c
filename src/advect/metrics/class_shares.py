"""In which shares classes occur among samples and among data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core.errors import UserError


@dataclass(frozen=True)
class ClassShares:
    """The shares of classes in two sets.

    Attributes:
        x, y: shares (K,) in each set, float64.
        distance: the total variation ``sum |x - y| / 2`` in [0, 1]: the share that is of the wrong class.
        floor: its mean for two sets of these sizes drawn from one law, that of both sets taken together.
    """

    x: Tensor
    y: Tensor
    distance: float
    floor: float


def class_shares(x: Tensor, y: Tensor, *, classes: int) -> ClassShares:
    """Compare the classes x (N,) of samples, asked for or told by a classifier, with those of data, y (M,).

    Classes are whole numbers 0 .. ``classes`` - 1, and negative ones rows without a class, which are left out. The
    floor takes each share's error as normal: ``sum sqrt(2 / pi) sqrt(p (1 - p) (1 / N + 1 / M)) / 2``. Raises
    UserError for other numbers, and a set without a class.
    """
    if classes < 1:
        raise UserError(f"classes must be at least 1, got {classes}")
    counts = [_count(v, name, classes) for name, v in (("x", x), ("y", y))]
    n, m = (float(c.sum()) for c in counts)
    p, q, both = counts[0] / n, counts[1] / m, (counts[0] + counts[1]) / (n + m)
    error = (both * (1 - both) * (1 / n + 1 / m)).sqrt()
    return ClassShares(p, q, float((p - q).abs().sum() / 2), float(error.sum() / math.sqrt(2 * math.pi)))


def _count(labels: Tensor, argument: str, classes: int) -> Tensor:
    if labels.ndim != 1 or labels.is_floating_point() or (len(labels) and int(labels.max()) >= classes):
        got = f"{tuple(labels.shape)} {labels.dtype}" + (f" up to {labels.max()}" if labels.numel() else "")
        raise UserError(f"{argument} must be (N,) whole numbers below {classes}, a class a row, got {got}")
    known = labels[labels >= 0].cpu().long()
    if not len(known):
        raise UserError(f"{argument} has no row with a class; give labels")
    return torch.bincount(known, minlength=classes).double()
