# %% [markdown]
# # Two moons to density
#
# Points in the plane, new ones like them, and the density of any point.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons

import advect

X, _ = make_moons(1500, noise=0.07, random_state=0)
held_out, _ = make_moons(500, noise=0.07, random_state=1)
model = advect.FlowModel(steps=300, random_state=0).fit(X)
new = model.sample(1000)
print(f"mean log-density of held-out points: {model.score(held_out):.3f} nats")

# %% [markdown]
# Densities are exact: their sum over a grid that covers the data is one.

# %%
side = np.linspace(-2, 3, 100), np.linspace(-1.5, 2, 70)
grid = np.stack(np.meshgrid(*side), -1).reshape(-1, 2)
density = np.exp(model.score_samples(grid)).reshape(70, 100)
cell = (side[0][1] - side[0][0]) * (side[1][1] - side[1][0])
print(f"integral over the grid: {density.sum() * cell:.4f}")

figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharex=True, sharey=True)
axes[0].scatter(*X[:1000].T, s=2)
axes[1].scatter(*new.T, s=2, color="tab:orange")
axes[2].pcolormesh(*side, density, cmap="magma")
for axis, title in zip(axes, ("data", "samples", "density"), strict=True):
    axis.set_title(title)
