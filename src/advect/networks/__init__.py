"""Networks: ``net(x_t (B, *S), t (B,), cond) -> (B, *S)``."""

from typing import TYPE_CHECKING

from advect.core.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from advect.networks.dit import DiT as DiT
    from advect.networks.embeddings import ConditionEmbedding as ConditionEmbedding
    from advect.networks.embeddings import TimeEmbedding as TimeEmbedding
    from advect.networks.embeddings import Vector as Vector
    from advect.networks.mlp import MLP as MLP
    from advect.networks.mlp import ResidualMLP as ResidualMLP
    from advect.networks.transformer import SequenceTransformer as SequenceTransformer
    from advect.networks.unet import UNet as UNet
else:
    __getattr__, __dir__ = lazy_imports(__name__)
