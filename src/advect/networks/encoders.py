"""Encoders of series and images that a network is conditional on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advect.core.errors import UserError
from advect.networks.base import FlowNetwork

MOST = 2048
"""Most features of a registered network, whose output is averaged over neighbours beyond."""


class Encoder(nn.Module):
    """Features (B, k) of samples (*S) given as rows (B, d), by a module (B, *S) -> (B, k), trained with the network.

    Outside training equal rows one after the other are encoded once, as those of one observation are.

    Attributes:
        features: k.

    Raises UserError unless the module takes such samples.
    """

    def __init__(self, module: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.module, self.shape = module, tuple(shape)
        training = module.training
        parameter = next(module.parameters(), torch.zeros(()))
        try:
            with torch.no_grad():
                found = module.eval()(torch.zeros(2, *self.shape, dtype=parameter.dtype, device=parameter.device))
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"the embedding takes no x of shape (B, {_words(shape)}): {error}") from error
        module.train(training)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2 or not found.shape[1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"the embedding must give features (B, k) of x (B, {_words(shape)}), got {got} for B = 2")
        self.features = found.shape[1]

    def forward(self, rows: Tensor) -> Tensor:
        if self.training or torch.compiler.is_exporting():  # a graph has no place for how many are distinct
            return self.module(rows.unflatten(1, self.shape))
        distinct, places = torch.unique_consecutive(rows, dim=0, return_inverse=True)
        return self.module(distinct.unflatten(1, self.shape))[places]


class NetworkFeatures(nn.Module):
    """Features (B, k) of samples x (B, *S) by a network of flows: x + net(x, 0), each number a feature.

    Beyond ``MOST`` numbers they are averages over neighbouring steps or pixels.
    """

    def __init__(self, net: FlowNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.net(x, x.new_zeros(x.shape[0]))
        if h[0].numel() <= MOST or self.net.takes == "vector":
            return h.flatten(1)
        if self.net.takes == "sequence":
            return F.adaptive_avg_pool1d(h.mT, max(1, MOST // h.shape[2])).flatten(1)
        side = max(1, math.isqrt(MOST // h.shape[1]))
        return F.adaptive_avg_pool2d(h, (min(side, h.shape[2]), min(side, h.shape[3]))).flatten(1)


def encoder_of(module: nn.Module, shape: Sequence[int]) -> Encoder:
    """Encoder of samples of ``shape`` by a network of flows, or by any module of one argument."""
    if isinstance(module, FlowNetwork):
        return Encoder(NetworkFeatures(module), shape)
    names = [p for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    if sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in names) > 1:
        raise UserError(f"the embedding {type(module).__name__} takes more than x; give a module of x (B, *S) alone")
    return Encoder(module, shape)


def _words(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
