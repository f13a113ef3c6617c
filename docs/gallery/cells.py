# %% [markdown]
# # Cells by type
#
# Expression of forty genes in three types of cells, generated with known programs; the flow draws cells of a type.

# %%
import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import advect

rng = np.random.default_rng(0)
types = np.array(["alpha", "beta", "delta"])
kind = rng.integers(0, 3, 1500)
programs = rng.gamma(1.0, 1.0, (3, 40))  # the mean of each gene in each type
activity = rng.lognormal(0, 0.3, (1500, 1))  # cells differ in how active their program is
counts = rng.poisson(6 * programs[kind] * activity)
data = anndata.AnnData(
    np.log1p(counts).astype(np.float32),
    obs=pd.DataFrame({"cell_type": types[kind]}, index=[f"cell {i}" for i in range(1500)]),
)
model = advect.FlowModel(steps=1000, early_stopping=False, random_state=0).fit(data, types[kind])

# %% [markdown]
# Means of the genes by type, of the data and of drawn cells.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3), sharex=True, sharey=True)
for axis, name in zip(axes, types, strict=True):
    real = np.asarray(data[data.obs["cell_type"] == name].X)
    drawn = np.asarray(model.sample(500, name).X)
    axis.scatter(real.mean(0), drawn.mean(0), s=12)
    axis.plot([0, 3.5], [0, 3.5], color="gray", linewidth=0.8)
    axis.set(title=f"{name}: mean of each gene", xlabel="data", ylabel="samples")
    spread = np.corrcoef(real.std(0), drawn.std(0))[0, 1]
    print(
        f"{name}: means differ by {np.abs(real.mean(0) - drawn.mean(0)).mean():.3f}, deviations correlate {spread:.3f}"
    )
figure.tight_layout()
