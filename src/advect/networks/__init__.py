"""Networks: ``net(x_t (B, *S), t (B,), cond) -> (B, *S)``."""

from advect.networks.dit import DiT
from advect.networks.embeddings import ConditionEmbedding, TimeEmbedding, Vector
from advect.networks.mlp import MLP
from advect.networks.resmlp import ResidualMLP
from advect.networks.transformer import SequenceTransformer
from advect.networks.unet import UNet

__all__ = [
    "MLP",
    "ConditionEmbedding",
    "DiT",
    "ResidualMLP",
    "SequenceTransformer",
    "TimeEmbedding",
    "UNet",
    "Vector",
]
