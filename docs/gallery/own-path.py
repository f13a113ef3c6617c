# %% [markdown]
# # A path of your own
#
# A schedule is a class that returns alpha, sigma and their derivatives. `register` makes it a choice of the command
# line.

# %%
import shlex
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch

import advect
from advect.core.registry import register
from advect.paths import AffinePath, Coefficients, Schedule


@register("smoothstep")
@dataclass(frozen=True)
class Smoothstep(Schedule):
    """alpha_t = 3 t^2 - 2 t^3 and sigma_t = 1 - alpha_t; slow at both ends."""

    def coefficients(self, t):
        alpha, d_alpha = t * t * (3 - 2 * t), 6 * t * (1 - t)
        return Coefficients(alpha, 1 - alpha, d_alpha, -d_alpha)


# %% [markdown]
# With a mixture of Gaussians as data, the exact velocity is known for every path, ours included: integrated, it must
# give the mixture.

# %%
path = AffinePath(Smoothstep())
means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
law = advect.paths.GaussianMixture(means, stds=torch.tensor([0.3, 0.5]), weights=torch.tensor([0.3, 0.7]), path=path)
noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
x = advect.solvers.integrate(law.velocity, noise, solver="rk4", steps=40)
print(f"share at the right mode: {float((x[:, 0] > 0).float().mean()):.3f}, exactly 0.7")

# %% [markdown]
# And it trains like any other:

# %%
from advect.cli import run

run(shlex.split("train moons --path smoothstep --max-steps 500 --sample-every 0 --run-dir runs/moons"))
samples = advect.load("runs/moons").sample(1000, seed=0).x

figure, axes = plt.subplots(1, 2, figsize=(8, 3))
t = torch.linspace(0, 1, 100)
alpha, sigma, *_ = Smoothstep().coefficients(t)
axes[0].plot(t, alpha, label="alpha")
axes[0].plot(t, sigma, label="sigma")
axes[0].set_title("the schedule")
axes[0].legend()
axes[1].scatter(*samples.T, s=2)
axes[1].set_title("samples")
