"""The networks that a run can have, each a section of flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from advect.config.validated import ValidatedConfig


@dataclass(frozen=True, kw_only=True)
class UNetConfig(ValidatedConfig):
    """A U-Net for images."""

    model_channels: int = 128
    """Channels at the highest resolution."""
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    """Multiples of the channels, one for each resolution; each further one halves height and width."""
    num_res_blocks: int = 2
    """Residual blocks at each resolution."""
    attention_resolutions: tuple[int, ...] = (16, 8)
    """Heights of the feature maps that have self-attention."""
    dropout: float = 0.1
    """Share of activations dropped inside the residual blocks while training."""
    patch_size: int = 1
    """Pixels a side that are folded into channels first: 2 costs a quarter."""
    time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """How the network sees the time: sines of 1000 t, or of random frequencies."""

    _at_least = (("model_channels", 1), ("channel_mult", 1), ("num_res_blocks", 1), ("patch_size", 1))
    _below_one = ("dropout",)


@dataclass(frozen=True, kw_only=True)
class DiTConfig(ValidatedConfig):
    """A diffusion transformer for images and latents."""

    size: Literal["S", "B", "L", "XL"] = "S"
    """Depth, width and heads of DiT-S, B, L or XL: 33, 130, 458 and 675 million parameters."""
    depth: int | None = None
    """Blocks, if not those of --size."""
    width: int | None = None
    """Channels of a token, if not those of --size."""
    heads: int | None = None
    """Attention heads, if not those of --size."""
    patch_size: int = 2
    """Pixels a side of the patch that becomes a token; half of it costs four times more."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Activation between the blocks' linear layers."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """How tokens know their places: added sines, or rotated queries and keys."""
    qk_norm: bool = False
    """Normalise queries and keys, which steadies large networks and bfloat16."""
    registers: int = 0
    """Learned tokens beside those of the image."""
    dropout: float = 0.0
    """Share of activations dropped at the end of each branch while training."""
    time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """How the network sees the time: sines of 1000 t, or of random frequencies."""

    _at_least = (("depth", 1), ("width", 1), ("heads", 1), ("patch_size", 1), ("registers", 0))
    _below_one = ("dropout",)


@dataclass(frozen=True, kw_only=True)
class SequenceTransformerConfig(ValidatedConfig):
    """A transformer for sequences."""

    width: int = 256
    """Channels of a step."""
    depth: int = 6
    """Blocks."""
    heads: int = 4
    """Attention heads."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Activation between the blocks' linear layers."""
    qk_norm: bool = False
    """Normalise queries and keys, which steadies large networks and bfloat16."""
    dropout: float = 0.0
    """Share of activations dropped at the end of each branch while training."""
    time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """How the network sees the time: sines of 1000 t, or of random frequencies."""

    _at_least = (("width", 1), ("depth", 1), ("heads", 1))
    _below_one = ("dropout",)


@dataclass(frozen=True, kw_only=True)
class MLPConfig(ValidatedConfig):
    """A multi-layer perceptron for vectors."""

    width: int = 256
    """Units in each hidden layer."""
    depth: int = 4
    """Linear layers, the output included."""

    _at_least = (("width", 1), ("depth", 2))


@dataclass(frozen=True, kw_only=True)
class ResidualMLPConfig(ValidatedConfig):
    """A residual multi-layer perceptron for vectors, up to many thousands of numbers."""

    width: int = 512
    """Units between the blocks."""
    depth: int = 4
    """Residual blocks."""
    expansion: int = 2
    """How many times wider a block is inside."""
    dropout: float = 0.0
    """Share of activations dropped inside the blocks while training."""
    time_embedding: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """How the network sees the time: sines of 1000 t, or of random frequencies."""

    _at_least = (("width", 1), ("depth", 1), ("expansion", 1))
    _below_one = ("dropout",)


NetworkConfig = UNetConfig | DiTConfig | MLPConfig | ResidualMLPConfig | SequenceTransformerConfig

NetworkName = Literal["unet", "dit", "mlp", "resmlp", "transformer"]

NETWORKS: dict[str, type[NetworkConfig]] = {
    "unet": UNetConfig,
    "dit": DiTConfig,
    "mlp": MLPConfig,
    "resmlp": ResidualMLPConfig,
    "transformer": SequenceTransformerConfig,
}


def name_of(network: NetworkConfig) -> str:
    """The name in NETWORKS of a network's configuration."""
    return next(name for name, cls in NETWORKS.items() if isinstance(network, cls))
