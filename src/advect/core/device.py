"""Process-wide performance settings, and capabilities of devices."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from advect.core.errors import UserError
from advect.core.threads import limit_threads

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def tune_process() -> None:
    """In this process make glibc keep freed memory, flush denormal numbers to zero, take no more threads than cores.

    Avoids page faults at each CPU step, and slow arithmetic with denormals, as in Adam's moments of zero gradients.
    """
    torch.set_flush_denormal(True)
    limit_threads()
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def use_tf32(device: torch.device, on: bool) -> None:
    """Enable or disable TF32 (10-bit mantissa) float32 products on CUDA in this process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if on else "highest")
        torch.backends.cudnn.allow_tf32 = on


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context of float32 without autocast and TF32."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


@contextmanager
def contiguous_weights(net: nn.Module) -> Iterator[None]:
    """Context without channels-last weights, for which group normalisation has no forward derivative."""
    last = any(p.ndim == 4 and not p.is_contiguous() for p in net.parameters())
    try:
        net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue] - not in the stub
        yield
    finally:
        if last:
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def be_deterministic(device: torch.device) -> None:
    """Restrict CUDA to deterministic kernels in this process; call before the first product on the device.

    A CPU is deterministic at a fixed number of threads.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16: CUDA from Ampere on, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # names with an underscore, which another PyTorch may not have
        probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return any(probe() for probe in probes if probe is not None)
    return False


def best_half(device: torch.device) -> torch.dtype | None:
    """16-bit type faster than float32: bfloat16 in hardware, else float16 on a GPU, None on a CPU."""
    if has_fast_bfloat16(device):
        return torch.bfloat16
    return None if device.type == "cpu" else torch.float16


def pick_precision(mixed: bool, device: torch.device, half: str = "auto") -> torch.dtype | None:
    """16-bit type of mixed precision; None for float32. "auto" is :func:`best_half`.

    Raises UserError for "bf16" on a GPU without it.
    """
    if not mixed:
        return None
    if half == "auto":
        return best_half(device)
    if half == "bf16" and device.type == "cuda" and not has_fast_bfloat16(device):
        raise UserError(f"--half bf16 needs bfloat16, which {device} does not have; use --half fp16")
    return torch.bfloat16 if half == "bf16" else torch.float16


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile finds no C++ compiler for the CPU."""
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "--compile-model needs a C++ compiler, and none is found; install g++, name one in the environment "
            "variable CXX, or train with --no-compile-model"
        ) from error


# Dense TFLOP/s, without sparsity, of 16-bit matrix products accumulated in float32. NVIDIA's data sheets and
# architecture papers: H200 (2024), H100 (2023), A100 (2021), Ada (2023), Ampere GA102 (2021), L4 (2023), L40S (2023),
# V100 (2020), T4 (2019). The first name found in the device's counts.
_DENSE_16_BIT = (
    ("H200", 989.5),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.5),
    ("H100", 989.5),
    ("A100", 312.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("V100", 125.0),
    ("T4", 65.0),
)
_NO_BFLOAT16 = ("V100", "T4")


def peak_flops(name: str, dtype: torch.dtype) -> float | None:
    """Peak dense FLOP/s of the GPU ``name`` in float16 or bfloat16, from its data sheet; None if unknown."""
    if dtype not in (torch.float16, torch.bfloat16):
        return None
    words = name.replace("-", " ").replace("_", " ")
    for known, tera in _DENSE_16_BIT:
        if f" {known} " in f" {words} ":
            return None if known in _NO_BFLOAT16 and dtype is torch.bfloat16 else tera * 1e12
    return None


def device_peak(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """:func:`peak_flops` of a device; None for CPUs and float32 (``dtype`` None)."""
    if device.type != "cuda" or dtype is None:
        return None
    return peak_flops(torch.cuda.get_device_name(device), dtype)
