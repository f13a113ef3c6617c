"""From a configuration to the parts that it names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import nn

from advect.core.errors import UserError
from advect.core.group import current
from advect.core.platform import best_half, has_fast_bfloat16
from advect.core.types import DataSpec, Length, Quantity
from advect.networks import MLP, DiT, ResidualMLP, SequenceTransformer, UNet, Vector
from advect.runs.data_formats import build_source as build_source
from advect.runs.network_config import (
    DiTConfig,
    MLPConfig,
    NetworkConfig,
    ResidualMLPConfig,
    SequenceTransformerConfig,
    UNetConfig,
    name_of,
)

FITS = {"image": ("unet", "dit"), "vector": ("mlp", "resmlp"), "sequence": ("transformer",)}
"""The networks that take each kind of data."""


def build_network(config: NetworkConfig, spec: DataSpec, *, grad_checkpointing: bool = False) -> nn.Module:
    """Make the network for data of this shape and these conditions. Raises UserError where they do not fit."""
    name = name_of(config)
    if name not in FITS[spec.kind]:
        usual = " or ".join(f"--network {fitting}" for fitting in FITS[spec.kind])
        raise UserError(f"--network {name} does not take {spec.kind} data {spec.shape}; use {usual}")
    options: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(config)}
    options["conditions"] = _sizes(spec)
    if isinstance(config, MLPConfig):
        if grad_checkpointing:
            raise UserError("--grad-checkpointing does nothing for an mlp; leave it out, or use --network resmlp")
        return MLP(spec.shape[0], **options)
    options["grad_checkpointing"] = grad_checkpointing
    match config:
        case UNetConfig():
            net = UNet(spec.shape, **options)
            return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        case DiTConfig():
            return DiT(spec.shape, **options)
        case SequenceTransformerConfig():
            return SequenceTransformer(spec.shape, **options)
        case ResidualMLPConfig():
            return ResidualMLP(spec.shape[0], **options)


def _sizes(spec: DataSpec) -> dict[str, int | Vector]:
    """The conditions as networks count them; a length is not embedded, but read from the condition itself."""
    return {
        name: Vector(len(condition.mean)) if isinstance(condition, Quantity) else len(condition.names)
        for name, condition in spec.conditions.items()
        if not isinstance(condition, Length)
    }


def pick_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the first GPU where there is one.

    Among several processes each has a GPU of its own, which becomes PyTorch's current one. Raises UserError where
    there is no such device, or none for each process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = current().device(torch.device(name))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here; cpu always can") from error
    if device.type == "cuda" and current().world > 1:
        torch.cuda.set_device(device)
    return device


def pick_precision(mixed: bool, device: torch.device, half: str = "auto") -> torch.dtype | None:
    """The 16-bit type for mixed precision, None for float32 throughout.

    "auto" takes what the device computes fastest, which is None on a CPU without bfloat16 in hardware; "bf16" and
    "fp16" are taken as they are. Raises UserError for bf16 on a GPU that has none.
    """
    if not mixed:
        return None
    if half == "auto":
        return best_half(device)
    if half == "bf16" and device.type == "cuda" and not has_fast_bfloat16(device):
        raise UserError(f"--half bf16 needs bfloat16, which {device} does not have; use --half fp16")
    return torch.bfloat16 if half == "bf16" else torch.float16
