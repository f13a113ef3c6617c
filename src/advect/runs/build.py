"""From a configuration to the parts that it names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from advect.core.errors import UserError
from advect.core.platform import best_half, has_fast_bfloat16
from advect.core.types import Category, DataSpec
from advect.data import Digits, FashionMnist, ImageFolder, Moons, Source
from advect.networks import MLP, UNet
from advect.runs.config import (
    DataConfig,
    DigitsData,
    FashionMnistData,
    ImageFolderData,
    MLPConfig,
    MoonsData,
    NetworkConfig,
    UNetConfig,
)

NETWORKS: dict[str, type] = {"unet": UNetConfig, "mlp": MLPConfig}


def build_source(config: DataConfig) -> Source:
    """Open the data. Raises UserError for a folder that is missing, empty or damaged."""
    match config:
        case DigitsData():
            return Digits()
        case MoonsData():
            return Moons(noise=config.noise)
        case FashionMnistData():
            return FashionMnist(_needed(config.data_dir, "the four IDX files of Fashion-MNIST"))
        case ImageFolderData():
            folder = _needed(config.data_dir, "images")
            return ImageFolder(folder, image_size=config.image_size, flip=config.horizontal_flip)


def _needed(data_dir: Any, what: str) -> Any:
    if data_dir is None:
        raise UserError(f"--data-dir is not given; name the folder with {what}")
    return data_dir


def build_network(config: NetworkConfig, spec: DataSpec, *, grad_checkpointing: bool = False) -> nn.Module:
    """Make the network for data of this shape and these conditions.

    With ``grad_checkpointing`` its blocks compute their activations again in the backward pass and keep none.
    Raises UserError where the data do not fit, and for a network that has no blocks.
    """
    conditions = {name: len(c.names) for name, c in spec.conditions.items() if isinstance(c, Category)}
    match config:
        case UNetConfig():
            net = UNet(
                spec.shape,
                model_channels=config.model_channels,
                channel_mult=config.channel_mult,
                num_res_blocks=config.num_res_blocks,
                attention_resolutions=config.attention_resolutions,
                dropout=config.dropout,
                conditions=conditions,
                grad_checkpointing=grad_checkpointing,
            )
            return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        case MLPConfig():
            if grad_checkpointing:
                raise UserError("--grad-checkpointing is of no use to the MLP, which is small; leave it out")
            return MLP(spec.shape[0], width=config.width, depth=config.depth, conditions=conditions)


def pick_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the first GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here; cpu always can") from error
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
