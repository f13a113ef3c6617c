"""Sampling of discrete flows: jumps of all tokens at once, and a bound of their likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from advect.core import categorical
from advect.core.bounds import NonNegative, Positive
from advect.core.errors import UserError
from advect.core.random import Generator, uniform
from advect.core.registry import register
from advect.paths.mixture import MixturePath
from advect.solvers.base import Solver, Velocity, all_finite, expanded_times, not_finite


@register("tau-leaping")
@dataclass(frozen=True)
class TauLeaping(Solver):
    """Jumps of tokens, each apart given the state at the start of a step: the solver of discrete flows.

    In a step from t to t + h a token becomes a draw of its posterior with the probability that one of the source
    becomes one of the data, ``1 - exp(-integral of kappa' / (1 - kappa))`` exactly, so that tokens that are
    independent in the data are exact in any number of steps, and others as h -> 0 (Campbell et al. 2022, "A continuous
    time framework for discrete denoising models"; Gat et al. 2024, "Discrete flow matching").

    Args:
        corrector: how much of the width of each step is first gone back, by drawing tokens anew from the source, so
            that tokens can be mended (Gat et al. 2024, corrector sampling); 0 for none. Marginals stay.
        temperature: divides the logits; below 1 likelier tokens, at the cost of variety.
        top_p: draws only among the likeliest tokens of this probability together (Holtzman et al. 2020, "The curious
            case of neural text degeneration").
        path: the flow's path.
        generator: of the draws.
        given: (B, *S, K) known tokens, which stay, NaN for those that are drawn. Of masks alone, of which any set may
            be known at any time.
    """

    order, evaluations, jumps = 1, 1, True

    corrector: NonNegative = 0.0
    temperature: Positive = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    path: MixturePath = field(default_factory=MixturePath)
    generator: Generator = None
    given: Tensor | None = None

    def iterate(self, u: Velocity, x: Tensor, grid: Sequence[float]) -> Iterator[Tensor]:
        """``u(x, t)`` gives logits (B, *S, K) of states x (B, *S, K), rows with a single 1 or, for a mask, none."""
        if grid[0] > grid[-1]:
            raise UserError(
                f"solver {self.name!r} goes from the source to data alone, and was asked back; give t0 < t1"
            )
        for a, b in pairwise(grid):
            start = max(0.0, a - self.corrector * (b - a))
            x = self._held(self.path.noised(x, a, start, self.generator))
            (t,) = expanded_times([start], x)
            p = nucleus(self.path.posterior(u(x, t) / self.temperature, x, t), self.top_p)
            if not all_finite(p):  # the draws would be whole all the same
                raise not_finite(self.name, start)
            made = categorical.one_hot(categorical.draw(p, self.generator), x.shape[-1], x.dtype)
            moved = uniform(x.shape[:-1], self.generator, device=x.device) < self.path.jump_probability(start, b)
            x = torch.where(moved[..., None], made, x)
            yield x

    def _held(self, x: Tensor) -> Tensor:
        return x if self.given is None else torch.where(self.given.isnan(), x, self.given.to(x.dtype))


def nucleus(p: Tensor, share: float) -> Tensor:
    """Probabilities p (*S, K) of the fewest likeliest categories with ``share`` together, 0 for others."""
    if share >= 1:
        return p
    most, places = p.sort(-1, descending=True)
    kept = torch.where(most.cumsum(-1) - most < share, most, 0.0)
    kept = torch.zeros_like(p).scatter_(-1, places, kept)
    return kept / kept.sum(-1, keepdim=True)


@torch.no_grad()
def log_prob_bound(
    logits: Velocity, path: MixturePath, x1: Tensor, *, draws: int = 16, generator: Generator = None
) -> Tensor:
    """An estimate (B,) of a bound from below of log p(x1), in nats, of tokens x1 (B, *S, K); padding is free.

    The mean of ``draws`` of :meth:`MixturePath.bound` at stratified times; ``logits(x (B, *S, K), t (B,))``.
    """
    if draws < 1:
        raise UserError(f"draws must be at least 1, got {draws}; 16 is usual")
    categorical.check_rows("x1", x1)
    total = torch.zeros(len(x1), dtype=torch.float64, device=x1.device)
    shift = uniform((len(x1),), generator, device=x1.device, dtype=torch.float64)
    for k in range(draws):
        t = ((shift + k) / draws).to(torch.promote_types(x1.dtype, torch.float32))
        sample = path.bound_sample(path.start_like(x1, generator), x1, t, generator)
        total -= path.bound(logits(sample.x_t, t), sample).double()
    return total / draws
