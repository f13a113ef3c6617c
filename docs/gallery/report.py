# %% [markdown]
# # Reading a report
#
# `advect report RUN` writes one page: loss, samples, quality, cost, copies. Its numbers are those of `advect eval`.

# %%
import json
import shlex
from pathlib import Path

import matplotlib.pyplot as plt

from advect.cli import run

run(shlex.split("train moons --max-steps 800 --sample-every 0 --run-dir runs/moons"))
run(shlex.split("report runs/moons"))
print(f"{Path('runs/moons/report.html').stat().st_size // 1000} kB in one file")

# %% [markdown]
# The loss does not go to zero: it holds the variance of velocities at a point. Whether it still falls is what it
# tells.

# %%
rows = [json.loads(line) for line in Path("runs/moons/metrics.jsonl").read_text().splitlines()]
rows = [row for row in rows if "loss" in row]
figure, axis = plt.subplots(figsize=(5, 2.6))
axis.plot([row["step"] for row in rows], [row["loss"] for row in rows])
axis.set(title="loss", xlabel="step")

# %% [markdown]
# A distance means something beside its *floor*, that of real data from other real data. At the floor, samples are as
# far from held-out points as training points are.

# %%
run(shlex.split("eval runs/moons --num-samples 1000 --output result.json"))
for name, entry in json.loads(Path("result.json").read_text())["points"][0]["metrics"].items():
    print(name, entry)
