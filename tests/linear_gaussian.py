"""A linear-Gaussian model, whose posterior is known: theta ~ N(0, I), x = A theta + noise of a standard deviation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class LinearGaussian:
    """Draws and log-densities of the exact posterior, or of one scaled by ``width`` and moved by ``shift``."""

    matrix: np.ndarray = field(default_factory=lambda: np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]]))
    noise: float = 0.7
    width: float = 1.0
    shift: float = 0.0

    @property
    def covariance(self) -> np.ndarray:
        """Of the exact posterior (D, D)."""
        a = self.matrix
        return np.linalg.inv(np.eye(a.shape[1]) + a.T @ a / self.noise**2)

    def simulate(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """theta (n, D) and x (n, K)."""
        theta = rng.normal(size=(n, self.matrix.shape[1]))
        return theta, theta @ self.matrix.T + self.noise * rng.normal(size=(n, len(self.matrix)))

    def mean(self, x: np.ndarray) -> np.ndarray:
        """Mean (n, D) given x (n, K); the shift is in the exact posterior's standard deviations."""
        exact = x @ self.matrix @ self.covariance / self.noise**2
        return exact + self.shift * np.sqrt(np.diag(self.covariance))

    def draw(self, x: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, m, D) given x (n, K)."""
        root = self.width * np.linalg.cholesky(self.covariance)
        return self.mean(x)[:, None] + rng.normal(size=(len(x), m, len(root))) @ root.T

    def log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Log-densities (n, m) of theta (n, m, D), less a constant."""
        away = theta - self.mean(x)[:, None]
        return -0.5 * np.einsum("nmi,ij,nmj->nm", away, np.linalg.inv(self.covariance) / self.width**2, away)
