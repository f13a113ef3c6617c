# %% [markdown]
# # Inpainting
#
# A flow that was trained with halves of images given draws the other half, several times.

# %%
import shlex

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import advect
from advect.cli import run

run(shlex.split("train digits --mask half --max-steps 300 --sample-every 0 --run-dir runs/halves"))
flow = advect.load("runs/halves")

# %% [markdown]
# The left half of eight digits is given, NaN asks for the right; four draws of each.

# %%
images = load_digits().images[:8].astype(np.float32)[:, None]
given = images.copy()
given[..., 4:] = np.nan
labels = load_digits().target[:8].repeat(4)
draws = flow.sample(32, given=given.repeat(4, 0), cond={"label": labels}, steps=20, seed=0).x
draws = np.asarray(draws).reshape(8, 4, 8, 8)
print("what was given came back as it was:", np.array_equal(draws[..., :4], images.repeat(4, 1)[..., :4]))

figure, axes = plt.subplots(6, 8, figsize=(7, 5.2))
for i, column in enumerate(axes.T):
    shown = [images[i, 0], np.nan_to_num(given[i, 0], nan=8.0), *draws[i]]
    for axis, picture in zip(column, shown, strict=True):
        axis.imshow(picture, cmap="gray_r", vmin=0, vmax=16)
        axis.axis("off")
axes[0, 0].set_title("rows: true, given, four draws", loc="left", fontsize=9)
