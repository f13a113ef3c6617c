"""Dropout whose random numbers are cheap on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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
