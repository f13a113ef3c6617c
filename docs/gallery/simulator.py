# %% [markdown]
# # Posterior of a simulator
#
# A ball is thrown at an unknown angle and speed; we see where it lands and how long it flew, with noise. Which
# throws explain it?

# %%
import matplotlib.pyplot as plt
import numpy as np

import advect
from advect.metrics import simulation_ranks, verdict


def throw(theta, rng):
    """Distance and time of flight, of angle (radians) and speed (m/s), with noise."""
    angle, speed = theta
    time = 2 * speed * np.sin(angle) / 9.81
    return np.array([speed * np.cos(angle) * time, time]) + rng.normal(0, [0.5, 0.15])


prior = (np.array([0.2, 5.0]), np.array([1.4, 15.0]))
theta, x, _ = advect.from_simulator(throw, prior, 2500, progress=False, seed=0)
posterior = advect.FlowPosterior(steps=400, random_state=0).fit(theta[:2000], x[:2000], prior=prior)
observed = np.array([10.0, 1.5])
draws = posterior.sample(observed, 2000)
print("mean", draws.mean(0).round(2), "deviation", draws.std(0).round(2))

# %% [markdown]
# This one has a likelihood, so that the exact posterior is known: contours, against draws.

# %%
angle, speed = np.meshgrid(np.linspace(0.2, 1.4, 200), np.linspace(5, 15, 200))
time = 2 * speed * np.sin(angle) / 9.81
log_p = -(((speed * np.cos(angle) * time - 10) / 0.5) ** 2 + ((time - 1.5) / 0.15) ** 2) / 2
weight = np.exp(log_p) / np.exp(log_p).sum()
print("exact mean", np.round([(weight * angle).sum(), (weight * speed).sum()], 2))

figure, axis = plt.subplots(figsize=(4.5, 3.3))
axis.scatter(*draws.T, s=2, alpha=0.5, label="draws")
axis.contour(angle, speed, np.exp(log_p), levels=[0.05, 0.3, 0.7], colors="black", linewidths=0.8)
axis.set(title="draws, and the exact posterior", xlabel="angle", ylabel="speed", xlim=(0.5, 1.1), ylim=(8, 14))

# %% [markdown]
# Is it calibrated everywhere? Ranks of the true parameters among draws, on simulations it has not seen.

# %%
ranks = simulation_ranks(theta[2000:2200], posterior.sample(x[2000:2200], 99))
print(verdict(ranks).sentence)
