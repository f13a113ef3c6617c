"""Conditional densities of real responses as a scikit-learn regressor."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtri
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from advect.core.bounds import Count, SampleCount, Steps
from advect.core.errors import UserError
from advect.core.random import CounterRng, Stream, stream_seed
from advect.core.types import Quantity
from advect.metrics import ConformalIntervals, crps
from advect.model.conditions import Encoded
from advect.model.flow import Flow
from advect.sklearn.adapters import ArrayAdapter, FrameAdapter
from advect.sklearn.conditioning import check_reals
from advect.sklearn.fitting import fit_flow
from advect.sklearn.location import Location
from advect.sklearn.mixture import double_precision, mixed_log_prob
from advect.sklearn.model import BATCH, check_whole
from advect.sklearn.settings import Settings, resolve, warn

X_ = "x"
"""Name of the condition."""

FEWEST = 10
"""Fewest rows that are fitted."""

FOLDED = 10_000
"""Most rows of which each fifth is held out in turn, so that the density is that of six flows."""

_NORMAL = ndtri((np.arange(128) + 0.5) / 128)
"""Normal quantiles whose images by each flow are behind what is told of one response, and ..."""

_NODES = np.linspace(-3, 3, 33)
"""... those that the flow moves, between which its map is interpolated, monotone (Fritsch & Carlson 1980)."""

_BLOCK = 2**15
"""Rows that a flow moves at once."""

Scoring = Literal["r2", "log-density", "crps"]


class FlowRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """The whole law of one or many real responses y given X, with exact densities.

    A stack of regressors (:class:`~advect.sklearn.location.Location`) tells where y lies, by predictions for rows that
    they had not seen; a flow given X learns the law of what is left, which may be skewed, of several modes, and wide
    here and narrow there. Up to 10,000 rows it is an equal mixture of the flows that left out a fifth each and one of
    all rows. For one response the flow's map of normal quantiles is monotone, so that quantiles are those of the
    flow, interpolated; for several they are those of ``draws`` draws, the same noise for all rows.

    X is an array (N, D) of numbers, NaN where missing, or a pandas data frame with columns of any types.

    Args:
        location: "stack", or None, whose flow is of y itself.
        hidden, steps, batch_size, max_minutes, learning_rate, validation_fraction, n_iter_no_change, device, verbose:
            as of :class:`~advect.FlowModel`.
        early_stopping: as there; "auto" does so from 10 rows on.
        dequantise: add uniform noise of the width of the rounding to y, which then has a density; draws and quantiles
            are rounded as y is.
        scoring: what :meth:`score` gives, "r2", "log-density" (the mean) or "crps" (its negative mean).
        draws: draws a row behind what is told of several responses.
        sample_steps, density_steps: Runge-Kutta steps of draws and quantiles, and of densities.
        options: other flags of ``advect train`` with underscores, as of FlowModel; of X "scaling" and "categorical".
        random_state: seed of training and of samples; None draws new ones, never from NumPy's global generator.

    Attributes:
        location_: the regressors, or None.
        flow_: the flow of what is left, of all rows.
        step_: the rounding of each response (k,), 0 where there is none.
        n_features_in_, feature_names_in_, n_outputs_: as in scikit-learn.

    Raises UserError, a ValueError, for unusable arguments and data: missing or constant y, fewer than 10 rows.
    """

    def __init__(
        self,
        *,
        location: str | None = "stack",
        hidden: int | Sequence[int] | None = None,
        steps: int | None = None,
        batch_size: int = BATCH,
        max_minutes: float | None = None,
        learning_rate: float | None = None,
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.15,
        n_iter_no_change: int = 10,
        dequantise: bool = False,
        scoring: Scoring = "r2",
        draws: int = 500,
        sample_steps: int = 10,
        density_steps: int = 20,
        device: str = "auto",
        options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.location, self.hidden, self.steps, self.batch_size = location, hidden, steps, batch_size
        self.max_minutes, self.learning_rate, self.early_stopping = max_minutes, learning_rate, early_stopping
        self.validation_fraction, self.n_iter_no_change = validation_fraction, n_iter_no_change
        self.dequantise, self.scoring, self.draws = dequantise, scoring, draws
        self.sample_steps, self.density_steps, self.device = sample_steps, density_steps, device
        self.options, self.random_state, self.verbose = options, random_state, verbose

    def fit(self, X: Any, y: Any) -> FlowRegressor:
        """Fit the law of y (N,) or (N, k), finite real numbers, given X (N, D)."""
        self._check_arguments()
        if y is None:
            raise UserError("FlowRegressor requires y to be passed, but the target y is None; FlowModel needs none")
        frame = self._checked(X, reset=True)
        self._flat, response = np.asarray(y).ndim == 1, self._responses(y, len(frame))
        rng = self._generator()
        seed = int(rng.randint(2**31 - 1))
        self._features = _Features(frame, self.options)
        x = self._features.encode(frame)
        noisy = response + self.step_ * (rng.uniform(size=response.shape) - 0.5)
        self.location_ = None if self.location is None else Location(seed)
        center = np.zeros_like(noisy) if self.location_ is None else self.location_.fit(x, noisy)
        self._fit_flow(noisy - center, self._condition(x, center, fit=True), seed)
        return self

    def _fit_flow(self, rest: np.ndarray, condition: Tensor, seed: int) -> None:
        names = ("learning_rate", "batch_size", "max_minutes", "device")
        settings: Settings = resolve(
            self._features.without(self.options),
            modality="vector",
            hidden=self.hidden,
            labelled=False,
            steps=self.steps,
            rows=len(rest),
            data_options=("whiten",),
            arguments={**{name: getattr(self, name) for name in names}, "coupling": "independent"},
        )
        adapter = ArrayAdapter(rest, settings.data)
        width = condition.shape[1]
        numbers = tuple(f"x{i}" for i in range(width))
        quantity = Quantity(numbers, (0.0,) * width, (1.0,) * width, (tuple(condition[0].tolist()),))
        fitted = fit_flow(
            adapter,
            settings,
            adapter.to_tensor(rest),
            {X_: condition},
            {X_: quantity},
            seed=seed,
            validation=self.validation_fraction if self.early_stopping else 0.0,
            patience=int(self.n_iter_no_change),
            verbose=self.verbose,
            folded=FOLDED,
        )
        self._fitted, self.n_iter_ = fitted, fitted.step
        self.validation_curve_ = fitted.held_out_losses
        self._build_flows()
        if fitted.stop_reason.startswith("SIG"):
            signal.raise_signal(getattr(signal, fitted.stop_reason))

    def _build_flows(self) -> None:
        flows = self._fitted.flows(self.device)
        self.flow_ = flows[0]
        self._flows = [double_precision(flow) for flow in flows]

    def _generator(self) -> np.random.RandomState:
        return np.random.RandomState() if self.random_state is None else check_random_state(self.random_state)

    def _check_arguments(self) -> None:
        for name, bounds in {"draws": Count, "sample_steps": Steps, "density_steps": Steps}.items():
            check_whole(name, getattr(self, name), bounds)
        if self.location not in ("stack", None):
            raise UserError(f"location must be 'stack' or None, got {self.location!r}")
        if self.scoring not in get_args(Scoring):
            raise UserError(f"scoring must be 'r2', 'log-density' or 'crps', got {self.scoring!r}")
        if self.early_stopping not in (True, False, "auto"):
            raise UserError(f"early_stopping must be True, False or 'auto', got {self.early_stopping!r}")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"validation_fraction must lie in (0, 1), got {self.validation_fraction}; 0.15 is usual")

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """X as a data frame whose columns have names."""
        import pandas as pd

        if isinstance(X, pd.DataFrame):
            frame: Any = X
            validate_data(self, X=frame, reset=reset, skip_check_array=True)
            return X
        x: Any = validate_data(self, X=X, reset=reset, dtype=np.float64, ensure_all_finite=False)
        if np.isinf(x).any():
            raise UserError("X contains infinity; leave such rows out, or give NaN where a value is missing")
        names: Any = [f"x{i}" for i in range(x.shape[1])]
        return pd.DataFrame(x, columns=names)

    def _responses(self, y: Any, n: int) -> np.ndarray:
        """y as (n, k) float64, and the rounding of each column as ``step_``."""
        values = check_reals(y, n).astype(np.float64)
        if n < FEWEST:
            raise UserError(f"n_samples = {n} is too few to learn a law from; give {FEWEST} or more")
        if (values == values[0]).all(0).any():
            raise UserError("y has one value alone, so there is nothing to predict; leave that column out")
        self.n_outputs_ = values.shape[1]
        steps = np.array([_rounding(column) for column in values.T])
        if steps.any() and not self.dequantise:
            warn(
                f"y has {len(np.unique(values[:, steps.argmax()]))} distinct values in {n} rows: it is rounded, so "
                "its density has no bound and grows with training; dequantise=True gives it one"
            )
        self.step_ = steps if self.dequantise else np.zeros_like(steps)
        return values

    def _condition(self, x: np.ndarray, center: np.ndarray, *, fit: bool = False) -> Tensor:
        """What the flow is given of rows: features (n, d) and where the responses lie (n, k), standardised."""
        if fit:
            spread = center.std(0)
            self._center = center.mean(0), np.where(spread > 0, spread, 1.0)
        mean, std = self._center
        parts = [x] if self.location_ is None else [x, (center - mean) / std]
        return torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))

    def _given(self, X: Any) -> tuple[Tensor, np.ndarray]:
        """The condition (n, d) of rows and where the responses lie (n, k)."""
        check_is_fitted(self, "_fitted")
        x = self._features.encode(self._checked(X, reset=False))
        center = np.zeros((len(x), self.n_outputs_)) if self.location_ is None else self.location_.predict(x)
        return self._condition(x, center), center

    def _moved(self, z: Tensor, condition: Tensor, flow: Flow) -> np.ndarray:
        """Noise z (n, m, k) as responses less where they lie, given the condition (n, d), by a flow."""
        n, m, k = z.shape
        rows, flat = condition.repeat_interleave(m, 0), z.reshape(n * m, k)
        parts = [
            flow.decode(part, cond={X_: Encoded(given)}, steps=int(self.sample_steps), solver="rk4")
            for part, given in zip(flat.split(_BLOCK), rows.split(_BLOCK), strict=True)
        ]
        return torch.cat(parts).reshape(n, m, k).double().numpy()

    def _atoms(self, X: Any) -> np.ndarray:
        """Equally likely responses (n, m, k) of each row, the same noise for all."""
        condition, center = self._given(X)
        k = self.n_outputs_
        if k == 1:
            z = torch.from_numpy(_NODES)[None, :, None].expand(len(center), -1, -1)
        else:
            rng = CounterRng(stream_seed(self._fitted.seed, Stream.INITIAL_NOISE), 0, 1)
            z = rng.normal((1, int(self.draws), k), dtype=torch.float64).expand(len(center), -1, -1)
        parts = [self._moved(z, condition, flow) for flow in self._flows]
        if k == 1:
            parts = [PchipInterpolator(_NODES, part, axis=1)(_NORMAL) for part in parts]
        return self._rounded(np.concatenate(parts, 1) + center[:, None])

    def _rounded(self, y: np.ndarray) -> np.ndarray:
        return np.where(self.step_ > 0, np.round(y / np.where(self.step_ > 0, self.step_, 1)) * self.step_, y)

    def _as_y(self, values: np.ndarray) -> np.ndarray:
        """Values (..., k) shaped as y was."""
        return values[..., 0] if self._flat else values

    def predict(self, X: Any, statistic: Literal["mean", "median"] = "mean") -> np.ndarray:
        """The mean, or the median of each response, (n,) or (n, k) as y was."""
        if statistic not in ("mean", "median"):
            raise UserError(f"statistic must be 'mean' or 'median', got {statistic!r}")
        atoms = self._atoms(X)
        return self._as_y(atoms.mean(1) if statistic == "mean" else np.median(atoms, 1))

    def predict_quantiles(self, X: Any, quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> np.ndarray:
        """Quantiles of each response, (n, q) or (n, q, k)."""
        levels = np.asarray(quantiles, np.float64)
        if levels.ndim != 1 or not len(levels) or not ((levels > 0) & (levels < 1)).all():
            raise UserError(f"quantiles must be numbers in (0, 1), such as [0.05, 0.5, 0.95], got {quantiles!r}")
        found = np.quantile(self._atoms(X), levels, axis=1, method="hazen")
        return self._as_y(np.moveaxis(found, 0, 1))

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """The central interval of each response, lower and upper, (n, 2) or (n, 2, k).

        After :meth:`recalibrate` with this coverage it is widened or narrowed to hold as often as said.
        """
        if not 0 < coverage < 1:
            raise UserError(f"coverage must lie in (0, 1), got {coverage!r}; 0.9 is usual")
        found = self.predict_quantiles(X, [(1 - coverage) / 2, (1 + coverage) / 2])
        conformal = getattr(self, "conformal_", {}).get(float(coverage))
        return found if conformal is None else np.stack(conformal.adjust(found[:, 0], found[:, 1]), 1)

    def recalibrate(self, X: Any, y: Any, coverage: float = 0.9) -> FlowRegressor:
        """Make intervals of this coverage hold for rows that training did not see, whatever their law.

        By :class:`~advect.metrics.ConformalIntervals`, for each response; ``conformal_`` keeps them by coverage.
        Raises UserError if the rows are too few for the coverage.
        """
        kept = {level: own for level, own in getattr(self, "conformal_", {}).items() if level != float(coverage)}
        self.conformal_: dict[float, ConformalIntervals] = kept
        found = self.predict_interval(X, coverage)
        given = self._as_y(check_reals(y, len(found), self.n_outputs_))
        own = ConformalIntervals(float(coverage)).fit(found[:, 0], found[:, 1], given)
        self.conformal_ = {**kept, float(coverage): own}
        return self

    def sample(self, X: Any, n: int = 1) -> np.ndarray:
        """n draws of each row, (rows, n) or (rows, n, k)."""
        check_whole("n", n, SampleCount)
        condition, center = self._given(X)
        rng = self._generator()
        z = torch.from_numpy(rng.normal(size=(len(center), int(n), self.n_outputs_)))
        which = torch.from_numpy(rng.randint(len(self._flows), size=(len(center), int(n))))
        found = np.zeros(z.shape)
        for i, flow in enumerate(self._flows):
            rows, places = (which == i).nonzero(as_tuple=True)
            if len(rows):
                found[rows, places] = self._moved(z[rows, places][:, None], condition[rows], flow)[:, 0]
        return self._as_y(self._rounded(found + center[:, None]))

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log density (n,) of y given X, in nats and units of y; of dequantised y, of their middles."""
        condition, center = self._given(X)
        rest = torch.from_numpy(check_reals(y, len(center), self.n_outputs_) - center)
        scores = []
        for flow in self._flows:
            pairs = zip(rest.split(_BLOCK), condition.split(_BLOCK), strict=True)
            options: dict[str, Any] = {"steps": int(self.density_steps), "solver": "rk4"}
            scores.append(torch.cat([flow.log_prob(a, cond={X_: Encoded(b)}, **options) for a, b in pairs]).double())
        return mixed_log_prob(scores).numpy()

    def crps(self, X: Any, y: Any) -> np.ndarray:
        """Continuous ranked probability score (n,) or (n, k) of y, in its units; less is better.

        Gneiting & Raftery 2007, eq. 21, E|Y - y| - E|Y - Y'| / 2 over the quantile grid, or the draws.
        """
        atoms = self._atoms(X)
        values, m = check_reals(y, len(atoms), self.n_outputs_), atoms.shape[1]
        found = crps(values, atoms)
        if self.n_outputs_ == 1:  # a grid of quantiles is no sample, whose spread the fair estimator corrects
            rank = (2 * np.arange(1, m + 1) - m - 1)[:, None] / m**2
            found = np.abs(atoms - values[:, None]).mean(1) - (np.sort(atoms, 1) * rank).sum(1)
        return self._as_y(found)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R^2 of the mean, or what ``scoring`` says, weighted by ``sample_weight`` (n,)."""
        if self.scoring == "r2":
            return float(r2_score(y, self.predict(X), sample_weight=sample_weight))
        each = self.log_prob(X, y) if self.scoring == "log-density" else -self.crps(X, y)
        return float(np.average(each.reshape(len(each), -1).mean(1), weights=sample_weight))

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()  # the flows may lie on a device that the reader has not
        return {name: value for name, value in state.items() if name not in ("flow_", "_flows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_fitted" in state:
            self._build_flows()

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class _Features:
    """Columns of a data frame as numbers (n, d) of about unit size: categories one-hot, missing values marked."""

    _OPTIONS = ("scaling", "categorical")

    def __init__(self, frame: Any, options: Mapping[str, Any] | None) -> None:
        own = {key: value for key, value in dict(options or {}).items() if key in self._OPTIONS}
        constant = [name for name in frame.columns if frame[name].nunique(dropna=False) <= 1]
        self._names = [name for name in frame.columns if name not in constant]
        self._adapter = FrameAdapter(frame[self._names], {"whiten": False, **own}) if self._names else None

    def without(self, options: Mapping[str, Any] | None) -> dict[str, Any]:
        """The options that are not of X."""
        return {key: value for key, value in dict(options or {}).items() if key not in self._OPTIONS}

    def encode(self, frame: Any) -> np.ndarray:
        """Rows as float64 (n, d); constant columns tell nothing, and have no part."""
        if self._adapter is None:
            return np.zeros((len(frame), 1))
        return self._adapter.transform.plain.forward(self._adapter.to_tensor(frame[self._names])).double().numpy()


def _rounding(y: np.ndarray) -> float:
    """The width of the grid on which y (n,) of few distinct values lies, or 0."""
    values = np.unique(y)
    if len(values) > max(20, len(y) // 10) or len(values) == len(y):
        return 0.0
    gaps = np.diff(values)
    step = gaps.min()
    return float(step) if np.allclose(gaps / step, np.round(gaps / step), atol=1e-3) else 0.0
