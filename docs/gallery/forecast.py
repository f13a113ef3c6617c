# %% [markdown]
# # Forecast
#
# An hourly load with a day, a week and noise. Windows of two days are learned given their first day; the next day is
# drawn a hundred times.

# %%
import shlex

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from advect.cli import run

rng = np.random.default_rng(0)
hours = pd.date_range("2024-01-01", periods=2424, freq="h")
day = 15 * np.sin((hours.hour - 8) / 24 * 2 * np.pi) * np.where(hours.dayofweek < 5, 1, 0.5)
noise = pd.Series(rng.normal(0, 1.2, len(hours))).ewm(alpha=0.3).mean() * 2
frame = pd.DataFrame({"time": hours, "load": (60 + day + noise).round(1)})
frame[:-24].to_csv("load.csv", index=False)
run(
    shlex.split(
        "train sequences --data-dir load.csv --order-column time --max-length 48 --long window --stride 2 "
        "--mask prefix --mask-horizon 24 --width 64 --depth 2 --batch-size 64 --max-steps 500 --sample-every "
        "0 --run-dir runs/load"
    )
)
run(shlex.split("forecast runs/load load.csv --horizon 24 --draws 100 --num-steps 10 --output-dir forecast"))

# %%
draws = pd.read_csv("forecast/draws.csv")
values = draws["load"].to_numpy().reshape(100, 24)
true = frame["load"].to_numpy()[-24:]
low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=0)
day_before = frame["load"].to_numpy()[-48:-24]
print(f"mean absolute error: median of draws {np.abs(middle - true).mean():.2f}, ", end="")
print(f"the day before {np.abs(day_before - true).mean():.2f}")
print(f"hours in the 90% interval: {((true >= low) & (true <= high)).sum()} of 24")

figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(range(-48, 0), frame["load"][-72:-24], color="black", label="known")
axis.plot(range(24), true, color="black", linestyle=":", label="what came")
axis.fill_between(range(24), low, high, alpha=0.3, label="90% interval")
axis.plot(range(24), middle, label="median")
axis.set(title="the next day", xlabel="hour")
axis.legend(ncols=4, fontsize=8)
