"""Where a response lies given its features, by stacked regressors: what a flow of the rest begins from.

A flow of residuals has only the shape and width of the law to learn. Stacked generalisation: Wolpert 1992; weights
that are not negative: Breiman 1996, "Stacked regressions".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5

FEWEST = 40
"""Rows from which more than a linear model is fitted."""

_SLOW = 20_000
"""Rows up to which all trees are grown to their ends."""


WIDEST, ROWS_EACH = 512, 10
"""Most numbers of x, and rows for each, of a linear model alone."""

EXPLAINED = 0.9
"""Share of the variance that it has to explain where there is an edge."""


class Location:
    """A non-negative combination of regressors, for each column of y (n, k).

    Attributes:
        names: of the regressors.
        weights: (regressors, k), of sum at most about one.
        residual: root mean square (k,) of what rows lie away from predictions of regressors that had not seen them.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Fit to x (n, d) and y (n, k), and return predictions (n, k) of rows by regressors that had not seen them."""
        self._center, self._scale = y.mean(0), np.where(y.std(0) > 0, y.std(0), 1.0)
        z = (y - self._center) / self._scale
        regressors = _regressors(len(x), self.seed)
        self.names = list(regressors)
        apart = np.zeros((len(regressors), *z.shape))
        for train, held_out in KFold(min(FOLDS, len(x)), shuffle=True, random_state=self.seed).split(x):
            for i, regressor in enumerate(regressors.values()):
                apart[i, held_out] = _Columns(regressor).fit(x[train], z[train]).predict(x[held_out])
        self.weights = np.stack([nnls(apart[:, :, j].T, z[:, j])[0] for j in range(z.shape[1])], 1)
        used = [bool(row.any()) for row in self.weights]
        pairs = zip(regressors.values(), used, strict=True)
        self._fitted = [_Columns(regressor).fit(x, z) if needed else None for regressor, needed in pairs]
        found = np.einsum("mk,mnk->nk", self.weights, apart) * self._scale + self._center
        self.residual = np.sqrt(np.square(y - found).mean(0))
        return found

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predictions (n, k) for x (n, d)."""
        found = np.zeros((len(x), len(self._center)))
        for weight, model in zip(self.weights, self._fitted, strict=True):
            if model is not None:
                found += weight * model.predict(x)
        return found * self._scale + self._center


class LinearLocation:
    """Ridge regression of y (n, k) on x (n, d), its strength by generalised cross-validation.

    It is 0 for columns that have an ``edge`` (k,), unless it explains ``EXPLAINED`` of their variance: a law against
    an edge is better learned from where it is. It is 0 where x has more than ``WIDEST`` numbers, or more than one for
    each ``ROWS_EACH`` rows.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, edge: np.ndarray) -> None:
        self.used = np.zeros(y.shape[1], bool)
        if x.shape[1] <= min(WIDEST, len(x) // ROWS_EACH):
            self._model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 5, 17))).fit(x, y)
            rest = (y - self._model.predict(x).reshape(y.shape)).var(0)
            self.used = ~edge | (rest < (1 - EXPLAINED) * y.var(0))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predictions (n, k) for x (n, d)."""
        if not self.used.any():
            return np.zeros((len(x), len(self.used)))
        return np.where(self.used, self._model.predict(x).reshape(len(x), -1), 0.0)


def _regressors(n: int, seed: int) -> dict[str, Any]:
    """Unfitted regressors for n rows, by name."""
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))
    if n < FEWEST:
        return {"ridge": ridge}
    few = n <= _SLOW
    boosting = HistGradientBoostingRegressor(
        max_iter=400 if few else 200, learning_rate=0.06, max_leaf_nodes=16, l2_regularization=1.0, random_state=seed
    )
    trees = ExtraTreesRegressor(200, min_samples_leaf=1 if few else 5, random_state=seed)
    network = make_pipeline(StandardScaler(), _Network(max(10, min(300, 400_000 // n)), seed))
    return {"ridge": ridge, "boosting": boosting, "trees": trees, "network": network}


class _Network(RegressorMixin, BaseEstimator):
    """A multilayer perceptron trained for a number of passes, which is no failure to converge."""

    def __init__(self, passes: int, seed: int) -> None:
        self.passes, self.seed = passes, seed

    def fit(self, x: np.ndarray, y: np.ndarray) -> _Network:
        size: Any = min(128, len(x))
        self.net_: Any = MLPRegressor(
            hidden_layer_sizes=(128, 128), alpha=1e-3, batch_size=size, random_state=self.seed
        )
        for i in range(self.passes):
            self.net_.set_params(learning_rate_init=2e-3 * (1 - i / self.passes))
            if i:
                self.net_._optimizer.learning_rate_init = self.net_.learning_rate_init
            self.net_.partial_fit(x, y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.net_.predict(x)


class _Columns:
    """A regressor for each column of y."""

    def __init__(self, regressor: Any) -> None:
        self._regressor = regressor

    def fit(self, x: np.ndarray, y: np.ndarray) -> _Columns:
        copies: list[Any] = [clone(self._regressor) for _ in range(y.shape[1])]
        self._models = [copy.fit(x, y[:, j]) for j, copy in enumerate(copies)]
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.stack([model.predict(x) for model in self._models], 1)
