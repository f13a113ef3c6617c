# %% [markdown]
# # Digits
#
# The 1,797 digits of scikit-learn: a short run of the command line's defaults, samples by class, and guidance.

# %%
import shlex

import matplotlib.pyplot as plt
import numpy as np

import advect
from advect.cli import run

run(shlex.split("train digits --max-steps 300 --sample-every 0 --run-dir runs/digits"))

# %% [markdown]
# A column for each class. 300 steps are a tenth of the demo's: the shapes are there, with slips.

# %%
flow = advect.load("runs/digits")
labels = np.arange(40) % 10
plain = flow.sample(40, cond={"label": labels}, steps=20, seed=0)
guided = flow.sample(40, cond={"label": labels}, steps=20, seed=0, guidance=2.0)
print("samples", tuple(plain.x.shape), "values", float(plain.x.min()), "to", float(plain.x.max()))

figure, axes = plt.subplots(1, 2, figsize=(9, 2.2))
for axis, samples, title in zip(axes, (plain, guided), ("as learned", "guidance 2"), strict=True):
    tiles = np.asarray(samples.x).reshape(4, 10, 8, 8).transpose(0, 2, 1, 3).reshape(32, 80)
    axis.imshow(tiles, cmap="gray_r", vmin=0, vmax=16)
    axis.set_title(title)
    axis.axis("off")
