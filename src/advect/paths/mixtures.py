"""The posterior of a Gaussian mixture seen through Gaussian noise: one pass, in float64, in bounded memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """At ``x = alpha x_1 + sigma x_0``: log p(x) (B,), E[x_1 | x] and grad log p(x), both (B, D)."""

    log_prob: Tensor
    data: Tensor
    score: Tensor


def isotropic_posterior(
    x: Tensor, alpha: Tensor, sigma: Tensor, means: Tensor, variances: Tensor, log_weights: Tensor, chunk: int
) -> Posterior:
    """For ``sum_k w_k N(m_k, c_k I)``, with x (B, D), alpha and sigma (B, 1), means (K, D), c and log w (K,).

    ``v_k = alpha^2 c_k + sigma^2`` has to be positive. With posterior weights p_k,

        data = sigma^2 P + alpha r x,   score = alpha P - q x,   P = sum p_k m_k / v_k,  q = sum p_k / v_k,
                                                                 r = sum p_k c_k / v_k

    accumulated over ``chunk`` components at a time with a running maximum of the logits, as online softmax does
    (Milakov & Gimelshein 2018): memory is O(chunk (B + D) + B D).
    """
    x = x.double()
    square = x.square().sum(1, keepdim=True)
    top = x.new_full((len(x), 1), -math.inf)
    total, q, r, p = (x.new_zeros(len(x), width) for width in (1, 1, 1, x.shape[1]))
    for first in range(0, len(means), chunk):
        m, c = means[first : first + chunk].double(), variances[first : first + chunk].double()
        v = alpha.square() * c + sigma.square()  # (B, chunk)
        distance = square - 2 * alpha * (x @ m.T) + alpha.square() * m.square().sum(1)
        logits = log_weights[first : first + chunk] - distance / (2 * v) - x.shape[1] / 2 * v.log()
        higher = torch.maximum(top, logits.amax(1, keepdim=True))
        fade, e = (top - higher).exp(), (logits - higher).exp()
        w, top = e / v, higher
        total = total * fade + e.sum(1, keepdim=True)
        p = p * fade + w @ m
        q = q * fade + w.sum(1, keepdim=True)
        r = r * fade + (w * c).sum(1, keepdim=True)
    p, q, r = p / total, q / total, r / total
    log_prob = (top + total.log()).squeeze(1) - x.shape[1] / 2 * math.log(2 * math.pi)
    return Posterior(log_prob, sigma.square() * p + alpha * r * x, alpha * p - q * x)


def full_posterior(
    x: Tensor, alpha: Tensor, sigma: Tensor, means: Tensor, values: Tensor, vectors: Tensor, log_weights: Tensor
) -> Posterior:
    """For ``sum_k w_k N(m_k, Q_k diag(l_k) Q_k^T)``, with values l (K, D) and vectors Q (K, D, D)."""
    centred = x.double()[:, None] - alpha[:, :, None] * means
    z = torch.einsum("bkd,kde->bke", centred, vectors)
    v = alpha.square()[:, :, None] * values + sigma.square()[:, :, None]
    logits = log_weights - (z.square() / v + (2 * math.pi * v).log()).sum(2) / 2
    p = logits.softmax(1)
    score = torch.einsum("bk,kde,bke->bd", p, vectors, -z / v)
    shift = torch.einsum("bk,kde,bke->bd", p, vectors, alpha[:, :, None] * values * z / v)
    return Posterior(logits.logsumexp(1), p @ means + shift, score)
