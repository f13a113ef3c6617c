"""Initial states, functions of seed and sample number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advect.core import random
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import Conditions, without_padding
from advect.sources import Empirical, SourceDistribution


@dataclass(frozen=True)
class InitialNoise:
    """Distribution p_0: source, plus Gaussian noise of standard deviation ``jitter``."""

    source: SourceDistribution
    jitter: float = 0.0

    def sample(
        self, rng: CounterRng, shape: tuple[int, ...], cond: Conditions, *, device: torch.device | None = None
    ) -> Tensor:
        """Sample x0 (n, *S) for the n rows of ``rng``, given conditions (n,); 0 in padding.

        An empirical source samples among rows with the same conditions.
        """
        whole = (rng.count, *shape)
        if isinstance(self.source, Empirical):
            x0 = self.source.sample_matching(cond, whole, rng, device=device)
        else:
            x0 = self.source.sample(whole, rng, device=device)
        if self.jitter > 0:
            x0 = x0 + self.jitter * random.normal(whole, rng, device=x0.device, dtype=x0.dtype)
        return without_padding(x0, cond)

    def replay(self, places: np.ndarray, shape: tuple[int, ...], cond: Conditions, *, seed: int, total: int) -> Tensor:
        """x0 (n, *S) of the samples ``places`` (n,) of ``total``; see :func:`noise_of`."""
        return self.sample(CounterRng.at(stream_seed(seed, Stream.INITIAL_NOISE), 0, places, total=total), shape, cond)


def noise_of(seed: int, rows: range, total: int) -> CounterRng:
    """Random numbers of the initial states of samples ``rows`` of ``total``."""
    return CounterRng(stream_seed(seed, Stream.INITIAL_NOISE), 0, len(rows), start=rows.start, total=total)
