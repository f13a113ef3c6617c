"""Settings of the process that make training faster, for programs that own their process."""

from __future__ import annotations

import ctypes
import sys

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def tune_process() -> None:
    """Let glibc keep freed memory, and flush denormal numbers to zero.

    By default glibc maps every large tensor anew and gives it back when freed, so that a training step on the
    CPU pays for page faults. Denormal numbers, which Adam's moments become where a gradient stays zero, make
    arithmetic on the CPU several times slower. Neither setting can be undone; neither changes a GPU's results.
    """
    torch.set_flush_denormal(True)
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)
