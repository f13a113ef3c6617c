"""Networks: ``net(x_t (B, *S), t (B,), cond) -> (B, *S)``."""

from advect.networks.conditioning import ConditionEmbedding, TimeEmbedding
from advect.networks.mlp import MLP
from advect.networks.unet import UNet

__all__ = ["MLP", "ConditionEmbedding", "TimeEmbedding", "UNet"]
