"""Diffusion transformer for images and latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.bounds import Depth, Share, Width
from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import Conditions
from advect.networks.base import FlowNetwork, check_choice, check_divisible, check_inputs
from advect.networks.embeddings import (
    ConditionEmbedding,
    ConditionSizes,
    Positions,
    Resize,
    Rotation,
    TimeEmbedding,
    TimeKind,
    coordinates,
    grid_rotation,
    grid_sincos,
    prepend_identity,
)
from advect.networks.layers import Head, Norm, checkpoint, start_adaln_zero
from advect.networks.transformer import BlockOptions, MlpKind, TransformerBlock

Size = Literal["S", "B", "L", "XL"]

SIZES: dict[str, tuple[int, int, int]] = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}
"""Depth, width and heads (Peebles & Xie 2023, table 1)."""


@register("dit")
class DiT(FlowNetwork):
    """A diffusion transformer for images and latents (Peebles & Xie 2023, "Scalable diffusion models").

    net(x_t (B, C, H, W), t (B,), cond) -> (B, C, H, W), for ``shape`` (C, H, W); other heights and widths work too.
    Blocks with adaLN-zero; the paper's variance channels are left out. Outputs zero at initialisation. Registers:
    Darcet et al. 2024.

    Args:
        size: depth, width and heads of DiT-S, B, L or XL: 33, 130, 458 and 675 million parameters.
        depth: number of blocks; default from size.
        width: channels of a token; default from size.
        heads: attention heads; default from size.
        patch_size: pixels a side of a token; half of it costs four times more.
        norm: LayerNorm or RMSNorm.
        mlp: activation in the blocks' MLP.
        positions: added sines and cosines, or rotated queries and keys.
        resize: positions for other image sizes: stretched to the trained range (default with sincos) or continued
            beyond it (default with rotary).
        qk_norm: normalise queries and keys; stabilises large networks and bfloat16.
        registers: learned tokens beside those of the image.
        dropout: dropout probability at the end of each branch.
        time_embedding: sinusoids of 1000 t, of random frequencies, or of low ones (smooth), for losses with
            derivatives in t.

    Raises UserError for an argument out of range, a size not divisible by the patch, and inputs of another shape.
    """

    takes = "image"

    part_examples = (
        {"width": 16, "depth": 2, "heads": 2},
        {
            "width": 16,
            "depth": 2,
            "heads": 2,
            "norm": "rms",
            "mlp": "swiglu",
            "positions": "rotary",
            "qk_norm": True,
            "registers": 3,
            "time_embedding": "fourier",
        },
    )

    def __init__(
        self,
        shape: Sequence[int],
        *,
        size: Size | None = "S",
        depth: Depth | None = None,
        width: Width | None = None,
        heads: Annotated[int, Meta(ge=1, le=1024)] | None = None,
        patch_size: Annotated[int, Meta(ge=1, le=1024)] = 2,
        norm: Norm = "layer",
        mlp: MlpKind = "gelu",
        positions: Positions = "sincos",
        resize: Resize | None = None,
        qk_norm: bool = False,
        registers: Annotated[int, Meta(ge=0, le=1024)] = 0,
        dropout: Share = 0.0,
        time_embedding: TimeKind = "sinusoidal",
        conditions: ConditionSizes | None = None,
        grad_checkpointing: bool = False,
        inputs: int = 1,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        depth, width, heads = _resolve(size, depth, width, heads)
        check_choice("DiT", "positions", positions, get_args(Positions))
        self.resize: Resize = resize or ("interpolate" if positions == "sincos" else "extrapolate")
        check_choice("DiT", "resize", self.resize, get_args(Resize))
        options = BlockOptions(width=width, heads=heads, norm=norm, mlp=mlp, qk_norm=qk_norm, dropout=dropout)
        options.check("DiT", pairs=4)
        self.shape, self.patch, self.inputs = _check_shape(shape, patch_size), patch_size, inputs
        self.rotary, self.head_width, self.grad_checkpointing = (
            positions == "rotary",
            width // heads,
            grad_checkpointing,
        )

        self.time = TimeEmbedding(256, width, kind=time_embedding)
        self.conditions = ConditionEmbedding(conditions or {}, width)
        self.stem = nn.Linear(inputs * self.shape[0] * patch_size**2, width)
        self.blocks = nn.ModuleList(TransformerBlock(options, width) for _ in range(depth))
        self.head = Head(norm, width, width, outputs * self.shape[0] * patch_size**2)
        start_adaln_zero(self)
        self.registers = nn.Parameter(0.02 * torch.randn(registers, width)) if registers else None

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        check_inputs("DiT", x_t, t, (self.inputs * self.shape[0], "H", "W"))
        if x_t.shape[2:] != self.shape[1:]:
            _check_shape((self.shape[0], *x_t.shape[2:]), self.patch)
        emb = F.silu(self.conditions(self.time(t), cond))
        patches = F.pixel_unshuffle(x_t, self.patch)
        h = self.stem(patches.flatten(2).transpose(1, 2))  # (B, tokens, width)
        rotation = None
        if self.rotary:
            rotation = self._rotation(patches)
        else:
            h = h + grid_sincos(*self._places(patches), h.shape[2]).to(h.dtype)
        if self.registers is not None:
            h = torch.cat([self.registers.to(h.dtype).expand(h.shape[0], -1, -1), h], 1)
        for block in self.blocks:
            h = checkpoint(block, h, emb, rotation, recompute=self.grad_checkpointing)
        if self.registers is not None:
            h = h[:, len(self.registers) :]
        out = self.head(h, emb).transpose(1, 2).unflatten(2, patches.shape[2:])
        return F.pixel_shuffle(out, self.patch).to(x_t.dtype)

    def check_size(self, shape: Sequence[int]) -> None:
        _check_shape(shape, self.patch)

    def _places(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of the rows (H,) and columns (W,) of patches (B, ., H, W)."""
        rows, columns = (
            coordinates(size, side // self.patch, self.resize, patches.device)
            for size, side in zip(patches.shape[2:], self.shape[1:], strict=True)
        )
        return rows, columns

    def _rotation(self, patches: Tensor) -> Rotation:
        rotation = grid_rotation(*self._places(patches), self.head_width)
        return rotation if self.registers is None else prepend_identity(rotation, len(self.registers))


def _resolve(size: str | None, depth: int | None, width: int | None, heads: int | None) -> tuple[int, int, int]:
    if size is not None:
        check_choice("DiT", "size", size, get_args(Size))
    given = {"depth": depth, "width": width, "heads": heads}
    named = SIZES[size] if size else (None, None, None)
    values = [value if value is not None else preset for value, preset in zip(given.values(), named, strict=True)]
    if None in values:
        missing = ", ".join(name for name, value in zip(given, values, strict=True) if value is None)
        raise UserError(f"DiT.size is None, so depth, width and heads are needed, and {missing} is missing; give it")
    depth, width, heads = (int(value or 0) for value in values)
    return depth, width, heads


def _check_shape(shape: Sequence[int], patch: int) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"DiT.shape must be (channels, height, width), got {tuple(shape)}; for vectors take MLP")
    check_divisible("DiT", shape, patch, f"patch_size is {patch}", other="another patch_size")
    channels, height, width = shape
    return channels, height, width
