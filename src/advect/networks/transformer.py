"""Transformer for sequences, and its blocks with adaLN-zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.bounds import Depth, Share, Width
from advect.core.errors import UserError
from advect.core.registry import register
from advect.core.types import LENGTH, Conditions, real_steps
from advect.networks.base import FlowNetwork, check_choice, check_inputs
from advect.networks.embeddings import (
    ConditionEmbedding,
    ConditionSizes,
    Rotation,
    TimeEmbedding,
    TimeKind,
    line_rotation,
    rotate,
)
from advect.networks.layers import (
    Head,
    Norm,
    attend,
    checkpoint,
    dropout,
    modulate,
    plain_norm,
    start_adaln_zero,
    tanh_gelu,
)

MlpKind = Literal["gelu", "swiglu"]


@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Options common to a transformer's blocks."""

    width: int
    heads: int
    norm: Norm = "layer"
    mlp: MlpKind = "gelu"
    qk_norm: bool = False
    dropout: float = 0.0

    def check(self, net: str, *, pairs: int) -> None:
        """Raise UserError for a value out of range, or if head widths are no multiple of ``pairs``."""
        check_choice(net, "norm", self.norm, get_args(Norm))
        check_choice(net, "mlp", self.mlp, get_args(MlpKind))
        if self.width % (pairs * self.heads):
            step = pairs * self.heads
            near = max(step, self.width - self.width % step)
            raise UserError(f"{net}.width must be a multiple of {pairs} heads = {step}, got {self.width}; use {near}")


