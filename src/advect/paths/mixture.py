"""Mixture paths of categories, for discrete flow matching."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from advect.core import categorical
from advect.core.errors import UserError
from advect.core.random import Generator, uniform
from advect.core.types import PathSample, expand_right
from advect.paths.base import Path, check_ends, check_point
from advect.paths.schedules import CondOT, Schedule


@dataclass(frozen=True)
class MixturePath(Path):
    """Each token is that of the data with probability ``kappa_t = alpha_t``, else still that of the source.

    ``p_t(x^i | x0, x1) = (1 - kappa_t) delta(x^i, x0^i) + kappa_t delta(x^i, x1^i)``, tokens apart from one another
    (Gat et al. 2024, "Discrete flow matching", eq. 9). States are rows of K numbers a token, one of which is 1, or for
    the mask none. So the probability velocity given x1, the rates of jumps to each category, is

        u_t(x | x1) = kappa_t' / (1 - kappa_t) (x1 - x)

    and the marginal one has the posterior ``p(x1^i | x_t)`` in place of x1. A network gives logits of x1^i as the
    *other* tokens tell it; :meth:`posterior` adds what the token itself tells by Bayes' rule, which is known: a token
    that is no mask is that of the data, and of a uniform source each is with the odds of the path.

    Args:
        schedule: alpha_t rises from 0 to 1; sigma_t is not used.
        masked: whether x0 is all mask, else each token is uniform over the categories.

    Raises UserError for a schedule whose alpha_t does not rise from 0 to 1.
    """

    schedule: Schedule = field(default_factory=CondOT)
    masked: bool = True

    def __post_init__(self) -> None:
        alpha = self.schedule.coefficients(torch.linspace(0, 1, 65, dtype=torch.float64)).alpha
        if abs(alpha[0].item()) > 1e-9 or abs(alpha[-1].item() - 1) > 1e-9 or not bool((alpha.diff() > 0).all()):
            raise UserError(
                f"a path over tokens needs a schedule whose alpha rises from 0 to 1, got {self.schedule}, from "
                f"{alpha[0].item():.4g} to {alpha[-1].item():.4g}; take cond-ot or cosine, say"
            )

    def kappa(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """kappa_t, 1 - kappa_t and kappa_t' at t (B,), each (B,) float64; 1 - kappa_t > 0."""
        c = self.schedule.coefficients(t.double())
        return c.alpha, (1 - c.alpha).clamp(min=2.0**-60), c.d_alpha

    def rate(self, t: Tensor) -> Tensor:
        """``kappa_t' / (1 - kappa_t)`` (B,) float64: the rate at which tokens of the source become data."""
        _, left, slope = self.kappa(t)
        return slope / left

    def jump_probability(self, start: float, end: float) -> float:
        """Probability that a token of the source at ``start`` is one of the data at ``end``, ``1 - exp(-rate)``."""
        kappa, left, _ = self.kappa(torch.tensor([start, end], dtype=torch.float64))
        return min(1.0, ((kappa[1] - kappa[0]) / left[0]).item())

    def start_like(self, x1: Tensor, generator: Generator = None) -> Tensor:
        """x0 (B, *S, K) for x1: all masks, or uniform tokens; padding stays padding."""
        if self.masked:
            return torch.zeros_like(x1)
        x0 = categorical.draw_uniform(x1.shape, generator, device=x1.device, dtype=x1.dtype)
        return x0 * categorical.has_token(x1)[..., None]

    def sample(self, x0: Tensor, x1: Tensor, t: Tensor, generator: Generator = None) -> PathSample:
        check_ends(x0, x1, t)
        kappa = self.kappa(t)[0]
        u = uniform(x1.shape[:-1], generator, device=x1.device)
        x_t = torch.where((u < expand_right(kappa.to(u.dtype), u))[..., None], x1, x0)
        return PathSample(x_t=x_t, t=t, u_t=self._towards(x1, x_t, t), x0=x0, x1=x1)

    def sample_masked(self, x0: Tensor, x1: Tensor, t: Tensor, generator: Generator = None) -> PathSample:
        """:meth:`sample` given that one token, drawn uniformly from those of x1, is still that of the source.

        The other tokens are as ever. It is the state just before this token becomes one of the data, at which
        :meth:`bound` takes the mean over masks, without the large weights of few masks near t = 1.
        """
        real = categorical.has_token(x1)
        order = uniform(real.shape, generator, device=x1.device).masked_fill(~real, 2.0).reshape(len(x1), -1)
        first = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order.argmin(1, keepdim=True), True)
        sample = self.sample(x0, x1, t, generator)
        x_t = torch.where(first.view_as(real)[..., None], x0, sample.x_t)
        return PathSample(x_t=x_t, t=t, u_t=self._towards(x1, x_t, t), x0=x0, x1=x1)

    def noised(self, x: Tensor, t: float, s: float, generator: Generator = None) -> Tensor:
        """A state of the path at s <= t from one x (B, *S, K) at t: tokens are drawn anew from the source.

        Each with probability ``1 - kappa_s / kappa_t``, which takes p_t(. | x1) to p_s(. | x1) whatever x1 is.
        """
        kappa = self.kappa(torch.tensor([s, t], dtype=torch.float64))[0]
        if s >= t:
            return x
        u = uniform(x.shape[:-1], generator, device=x.device)
        return torch.where((u * kappa[1].item() < kappa[0].item())[..., None], x, self._fresh(x, generator))

    def _fresh(self, x: Tensor, generator: Generator) -> Tensor:
        if self.masked:
            return torch.zeros_like(x)
        return categorical.draw_uniform(x.shape, generator, device=x.device, dtype=x.dtype)

    def log_evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """``log p_t(x^i | x1^i = k)`` (B, *S, K) up to a constant a token, of uniform tokens x (B, *S, K)."""
        kappa, left, _ = self.kappa(t)
        odds = torch.log1p(kappa * x.shape[-1] / left)
        return x * expand_right(odds.to(x.dtype), x)

    def log_posterior(self, logits: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """``log p(x1^i = k | x_t = x)`` (B, *S, K) of logits of the other tokens (B, *S, K), float32 at least.

        -inf for a token that a state without its mask rules out.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not self.masked:
            return (logits + self.log_evidence(x, t)).log_softmax(-1)
        return torch.where(categorical.has_token(x)[..., None], x.to(logits.dtype).log(), logits.log_softmax(-1))

    def posterior(self, logits: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """:meth:`log_posterior` as probabilities."""
        return self.log_posterior(logits, x, t).exp()

    def rates(self, logits: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Rates (B, *S, K) of jumps of each token of x to each category other than its own, which has 0."""
        rate = expand_right(self.rate(t).to(logits.dtype), x)
        return rate * self.posterior(logits, x, t) * (1 - x)

    def bound(self, logits: Tensor, sample: PathSample) -> Tensor:
        """A draw (B,) of a bound from above of ``-log p(x1)`` in nats, of the logits at :meth:`bound_sample`.

        The rate of the Kullback-Leibler divergence from the paths given x1 to those of the logits, where both undo
        the noise of :meth:`noised`. For masks these are cross-entropies of them (Sahoo et al. 2024, "Simple and
        effective masked diffusion language models"; Shi et al. 2024, "Simplified and generalized masked diffusion for
        discrete data"), for uniform tokens a score entropy (Lou et al. 2024, "Discrete diffusion modeling by
        estimating the ratios of the data distribution"). Tight for the true posterior.
        """
        real = categorical.has_token(sample.x1)
        log_p = self.log_posterior(logits, sample.x_t, sample.t)
        if not self.masked:
            return per_row(self._score_entropy(log_p.exp(), sample) * real)
        masks = real & ~categorical.has_token(sample.x_t)
        entropy = per_row(cross_entropy(log_p, sample.x1) * masks) / per_row(masks).clamp(min=1)
        return entropy * per_row(real) * self.kappa(sample.t)[2].to(entropy.dtype)

    def _score_entropy(self, p: Tensor, sample: PathSample) -> Tensor:
        """``sum_y v - u + u log(u / v)`` (B, *S) of the rates to each token y, u given x1, v of the posterior p.

        Noise comes at the rate r = kappa' / kappa, so that u(y) is r / K times the ratio of ``p_t(. | x1)`` at y and
        at x: ``rho`` if x is x1, ``1 / rho`` if y is, else 1.
        """
        x, x1 = sample.x_t.to(p.dtype), sample.x1.to(p.dtype)
        kappa, left, slope = (expand_right(c, x) for c in self.kappa(sample.t))
        rho = (left / (left + kappa * x.shape[-1])).to(p.dtype)
        same, gain = (x * x1).sum(-1, keepdim=True) > 0.5, 1 / rho - 1
        here, rest = (p * x).sum(-1, keepdim=True), (p * (1 - x)).sum(-1, keepdim=True)
        u = torch.where(same, rho, 1 + gain * x1)
        ratio = (here * rho + rest + p * gain).log() - u.log()
        pace = slope / kappa.clamp(min=2.0**-60) / x.shape[-1]
        return (u * (ratio.expm1() - ratio) * (1 - x)).sum(-1) * pace.squeeze(-1).to(p.dtype)

    def bound_sample(self, x0: Tensor, x1: Tensor, t: Tensor, generator: Generator = None) -> PathSample:
        """Where :meth:`bound` is asked for the logits, with t (B,) uniform on [0, 1]."""
        return (self.sample_masked if self.masked else self.sample)(x0, x1, t, generator)

    def conditional_velocity(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        """``kappa' / (1 - kappa) (x1 - x)`` (B, *S, K): the rates of jumps given x1, whatever x0 was."""
        check_point(x, t, x1, x0)
        return self._towards(x1, x, t)

    def _towards(self, x1: Tensor, x: Tensor, t: Tensor) -> Tensor:
        rest = x1 - x
        return rest * expand_right(self.rate(t).clamp(max=torch.finfo(rest.dtype).max).to(rest.dtype), rest)

    def conditional_score(self, x: Tensor, t: Tensor, *, x1: Tensor, x0: Tensor | None = None) -> Tensor:
        raise UserError("tokens have probabilities, no density and so no score; take rates or posterior")


def cross_entropy(log_p: Tensor, x1: Tensor) -> Tensor:
    """``-log p(x1^i)`` (B, *S) of log-probabilities and tokens (B, *S, K); 0 for padding."""
    return -torch.where(x1 > 0.5, log_p, 0.0).sum(-1)


def per_row(x: Tensor) -> Tensor:
    """Sums (B,) over the tokens of x (B, *S)."""
    return x.reshape(len(x), -1).sum(1)
