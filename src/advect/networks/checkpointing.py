"""Memory for time: activations that the backward pass computes again (Chen et al. 2016, "sublinear memory cost")."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: Tensor | tuple[Tensor, Tensor] | None, again: bool) -> Tensor:
    """``block(*inputs)``; with ``again``, while training, its activations are not kept but computed a second time.

    Gradients are the same bit for bit, dropout included, since the state of PyTorch's random numbers is restored.
    """
    if again and block.training:
        return checkpoint(block, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
    return block(*inputs)
