"""A flow whose exact velocity is known: Gaussian data around one mean a class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advect.core.types import Category, DataSpec
from advect.solvers import integrate

SPREAD = 0.3


class GaussianFlow:
    """Carries N(0, I) to N(mean_label, SPREAD^2 I) by the marginal velocity of the conditional-OT path."""

    def __init__(self, shape: tuple[int, ...], means: Tensor, *, shift: int = 0) -> None:
        names = tuple(f"class {i}" for i in range(len(means)))
        category = Category(names, (1 / len(means),) * len(means))
        kind = "image" if len(shape) == 3 else "vector"
        self.spec = DataSpec(shape, kind, {"label": category} if len(means) > 1 else {})
        self.means, self.shift, self.calls = means, shift, []

    def sample(self, n, *, steps=50, solver="midpoint", seed=0, cond=None, trajectory=False):
        self.calls.append((n, steps, solver, seed, cond))
        label = cond["label"] if cond else torch.zeros(n, dtype=torch.long)
        mean = self.means[(label + self.shift) % len(self.means)].reshape(n, *self.spec.shape)
        x0 = torch.randn(n, *self.spec.shape, generator=torch.Generator().manual_seed(seed))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            s = float(t[0])
            slope = (s * SPREAD**2 - (1 - s)) / (s**2 * SPREAD**2 + (1 - s) ** 2)
            return mean + slope * (x - s * mean)

        return integrate(velocity, x0, solver=solver, steps=steps, trajectory=trajectory)

    def data(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Rows (n, *S) of the very law that it samples at ``shift`` 0, and their labels."""
        generator = torch.Generator().manual_seed(seed)
        label = torch.arange(n) % len(self.means)
        noise = torch.randn(n, *self.spec.shape, generator=generator)
        return self.means[label].reshape(n, *self.spec.shape) + SPREAD * noise, label


@pytest.fixture
def plain() -> GaussianFlow:
    """One class in five dimensions, without conditions."""
    return GaussianFlow((5,), torch.full((1, 5), 2.0))


@pytest.fixture
def classes() -> GaussianFlow:
    """Three well separated classes of images of 1 x 2 x 2."""
    return GaussianFlow((1, 2, 2), torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0]]))