class Attention(nn.Module):
    """Multi-head self-attention of x (B, N, width) (Vaswani et al. 2017).

    ``qk_norm`` is RMSNorm of queries and keys (Dehghani et al. 2023; Esser et al. 2024).
    """

    def __init__(self, o: BlockOptions) -> None:
        super().__init__()
        self.heads = o.heads
        self.qkv = nn.Linear(o.width, 3 * o.width)
        self.qk_scale = nn.Parameter(torch.ones(2, o.width // o.heads)) if o.qk_norm else None
        self.out = nn.Linear(o.width, o.width)

    def forward(self, x: Tensor, rotation: Rotation | None, real: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, .)
        if self.qk_scale is not None:
            scales = self.qk_scale.to(v.dtype)
            q, k = (F.rms_norm(part, part.shape[-1:], eps=1e-6) * s for part, s in zip((q, k), scales, strict=True))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.out(attend(q, k, v, real).transpose(1, 2).flatten(2))


class Gelu(nn.Module):
    """MLP with GELU, 4 times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.widen(x)
        return self.out(tanh_gelu(h) if self.training else F.gelu(h, approximate="tanh"))


class SwiGlu(nn.Module):
    """out(silu(a) b) with a, b linear in x (Shazeer 2020), 8/3 times as wide: as many weights as Gelu."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-8 * width // 3)
        hidden += -hidden % 8
        self.widen, self.out = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.widen(x).chunk(2, -1)
        return self.out(F.silu(a) * b)


class TransformerBlock(nn.Module):
    """x (B, N, width), emb (B, emb) -> (B, N, width): attention and MLP under adaLN-zero (Peebles & Xie 2023).

    The identity at initialisation. Keys that are not ``real`` (B, N) are masked.
    """

    def __init__(self, o: BlockOptions, emb: int) -> None:
        super().__init__()
        self.dropout = o.dropout
        self.modulation = nn.Linear(emb, 6 * o.width)
        self.norm1, self.norm2 = plain_norm(o.norm, o.width), plain_norm(o.norm, o.width)
        self.attention = Attention(o)
        self.mlp = SwiGlu(o.width) if o.mlp == "swiglu" else Gelu(o.width)

    def forward(self, x: Tensor, emb: Tensor, rotation: Rotation | None = None, real: Tensor | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, -1)
        mixed = self.attention(modulate(self.norm1(x), shift1, scale1), rotation, real)
        x = torch.addcmul(x, gate1, self._drop(mixed))
        return torch.addcmul(x, gate2, self._drop(self.mlp(modulate(self.norm2(x), shift2, scale2))))

    def _drop(self, branch: Tensor) -> Tensor:
        return dropout(branch, self.dropout) if self.dropout and self.training else branch


@register("transformer")
class SequenceTransformer(FlowNetwork):
    """A transformer for sequences.

    net(x_t (B, L, C), t (B,), cond) -> (B, L, C), for ``shape`` (L, C); other lengths work too. Rotary positions and
    adaLN-zero. ``cond["length"]`` (B,), never null, is the number of real steps: later ones are masked, and their
    output is zero. Outputs zero at initialisation.

    Args:
        width: channels of a step.
        depth: number of blocks.
        heads: attention heads.
        norm: LayerNorm or RMSNorm.
        mlp: activation in the blocks' MLP.
        qk_norm: normalise queries and keys; stabilises large networks and bfloat16.
        dropout: dropout probability at the end of each branch.
        time_embedding: sinusoids of 1000 t, of random frequencies, or of low ones (smooth), for losses with
            derivatives in t.

    Raises UserError for an argument out of range and for inputs of another shape.
    """

    takes = "sequence"

    part_examples = ({"width": 16, "depth": 2, "heads": 2, "time_embedding": "smooth"},)

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: Width = 256,
        depth: Depth = 6,
        heads: Annotated[int, Meta(ge=1, le=1024)] = 4,
        norm: Norm = "layer",
        mlp: MlpKind = "gelu",
        qk_norm: bool = False,
        dropout: Share = 0.0,
        time_embedding: TimeKind = "sinusoidal",
        conditions: ConditionSizes | None = None,
        grad_checkpointing: bool = False,
        inputs: int = 1,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        if len(shape) != 2 or min(shape) < 1:
            raise UserError(
                f"SequenceTransformer.shape must be (steps, channels), got {tuple(shape)}; for images use DiT"
            )
        options = BlockOptions(width=width, heads=heads, norm=norm, mlp=mlp, qk_norm=qk_norm, dropout=dropout)
        options.check("SequenceTransformer", pairs=2)
        if conditions and LENGTH in conditions:
            raise UserError(f"the condition {LENGTH!r} is known to SequenceTransformer; leave it out of conditions")
        self.channels, self.head_width, self.grad_checkpointing = shape[1], width // heads, grad_checkpointing
        self.inputs, self.outputs = inputs, outputs
        self.time = TimeEmbedding(256, width, kind=time_embedding)
        self.conditions = ConditionEmbedding(conditions or {}, width)
        self.stem = nn.Linear(inputs * self.channels, width)
        self.blocks = nn.ModuleList(TransformerBlock(options, width) for _ in range(depth))
        self.head = Head(norm, width, width, outputs * self.channels)
        start_adaln_zero(self)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        check_inputs("SequenceTransformer", x_t, t, ("L", self.inputs * self.channels))
        cond = cond or {}
        if LENGTH in cond and cond[LENGTH].shape != t.shape:
            raise UserError(f"{LENGTH!r} must have shape ({len(t)},), one a sample, got {tuple(cond[LENGTH].shape)}")
        real = real_steps(cond, x_t)
        emb = F.silu(self.conditions(self.time(t), {name: v for name, v in cond.items() if name != LENGTH}))
        h = self.stem(_keep(x_t, real))
        rotation = line_rotation(torch.arange(x_t.shape[1], device=x_t.device, dtype=torch.float32), self.head_width)
        for block in self.blocks:
            h = checkpoint(block, h, emb, rotation, real, recompute=self.grad_checkpointing)
        out = _keep(self.head(h, emb).to(x_t.dtype), real)
        return out if self.outputs == 1 else torch.cat(out.chunk(self.outputs, 2), 1)


def _keep(x: Tensor, real: Tensor | None) -> Tensor:
    """x (B, L, C) with zeros where steps are not ``real`` (B, L)."""
    return x if real is None else torch.where(real[:, :, None], x, 0.0)
