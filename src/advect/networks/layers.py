"""What networks share: their base, checks of arguments, checkpointing, dropout and GELU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from advect.core.errors import UserError, did_you_mean


class FlowNetwork(nn.Module):
    """``net(x_t (B, *S), t (B,), cond) -> (B, *S)``.

    A run gives its constructor ``shape`` S or, for vectors, ``dim``, ``conditions`` and ``grad_checkpointing``; all
    others are flags.
    """

    part_kind: ClassVar[str] = "network"
    part_given: ClassVar[tuple[str, ...]] = ("shape", "dim", "conditions", "grad_checkpointing")
    takes: ClassVar[Literal["vector", "image", "sequence"]]
    """The data that it is for: S is (D,), (C, H, W) or (L, C)."""
    channels_last: ClassVar[bool] = False
    """Whether it is faster in that memory format."""


def check_inputs(net: str, x_t: Tensor, t: Tensor, shape: Sequence[int | str]) -> None:
    """Raise UserError unless x_t is (B, *shape) and t (B,); a letter in ``shape`` stands for any size."""
    right = x_t.ndim == len(shape) + 1 and all(
        isinstance(wanted, str) or wanted == got for wanted, got in zip(shape, x_t.shape[1:], strict=True)
    )
    if not right:
        raise UserError(f"this {net} takes x_t of shape (B, {', '.join(map(str, shape))}), got {tuple(x_t.shape)}")
    if t.shape != x_t.shape[:1]:
        raise UserError(f"t must have shape ({len(x_t)},), one time a sample, got {tuple(t.shape)}")


def check_at_least(net: str, bound: int, **values: int) -> None:
    """Raise UserError for the first value below ``bound``."""
    for name, value in values.items():
        if value < bound:
            raise UserError(f"{net}.{name} must be at least {bound}, got {value}")


def check_share(net: str, **values: float) -> None:
    """Raise UserError for the first value outside [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{net}.{name} must be in [0, 1), got {value}")


def check_choice(net: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{net}.{name} has no choice {value!r}{did_you_mean(str(value), choices)}")


def check_divisible(net: str, sizes: Sequence[int], factor: int, why: str, *, other: str) -> None:
    """Raise UserError, with the nearest sizes, unless height and width (the last two) are multiples of ``factor``.

    ``why`` they must be, and what ``other`` change would mend it, are part of the message.
    """
    for name, size in zip(("height", "width"), sizes[-2:], strict=True):
        if size % factor:
            below, above = size - size % factor, size - size % factor + factor
            nearest = f"{below} and {above}" if below else f"{above}"
            raise UserError(
                f"{net}.shape {tuple(sizes)} must have a {name} divisible by {factor}, since {why}, got {size}; "
                f"use {nearest}, or {other}"
            )


def run_block(block: nn.Module, *inputs: Tensor | tuple[Tensor, Tensor] | None, again: bool) -> Tensor:
    """``block(*inputs)``; with ``again``, while training, its activations are not kept but computed a second time.

    Gradients are the same bit for bit, dropout included, since the state of PyTorch's random numbers is restored.
    """
    if again and block.training:
        return checkpoint(block, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return block(*inputs)


_LEVELS = 1 << 16


def dropout(h: Tensor, p: float) -> Tensor:
    """Set each element of h, of any shape, to zero with probability p in [0, 1), and divide the others by 1 - p.

    Srivastava et al. (2014), from PyTorch's own generator, like ``F.dropout``, which this is on GPUs and where
    compiled. On CPUs that draws a number of 32 bits for each element and takes as long as a 3x3 convolution in
    bfloat16; here each 64 bits serve four elements. p is rounded to a multiple of 2^-16, and the scale follows it.
    """
    if h.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(h, p)
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    words = torch.empty(-(-h.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    strides = torch.empty_like(h, device="meta").stride()  # h's own order of memory, without its gaps
    keep = words.view(torch.int16)[: h.numel()].as_strided(h.shape, strides)
    keep.ge_(dropped - _LEVELS // 2)  # in place, as a mask of booleans takes ten times as long to make and to use
    return h * keep.to(h.dtype) * (_LEVELS / (_LEVELS - dropped))


_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR
_CHUNK = 1 << 16
"""Elements at a time for each thread, so that its three float32 buffers stay in its core's cache."""


def tanh_gelu(x: Tensor) -> Tensor:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 of x, of any shape (Hendrycks & Gimpel 2016).

    This is ``F.gelu(x, approximate="tanh")`` but where x is in bfloat16 on a CPU and needs a gradient. There PyTorch
    takes about as long for it as for the matrix product before it. Here value and derivative are computed together,
    from float32 and rounded once, in two thirds of the time; this has no forward-mode derivative.
    """
    trains = torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
    if trains and x.device.type == "cpu" and x.dtype is torch.bfloat16 and x.is_contiguous():
        out: Tensor = _TanhGelu.apply(x)
        return out
    return F.gelu(x, approximate="tanh")


class _TanhGelu(torch.autograd.Function):
    """Keeps the derivative in place of x: with p = x (a + b x^2) and s = sigmoid(p), y = x s and
    y' = s + y (1 - s) (a + 3 b x^2), as 1 + tanh(p / 2) = 2 s.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, slope = torch.empty_like(x), torch.empty_like(x)
        _fill(x.view(-1), y.view(-1), slope.view(-1))
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


def _fill(x: Tensor, y: Tensor, slope: Tensor) -> None:
    """Write GELU of x (n,) and its derivative to y (n,) and slope (n,), by way of float32."""
    a = torch.full((), _LINEAR, dtype=torch.float32, device=x.device)
    size = _CHUNK * torch.get_num_threads()
    buffers = torch.empty(3, min(size, len(x)), dtype=torch.float32, device=x.device)
    for chunk, to_y, to_slope in zip(x.split(size), y.split(size), slope.split(size), strict=True):
        xs, s, r = buffers[:, : len(chunk)]
        xs.copy_(chunk)
        torch.addcmul(a, xs, xs, value=_CUBIC, out=s).mul_(xs).sigmoid_()
        torch.addcmul(a, xs, xs, value=3 * _CUBIC, out=r)
        xs.mul_(s)
        to_y.copy_(xs)
        to_slope.copy_(s.addcmul_(xs.addcmul_(xs, s, value=-1), r))


PLAIN_TOKENS = 512
"""On CPUs the plain formula serves up to so many tokens; beyond, its matrix of N^2 scores is too large."""


def attend(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q, k, v (B, heads, N, d), over the keys that are ``real`` (B, N), or all.

    On CPUs the plain formula, as the fused kernel's backward is 3 to 10 times slower than it in bfloat16 at up to
    256 tokens, and has no forward-mode derivative; elsewhere the fused kernel.
    """
    keys = None if real is None else real[:, None, None, :]
    if q.device.type != "cpu" or k.shape[2] > PLAIN_TOKENS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if keys is not None:
        scores = torch.where(keys, scores, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v
