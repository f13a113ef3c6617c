# %% [markdown]
# # Control to treated
#
# Cells are destroyed when measured: nobody sees one before *and* after a drug. The flow starts at control cells
# instead of noise and carries them to treated ones.

# %%
import shlex

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from advect.cli import run

rng = np.random.default_rng(0)
n, genes = 1600, 20
drug = np.where(np.arange(n) % 2 == 0, "none", "a")
state = rng.normal(size=(n, 1))  # what varies between cells
loads, effect = rng.normal(0.5, 0.3, genes), rng.normal(0, 0.8, genes)
rates = np.exp(1 + loads * state + (drug == "a")[:, None] * effect * (1 + 0.3 * state))
obs = pd.DataFrame({"drug": drug}, index=[f"cell {i}" for i in range(n)])
anndata.AnnData(rng.poisson(rates).astype(np.float32), obs).write_h5ad("screen.h5ad")
run(
    shlex.split(
        "train --data screen.h5ad --conditions drug --control drug=none --pca 10 --max-steps 600 "
        "--sample-every 0 --run-dir runs/screen"
    )
)
run(shlex.split("sample runs/screen --num-samples 500 --cond drug=a --output-dir treated"))

# %%
treated = anndata.read_h5ad("treated/samples.h5ad")
real = anndata.read_h5ad("screen.h5ad")
total = np.asarray(real.X).sum(1, keepdims=True)
x = np.log1p(np.asarray(real.X) / total * 1e4)
control, target, drawn = x[drug == "none"].mean(0), x[drug == "a"].mean(0), np.asarray(treated.X).mean(0)
print(f"shift of the mean explained: {1 - np.square(drawn - target).sum() / np.square(control - target).sum():.1%}")

figure, axis = plt.subplots(figsize=(4.5, 3.2))
axis.scatter(target - control, drawn - control, s=16)
axis.axline((0, 0), slope=1, color="gray", linewidth=0.8)
axis.set(title="effect on each gene", xlabel="treated less control", ylabel="flow less control")
