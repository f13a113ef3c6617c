"""What the elements of a category's code tell of it by themselves, which a network of logits need not learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advect.core.types import Code, Conditions, code_places

_LEAST = 1e-3
"""Least sigma of the evidence, which is certain there."""


class AffineCoefficients(Protocol):
    """What of an affine path is used."""

    def coefficients(self, t: Tensor, /) -> Any:
        """alpha, sigma and their derivatives at t (B,)."""
        ...


class WithEvidence(nn.Module):
    """``net`` plus the exact logits of each category by its own elements: a correction of independent categories.

    On ``x_t = alpha x_1 + sigma x_0`` with x_1 the code c_k of category k, x_0 ~ N(0, I) and the shares p_k,

        log p(k | own elements of x_t) = log p_k + 2 alpha x_t[k] / sigma^2 + const,

    as codes differ by 2 in two elements; one element alone has the log-odds ``log p / (1 - p) + 2 alpha x_t /
    sigma^2``. Noise is independent between columns, so what ``net`` adds to the logits is what the other columns tell.
    It sees the means of these laws in place of the elements of codes, within [-1, 1] at all times, and other elements
    as they are. A network of output 0 has the laws of independent categories.

    Args:
        net: network of vectors (B, D).
        codes: of the categories.
        path: affine, from N(0, I) drawn apart from the data.
    """

    log_shares: Tensor
    coded: Tensor

    def __init__(self, net: Any, codes: Sequence[Code], path: AffineCoefficients) -> None:
        super().__init__()
        self.net, self.path, self.places = net, path, code_places(codes)
        size = max(code.start + code.size for code in codes)
        log_shares, coded = torch.zeros(size), torch.zeros(size)
        for code in codes:
            p, own = torch.tensor(code.shares, dtype=torch.float64), slice(code.start, code.start + code.size)
            log_shares[own] = (p.log() if code.size > 1 else p.logit()).float()
            coded[own] = 1.0
        self.register_buffer("log_shares", log_shares)
        self.register_buffer("coded", coded)

    def check_size(self, shape: Sequence[int]) -> None:
        """Raise UserError unless the network takes samples of ``shape``."""
        self.net.check_size(shape)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        with torch.autocast(x_t.device.type, enabled=False):
            evidence = self.evidence(x_t, t)
            seen = self._means(evidence, x_t)
        return self.net(seen, t, cond).to(x_t.dtype) + evidence

    def evidence(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits (B, D) at x_t (B, D), t (B,) of each category by its own elements; 0 elsewhere."""
        c = self.path.coefficients(t.double())
        slope = (2 * c.alpha / c.sigma.clamp(min=_LEAST).square()).to(x_t.dtype)[:, None]
        rest = x_t.shape[1] - len(self.coded)
        coded, log_shares = (nn.functional.pad(v.to(x_t.dtype), (0, rest)) for v in (self.coded, self.log_shares))
        return torch.addcmul(log_shares, slope * coded, x_t)

    def _means(self, evidence: Tensor, x_t: Tensor) -> Tensor:
        """x_t (B, D) with the mean codes of the laws ``evidence`` (B, D)."""
        seen = x_t
        for place in self.places:
            logits = evidence[:, place]
            mean = 2 * logits.softmax(2) - 1 if place.shape[1] > 1 else torch.tanh(logits / 2)
            seen = seen.index_copy(1, place.flatten().to(x_t.device), mean.flatten(1).to(x_t.dtype))
        return seen
