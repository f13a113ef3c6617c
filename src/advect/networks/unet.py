"""U-Net for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.bounds import Pixels, Share, Width
from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import Conditions
from advect.networks.base import FlowNetwork, check_divisible, check_inputs
from advect.networks.embeddings import ConditionEmbedding, ConditionSizes, TimeEmbedding, TimeKind
from advect.networks.layers import attend, checkpoint, dropout, zeroed


def largest_divisor(n: int, at_most: int) -> int:
    """Largest divisor of n up to ``at_most``."""
    return next((d for d in range(min(n, at_most), 1, -1) if n % d == 0), 1)


def group_norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018) of at most 32 groups, of at least 16 channels each, as smaller ones are slow on
    CPUs.
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
    """h (B, c_in, H, W), emb (B, E) -> (B, c_out, H, W): two 3x3 convolutions with FiLM between; zero branch at
    first.
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
    """Residual self-attention over the H W positions of x (B, C, H, W), with heads at least ``head_width`` wide."""

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


class Stage(nn.Module):
    """Optional resampling and skip connection, a residual block, optional attention."""

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


@register("unet")
class UNet(FlowNetwork):
    """A U-Net for images (Ronneberger et al. 2015; Ho et al. 2020).

    net(x_t (B, C, H, W), t (B,), cond) -> (B, C, H, W), for ``shape`` (C, H, W); other heights and widths that can be
    halved as often work too. Level i has ``num_res_blocks``
    residual blocks of ``model_channels * channel_mult[i]`` channels each way; levels halve height and width. Attention
    in the middle and at levels whose longer side is in ``attention_resolutions``. Time and conditions enter by FiLM.
    Outputs zero at initialisation.

    Args:
        model_channels: channels at the highest resolution.
        channel_mult: multiples of the channels, one for each resolution; each further one halves height and width.
            Default 1 2 2 4, with more levels beyond 64 and 128 pixels, and fewer where sides cannot be halved.
        num_res_blocks: residual blocks at each resolution.
        attention_resolutions: sizes of the feature maps that have self-attention. Default those from 7 to 16.
        dropout: dropout probability inside the residual blocks.
        head_width: channels of an attention head.
        patch_size: pixels a side folded into channels first; 2 costs a quarter.
        time_embedding: sinusoids of 1000 t, of random frequencies, or of low ones (smooth), for losses with
            derivatives in t.

    Raises UserError for an argument out of range, a size that cannot be halved so often, an attention resolution that
    no level has, and inputs of another shape.
    """

    takes = "image"
    channels_last = True
    part_examples = (
        {"model_channels": 8, "channel_mult": (1, 2), "attention_resolutions": (4,)},
        {"model_channels": 8, "channel_mult": (1, 1), "attention_resolutions": ()},
        {
            "model_channels": 8,
            "channel_mult": (1, 1),
            "attention_resolutions": (2,),
            "patch_size": 2,
            "time_embedding": "fourier",
        },
    )

    def __init__(
        self,
        shape: Sequence[int],
        *,
        model_channels: Width = 128,
        channel_mult: Sequence[Annotated[int, Meta(ge=1, le=1024)]] | None = None,
        num_res_blocks: Annotated[int, Meta(ge=1, le=100)] = 2,
        attention_resolutions: Sequence[Pixels] | None = None,
        dropout: Share = 0.1,
        head_width: Width = 64,
        patch_size: Annotated[int, Meta(ge=1, le=1024)] = 1,
        time_embedding: TimeKind = "sinusoidal",
        conditions: ConditionSizes | None = None,
        grad_checkpointing: bool = False,
        inputs: int = 1,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        channel_mult = usual_channels(shape, patch_size) if channel_mult is None else _not_empty(channel_mult)
        self.shape = _check_shape(shape, len(channel_mult), patch_size)
        self.patch, self.levels, self.grad_checkpointing = patch_size, len(channel_mult), grad_checkpointing
        self.inputs = inputs
        side, channels = max(self.shape[1:]) // patch_size, self.shape[0] * patch_size**2
        attention_resolutions = _attention(attention_resolutions, side, len(channel_mult))

        emb = 4 * model_channels
        self.time = TimeEmbedding(model_channels, kind=time_embedding)
        self.conditions = ConditionEmbedding(conditions or {}, emb)
        widths = [model_channels * mult for mult in channel_mult]
        attends = [side >> level in attention_resolutions for level in range(len(widths))]

        def stage(c_in: int, c_out: int, attention: bool, resample: nn.Module | None = None) -> Stage:
            block = ResidualBlock(c_in, c_out, emb, dropout)
            return Stage(resample, block, SelfAttention(c_out, head_width) if attention else None)

        self.stem = nn.Conv2d(inputs * channels, widths[0], 3, padding=1)
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
        self.head = nn.Sequential(
            group_norm(last), nn.SiLU(), zeroed(nn.Conv2d(last, outputs * channels, 3, padding=1))
        )

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        check_inputs("UNet", x_t, t, (self.inputs * self.shape[0], "H", "W"))
        if x_t.shape[2:] != self.shape[1:]:
            self.check_size((self.shape[0], *x_t.shape[2:]))
        emb = F.silu(self.conditions(self.time(t), cond))
        recompute = self.grad_checkpointing
        h = self.stem(F.pixel_unshuffle(x_t, self.patch) if self.patch > 1 else x_t)
        skips = []
        for stage in self.down:
            h = checkpoint(stage, h, emb, recompute=recompute)
            skips.append(h)
        for stage in self.middle:
            h = checkpoint(stage, h, emb, recompute=recompute)
        for stage in self.up:
            h = checkpoint(stage, h, emb, skips.pop(), recompute=recompute)
        out = self.head(h)
        return (F.pixel_shuffle(out, self.patch) if self.patch > 1 else out).to(x_t.dtype)

    def check_size(self, shape: Sequence[int]) -> None:
        _check_shape(shape, self.levels, self.patch)


def usual_channels(shape: Sequence[int], patch: int = 1) -> tuple[int, ...]:
    """Multiples of the channels for images (C, H, W): maps of 8 pixels at the lowest level of large ones."""
    sides = [side // patch for side in shape[1:]]
    halvings = 0
    while sides and all(side % 2 ** (halvings + 1) == 0 and side >> halvings >= 4 for side in sides):
        halvings += 1
    most = 3 + sum(max(sides, default=0) > size for size in (64, 128))
    mult = {4: (1, 1, 2, 2, 4), 5: (1, 1, 2, 2, 4, 4)}.get(min(most, halvings), (1, 2, 2, 4))
    return mult[: halvings + 1]


def _not_empty(multiples: Sequence[int]) -> Sequence[int]:
    if not multiples:
        raise UserError("UNet.channel_mult must name a multiple >= 1 for each level, got none; 1 2 2 4 is usual")
    return multiples


def _check_shape(shape: Sequence[int], levels: int, patch: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"UNet.shape must be (channels, height, width), got {tuple(shape)}; for vectors use MLP")
    why = f"channel_mult has {levels} levels" + (f" and patch_size is {patch}" if patch > 1 else "")
    check_divisible("UNet", shape, patch * 2 ** (levels - 1), why, other="fewer levels")
    channels, height, width = shape
    return channels, height, width


def _attention(resolutions: Sequence[int] | None, side: int, levels: int) -> Sequence[int]:
    """Sizes of the maps with attention, by default from 7 to 16."""
    sizes = [side >> level for level in range(levels)]
    if resolutions is None:
        return [size for size in sizes if 7 <= size <= 16]
    for resolution in resolutions:
        if resolution not in sizes:
            raise UserError(
                f"UNet.attention_resolutions names {resolution}, but the feature maps have sizes "
                f"{', '.join(map(str, sizes))}; choose from these, or none"
            )
    return resolutions
