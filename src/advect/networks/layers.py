"""Shared layers: gradient checkpointing, dropout, GELU, attention, adaLN-zero."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint as torch_checkpoint

from advect.core.random import layer_rng

M = TypeVar("M", nn.Conv2d, nn.Linear)
Norm = Literal["layer", "rms"]


def checkpoint(block: nn.Module, *inputs: Tensor | tuple[Tensor, Tensor] | None, recompute: bool) -> Tensor:
    """``block(*inputs)``; ``recompute`` recomputes activations in the backward pass. Gradients are equal bit for
    bit.
    """
    if not (recompute and block.training):
        return block(*inputs)
    if torch.compiler.is_compiling() and any(getattr(module, "dropout", 0) for module in block.modules()):
        return _checkpoint_eagerly(block, *inputs)
    return _checkpoint(block, *inputs)


def _checkpoint(block: nn.Module, *inputs: Any) -> Tensor:
    options: dict[str, Any] = {}
    rng, by_all = (None, False) if torch.compiler.is_compiling() else layer_rng()
    if rng is not None:  # the same numbers once more, whatever the thread of the backward pass
        again = rng.copy()
        options = {"preserve_rng_state": False, "context_fn": lambda: (nullcontext(), again.used(by_all=by_all))}
    return torch_checkpoint.checkpoint(block, *inputs, use_reentrant=False, **options)  # pyright: ignore


_checkpoint_eagerly = torch._disable_dynamo(_checkpoint)


_LEVELS = 1 << 16


def dropout(h: Tensor, p: float) -> Tensor:
    """Zero each element of h with probability p in [0, 1), and divide the others by 1 - p (Srivastava et al. 2014).

    From :func:`layer_rng`, if one is in use, else PyTorch's global generator. On CPUs, where ``F.dropout`` in bfloat16
    takes as long as a 3x3 convolution, 64 random bits serve four elements, and p is rounded to a multiple of 2^-16.
    """
    return _drop_eagerly(h, p) if torch.compiler.is_compiling() else _drop(h, p)


def _drop(h: Tensor, p: float) -> Tensor:
    rng = layer_rng()[0]
    if h.device.type == "meta":
        return h.clone()
    if h.device.type != "cpu":
        if rng is None:
            return F.dropout(h, p)
        return h * torch.empty_like(h).bernoulli_(1 - p, generator=rng.on(h.device)).div_(1 - p)
    generator = None if rng is None else rng.on(h.device)
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    words = torch.empty(-(-h.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    strides = torch.empty_like(h, device="meta").stride()  # h's memory order, without gaps
    keep = words.view(torch.int16)[: h.numel()].as_strided(h.shape, strides)
    keep.ge_(dropped - _LEVELS // 2)  # in place: a mask of booleans takes ten times as long
    return h * keep.to(h.dtype) * (_LEVELS / (_LEVELS - dropped))


_drop_eagerly = torch._disable_dynamo(_drop)
"""Outside the compiled graphs, which would draw from a global generator."""


_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR
_CHUNK = 1 << 16
"""Elements a thread at a time: three float32 buffers fit a core's cache."""


def tanh_gelu(x: Tensor) -> Tensor:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Hendrycks & Gimpel 2016).

    In bfloat16 training on CPUs, value and derivative are computed together in float32, a third faster than
    ``F.gelu``; without a forward-mode derivative.
    """
    trains = torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()
    if trains and x.device.type == "cpu" and x.dtype is torch.bfloat16 and x.is_contiguous():
        out: Tensor = _TanhGelu.apply(x)
        return out
    return F.gelu(x, approximate="tanh")


class _TanhGelu(torch.autograd.Function):
    """Saves the derivative: with p = x (a + b x^2) and s = sigmoid(p), y = x s and y' = s + y (1 - s) (a + 3 b
    x^2).
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
    """Write GELU of x (n,) and its derivative to y (n,) and slope (n,), computed in float32."""
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
"""Most tokens for the unfused formula on CPUs, which stores N^2 scores."""


def attend(q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q, k, v (B, heads, N, d), over all keys or those ``real`` (B, N).

    Unfused on CPUs: the fused kernel's backward is 3 to 10 times slower in bfloat16 at up to 256 tokens, and has no
    forward-mode derivative.
    """
    keys = None if real is None else real[:, None, None, :]
    if q.device.type != "cpu" or k.shape[2] > PLAIN_TOKENS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if keys is not None:
        scores = torch.where(keys, scores, -torch.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def zeroed(layer: M) -> M:
    """Zero a layer's parameters."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def plain_norm(kind: Norm, width: int) -> nn.Module:
    """Normalisation of each token without weights, for modulation."""
    cls = nn.LayerNorm if kind == "layer" else nn.RMSNorm
    return cls(width, eps=1e-6, elementwise_affine=False)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


class Head(nn.Module):
    """Output layer: x (B, N, width) or (B, width), normalised, modulated by emb (B, emb), then linear."""

    def __init__(self, norm: Norm, width: int, emb: int, out: int) -> None:
        super().__init__()
        self.norm, self.modulation, self.out = (
            plain_norm(norm, width),
            nn.Linear(emb, 2 * width),
            nn.Linear(width, out),
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        modulation = self.modulation(emb)
        shift, scale = (modulation[:, None] if x.ndim == 3 else modulation).chunk(2, -1)
        return self.out(modulate(self.norm(x), shift, scale))


def start_adaln_zero(net: nn.Module) -> None:
    """Initialise as Peebles & Xie (2023): modulations and output zero; linear layers Glorot uniform; embeddings N(0,
    0.02^2).
    """
    for name, module in net.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        nn.init.zeros_(module.bias)
        if name.split(".")[0] in ("time", "conditions"):
            nn.init.normal_(module.weight, std=0.02)
        elif name.endswith("modulation") or name == "head.out":
            zeroed(module)
        else:
            nn.init.xavier_uniform_(module.weight)
    for name, table in net.named_parameters():
        if name.startswith("conditions.tables"):
            nn.init.normal_(table, std=0.02)
