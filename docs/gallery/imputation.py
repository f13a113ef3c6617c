# %% [markdown]
# # Imputation
#
# A third of the diabetes measurements in scikit-learn are hidden. A flow draws them given what is left, several
# times: the spread is what the data leave open.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.impute import SimpleImputer

import advect

X = load_diabetes(scaled=False).data[:, [2, 3, 4, 5, 6, 7, 8, 9]]
X = (X - X.mean(0)) / X.std(0)
rng = np.random.default_rng(0)
hidden = rng.random(X.shape) < 0.3
holes = np.where(hidden, np.nan, X)
imputer = advect.FlowImputer(steps=1500, random_state=0).fit(holes)
draws = np.stack(imputer.sample(holes, 20))

# %%
mean = SimpleImputer().fit_transform(holes)
error = np.sqrt(np.square(draws.mean(0) - X)[hidden].mean())
print(f"root mean squared error: flow {error:.3f}, column means {np.sqrt(np.square(mean - X)[hidden].mean()):.3f}")
low, high = np.quantile(draws, [0.05, 0.95], axis=0)
print(f"hidden values within the 5% to 95% of 20 draws: {((low <= X) & (high >= X))[hidden].mean():.1%}")

figure, axis = plt.subplots(figsize=(4.5, 3.5))
axis.errorbar(
    X[hidden][:150], draws.mean(0)[hidden][:150], draws.std(0)[hidden][:150], fmt="o", markersize=3, linewidth=0.6
)
axis.axline((0, 0), slope=1, color="gray", linewidth=0.8)
axis.set(title="hidden values", xlabel="true", ylabel="mean and deviation of draws")
