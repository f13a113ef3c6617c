"""Imputation by a flow that is given what is known, as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from advect.core.bounds import Count
from advect.sklearn.model import FlowModel, check_whole


class FlowImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fills missing values with draws of a flow, given the values that are there.

    The flow is trained on rows as they are, with their holes: a random part of what is there is given, and the rest
    learned (see :class:`~advect.masks.RandomMask`). Missing at random is assumed, as by other imputers.

    ``transform`` gives each missing number the mean of ``draws`` draws, each category the most frequent; ``sample``
    gives the draws, for multiple imputation, whose spread tells how sure they are. With ``options={"rule": ...}`` both
    obey rules among the columns of frames: where the typical values break one, the nearest draw is taken.

    Args:
        draws: draws behind each value of :meth:`transform`, and of :meth:`sample` by default.
        hidden, steps, batch_size, max_minutes, learning_rate, early_stopping, validation_fraction, n_iter_no_change,
        solver, sample_steps, device, options, random_state, verbose: as of :class:`~advect.FlowModel`.

    Attributes:
        model_: the :class:`~advect.FlowModel` behind it.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Raises UserError, a ValueError, for unusable arguments or data, such as a column without any value.
    """

    def __init__(
        self,
        *,
        draws: int = 20,
        hidden: int | Sequence[int] | None = None,
        steps: int | None = None,
        batch_size: int = 256,
        max_minutes: float | None = None,
        learning_rate: float | None = None,
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.15,
        n_iter_no_change: int = 10,
        solver: str = "midpoint",
        sample_steps: int = 50,
        device: str = "auto",
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.draws, self.hidden, self.steps, self.batch_size = draws, hidden, steps, batch_size
        self.max_minutes, self.learning_rate, self.early_stopping = max_minutes, learning_rate, early_stopping
        self.validation_fraction, self.n_iter_no_change = validation_fraction, n_iter_no_change
        self.solver, self.sample_steps, self.device = solver, sample_steps, device
        self.options, self.random_state, self.verbose = options, random_state, verbose

    def fit(self, X: Any, y: Any = None) -> FlowImputer:
        """Fit the law of X (N, D), an array with NaN or a data frame with missing values; y is ignored."""
        check_whole("draws", self.draws, Count)
        shared = self.get_params(deep=False)
        del shared["draws"]
        shared["options"] = {"mask": "random", "holes": True, **(self.options or {})}
        self.model_ = FlowModel(**shared).fit(_with_values(X))
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.model_, name):
                setattr(self, name, getattr(self.model_, name))
        return self

    def transform(self, X: Any) -> Any:
        """X, of the kind fitted, with its missing values filled in; what is there stays as it is."""
        filled, x = self.sample(X), self._checked(X)
        if isinstance(filled[0], np.ndarray):
            return np.where(np.isnan(x), np.mean(filled, 0), x)
        typical, holes = self._typical(x, filled), x.isna().to_numpy()
        obeying = self.model_._fitted.adapter.obeying(x, typical, filled)
        rows = np.flatnonzero(holes.any(1))
        return typical if obeying is typical else _filled(x, rows, holes, obeying.iloc[rows])

    def sample(self, X: Any, draws: int | None = None) -> list[Any]:
        """``draws`` copies of X, each with its missing values drawn anew, given the others of their rows."""
        check_is_fitted(self)
        check_whole("draws", number := self.draws if draws is None else draws, Count)
        x = self._checked(X)
        holes = np.asarray(x.isna() if hasattr(x, "isna") else np.isnan(x))
        rows = np.flatnonzero(holes.any(1))
        if not len(rows):
            return [x.copy() for _ in range(number)]
        some = x.iloc[rows] if hasattr(x, "iloc") else x[rows]
        drawn = self.model_.sample(len(rows) * number, given=_repeated(some, number))
        return [_filled(x, rows, holes, drawn[k * len(rows) : (k + 1) * len(rows)]) for k in range(number)]

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        return self.model_.check_given(X)

    def _typical(self, x: Any, filled: Sequence[Any]) -> Any:
        """The frame with the mean of numbers, the middle of times, and the most frequent of other values."""
        import pandas as pd

        found = filled[0].copy()
        for name in x.columns[x.isna().any()]:
            holes = x[name].isna()
            each: Any = pd.concat([frame.loc[holes, name].reset_index(drop=True) for frame in filled], axis=1)
            is_, kind = pd.api.types, x[name].dtype
            if is_.is_numeric_dtype(kind) and not is_.is_bool_dtype(kind):
                values = each.astype(float).mean(axis=1)
                whole = is_.is_integer_dtype(found[name].dtype)
                found.loc[holes, name] = (values.round() if whole else values).astype(found[name].dtype).to_numpy()
            elif is_.is_datetime64_any_dtype(kind) or is_.is_timedelta64_dtype(kind):
                found.loc[holes, name] = each.apply(lambda row: sorted(row)[len(row) // 2], axis=1).to_numpy()
            else:
                found.loc[holes, name] = each.mode(axis=1)[0].to_numpy()
        return found

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64"]
        return tags


def _with_values(x: Any) -> Any:
    """The rows of x that have a value at all; what is no array or frame as it is."""
    if hasattr(x, "isna") and hasattr(x, "columns"):
        return x[~x.isna().all(axis=1)]
    own = np.asarray(x) if isinstance(x, np.ndarray | list | tuple) else None
    if own is None or own.ndim != 2 or own.dtype.kind != "f":
        return x
    empty = np.isnan(own).all(1)
    return own[~empty] if empty.any() and not empty.all() else x


def _repeated(x: Any, number: int) -> Any:
    """The rows of x, all of them ``number`` times."""
    places = np.tile(np.arange(len(x)), number)
    return x.iloc[places] if hasattr(x, "iloc") else x[places]


def _filled(x: Any, rows: np.ndarray, holes: np.ndarray, drawn: Any) -> Any:
    """x with the ``holes`` of ``rows`` from ``drawn``, the frame or array of these rows."""
    found = x.copy()
    if isinstance(x, np.ndarray):
        found[rows] = np.where(holes[rows], drawn, x[rows])
        return found
    for place, name in enumerate(x.columns):
        here = holes[rows, place]
        if here.any():
            column = found[name].to_numpy(object)
            column[rows[here]] = drawn[name].to_numpy(object)[here]
            complete = drawn[name].dtype if not holes[:, place].all() else x[name].dtype
            found[name] = type(found[name])(column, index=x.index, name=name).astype(complete)
    return found
