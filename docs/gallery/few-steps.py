# %% [markdown]
# # Few steps
#
# A flow is solved in steps, and each costs an evaluation of the network. `advect distill` learns steps of any length.

# %%
import shlex

import matplotlib.pyplot as plt
import torch

import advect
from advect.cli import run

run(shlex.split("train moons --max-steps 1500 --sample-every 0 --run-dir runs/moons"))
run(shlex.split("distill runs/moons --max-steps 1500 --sample-every 0"))

# %%
flow, distilled = advect.load("runs/moons"), advect.load("runs/moons/distilled")
best = flow.sample(2000, steps=50, seed=0).x
figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True, sharey=True)
for row, (name, solver, model) in zip(
    axes, [("flow, euler", "euler", flow), ("distilled", "flow-map", distilled)], strict=True
):
    for axis, steps in zip(row, (1, 2, 4), strict=True):
        x = model.sample(2000, steps=steps, solver=solver, seed=1).x
        distance = advect.metrics.energy_distance(torch.as_tensor(x), torch.as_tensor(best))
        print(f"{name}, {steps} evaluations: energy distance {float(distance):.4f} to 50 midpoint steps")
        axis.scatter(*x.T, s=1)
        axis.set_title(f"{name}: {steps}")
