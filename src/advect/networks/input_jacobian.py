"""Layers whose Jacobian in their input is pulled back by products of matrices alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ELEMENTS = 1 << 19
"""Numbers of a hidden layer at once on a CPU: they fit its cache."""

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _silu(h: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(h)
    y = h * s
    return y, torch.addcmul(s, y, 1 - s)


def _gelu(h: Tensor) -> tuple[Tensor, Tensor]:
    density = torch.exp(-0.5 * h.square()) * (2 * torch.pi) ** -0.5
    return F.gelu(h), torch.addcmul(0.5 * torch.erfc(h * -(0.5**0.5)), h, density)


def _tanh(h: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.tanh(h)
    return y, 1 - y.square()


def _selu(h: Tensor) -> tuple[Tensor, Tensor]:
    y = F.selu(h)
    return y, torch.where(h > 0, _SELU_SCALE, y + _SELU_SCALE * _SELU_ALPHA)


WITH_SLOPE: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "silu": _silu,
    "gelu": _gelu,
    "tanh": _tanh,
    "selu": _selu,
}
"""Value and derivative of each activation."""


def plain_layers(layers: Sequence[nn.Module]) -> bool:
    """Whether these are nothing but their weights: linear, without hooks, parametrisations or sharded tensors."""
    return all(
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        for layer in layers
    )


def perceptron(x: Tensor, h: Tensor, into: Tensor, layers: Sequence[Any], activation: str) -> Tensor:
    """``layers[-1](act(... layers[0](act(h))))`` (B, D), differentiable once, in x (B, d) alone.

    ``h`` (B, width) is the value of a layer that is linear in x with weights ``into`` (width, d). The backward pass
    multiplies with the slopes that the forward pass leaves; several vectors at once go through in blocks of rows.
    """
    pairs = [part.detach() for layer in layers for part in (layer.weight, layer.bias)]
    return _Perceptron.apply(x, h.detach(), activation, into.detach(), *pairs)[0]  # pyright: ignore[reportIndexIssue]


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, h: Tensor, activation: str, into: Tensor, *pairs: Tensor) -> tuple[Tensor, ...]:
        slopes = []
        for weight, bias in zip(pairs[::2], pairs[1::2], strict=True):
            y, slope = WITH_SLOPE[activation](h)
            slopes.append(slope)
            h = F.linear(y, weight, bias)
        return h, *slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, _, into, *pairs = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(into, *pairs[::2], *output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pulled: Tensor = _Pull.apply(gradients[0], *ctx.saved_tensors)  # pyright: ignore[reportAssignmentType]
        return pulled, *[None] * (len(ctx.needs_input_grad) - 1)


class _Pull(torch.autograd.Function):
    """``J^T v`` (B, d) of v (B, D); of many v as one batch."""

    @staticmethod
    def forward(v: Tensor, *saved: Tensor) -> Tensor:
        return _pull(v[None], saved)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("a network in input_derivatives() is differentiable once, in its input")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], v: Tensor, *saved: Tensor) -> tuple[Tensor, int]:
        return _pull(v.movedim(in_dims[0], 0), saved), 0


def _pull(v: Tensor, saved: Sequence[Tensor]) -> Tensor:
    """(K, B, d) of v (K, B, D); ``saved`` are the weights, first to last, and the slopes after all but the last."""
    into, *rest = saved
    weights, slopes = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    count, rows, width = len(v), v.shape[1], into.shape[0]
    block = max(1, ELEMENTS // (count * width)) if v.device.type == "cpu" else rows
    parts = []
    for first in range(0, rows, block):
        some = slice(first, first + block)
        z = v[:, some].reshape(-1, v.shape[2])
        for weight, slope in zip(reversed(weights), reversed(slopes), strict=True):
            z = (z @ weight).view(count, -1, width).mul_(slope[some]).view(-1, width)
        parts.append((z @ into).view(count, -1, into.shape[1]))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]
