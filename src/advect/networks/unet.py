"""A U-Net for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.errors import UserError
from advect.core.types import Conditions
from advect.networks.blocks import ResidualBlock, SelfAttention, Upsample, group_norm, zeroed
from advect.networks.conditioning import ConditionEmbedding, TimeEmbedding


class Stage(nn.Module):
    """A change of resolution, if any, then the skip connection, if any, a residual block, and attention, if any."""

    def __init__(self, resample: nn.Module | None, block: ResidualBlock, attention: SelfAttention | None) -> None:
        super().__init__()
        self.resample, self.block, self.attention = resample, block, attention

    def forward(self, h: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.resample is not None:
            h = self.resample(h)
        if skip is not None:
            h = torch.cat([h, skip], 1)
        h = self.block(h, emb)
        return h if self.attention is None else self.attention(h)


class UNet(nn.Module):
    """net(x_t (B, C, H, W), t (B,), cond) -> (B, C, H, W) (Ronneberger et al. 2015; Ho et al. 2020).

    ``shape`` is that of one image, (C, H, W). Level i of the net has ``num_res_blocks`` residual blocks of
    ``model_channels * channel_mult[i]`` channels on the way down, and as many on the way up, each of which also
    takes what its mirror image put out; between levels, height and width halve. The middle has attention, and so
    has every level whose longer side is one of ``attention_resolutions``. Time and conditions, a mapping from name
    to number of values, modulate each block (FiLM). A new net returns zeros.

    Raises UserError for an argument out of range, for a height or width that cannot be halved so often, for an
    attention resolution that no level has, and for x_t or t of another shape.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16, 8),
        dropout: float = 0.1,
        head_width: int = 64,
        conditions: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(model_channels, channel_mult, num_res_blocks, head_width, dropout)
        self.shape = _check_shape(shape, len(channel_mult))
        _check_attention(attention_resolutions, max(self.shape[1:]), len(channel_mult))

        emb = 4 * model_channels
        self.time = TimeEmbedding(model_channels)
        self.conditions = ConditionEmbedding(conditions or {}, emb)
        widths = [model_channels * mult for mult in channel_mult]
        attends = [max(self.shape[1:]) >> level in attention_resolutions for level in range(len(widths))]

        def stage(c_in: int, c_out: int, attention: bool, resample: nn.Module | None = None) -> Stage:
            block = ResidualBlock(c_in, c_out, emb, dropout)
            return Stage(resample, block, SelfAttention(c_out, head_width) if attention else None)

        self.stem = nn.Conv2d(self.shape[0], widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        last = widths[0]
        for level, (width, attention) in enumerate(zip(widths, attends, strict=True)):
            for i in range(num_res_blocks):
                halve = nn.Conv2d(last, last, 3, stride=2, padding=1) if level and not i else None
                self.down.append(stage(last, width, attention, halve))
                last = width
        self.middle = nn.ModuleList([stage(last, last, True), stage(last, last, False)])
        for width, attention in zip(reversed(widths), reversed(attends), strict=True):
            for i in range(num_res_blocks):
                double = Upsample(last, width) if self.up and not i else None
                self.up.append(stage(2 * width, width, attention, double))
                last = width
        self.head = nn.Sequential(group_norm(last), nn.SiLU(), zeroed(nn.Conv2d(last, self.shape[0], 3, padding=1)))

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        if x_t.shape[1:] != self.shape:
            raise UserError(
                f"this UNet takes x_t of shape (B, {', '.join(map(str, self.shape))}), got {tuple(x_t.shape)}"
            )
        if t.shape != x_t.shape[:1]:
            raise UserError(f"t must have shape ({len(x_t)},), one time a sample, got {tuple(t.shape)}")
        emb = F.silu(self.conditions(self.time(t), cond))
        h = self.stem(x_t)
        skips = []
        for stage in self.down:
            h = stage(h, emb)
            skips.append(h)
        for stage in self.middle:
            h = stage(h, emb)
        for stage in self.up:
            h = stage(h, emb, skips.pop())
        return self.head(h).to(x_t.dtype)


def _check_sizes(
    model_channels: int, channel_mult: Sequence[int], num_res_blocks: int, head_width: int, dropout: float
) -> None:
    counts = {"model_channels": model_channels, "num_res_blocks": num_res_blocks, "head_width": head_width}
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"UNet.{name} must be at least 1, got {value}")
    if not channel_mult or min(channel_mult) < 1:
        raise UserError(f"UNet.channel_mult must name a multiple >= 1 for each level, got {tuple(channel_mult)}")
    if not 0 <= dropout < 1:
        raise UserError(f"UNet.dropout must be in [0, 1), got {dropout}")


def _check_shape(shape: Sequence[int], levels: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"UNet.shape must be (channels, height, width), got {tuple(shape)}; for vectors use MLP")
    factor = 2 ** (levels - 1)
    for name, size in (("height", shape[1]), ("width", shape[2])):
        if size % factor:
            below, above = size - size % factor, size - size % factor + factor
            nearest = f"{below} and {above}" if below else f"{above}"
            raise UserError(
                f"UNet.shape {tuple(shape)} must have a {name} divisible by {factor}, since channel_mult has {levels} "
                f"levels, got {size}; use {nearest}, or fewer levels"
            )
    channels, height, width = shape
    return channels, height, width


def _check_attention(resolutions: Sequence[int], side: int, levels: int) -> None:
    sizes = [side >> level for level in range(levels)]
    for resolution in resolutions:
        if resolution not in sizes:
            raise UserError(
                f"UNet.attention_resolutions names {resolution}, but the feature maps have sizes "
                f"{', '.join(map(str, sizes))}; choose from these, or none"
            )
