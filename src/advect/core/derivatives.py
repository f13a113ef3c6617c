"""Derivatives of networks: attention that has them, and forward mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode


class UnfusedAttention(TorchFunctionMode):
    """Context of this thread in which attention is its formula, which has derivatives of all orders."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.multi_head_attention_forward:  # its own attention is out of this context's sight
            given = kwargs or {}
            out, weights = func(*args, **{**given, "need_weights": True})
            return out, weights if given.get("need_weights", True) else None
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


class ForwardMode(UnfusedAttention):
    """Context of this thread in which attention and group normalisation have derivatives in forward mode.

    PyTorch's own of the latter fail for channels in the last place of memory, and for inputs of another type than the
    weights.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.group_norm:
            x, *rest = args
            wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
            return func(wide, *rest, **(kwargs or {})).to(x.dtype)
        return super().__torch_function__(func, types, args, kwargs)


_FORWARD_MODE = threading.Lock()
"""PyTorch's levels of forward mode are those of the process, not of a thread."""


@torch.no_grad()
def derivative_along(
    f: Callable[..., Tensor], at: Sequence[Tensor], direction: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """f(*at), and its derivative along ``direction``, tensors like ``at``: one Jacobian-vector product.

    In forward mode, at the cost of about two calls, without a graph for reverse mode. Threads take turns.
    """
    with _FORWARD_MODE, ForwardMode(), forward_ad.dual_level():
        dual = f(*(forward_ad.make_dual(x, v) for x, v in zip(at, direction, strict=True)))
        value, slope = forward_ad.unpack_dual(dual)
        return value, torch.zeros_like(value) if slope is None else slope
