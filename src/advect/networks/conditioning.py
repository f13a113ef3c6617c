"""What tells a network more than x_t: the time, and the conditions of each sample."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from advect.core.errors import UserError, did_you_mean
from advect.core.types import Conditions


def sinusoids(t: Tensor, features: int) -> Tensor:
    """Sines and cosines (B, features) of 1000 t, t (B,) in [0, 1], at wavelengths 2 pi to 2 pi 10^4.

    The scale and the frequencies are those of Ho, Jain & Abbeel (2020), after Vaswani et al. (2017). The angles
    are computed in float32 at least, since bfloat16 would round 1000 t to whole steps of 4.
    """
    half = (features + 1) // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    octave = torch.arange(half, device=t.device, dtype=t.dtype) / half
    angles = 1000.0 * t[:, None] * torch.exp(-math.log(10_000.0) * octave)
    return torch.cat([angles.cos(), angles.sin()], 1)[:, :features]


class TimeEmbedding(nn.Module):
    """Embed t (B,) in [0, 1] as (B, 4 width): sinusoids, then two linear layers with SiLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.widen = nn.Linear(width, 4 * width)
        self.mix = nn.Linear(4 * width, 4 * width)

    def forward(self, t: Tensor) -> Tensor:
        features = sinusoids(t, self.width).to(self.widen.weight.dtype)
        return self.mix(nn.functional.silu(self.widen(features)))


class ConditionEmbedding(nn.Module):
    """Add to h (B, dim) an embedding of each sample's conditions.

    ``sizes`` maps a condition's name to its number of values. Row 0 of each table is the learned "not given" and
    row v + 1 the value v, so ``NULL = -1`` selects row 0; a condition that is missing is NULL for all samples.
    Values are not checked against ``sizes``, since reading them would stall a GPU: PyTorch's embedding raises
    IndexError on the CPU and a device-side assertion on CUDA.

    Raises UserError for a size below 1, an unknown name, or a condition whose shape is not (B,).
    """

    def __init__(self, sizes: Mapping[str, int], dim: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"the condition {name!r} must have at least 1 value, got {size}")
        self.names = tuple(sizes)
        # A list, as a ParameterDict would refuse names such as "cell.line".
        self.tables = nn.ParameterList(torch.randn(size + 1, dim) for size in sizes.values())

    def forward(self, h: Tensor, cond: Conditions | None = None) -> Tensor:
        cond = cond or {}
        for name, value in cond.items():
            self._check(name, value, len(h))
        for name, table in zip(self.names, self.tables, strict=True):
            h = h + (nn.functional.embedding(cond[name] + 1, table) if name in cond else table[0])
        return h

    def _check(self, name: str, value: Tensor, batch: int) -> None:
        if name not in self.names:
            fix = did_you_mean(name, self.names) if self.names else "; it has none, so pass cond=None"
            raise UserError(f"the network has no condition {name!r}{fix}")
        if value.shape != (batch,):
            raise UserError(
                f"the condition {name!r} must have shape ({batch},), one value a sample, got {tuple(value.shape)}"
            )
