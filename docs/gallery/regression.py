# %% [markdown]
# # Regression with intervals
#
# The noise grows with x, and for x above 1 the response has two branches. Intervals and draws tell.

# %%
import matplotlib.pyplot as plt
import numpy as np

import advect

rng = np.random.default_rng(0)
x = rng.uniform(-2, 2, 1200)
branch = np.where(x > 1, rng.choice([-1.5, 1.5], x.size), 0)
y = np.sin(2 * x) + branch + rng.normal(0, 0.1 + 0.15 * (x + 2) / 2)
X = x[:, None]
model = advect.FlowRegressor(steps=600, random_state=0).fit(X[:900], y[:900])
lower, upper = model.predict_interval(X[900:], coverage=0.9).T
print(f"90% intervals cover {((y[900:] >= lower) & (y[900:] <= upper)).mean():.1%} of held-out rows")
print(
    f"mean log-density {model.log_prob(X[900:], y[900:]).mean():.3f}, CRPS {model.crps(X[900:], y[900:]).mean():.3f}"
)

# %%
line = np.linspace(-2, 2, 80)[:, None]
lower, upper = model.predict_interval(line, coverage=0.9).T
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True, sharey=True)
axes[0].scatter(x[:900], y[:900], s=3)
axes[0].fill_between(line[:, 0], lower, upper, alpha=0.25)
axes[0].set_title("data and 90% interval")
axes[1].scatter(np.repeat(line[:, 0], 10), model.sample(line, 10).ravel(), s=3, color="tab:orange")
axes[1].set_title("draws")
