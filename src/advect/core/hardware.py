"""What devices can do at most, from the data sheets of their makers."""

from __future__ import annotations

import torch

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
    """The most multiplications and additions a second of the GPU called ``name`` in matrix products of ``dtype``.

    float16 and bfloat16 only, dense, as its maker states it; None where it is not known.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return None
    words = name.replace("-", " ").replace("_", " ")
    for known, tera in _DENSE_16_BIT:
        if f" {known} " in f" {words} ":
            return None if known in _NO_BFLOAT16 and dtype is torch.bfloat16 else tera * 1e12
    return None


def device_peak(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """:func:`peak_flops` of a device; ``dtype`` None is float32. None for CPUs, whose clocks vary."""
    if device.type != "cuda" or dtype is None:
        return None
    return peak_flops(torch.cuda.get_device_name(device), dtype)
