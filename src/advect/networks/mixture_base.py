"""A Gaussian mixture whose flow a network corrects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advect.core.errors import UserError
from advect.core.types import Conditions

PREDICTIONS = ("velocity", "data", "noise", "score")


@dataclass(frozen=True, eq=False)
class Gaussians:
    """``sum_k w_k N(means_k, Q_k diag(values_k) Q_k^T)`` in D dimensions.

    Attributes:
        means: (K, D).
        values, vectors: eigenvalues (K, D) > 0 and eigenvectors (K, D, D), one a column, of the covariances.
        log_weights: (K,) logarithms of w_k.

    Raises UserError for shapes that do not match, values that are not finite and eigenvalues that are not positive.
    """

    means: Tensor
    values: Tensor
    vectors: Tensor
    log_weights: Tensor

    def __post_init__(self) -> None:
        k, d = self.means.shape
        shapes = tuple(self.values.shape), tuple(self.vectors.shape), tuple(self.log_weights.shape)
        if shapes != ((k, d), (k, d, d), (k,)):
            raise UserError(f"Gaussians of means {(k, d)} need {(k, d)}, {(k, d, d)} and {(k,)} numbers, got {shapes}")
        parts = (self.means, self.values, self.vectors, self.log_weights)
        if not all(bool(torch.isfinite(part).all()) for part in parts) or not bool((self.values > 0).all()):
            raise UserError("Gaussians need finite numbers and eigenvalues > 0; raise the floor of their covariances")

    @classmethod
    def of(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> Gaussians:
        """From weights (K,), means (K, D) and covariances (K, D, D)."""
        values, vectors = torch.linalg.eigh(covariances.double())
        return cls(means.double(), values, vectors, weights.double().log())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (B,) at x (B, D), in nats and float64."""
        z = torch.einsum("bd,kde->bke", x.double(), self.vectors.double())
        z = z - torch.einsum("kd,kde->ke", self.means.double(), self.vectors.double())
        v = self.values.double()
        logits = self.log_weights.double() - (z.square() / v + (2 * torch.pi * v).log()).sum(2) / 2
        return logits.logsumexp(1)


class AffineCoefficients(Protocol):
    """What of an affine path is used."""

    schedule: Any

    def coefficients(self, t: Tensor) -> Any:
        """alpha, sigma and their derivatives at t (B,)."""
        ...


class WithMixture(nn.Module):
    """``net`` plus the exact prediction of a Gaussian mixture in its place: a correction of the mixture's flow.

    On ``x_t = alpha x_1 + sigma x_0``, x_1 of the mixture and x_0 ~ N(0, I), component k has the marginal
    ``N(alpha m_k, Q_k v_k Q_k^T)`` with ``v_k = alpha^2 l_k + sigma^2``, and with ``z_k = Q_k^T (x - alpha m_k)``

        E[x_1 | x, k] = m_k + Q_k (alpha l_k / v_k) z_k,      E[x_0 | x, k] = Q_k (sigma / v_k) z_k,

    weighted by ``p(k | x)``; velocity, noise and score follow. v_k > 0 at all times, so that no end of time divides by
    0. A network that starts with output 0 starts as the mixture. The Gaussians are buffers.

    Args:
        net: network of vectors (B, D).
        gaussians: the mixture, in the network's units.
        path: affine, from N(0, I) drawn apart from the data.
        prediction: of the network: "velocity", "data", "noise" or "score".
        t_eps: distance from 0 and 1 kept where the schedule's derivatives are infinite.

    Attributes:
        alone: whether the network adds nothing, so that the law at t = 1 is the mixture itself.

    Raises UserError for another prediction.
    """

    means: Tensor
    values: Tensor
    vectors: Tensor
    log_weights: Tensor

    def __init__(
        self, net: Any, gaussians: Gaussians, path: AffineCoefficients, prediction: str, t_eps: float = 1e-3
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise UserError(f"WithMixture.prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        self.net, self.path, self.prediction = net, path, prediction
        open_end = prediction == "velocity" and not all(path.schedule.finite_ends())
        self.margin = (t_eps or 1e-3) if open_end else 0.0
        self.alone = False
        for name in ("means", "values", "vectors", "log_weights"):
            self.register_buffer(name, getattr(gaussians, name).float().clone())

    @property
    def gaussians(self) -> Gaussians:
        """The mixture of the buffers."""
        return Gaussians(self.means, self.values, self.vectors, self.log_weights)

    def closed_log_prob(self, x: Tensor) -> Tensor | None:
        """Log density (B,) at x (B, D) if the network adds nothing: the mixture's own, without an ODE; else None."""
        return self.gaussians.log_prob(x) if self.alone else None

    def check_size(self, shape: Any) -> None:
        """Raise UserError unless the network takes samples of ``shape``."""
        self.net.check_size(shape)

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditions | None = None) -> Tensor:
        return self.of_mixture(x_t, t) + self.net(x_t, t, cond)

    def of_mixture(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The mixture's prediction (B, D) at x_t (B, D), t (B,), in the precision of its buffers."""
        with torch.autocast(x_t.device.type, enabled=False):
            return self._of_mixture(x_t.to(self.means.dtype), t).to(x_t.dtype)

    def _of_mixture(self, x: Tensor, t: Tensor) -> Tensor:
        times = t.double().clamp(self.margin, 1 - self.margin)
        alpha, sigma, d_alpha, d_sigma = (c.to(x.dtype)[:, None, None] for c in self.path.coefficients(times))
        q, k, d = self.vectors, *self.means.shape
        z = (x @ q.movedim(0, 1).reshape(d, k * d)).view(-1, k, d)
        z = z - alpha * torch.einsum("kd,kde->ke", self.means, q)
        v = alpha.square() * self.values + sigma.square()
        p = (self.log_weights - (z.square() / v + v.log()).sum(2) / 2).softmax(1)
        none = torch.zeros_like(alpha)
        of_mean, of_rest = {
            "velocity": (d_alpha, d_alpha * alpha * self.values + d_sigma * sigma),
            "data": (none + 1, alpha * self.values),
            "noise": (none, sigma),
            "score": (none, none - 1),
        }[self.prediction]
        pulled = (p[:, :, None] * (of_rest / v) * z).flatten(1) @ q.mT.reshape(k * d, d)
        return of_mean[:, :, 0] * (p @ self.means) + pulled
