"""A residual multilayer perceptron for vectors, up to many thousands of numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.registry import register
from advect.core.types import Conditions
from advect.networks.embeddings import ConditionEmbedding, ConditionSizes, TimeEmbedding, TimeKind
from advect.networks.layers import FlowNetwork, check_at_least, check_inputs, check_share, dropout, run_block
from advect.networks.transformer import Head, modulate, plain_norm, start_adaln_zero
from advect.networks.unet import zeroed


class ResidualBlock(nn.Module):
    """h (B, width) and emb (B, emb) -> (B, width): two linear layers on the normalised h, under adaLN-zero."""

    def __init__(self, width: int, hidden: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm, self.modulation = plain_norm("layer", width), nn.Linear(emb, 3 * width)
        self.widen, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(emb).chunk(3, -1)
        branch = F.silu(self.widen(modulate(self.norm(h), shift, scale)))
        if self.dropout and self.training:
            branch = dropout(branch, self.dropout)
        return torch.addcmul(h, gate, self.out(branch))


@register("resmlp")
class ResidualMLP(FlowNetwork):
    """A residual multilayer perceptron for vectors, up to many thousands of numbers.

    net(x_t (B, dim), t (B,), cond) -> (B, dim), through ``depth`` residual blocks of ``width`` units.

    Each block widens to ``expansion * width`` units and is modulated by time and conditions (adaLN-zero, Peebles & Xie
    2023). The output is head(h) + c * x_t, where c (B, dim) is linear in the embedding of time and conditions: the
    velocity holds the noise of every entry, which does not fit through ``width`` units when dim is larger. No layer
    has dim^2 weights, so that 20,000 genes are welcome. A new net returns zeros. ``grad_checkpointing`` computes each
    block a second time in the backward pass, for memory.

    Args:
        width: units between the blocks.
        depth: residual blocks.
        expansion: how many times wider a block is inside.
        dropout: share of activations dropped inside the blocks while training.
        time_embedding: how the network sees the time: sines of 1000 t, or of random frequencies.

    Raises UserError for an argument out of range, and for x_t or t of another shape.
    """

    takes = "vector"

    def __init__(
        self,
        dim: int,
        *,
        width: int = 512,
        depth: int = 4,
        expansion: int = 2,
        dropout: float = 0.0,
        time_embedding: TimeKind = "sinusoidal",
        conditions: ConditionSizes | None = None,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("ResidualMLP", 1, dim=dim, width=width, depth=depth, expansion=expansion)
        check_share("ResidualMLP", dropout=dropout)
        self.dim, self.grad_checkpointing = dim, grad_checkpointing
        self.time = TimeEmbedding(min(width, 256), width, kind=time_embedding)
        self.conditions = ConditionEmbedding(conditions or {}, width)
        self.stem = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, expansion * width, width, dropout) for _ in range(depth))
        self.head = Head("layer", width, width, dim)
        self.through = nn.Linear(width, dim)
        start_adaln_zero(self)
        zeroed(self.through)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        check_inputs("ResidualMLP", x_t, t, (self.dim,))
        emb = F.silu(self.conditions(self.time(t), cond))
        h = self.stem(x_t)
        for block in self.blocks:
            h = run_block(block, h, emb, again=self.grad_checkpointing)
        return torch.addcmul(self.head(h, emb).to(x_t.dtype), self.through(emb).to(x_t.dtype), x_t)
