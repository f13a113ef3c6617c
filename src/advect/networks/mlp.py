"""Multilayer perceptrons for vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal, get_args

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.bounds import Count, Depth, Share, Width
from advect.core.derivatives import input_alone
from advect.core.registry import register
from advect.core.types import Conditions
from advect.networks.base import FlowNetwork, check_choice, check_inputs
from advect.networks.embeddings import ConditionEmbedding, ConditionSizes, TimeEmbedding, TimeKind
from advect.networks.input_jacobian import perceptron, plain_layers
from advect.networks.layers import Head, checkpoint, dropout, modulate, plain_norm, start_adaln_zero, zeroed

Activation = Literal["silu", "gelu", "tanh", "selu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "selu": F.selu,
}


def _he_linear(n_in: int, n_out: int) -> nn.Linear:
    """Linear layer with weights of variance 2 / n_in (He et al. 2015)."""
    layer = nn.Linear(n_in, n_out)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return layer


@register("mlp")
class MLP(FlowNetwork):
    """A multilayer perceptron for vectors.

    net(x_t (B, dim), t (B,), cond) -> (B, dim). The input is x_t, t, and cos(2 pi k t), sin(2 pi k t) for k = 1 ..
    ``time_features``; embedded conditions are added before the first activation. Weights start with variance
    2 gain^2 / fan_in.

    Args:
        width: units in each hidden layer.
        depth: linear layers, the output included.
        activation: activation function.
        time_features: pairs of cos(2 pi k t) and sin(2 pi k t) beside t.
        gain: above 0; less than 1 makes smooth functions, which few rows need.
        zero_output: start with output 0.
        input_map: multiply x_t by the buffer ``input_map`` (dim, dim), at first the identity; for whitened data the
            root of their covariance, so that the network is smooth in the directions in which the data vary little.

    Raises UserError for an argument out of range and for inputs of another shape.
    """

    takes = "vector"

    part_examples = ({"width": 16}, {"width": 8, "depth": 2, "time_features": 0})

    def __init__(
        self,
        dim: Count,
        *,
        width: Width = 256,
        depth: Annotated[int, Meta(ge=2, le=1000)] = 4,
        activation: Activation = "silu",
        time_features: Annotated[int, Meta(ge=0, le=1000)] = 1,
        gain: Annotated[float, Meta(gt=0, le=100)] = 1.0,
        zero_output: bool = False,
        input_map: bool = False,
        conditions: ConditionSizes | None = None,
        inputs: int = 1,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        check_choice("MLP", "activation", activation, get_args(Activation))
        self.dim, self.inputs, self.time_features, self.activation = dim, inputs, time_features, activation
        self.first = _he_linear(inputs * dim + 1 + 2 * time_features, width)
        self.conditions = ConditionEmbedding(conditions or {}, width)
        self.hidden = nn.ModuleList(_he_linear(width, width) for _ in range(depth - 2))
        self.last = nn.Linear(width, outputs * dim)
        self.register_buffer("input_map", torch.eye(dim) if input_map else None)
        with torch.no_grad():
            for layer in (self.first, *self.hidden):
                layer.get_parameter("weight").mul_(gain)
        if zero_output:
            zeroed(self.last)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        check_inputs("MLP", x_t, t, (self.inputs * self.dim,))
        activation = _ACTIVATIONS[self.activation]
        h = self.conditions(self.first(self._features(x_t, t)), cond)
        if self._derived_alone(x_t):
            return perceptron(x_t, h, self._into(), [*self.hidden, self.last], self.activation)
        for layer in self.hidden:
            h = layer(activation(h))
        return self.last(activation(h)).to(x_t.dtype)

    def _derived_alone(self, x_t: Tensor) -> bool:
        """Whether only derivatives in x_t are asked for, and the layers are as they were made."""
        if torch.compiler.is_compiling() or not input_alone():
            return False
        return x_t.dtype == self.last.weight.dtype and plain_layers([self.first, *self.hidden, self.last])

    def _into(self) -> Tensor:
        """Derivative (width, inputs dim) of the first layer in x_t."""
        into, mix = self.first.weight[:, : self.inputs * self.dim], self.input_map
        if not isinstance(mix, Tensor):
            return into
        return torch.cat([into[:, : self.dim] @ mix.to(into.dtype), into[:, self.dim :]], 1)

    def _features(self, x_t: Tensor, t: Tensor) -> Tensor:
        t = t.to(x_t.dtype)[:, None]
        mix = self.input_map
        columns = [x_t, t]
        if isinstance(mix, Tensor):
            columns = [x_t[:, : self.dim] @ mix.to(x_t.dtype).mT, x_t[:, self.dim :], t]
        for k in range(1, self.time_features + 1):
            angle = t * (2 * math.pi * k)
            columns += [angle.cos(), angle.sin()]
        return torch.cat(columns, 1)


class ResidualBlock(nn.Module):
    """h (B, width), emb (B, emb) -> (B, width): a residual MLP under adaLN-zero."""

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
    """A residual multilayer perceptron for vectors of up to many thousands of numbers.

    net(x_t (B, dim), t (B,), cond) -> (B, dim), with adaLN-zero (Peebles & Xie 2023). The output is head(h) + c x_t,
    with c (B, dim) linear in the embedding, as the noise in the velocity does not fit through ``width`` < dim units.
    No layer has dim^2 weights. Outputs zero at initialisation.

    Args:
        width: units between the blocks.
        depth: residual blocks.
        expansion: ratio of a block's hidden width to ``width``.
        dropout: dropout probability inside the blocks.
        time_embedding: sinusoids of 1000 t, of random frequencies, or of low ones (smooth), for losses with
            derivatives in t.

    Raises UserError for an argument out of range and for inputs of another shape.
    """

    takes = "vector"

    part_examples = ({"width": 16, "depth": 2},)

    def __init__(
        self,
        dim: Count,
        *,
        width: Width = 512,
        depth: Depth = 4,
        expansion: Annotated[int, Meta(ge=1, le=64)] = 2,
        dropout: Share = 0.0,
        time_embedding: TimeKind = "sinusoidal",
        conditions: ConditionSizes | None = None,
        grad_checkpointing: bool = False,
        inputs: int = 1,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.dim, self.inputs, self.outputs, self.grad_checkpointing = dim, inputs, outputs, grad_checkpointing
        self.time = TimeEmbedding(min(width, 256), width, kind=time_embedding)
        self.conditions = ConditionEmbedding(conditions or {}, width)
        self.stem = nn.Linear(inputs * dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, expansion * width, width, dropout) for _ in range(depth))
        self.head = Head("layer", width, width, outputs * dim)
        self.through = nn.Linear(width, outputs * dim)
        start_adaln_zero(self)
        zeroed(self.through)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        check_inputs("ResidualMLP", x_t, t, (self.inputs * self.dim,))
        emb = F.silu(self.conditions(self.time(t), cond))
        h = self.stem(x_t)
        for block in self.blocks:
            h = checkpoint(block, h, emb, recompute=self.grad_checkpointing)
        x = x_t[:, : self.dim]
        x = x if self.outputs == 1 else x.repeat(1, self.outputs)
        return torch.addcmul(self.head(h, emb).to(x_t.dtype), self.through(emb).to(x_t.dtype), x)
