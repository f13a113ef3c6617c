"""Process-wide performance settings, and capabilities of devices."""

from __future__ import annotations

import copy
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from advect.core.errors import UserError
from advect.core.threads import limit_threads

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def tune_process() -> None:
    """In a process of our own make glibc keep freed memory, flush denormal numbers to zero, take no more threads than
    cores.

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


@contextmanager
def cuda_kernels(device: torch.device, *, tf32: bool, deterministic: bool = False) -> Iterator[None]:
    """Context of CUDA kernels with or without TF32 (10-bit mantissa) in float32 products, deterministic ones if asked.

    PyTorch keeps these settings for the whole process; they are those of before once no context is left. Other
    devices have none: a CPU is deterministic at a fixed number of threads.
    """
    global _contexts, _before
    if device.type != "cuda":
        yield
        return
    with _changing:
        if _contexts == 0:
            _before = _cuda_settings()
        _contexts += 1
        own = _cuda_settings()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        with _changing:
            _contexts -= 1
            _restore(_before if _contexts == 0 else own)


_changing = threading.Lock()
_contexts, _before = 0, ("", False, False, False, False, False)


def _cuda_settings() -> tuple[str, bool, bool, bool, bool, bool]:
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    return precision, cudnn.allow_tf32, cudnn.benchmark, strict, warn_only, "CUBLAS_WORKSPACE_CONFIG" in os.environ


def _restore(settings: tuple[str, bool, bool, bool, bool, bool]) -> None:
    precision, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, strict, warn_only, given = settings
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(strict, warn_only=warn_only)
    if not given:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context of float32 without autocast and TF32."""
    with cuda_kernels(device, tf32=False), torch.autocast(device.type, enabled=False):
        yield


def contiguous(net: nn.Module) -> nn.Module:
    """The network, or a copy without channels-last weights, whose derivatives PyTorch cannot batch."""
    if all(p.is_contiguous() or hasattr(p, "to_local") for p in net.parameters()):
        return net
    return copy.deepcopy(net).to(memory_format=torch.contiguous_format)  # pyright: ignore - not in the stub


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
