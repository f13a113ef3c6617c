"""A transformer for sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.conditions import real_steps
from advect.core.errors import UserError
from advect.core.types import LENGTH, Conditions
from advect.networks.checkpointing import run_block
from advect.networks.checks import check_at_least, check_inputs
from advect.networks.conditioning import ConditionEmbedding, ConditionSizes, TimeEmbedding, TimeKind
from advect.networks.positions import line_rotation
from advect.networks.transformer import BlockOptions, Head, MlpKind, Norm, TransformerBlock, start_adaln_zero


class SequenceTransformer(nn.Module):
    """net(x_t (B, L, C), t (B,), cond) -> (B, L, C), a transformer with rotary positions and adaLN-zero.

    ``shape`` is that of one sequence, (L, C); shorter and longer ones are welcome too. ``cond["length"]`` (B,), which
    is never null, says how many steps of each are real: the steps after them are not attended to, what they hold is
    never read, and the output is zero there. A new net returns zeros. ``grad_checkpointing`` computes each block a
    second time in the backward pass, for memory.

    Raises UserError for an argument out of range, and for x_t, t or a condition of another shape.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        norm: Norm = "layer",
        mlp: MlpKind = "gelu",
        qk_norm: bool = False,
        dropout: float = 0.0,
        time_embedding: TimeKind = "sinusoidal",
        conditions: ConditionSizes | None = None,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if len(shape) != 2 or min(shape) < 1:
            raise UserError(
                f"SequenceTransformer.shape must be (steps, channels), got {tuple(shape)}; for images use DiT"
            )
        check_at_least("SequenceTransformer", 1, depth=depth)
        options = BlockOptions(width=width, heads=heads, norm=norm, mlp=mlp, qk_norm=qk_norm, dropout=dropout)
        options.check("SequenceTransformer", pairs=2)
        if conditions and LENGTH in conditions:
            raise UserError(f"the condition {LENGTH!r} is known to SequenceTransformer; leave it out of conditions")
        self.channels, self.head_width, self.grad_checkpointing = shape[1], width // heads, grad_checkpointing
        self.time = TimeEmbedding(256, width, kind=time_embedding)
        self.conditions = ConditionEmbedding(conditions or {}, width)
        self.stem = nn.Linear(self.channels, width)
        self.blocks = nn.ModuleList(TransformerBlock(options, width) for _ in range(depth))
        self.head = Head(norm, width, width, self.channels)
        start_adaln_zero(self)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        check_inputs("SequenceTransformer", x_t, t, ("L", self.channels))
        cond = cond or {}
        if LENGTH in cond and cond[LENGTH].shape != t.shape:
            raise UserError(f"{LENGTH!r} must have shape ({len(t)},), one a sample, got {tuple(cond[LENGTH].shape)}")
        real = real_steps(cond, x_t)
        emb = F.silu(self.conditions(self.time(t), {name: v for name, v in cond.items() if name != LENGTH}))
        h = self.stem(_keep(x_t, real))
        rotation = line_rotation(torch.arange(x_t.shape[1], device=x_t.device, dtype=torch.float32), self.head_width)
        for block in self.blocks:
            h = run_block(block, h, emb, rotation, real, again=self.grad_checkpointing)
        return _keep(self.head(h, emb).to(x_t.dtype), real)


def _keep(x: Tensor, real: Tensor | None) -> Tensor:
    """x (B, L, C) with zeros, whatever it held, where steps are not ``real`` (B, L)."""
    return x if real is None else torch.where(real[:, :, None], x, 0.0)
