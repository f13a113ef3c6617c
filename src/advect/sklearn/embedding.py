"""What makes features of observed series and images, trained together with the flow that they condition."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from advect.core import registry
from advect.core.errors import UserError, did_you_mean
from advect.core.random import LayerRng, Stream, stream_seed
from advect.networks.encoders import Encoder, encoder_of

_KINDS = {1: "vector", 2: "sequence", 3: "image"}
"""Kinds of observations, as networks take them, by their axes."""

_USUAL = {"sequence": "transformer", "image": "unet"}
"""Networks by default."""

_SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 128, "depth": 3},
    "resmlp": {"width": 128, "depth": 2},
    "transformer": {"width": 64, "depth": 2},
    "dit": {"width": 64, "depth": 2, "heads": 4},
    "unet": {"model_channels": 16, "num_res_blocks": 1, "attention_resolutions": ()},
}
"""Arguments of networks as encoders, smaller than those of flows: each step of training has both."""


def embedding_of(embedding: Any, shape: Sequence[int], seed: int) -> Encoder | None:
    """The encoder of observations of ``shape``, with weights of the ``seed``; None for numbers as they are.

    ``embedding`` is "auto" (a transformer for series (T, C), a U-Net for images (C, H, W), none for numbers), the name
    of a registered network, a module (B, *shape) -> (B, k), of which a copy is trained, or None.
    """
    if isinstance(embedding, nn.Module):
        return encoder_of(copy.deepcopy(embedding), shape)
    if embedding is not None and not isinstance(embedding, str):
        raise UserError(f"embedding must be 'auto', a network's name, a module or None, got {embedding!r}")
    kind = _KINDS.get(len(shape))
    name = _USUAL.get(kind or "") if embedding == "auto" else embedding
    if name is None:
        return None
    if name not in registry.choices("network"):
        raise UserError(f"embedding {name!r} is not known{did_you_mean(name, ('auto', *registry.choices('network')))}")
    cls: Any = registry.get("network", name)
    if cls.takes != kind:
        words = ", ".join(map(str, shape))
        raise UserError(f"embedding {name!r} takes {cls.takes}s, and an observation has shape ({words}); take 'auto'")
    given = {"shape": tuple(shape), "dim": shape[0], **_SMALL.get(name, {})}
    if name == "unet":
        given["channel_mult"] = (1, 2) if not any(side % 2 for side in shape[1:]) else (1,)
    known = registry.parameters(cls)
    with LayerRng(stream_seed(seed, Stream.INIT, 1)).used():
        net = cls(**{key: value for key, value in given.items() if key in known})
    return encoder_of(net, shape)


def channel_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel of series (N, T, C) or images (N, C, H, W), for each number (d,) of a row."""
    axes = (0, 1) if x.ndim == 3 else (0, 2, 3)
    mean, std = x.mean(axes, keepdims=True)[0], x.std(axes, keepdims=True)[0]
    std = np.where(std > 1e-12 * np.abs(mean), std, 1.0)
    return tuple(np.broadcast_to(moment, x.shape[1:]).reshape(-1) for moment in (mean, std))  # type: ignore[return-value]
