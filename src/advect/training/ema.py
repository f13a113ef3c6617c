"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from advect.core.errors import UserError


class Ema:
    """``shadow <- decay_n shadow + (1 - decay_n) weights`` with ``decay_n = min(decay, (1 + n) / (10 + n))``.

    The warm-up of the decay over the updates n lets the average forget the random start. Averages are kept in
    float32 for the named parameters; :meth:`applied` lends them to the network and gives its weights back.
    """

    def __init__(self, params: dict[str, Tensor], decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"ema_decay must lie in [0, 1), got {decay}; 0.9999 is usual, use_ema=False turns it off")
        self.decay = decay
        self.updates = 0
        self._params = list(params.values())
        self.shadow = {name: p.detach().float().clone() for name, p in params.items()}
        self._shadow = list(self.shadow.values())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._shadow, self._params, 1 - decay)

    def load(self, shadow: dict[str, Tensor], updates: int) -> None:
        """Take averages and their count from a checkpoint."""
        for name, value in self.shadow.items():
            value.copy_(shadow[name])
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, which records no gradients, the network has the averaged weights."""
        with torch.no_grad():
            kept = [p.clone() for p in self._params]
            torch._foreach_copy_(self._params, self._shadow)
            try:
                yield
            finally:
                torch._foreach_copy_(self._params, kept)
