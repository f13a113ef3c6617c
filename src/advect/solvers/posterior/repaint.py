"""Resampling between noise levels, for known elements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from advect.core import random
from advect.core.bounds import Count, bounded
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.core.registry import register
from advect.solvers.base import all_finite
from advect.solvers.posterior.base import Denoiser, Observation, PosteriorMethod, Reward, Times
from advect.solvers.posterior.measurements import Masked


@register("repaint")
@bounded
@dataclass(frozen=True)
class RePaint(PosteriorMethod):
    """Known elements are noised anew at each step, and the way is repeated; masks only, without derivatives.

    Lugmayr et al. 2022, "RePaint: inpainting using denoising diffusion probabilistic models": ancestral steps, every
    ``jump`` of which are taken ``resamples`` times, with noise added in between. Biased, less so with more resamples:
    at a step, unknown elements see the known ones only through their noise. Measurement noise is part of that
    noise, until that is less than it.

    Args:
        resamples: times that each stretch is sampled; 1 is a single way.
        jump: steps of a stretch.
    """

    resamples: Count = 10
    jump: Count = 10

    def check(self, ask: Observation | Reward) -> None:
        super().check(ask)
        if isinstance(ask, Observation) and not isinstance(ask.measurement, Masked):
            raise UserError(
                "posterior 'repaint' takes known elements alone, Masked(mask), with any noise in model units, got "
                f"{type(ask.measurement).__name__}; take 'mmps' or 'pigdm'"
            )

    def nfe(self, steps: int) -> int:
        return sum(1 for n, to in self._moves(steps) if to > n)

    def sample(self, denoiser: Denoiser, x: Tensor, ask: Observation, times: Times, generator: Generator) -> Tensor:
        assert isinstance(ask.measurement, Masked)
        known, y = ask.measurement.mask.to(x.device), ask.y.to(x.device, x.dtype)
        # The variance of x_t around alpha y that y does not have itself.
        spread = [s**2 - (a * ask.noise) ** 2 for a, s in zip(times.alpha, times.sigma, strict=True)]
        free = next((n for n, left in enumerate(spread) if left < 0), len(times))
        for n, to in self._moves(len(times) - 1, free):
            if to < n:
                x = self._noised(x, times, n, to, generator)
            else:
                x = times.step(x, denoiser(x, times.at[n]), n, 1.0, generator)
            if spread[to] >= 0:
                xi = random.normal(x.shape, generator, device=x.device, dtype=x.dtype)
                x = torch.where(known, times.alpha[to] * y + math.sqrt(spread[to]) * xi, x)
            if not all_finite(x):
                raise times.not_finite(self, to)
        return x

    def _moves(self, steps: int, free: int | None = None) -> Iterator[tuple[int, int]]:
        """Moves from one time to another, by number: single steps forward, and jumps back.

        From ``free`` on nothing holds the known elements, and at t = 0 there is nothing to keep: no way is repeated.
        """
        for first in range(0, steps, self.jump):
            last = min(first + self.jump, steps)
            repeats = 0 < first < (steps if free is None else free)
            for again in range(self.resamples if repeats else 1):
                if again > 0:
                    yield last, first
                yield from ((n, n + 1) for n in range(first, last))

    @staticmethod
    def _noised(x: Tensor, times: Times, n: int, to: int, generator: Generator) -> Tensor:
        """x at time n carried back to the noisier time ``to`` by adding noise."""
        share = times.alpha[to] / times.alpha[n]
        width = math.sqrt(max(0.0, times.sigma[to] ** 2 - (share * times.sigma[n]) ** 2))
        return share * x + width * random.normal(x.shape, generator, device=x.device, dtype=x.dtype)
