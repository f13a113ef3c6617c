"""The parts of a U-Net: residual block with FiLM, self-attention, and changes of resolution.

Feature maps are (B, C, H, W). Nothing here asks for a memory format, and everything keeps the one it is given:
``net.to(memory_format=torch.channels_last)`` is the fast one, on CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advect.networks.attention import attend
from advect.networks.dropout import dropout

M = TypeVar("M", nn.Conv2d, nn.Linear)


def zeroed(layer: M) -> M:
    """Set a layer's weights to zero, so that the branch that it ends is absent at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def largest_divisor(n: int, at_most: int) -> int:
    """Return the largest whole number that divides n and is not above ``at_most``, or 1."""
    return next((d for d in range(min(n, at_most), 1, -1) if n % d == 0), 1)


def group_norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018) of at most 32 groups of at least 16 channels.

    Wu & He found 16 channels a group as good as 32 groups; on CPUs, in bfloat16 and channels_last, smaller
    groups are two to three times slower.
    """
    return nn.GroupNorm(largest_divisor(channels, min(32, channels // 16)), channels, affine=affine)


class FiLM(nn.Module):
    """Normalise h (B, C, H, W), then h (1 + scale) + shift, both linear in emb (B, E) (Perez et al. 2018)."""

    def __init__(self, channels: int, emb: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, affine=False)
        self.modulation = nn.Linear(emb, 2 * channels)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, self.norm(h), 1 + scale)


class ResidualBlock(nn.Module):
    """h (B, c_in, H, W) and emb (B, E) -> (B, c_out, H, W): two 3x3 convolutions, modulated between them.

    The last convolution starts at zero, so that the block starts as its skip connection.
    """

    def __init__(self, c_in: int, c_out: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = group_norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = FiLM(c_out, emb)
        self.conv2 = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip: Callable[[Tensor], Tensor] = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm(x)))
        h = F.silu(self.film(h, emb))
        if self.dropout and self.training:
            h = dropout(h, self.dropout)
        return self.skip(x) + self.conv2(h)


class SelfAttention(nn.Module):
    """x (B, C, H, W) plus multi-head self-attention between its H W places (Vaswani et al. 2017).

    Heads are as many as divide the channels and are at least ``head_width`` wide.
    """

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = largest_divisor(channels, channels // head_width)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C), a view where x is channels_last
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, H W, .)
        mixed = attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


class Upsample(nn.Module):
    """(B, c_in, H, W) -> (B, c_out, 2 H, 2 W): nearest neighbour, then a 3x3 convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
