"""Laws of tokens whose posterior under a mixture path is known: Markov chains and mixtures of products."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advect.core import categorical
from advect.core.errors import UserError
from advect.core.random import Generator
from advect.paths.mixture import MixturePath


class TokenLaw(ABC):
    """A law of L tokens of K categories each, in float64."""

    shape: tuple[int, int]
    """(L, K)."""

    @abstractmethod
    def sample(self, n: int, generator: Generator = None) -> Tensor:
        """n draws (n, L, K), rows with a single 1."""

    @abstractmethod
    def expect(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        """Of evidence (B, L, K) on each token, ``log E[prod_i e^i(x^i)]`` (B,), and the cavities (B, L, K).

        Cavities are ``log E[prod_(j != i) e^j(x^j); x^i = k]`` up to a constant a token: logits of a token as the
        others tell it.
        """

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) (B,) of x (B, L, K)."""
        return self.expect(self._checked(x))[0]

    def logits(self, x: Tensor, t: Tensor, path: MixturePath) -> Tensor:
        """Logits (B, L, K) that a perfect network gives at x (B, L, K), t (B,) on ``path``."""
        x = self._checked(x)
        if path.masked:
            evidence = torch.where(categorical.has_token(x)[..., None], x, 1.0)
        else:
            evidence = path.log_evidence(x, t).exp()
        return self.expect(evidence)[1]

    def marginal(self, x: Tensor, t: Tensor, path: MixturePath) -> Tensor:
        """p_t(x) (B,) of states x (B, L, K) on ``path`` at t (B,)."""
        x, (kappa, left, _) = self._checked(x), path.kappa(t)
        start = (~categorical.has_token(x)).double() if path.masked else torch.ones_like(x[..., 0]) / self.shape[1]
        evidence = kappa[:, None, None] * x + (left[:, None] * start)[..., None]
        return self.expect(evidence)[0].exp()

    def states(self, *, mask: bool = False) -> Tensor:
        """All K^L states (n, L, K), or with the ``mask`` as one category more all (K + 1)^L."""
        length, size = self.shape
        if (size + mask) ** length > 2**20:
            raise UserError(f"{size + mask} categories of {length} tokens have too many states to list; take fewer")
        codes = itertools.product(range(-mask, size), repeat=length)
        return categorical.one_hot(torch.tensor(list(codes)), size, torch.float64)

    def _checked(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"x must be (B, {self.shape[0]}, {self.shape[1]}), got {tuple(x.shape)}")
        return x.double()


