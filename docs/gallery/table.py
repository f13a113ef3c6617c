# %% [markdown]
# # A table
#
# Numbers, a category and missing values in one data frame, whose columns depend on each other.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import advect

rng = np.random.default_rng(0)
age = rng.integers(18, 80, 1500)
trade = np.where(rng.random(1500) < (age - 18) / 80, "own", "rents")
income = (np.exp(10 + 0.02 * np.minimum(age, 55) + 0.4 * (trade == "own") + rng.normal(0, 0.35, 1500))).round(-2)
income = np.where(rng.random(1500) < 0.08, np.nan, income)
frame = pd.DataFrame({"age": age, "home": trade, "income": income})
model = advect.FlowModel(steps=1200, early_stopping=False, random_state=0).fit(frame)
new = model.sample(1500)
print(new.head(4).to_string())
print(f"missing incomes: {frame.income.isna().mean():.1%} of the data, {new.income.isna().mean():.1%} of the samples")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True, sharey=True)
for axis, rows, title in zip(axes, (frame, new), ("data", "samples"), strict=True):
    for home, colour in (("rents", "tab:blue"), ("own", "tab:orange")):
        part = rows[rows.home == home]
        axis.scatter(part.age, part.income / 1000, s=4, alpha=0.6, color=colour, label=home)
    axis.set(title=title, xlabel="age", yscale="log")
axes[0].set_ylabel("income, thousands")
axes[0].legend(markerscale=3)
