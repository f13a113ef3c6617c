"""A multilayer perceptron for vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.registry import register
from advect.core.types import Conditions
from advect.networks.embeddings import ConditionEmbedding, ConditionSizes
from advect.networks.layers import FlowNetwork, check_at_least, check_choice, check_inputs

Activation = Literal["silu", "gelu", "tanh", "selu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "selu": F.selu,
}


def _he_linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer whose weights have variance 2 / n_in (He et al. 2015)."""
    layer = nn.Linear(n_in, n_out)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return layer


@register("mlp")
class MLP(FlowNetwork):
    """A multilayer perceptron for vectors.

    net(x_t (B, dim), t (B,), cond) -> (B, dim), through ``depth`` linear layers of ``width`` units.

    The input is x_t, t and, for k = 1 .. ``time_features``, cos(2 pi k t) and sin(2 pi k t). Conditions,
    ``ConditionSizes``, are embedded and added before the first activation.

    Measured forward and backward on one CPU core at 256 x 256, against SiLU: tanh took 5% less time and reached the
    same held-out loss on two moons, GELU took 10% more and reached a slightly lower one, SELU took 8% more. SiLU is
    the default because, unlike tanh, it does not saturate.
    Weights start with variance 2 / fan_in, for PyTorch's own 1 / (3 fan_in) leaves SiLU nearly linear at first,
    and learning slow.

    Args:
        width: units in each hidden layer.
        depth: linear layers, the output included.
        activation: between the layers.
        time_features: pairs of cos(2 pi k t) and sin(2 pi k t) beside t.

    Raises UserError for an argument out of range, and for x_t or t of another shape.
    """

    takes = "vector"

    def __init__(
        self,
        dim: int,
        *,
        width: int = 256,
        depth: int = 4,
        activation: Activation = "silu",
        time_features: int = 1,
        conditions: ConditionSizes | None = None,
    ) -> None:
        super().__init__()
        check_at_least("MLP", 1, dim=dim, width=width)
        check_at_least("MLP", 2, depth=depth)
        check_at_least("MLP", 0, time_features=time_features)
        check_choice("MLP", "activation", activation, get_args(Activation))
        self.dim, self.time_features, self.activation = dim, time_features, activation
        self.first = _he_linear(dim + 1 + 2 * time_features, width)
        self.conditions = ConditionEmbedding(conditions or {}, width)
        self.hidden = nn.ModuleList(_he_linear(width, width) for _ in range(depth - 2))
        self.last = nn.Linear(width, dim)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        check_inputs("MLP", x_t, t, (self.dim,))
        activation = _ACTIVATIONS[self.activation]
        h = self.conditions(self.first(self._features(x_t, t)), cond)
        for layer in self.hidden:
            h = layer(activation(h))
        return self.last(activation(h)).to(x_t.dtype)

    def _features(self, x_t: Tensor, t: Tensor) -> Tensor:
        t = t.to(x_t.dtype)[:, None]
        columns = [x_t, t]
        for k in range(1, self.time_features + 1):
            angle = t * (2 * math.pi * k)
            columns += [angle.cos(), angle.sin()]
        return torch.cat(columns, 1)