@dataclass(frozen=True)
class MarkovChain(TokenLaw):
    """A Markov chain: x^1 of the law ``initial`` (K,), each next one of the row of the last in ``transition`` (K, K).

    Raises UserError unless all rows are probabilities, and length >= 1.
    """

    initial: Tensor | Sequence[float]
    transition: Tensor | Sequence[Sequence[float]]
    length: int
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        initial, transition = (torch.as_tensor(p, dtype=torch.float64) for p in (self.initial, self.transition))
        size = len(initial)
        if self.length < 1 or transition.shape != (size, size):
            raise UserError(
                f"MarkovChain needs a length >= 1 and a transition of ({size}, {size}), got {self.length} and "
                f"{tuple(transition.shape)}"
            )
        check_laws("MarkovChain.initial", initial)
        check_laws("MarkovChain.transition", transition)
        for name, value in (("initial", initial), ("transition", transition), ("shape", (self.length, size))):
            object.__setattr__(self, name, value)

    def sample(self, n: int, generator: Generator = None) -> Tensor:
        initial, transition = torch.as_tensor(self.initial), torch.as_tensor(self.transition)
        codes = [categorical.draw(initial.expand(n, 1, -1), generator)]
        for _ in range(self.length - 1):
            codes.append(categorical.draw(transition[codes[-1]], generator))
        return categorical.one_hot(torch.cat(codes, 1), self.shape[1], torch.float64)

    def expect(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        # The sum-product algorithm, normalised at each token.
        initial, transition = torch.as_tensor(self.initial), torch.as_tensor(self.transition)
        total, before = evidence.new_zeros(len(evidence)), [initial.expand(len(evidence), -1)]
        for e in evidence.unbind(1):
            there = before[-1] * e
            mass = there.sum(1, keepdim=True)
            total = total + mass.squeeze(1).log()
            before.append(there / mass.clamp(min=1e-300) @ transition)
        after = [torch.ones_like(before[0])]
        for e in evidence.flip(1).unbind(1)[:-1]:
            back = (after[-1] * e) @ transition.T
            after.append(back / back.sum(1, keepdim=True).clamp(min=1e-300))
        cavities = torch.stack(before[:-1], 1) * torch.stack(after[::-1], 1)
        return total, cavities.log()

    def entropy(self) -> float:
        """Entropy of all tokens together, in nats."""
        law, transition = torch.as_tensor(self.initial), torch.as_tensor(self.transition)
        rows, total = -torch.xlogy(transition, transition).sum(1), -torch.xlogy(law, law).sum()
        for _ in range(self.length - 1):
            total, law = total + law @ rows, law @ transition
        return float(total)


@dataclass(frozen=True)
class ProductMixture(TokenLaw):
    """``sum_m w_m prod_i p_m^i(x^i)``: weights (M,), probabilities (M, L, K); one component has independent tokens.

    Raises UserError unless both are probabilities of these shapes.
    """

    weights: Tensor | Sequence[float]
    probabilities: Tensor | Sequence
    shape: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        weights, p = (torch.as_tensor(v, dtype=torch.float64) for v in (self.weights, self.probabilities))
        if p.ndim != 3 or weights.shape != p.shape[:1]:
            raise UserError(
                f"ProductMixture needs weights (M,) and probabilities (M, L, K), got {tuple(weights.shape)} and "
                f"{tuple(p.shape)}"
            )
        check_laws("ProductMixture.weights", weights)
        check_laws("ProductMixture.probabilities", p)
        for name, value in (("weights", weights), ("probabilities", p), ("shape", tuple(p.shape[1:]))):
            object.__setattr__(self, name, value)

    def sample(self, n: int, generator: Generator = None) -> Tensor:
        weights, p = torch.as_tensor(self.weights), torch.as_tensor(self.probabilities)
        component = categorical.draw(weights.expand(n, -1), generator)
        return categorical.one_hot(categorical.draw(p[component], generator), self.shape[1], torch.float64)

    def expect(self, evidence: Tensor) -> tuple[Tensor, Tensor]:
        weights, p = torch.as_tensor(self.weights), torch.as_tensor(self.probabilities)
        each = torch.einsum("blk,mlk->bml", evidence, p).log()
        log_joint = weights.log() + each.sum(2)
        total = log_joint.logsumexp(1)
        # Component m weighs without token i what it weighs with all, less that token.
        others = torch.where(each.isinf(), self._without(each, weights), log_joint[:, :, None] - each)
        return total, (others[..., None] + p.log()).logsumexp(1)

    @staticmethod
    def _without(each: Tensor, weights: Tensor) -> Tensor:
        """``log w_m + sum_(j != i) each^j`` (B, M, L), where some are -inf."""
        finite = torch.where(each.isinf(), 0.0, each).sum(2, keepdim=True) - torch.where(each.isinf(), 0.0, each)
        lost = each.isinf().sum(2, keepdim=True) - each.isinf().long()
        return torch.where(lost > 0, -torch.inf, finite + weights.log()[:, None])


def check_laws(name: str, p: Tensor) -> None:
    """Raise UserError unless the rows of p (*S, K) are probabilities."""
    if p.ndim < 1 or not p.numel() or bool((p < 0).any()) or not torch.allclose(p.sum(-1), p.new_ones(()), atol=1e-6):
        raise UserError(f"{name} must hold probabilities of sum 1, got rows of sum {p.sum(-1).flatten()[:3].tolist()}")
