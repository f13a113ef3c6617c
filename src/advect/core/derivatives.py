"""Derivatives of networks: attention that has them, and forward mode."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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


_of_thread = threading.local()


@contextmanager
def input_derivatives() -> Iterator[None]:
    """Context of this thread in which what networks compute is differentiated once, in their input alone."""
    before, _of_thread.input_alone = input_alone(), True
    try:
        yield
    finally:
        _of_thread.input_alone = before


def input_alone() -> bool:
    """Whether this thread is in :func:`input_derivatives`."""
    return getattr(_of_thread, "input_alone", False)


_FORWARD_MODE = threading.Lock()
"""PyTorch's levels of forward mode are those of the process, not of a thread."""


def _as_written() -> AbstractContextManager:
    """Context in which what ``torch.compile`` made runs as its plain code."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and its import takes a second
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@torch._disable_dynamo
@torch.no_grad()
def derivative_along(
    f: Callable[..., Tensor], at: Sequence[Tensor], direction: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """f(*at), and its derivative along ``direction``, tensors like ``at``: one Jacobian-vector product.

    In forward mode, at the cost of about two calls, without a graph for reverse mode. Threads take turns. What
    ``torch.compile`` made runs as written: compiled code takes no derivative along, and would say 0.
    """
    with _FORWARD_MODE, _as_written(), ForwardMode(), forward_ad.dual_level():
        dual = f(*(forward_ad.make_dual(x, v) for x, v in zip(at, direction, strict=True)))
        value, slope = forward_ad.unpack_dual(dual)
        return value, torch.zeros_like(value) if slope is None else slope
